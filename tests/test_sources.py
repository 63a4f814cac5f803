"""Every format gives the same cells, at once and in batches, in bounded memory, and nothing that is read is changed."""
import bz2
import contextlib
import datetime as dt
import gzip
import hashlib
import io
import json
import lzma
import os
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlsys.core import UsageError
from mlsys.sources import count_rows, hide_password, read, read_batches

shared = Path(os.environ.get("MLSYS_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
rows = 25_000

big = 10**18 + 7 * np.arange(rows)
known = np.arange(rows) % 3 > 0
table = pd.DataFrame({
    "id": pd.array(np.where(known, big, 0), dtype="Int64"), "zip": [f"{n:05}" for n in range(rows)], "n": np.arange(rows),
    "price": np.where(known, np.arange(rows) / 4, np.nan), "late": pd.Series([None] * (rows - 1) + ["x"], dtype="str"),
})
table.loc[~known, "id"] = pd.NA


def csv_text() -> str:
    return table.to_csv(index=False)


def json_text() -> str:
    return table.to_json(orient="records", lines=True)


def zipped(name: str, text: str) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return buffer.getvalue()


def parquet(path: Path, df: pd.DataFrame = table, **how: Any) -> None:
    df.to_parquet(path, index=False, row_group_size=7_000, **how)


def folder_of(write: Callable[[Path, pd.DataFrame], Any]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for number, start in enumerate(range(0, rows, 9_000)):
            write(path / f"part-{number}", table.iloc[start:start + 9_000])
        (path / "_SUCCESS").touch()
    return make


def sqlite(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        table.to_sql("orders", connection, index=False)


def duck(path: Path) -> None:
    with contextlib.closing(duckdb.connect(str(path))) as connection:
        source = table    # noqa: F841 found by DuckDB by its name
        connection.execute("CREATE TABLE orders AS SELECT * FROM source")


texts = {
    "csv": lambda path: path.write_text(csv_text()),
    "tabs": lambda path: path.write_text(table.to_csv(index=False, sep="\t")),
    "semicolons and decimal commas": lambda path: path.write_text(table.to_csv(index=False, sep=";", decimal=",")),
    "latin": lambda path: path.write_bytes((csv_text() + "1,2,3,4,Köln\n").replace("1,2,3,4,Köln\n", "").encode("cp1252")),
    "utf-16": lambda path: path.write_text(csv_text(), encoding="utf-16"),
    "gzip": lambda path: path.write_bytes(gzip.compress(csv_text().encode())),
    "zip": lambda path: path.write_bytes(zipped("a/t.csv", csv_text())),
    "zstandard": lambda path: path.write_bytes(zstandard.compress(csv_text().encode())),
    "bzip2": lambda path: path.write_bytes(bz2.compress(csv_text().encode())),
    "xz": lambda path: path.write_bytes(lzma.compress(csv_text().encode())),
    "folder of csv": folder_of(lambda path, df: df.to_csv(path, index=False)),
}
typed = {
    "parquet": parquet,
    "parquet without statistics": lambda path: parquet(path, write_statistics=False),
    "parquet in gzip": lambda path: (parquet(path), path.write_bytes(gzip.compress(path.read_bytes()))),
    "folder of parquet": folder_of(lambda path, df: parquet(path, df)),
    "json lines": lambda path: path.write_text(json_text()),
    "json array": lambda path: path.write_text(table.to_json(orient="records")),
    "json lines in zstandard": lambda path: path.write_bytes(zstandard.compress(json_text().encode())),
    "folder of json": folder_of(lambda path, df: df.to_json(path, orient="records", lines=True)),
    "sqlite": sqlite,
    "sqlite in gzip": lambda path: (sqlite(path), path.write_bytes(gzip.compress(path.read_bytes()))),
    "duckdb": duck,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A source of each format, made once; its name says nothing of what it is."""
    folder = tmp_path_factory.mktemp("sources")

    def get(name: str) -> Path:
        path = folder / name.replace(" ", "_")
        if not path.exists():
            {**texts, **typed}[name](path)
        return path
    return get


@pytest.fixture(autouse=True)
def several_parts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Every format comes in more than one part, also from a small table."""
    if "needs" not in request.node.name:
        monkeypatch.setattr("mlsys.formats._part_rows", lambda size: 6_000)


# One table, in every format

@pytest.mark.parametrize("name", texts)
def test_text_stays_text(written, name):
    wanted = pd.read_csv(io.StringIO(csv_text()), dtype=str, na_filter=False)
    pd.testing.assert_frame_equal(read(written(name)), wanted)


@pytest.mark.parametrize("name", typed)
def test_types_and_long_ids_survive(written, name):
    pd.testing.assert_frame_equal(read(written(name)), table)


@pytest.mark.parametrize("name", [*texts, *typed])
def test_batches_are_the_table(written, name):
    whole, batches = read(written(name)), list(read_batches(written(name), rows=4_000))
    assert [len(batch) for batch in batches] == [4_000] * 6 + [1_000]
    assert all(batch.dtypes.equals(whole.dtypes) and batch.attrs == whole.attrs for batch in batches)
    assert all(batch.index.equals(pd.RangeIndex(len(batch))) for batch in batches)
    pd.testing.assert_frame_equal(pd.concat(batches, ignore_index=True), whole)


@pytest.mark.parametrize("scheme", ["sqlite:///", "duckdb:///", "file://", "memory://"])
def test_urls(written, scheme):
    path = written({"sqlite:///": "sqlite", "duckdb:///": "duckdb"}.get(scheme, "parquet"))
    if scheme == "memory://":
        with fsspec.open("memory://here/t", "wb") as far:
            far.write(path.read_bytes())
        path = Path("here/t")
    pd.testing.assert_frame_equal(read(f"{scheme}{path}"), table)
    pd.testing.assert_frame_equal(pd.concat(read_batches(f"{scheme}{path}", rows=9_999), ignore_index=True), table)


def test_a_folder_at_an_address(written):
    fsspec.filesystem("memory").put(str(written("folder of csv")) + "/", "memory://far/parts/", recursive=True)
    pd.testing.assert_frame_equal(read("memory://far/parts"), read(written("folder of csv")))


@pytest.mark.parametrize("name", ["sqlite", "duckdb"])
def test_a_query_selects(written, name):
    query = "WITH late AS (SELECT * FROM orders WHERE n >= 24990) SELECT id, n * 2 AS twice FROM late ORDER BY n;"
    wanted = table.loc[table.n >= 24_990, ["id"]].assign(twice=table.n * 2).reset_index(drop=True)
    pd.testing.assert_frame_equal(read(written(name), query), wanted)
    pd.testing.assert_frame_equal(pd.concat(read_batches(written(name), query, rows=3), ignore_index=True), wanted)
    pd.testing.assert_frame_equal(read(written(name), "orders"), table)


def test_rows_are_counted_where_the_format_knows(written):
    for name in ("parquet", "folder of parquet", "sqlite", "duckdb"):
        assert count_rows(written(name)) == rows
    assert count_rows(f"sqlite:///{written('sqlite')}", "orders") == rows
    for name in ("csv", "json lines", "parquet in gzip", "folder of csv"):
        assert count_rows(written(name)) is None
    assert count_rows(written("sqlite"), "SELECT 1 AS one") is None and count_rows("memory://any") is None
    with pytest.raises(UsageError, match="No file"):
        count_rows(written("csv").parent / "none")


# Nothing is changed

harmful = ["DELETE FROM orders", "DROP TABLE orders", "UPDATE orders SET n = 0", "SELECT 1; DELETE FROM orders", "VACUUM",
           "INSERT INTO orders SELECT * FROM orders", "CREATE TABLE more AS SELECT 1", "PRAGMA journal_mode=WAL",
           "ATTACH 'x' AS y",
           "/* SELECT */ DELETE FROM orders", "WITH o AS (SELECT 1) DELETE FROM orders", "(DELETE FROM orders)", "BEGIN",
           "COPY orders TO 'out.csv'", "EXPLAIN ANALYZE DELETE FROM orders", "SELECT 1 INTO more", "'SELECT' DELETE FROM orders"]


@pytest.mark.parametrize("name", ["sqlite", "duckdb"])
@pytest.mark.parametrize("query", harmful)
def test_a_query_changes_nothing(written, tmp_path, monkeypatch, name, query):
    monkeypatch.chdir(tmp_path)
    path = written(name)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UsageError, match="A query only reads|has no table|Cannot read"):
        read(path, query)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sqlite", "duckdb"])
def test_the_files_themselves_are_read_only(written, monkeypatch, name):
    """Also a query that would get past the look at it finds a database that cannot be written."""
    path = written(name)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr("mlsys.sources._selection", lambda query, tables, place: query)
    with pytest.raises(UsageError, match="(?i)read.?only"):
        read(path, "DELETE FROM orders")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert not [other for other in path.parent.iterdir() if other.name.startswith(path.name + ".") or other.name.endswith("-wal")]


def test_a_server_gets_nothing_but_a_select(written, monkeypatch):
    from mlsys import sources
    asked = []
    url = f"sqlite:///{written('sqlite')}"
    with contextlib.ExitStack() as stack:
        server = sources._open_server(url, "SELECT id, n FROM orders WHERE late = '100%:x' OR n % 2 = 0", stack)
        assert server.survey(keep=True)["id"] == {"wide", "missing"} and sum(len(part["n"]) for part in server.parts()) == 12_500
    with contextlib.ExitStack() as stack, pytest.raises(UsageError, match="A query only reads"):
        asked += [sources._open_server(url, "DELETE FROM orders", stack)]
    with contextlib.ExitStack() as stack, pytest.raises(UsageError, match="Did you mean 'orders'"):
        sources._open_server(url, "order", stack)
    assert not asked


# Types that databases and Parquet have, and JSON leaves open

def both(path: Path, query: str | None = None) -> pd.DataFrame:
    """What `read` gives, after a look that single rows give the same."""
    whole = read(path, query)
    pd.testing.assert_frame_equal(pd.concat(read_batches(path, query, rows=1), ignore_index=True), whole)
    return whole


def test_every_type_of_duckdb_arrives(tmp_path):
    with contextlib.closing(duckdb.connect(str(tmp_path / "t"))) as connection:
        connection.execute("""CREATE TABLE t AS SELECT i::TINYINT AS tiny, i::UBIGINT AS huge, (2**40)::HUGEINT * i AS whole,
            (i / 4)::DECIMAL(10, 2) AS money, i = 1 AS yes, 'é' AS word, ['a', 'b'] AS list, {'k': i} AS struct,
            MAP {'k': i} AS map,
            DATE '9999-12-31' AS day, TIMESTAMP '2026-01-01 10:00:00.123456' AS at, TIMESTAMPTZ '2026-01-01 10:00:00+02' AS there,
            TIME '10:00:00' AS clock, INTERVAL 1 DAY AS span, 'S'::ENUM ('S', 'M') AS size, '\\xFF'::BLOB AS raw, NULL AS nothing,
            '5f9c1b1e-0000-4000-8000-000000000000'::UUID AS uuid, 1.5::FLOAT AS small FROM range(3) r(i)""")
        connection.execute("CREATE VIEW v AS SELECT tiny FROM t; CREATE SCHEMA s; CREATE TABLE s.x AS SELECT 7 AS a")
    df = both(tmp_path / "t", "t")
    assert df.dtypes.astype(str).to_dict() == {
        "tiny": "int64", "huge": "int64", "whole": "int64", "money": "float64", "yes": "bool", "word": "str", "list": "str",
        "struct": "str", "map": "str", "day": "datetime64[us]", "at": "datetime64[us]", "there": "datetime64[us, UTC]",
        "clock": "str",
        "span": "str", "size": "str", "raw": "str", "nothing": "str", "uuid": "str", "small": "float64"}
    row = df.iloc[1]
    assert row[["whole", "money", "list", "struct", "day", "clock", "raw"]].tolist() == [
        2**40, 0.25, '["a", "b"]', '{"k": 1}', pd.Timestamp("9999-12-31"), "10:00:00", "ff"]
    assert row["there"] == pd.Timestamp("2026-01-01 08:00", tz="UTC")
    assert row["uuid"].startswith("5f9c1b1e-") and pd.isna(row["nothing"])
    assert read(tmp_path / "t", "v").shape == (3, 1) and read(tmp_path / "t", "s.x")["a"].tolist() == [7]
    with pytest.raises(UsageError, match="has 3 tables"):
        read(tmp_path / "t")


def test_every_type_of_parquet_arrives(tmp_path):
    at = dt.datetime(2026, 1, 1, 10)
    pq.write_table(pa.table({
        "nano": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
        "berlin": pa.array([at, None], pa.timestamp("ms", "Europe/Berlin")), "seconds": pa.array([at, None], pa.timestamp("s")),
        "span": pa.array([dt.timedelta(minutes=1), None]), "clock": pa.array([dt.time(1, 2), None]),
        "snowflake": pa.array([Decimal(10**18 + 7), None], pa.decimal128(38, 0)),
        "beyond": pa.array([Decimal(10**30), None], pa.decimal128(38, 0)), "money": pa.array([Decimal("1.50"), None]),
        "spark": pa.array([b"caf\xc3\xa9", None]), "raw": pa.array([b"\xff\x00", b"ok"]),
        "code": pa.array(["a", None]).dictionary_encode(), "ubig": pa.array([2**64 - 1, 1], pa.uint64()),
        "maybe": pa.array([True, None]), "nothing": pa.nulls(2), "half": pa.array([1.5, None], pa.float32()),
        "pairs": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        "a.b": pa.array([1, None], pa.int8()),
    }), tmp_path / "t")
    df = both(tmp_path / "t")
    assert df.iloc[0].map(str).to_dict() == {
        "nano": "2023-11-14 22:13:20.123456789", "berlin": "2026-01-01 11:00:00+01:00", "seconds": "2026-01-01 10:00:00",
        "span": "60.0", "clock": "01:02:00", "snowflake": str(10**18 + 7), "beyond": str(10**30), "money": "1.5",
        "spark": "café", "raw": "ff00",
        "code": "a", "ubig": str(2**64 - 1), "maybe": "True", "nothing": "nan", "half": "1.5", "pairs": '[["a", 1]]', "a.b": "1"}
    assert df.dtypes[["nano", "berlin", "snowflake", "maybe", "a.b", "nothing"]].astype(str).tolist() == [
        "datetime64[ns]", "datetime64[us, Europe/Berlin]", "Int64", "boolean", "Int64", "str"]
    assert df.drop(columns=["raw", "ubig"]).iloc[1].isna().all()
    notes = "\n".join(df.attrs["notes"])
    for told in ("'raw' holds bytes that are no text", "'spark' holds bytes: read as UTF-8", "'pairs' holds lists",
                 "'span' holds durations", "'beyond' holds whole numbers of more than 64 bits", "'money' holds decimals"):
        assert told in notes


def test_json_values_keep_what_they_are(tmp_path):
    lines = [{"id": 10**18 + 7, "n": 1, "mix": 1, "wide": 10**18 + 1, "huge": 10**30, "x": float("nan"), "late": None},
             {"id": None, "n": 2.5, "mix": "a", "wide": 0.5, "huge": 1, "x": 3, "deep": {"a": [1, {"b": None}]}, "flag": True},
             {"id": 5, "n": 3, "mix": True, "wide": None, "huge": None, "x": 4, "flag": False, "s": "\ud800", "late": "x"}]
    (tmp_path / "t").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    df = both(tmp_path / "t")
    assert df.dtypes.astype(str).to_dict() == {"id": "Int64", "n": "float64", "mix": "str", "wide": "str", "huge": "str",
                                               "x": "Int64", "late": "str", "deep": "str", "flag": "boolean", "s": "str"}
    assert df["id"].tolist()[0] == 10**18 + 7 and df["wide"].tolist()[:2] == [str(10**18 + 1), "0.5"]
    assert df["mix"].tolist() == ["1", "a", "true"] and df["deep"].tolist()[1] == '{"a": [1, {"b": null}]}'
    notes = "\n".join(df.attrs["notes"])
    assert "'mix' mixes" in notes and "'deep' holds lists" in notes


def test_sqlite_lets_every_value_have_its_type(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "t")) as connection:
        connection.execute('CREATE TABLE "a ""b""" (id INTEGER, mixed, at TIMESTAMP, raw BLOB, late REAL, old TEXT)')
        connection.executemany('INSERT INTO "a ""b""" VALUES (?, ?, ?, ?, ?, CAST(? AS TEXT))', [
            (10**18 + 7, 1, "2026-01-01 10:00:00", b"\xff", None, b"K\xf6ln"), (None, "b", None, None, None, "x"),
            (3, None, None, b"a", 1.5, None)])
        connection.commit()
    df = both(tmp_path / "t")
    assert df.dtypes.astype(str).tolist() == ["Int64", "str", "str", "str", "float64", "str"]
    assert df.iloc[0, :4].tolist() == [10**18 + 7, "1", "2026-01-01 10:00:00", "ff"] and df["old"][0] == "Köln"
    with pytest.raises(UsageError, match="duplicate column names: 'id'"):
        read(tmp_path / "t", 'SELECT id, id FROM "a ""b"""')
    with pytest.raises(UsageError, match="no rows"):
        read(tmp_path / "t", 'SELECT id FROM "a ""b""" WHERE id < 0')


cell = st.one_of(st.none(), st.integers(-2**70, 2**70), st.floats(), st.booleans(), st.text(max_size=5),
                 st.lists(st.integers(), max_size=2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=6))
def test_whatever_json_holds_batches_agree(tmp_path, values):
    lines = [json.dumps({"a": a, "b": b, "c": "x"}) for a, b in values]
    (tmp_path / "t").write_text("\n".join(lines))
    whole = both(tmp_path / "t")
    for column, given_values in zip("ab", zip(*values, strict=True), strict=True):
        for before, after in zip(given_values, whole[column], strict=True):
            if before is None or before != before:
                assert pd.isna(after)
            elif isinstance(before, int) and not isinstance(before, bool):
                assert int(after) == before or (whole[column].dtype == "float64" and abs(before) <= 2**53)


# What differs or is damaged is named

def test_a_folder_of_parts(tmp_path):
    (tmp_path / "b.csv").write_text("y,x\n1,2\n")
    (tmp_path / "a.csv").write_text("x;y\n3;4\n")
    (tmp_path / ".hidden").write_text("?")
    assert read(tmp_path).to_dict("list") == {"x": ["3", "2"], "y": ["4", "1"]}
    assert read(tmp_path).attrs["notes"] == ["a.csv: cells are separated by ';'"]
    (tmp_path / "c.csv").write_text("x,z\n1,2\n")
    for wrong in (read, lambda path: list(read_batches(path))):
        with pytest.raises(UsageError, match="c.csv has other columns than a.csv: it lacks 'y' and adds 'z'"):
            wrong(tmp_path)
    (tmp_path / "c.csv").unlink()
    with pytest.raises(UsageError, match="takes no query"):
        read(tmp_path, "SELECT 1")
    (tmp_path / "more").mkdir()
    with pytest.raises(UsageError, match="folders in it \\(more\\)"):
        read(tmp_path)
    with pytest.raises(UsageError, match="no files"):
        read(tmp_path / "more")


def test_parts_with_and_without_gaps_are_one_type(tmp_path):
    pd.DataFrame({"n": [1, 2], "w": [10**18 + 1, 2]}).to_parquet(tmp_path / "a")
    pd.DataFrame({"n": [1.5, None], "w": pd.array([None, 2], dtype="Int64")}).to_parquet(tmp_path / "b")
    df = both(tmp_path)
    assert df.dtypes.astype(str).tolist() == ["float64", "Int64"] and df["w"][0] == 10**18 + 1
    pd.DataFrame({"n": [1, 2], "w": [1.5, None]}).to_parquet(tmp_path / "b")
    with pytest.raises(UsageError, match="'w' does not fit into float64"):
        read(tmp_path)


def test_ids_that_were_floating_point_before_are_told(tmp_path):
    pd.DataFrame({"id": [1234567890123456789.0, None], "x": [0.5, 1e20]}).to_parquet(tmp_path / "t")
    assert ["'id'" in note for note in read(tmp_path / "t").attrs["notes"]] == [True]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bz2.compress, lzma.compress,
                                  lambda raw: zipped("t", raw.decode())])
def test_a_packed_file_that_is_cut_off_is_refused(tmp_path, pack):
    whole = pack(("a,b\n" + "".join(f"{n},{n * n % 9973}\n" for n in range(20_000))).encode())
    for share in (0.5, 0.9, 0.999):
        (tmp_path / "t").write_bytes(whole[:int(len(whole) * share)])
        for one in (read, lambda path: list(read_batches(path))):
            with pytest.raises(UsageError, match="t is a damaged .* file: .*Fetch it again"):
                one(tmp_path / "t")


def test_other_files_are_refused_in_words(tmp_path):
    path = tmp_path / "t"
    import tarfile
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.csv"))
    with pytest.raises(UsageError, match="is a tar archive"):
        read(path)
    path.write_bytes(b"SQLite format 3\0" + b"\0" * 100)
    with pytest.raises(UsageError, match="Cannot read t"):
        read(path)
    path.write_bytes(b"\0" * 8 + b"DUCK" + b"\0" * 100)
    with pytest.raises(UsageError, match="Cannot read t"):
        read(path)


@pytest.mark.parametrize("url, says", [
    ("s3://bucket/t.csv", "s3fs"), ("https://127.0.0.1:1/t.csv", "Cannot connect"), ("memory://none/t.csv", "Check the address"),
    ("postgresql://jo:s3cret@127.0.0.1:1/db", "Cannot read postgresql://\\*\\*\\*@127.0.0.1:1/db"),
    ("oddity://jo:s3cret@host/db", "Cannot read oddity://\\*\\*\\*@host/db"),
    ("https://jo:s3cret@127.0.0.1:1/t.csv?token=s3cret", "Cannot read"),
    ("sqlite://", "No file"), ("duckdb:///none.db", "No file none.db"), ("file:///none/t.csv", "No file /none/t.csv"),
])
def test_an_address_that_does_not_answer_is_told_without_secrets(url, says):
    began = time.monotonic()
    with pytest.raises(UsageError, match=says) as told:
        read(url)
    assert "s3cret" not in str(told.value) and time.monotonic() - began < 30
    assert "s3cret" not in hide_password(url)


def test_a_page_on_the_network_is_read(tmp_path):
    import http.server
    import threading

    (tmp_path / "t.csv").write_text("a,b\n007,1\n")
    handler = lambda *words: http.server.SimpleHTTPRequestHandler(*words, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert read(f"{url}/t.csv").to_dict("list") == {"a": ["007"], "b": ["1"]}
        with pytest.raises(UsageError, match="none.csv.*Check the address"):
            read(f"{url}/none.csv")
        server.shutdown()


# Text files as people leave them

def test_a_header_is_told_from_data(tmp_path):
    path = tmp_path / "t.csv"
    for text, columns in {
        "5.1,3.5,setosa\n4.9,3.0,virginica\n": ["column_1", "column_2", "column_3"],
        "p,x,s\ne,x,s\np,b,s\ne,x,y\n": ["column_1", "column_2", "column_3"],
        "2026-01-01,a\n2026-01-02,b\n": ["column_1", "column_2"],
        "|1x3 Cross validator\n25, Private, <=50K.\n38, Private, >50K.\n": ["column_1", "column_2", "column_3"],
        ",0,1,2\n0,1.5,2.5,3\n1,1,1,1\n": ["column_1", "0", "1", "2"],
        "sample,400,402,404,406,408\n1,.5,.6,.7,.8,.9\n": ["sample", "400", "402", "404", "406", "408"],
        "name,city\nJo,Bonn\nAnn,Ulm\n": ["name", "city"],
        "id,2020,2021\n1,5,6\n": ["id", "2020", "2021"],
    }.items():
        path.write_text(text)
        df = read(path)
        assert df.columns.tolist() == columns, text
        assert len(df) == sum("," in line for line in text.splitlines()) - (columns[1] != "column_2")
        assert any("no header" in note for note in df.attrs["notes"]) == (columns[1] == "column_2")


def test_long_ids_and_ambiguous_dates_in_text_are_not_touched(tmp_path):
    (tmp_path / "t").write_text("id;zip;day;n\n1234567890123456789;01067;01/02/2026;1.000\n;00007;13/02/2026;2,5\n")
    df = read(tmp_path / "t")
    assert df.to_dict("list") == {"id": ["1234567890123456789", ""], "zip": ["01067", "00007"],
                                  "day": ["01/02/2026", "13/02/2026"], "n": ["1000", "2.5"]}


def test_a_comma_that_may_be_either_stays(tmp_path):
    (tmp_path / "t").write_text("city;people\nBonn;336,465\nUlm;129,942\n")
    df = read(tmp_path / "t")
    assert df["people"].tolist() == ["336,465", "129,942"] and "'people': a comma may stand for" in " ".join(df.attrs["notes"])


raw = {
    "adult_no_header_space_after_comma.csv": ((1000, 15), "column_15", "<=50K"),
    "adult_test_label_trailing_dot.csv": ((1000, 15), "column_15", "<=50K."),
    "drybean_semicolon_decimal_comma.csv": ((1000, 18), "Perimeter", "610.291"),
    "fraud_bom.csv": ((500, 33), "Month", "Dec"),
    "imdb_semicolon_non_utf8.csv": ((101, 12), "Votes", "2.278.845"),
}


@pytest.mark.skipif(not (shared / "raw").is_dir(), reason="the shared tables are not here")
@pytest.mark.parametrize("name", raw)
def test_awkward_originals(name):
    shape, column, first = raw[name]
    df = read(shared / "raw" / name)
    assert df.shape == shape and df[column].iloc[0] == first
    assert set(df.dtypes.astype(str)) == {"str"}
    pd.testing.assert_frame_equal(pd.concat(read_batches(shared / "raw" / name, rows=300), ignore_index=True), df)


@pytest.mark.skipif(not shared.is_dir(), reason="the shared tables are not here")
@pytest.mark.parametrize("path", sorted(shared.glob("*.csv.gz")), ids=lambda path: path.name)
def test_shared_tables_are_read_without_surprise(path):
    df = read(path)
    wanted = pd.read_csv(path, dtype=str, na_filter=False)
    assert df.attrs["notes"] == [] and df.columns.tolist() == [column.strip() for column in wanted]
    assert df.map(str.strip).to_numpy().tolist() == wanted.map(str.strip).to_numpy().tolist()


# Larger than memory

program = r"""
import re, sys
from mlsys.sources import read, read_batches
def peak(): return int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]) // 1024
sum(len(batch) for batch in read_batches(sys.argv[2])); before = peak()
rows = sum(len(batch) for batch in (read_batches(sys.argv[1], rows=5_000) if sys.argv[3] == "batches" else [read(sys.argv[1])]))
print(rows, peak() - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """200 MB of text in each format; the Parquet file is a single row group."""
    folder = tmp_path_factory.mktemp("wide")
    long = pd.DataFrame({"n": np.arange(100_000), "text": [f"{n:07}" * 286 for n in range(100_000)]})

    def get(name: str) -> Path:
        path = folder / name.replace(" ", "_")
        if name == "folder of csv":
            path.mkdir()
            for number in range(10):
                long.iloc[number * 10_000:][:10_000].to_csv(path / str(number), index=False)
        elif name == "sqlite":
            with contextlib.closing(sqlite3.connect(path)) as connection:
                long.to_sql("t", connection, index=False)
        elif name == "json lines":
            long.to_json(path, orient="records", lines=True)
        elif name == "parquet":
            long.to_parquet(path, index=False, row_group_size=len(long), compression="none", use_dictionary=False)
        else:
            pack = zstandard.compress if name == "zstandard" else bytes
            path.write_bytes(pack(long.to_csv(index=False).encode()))
        return path
    return get


def grown(path: Path, how: str) -> int:
    """MB that reading this needs beyond a small table, in a process of its own."""
    small = path.parent / "small.csv"
    small.write_text("a,b\n1,2\n")
    done = subprocess.run([sys.executable, "-c", program, path, small, how], capture_output=True, text=True, check=True)
    count, more = map(int, done.stdout.split())
    assert count == 100_000
    return more


@pytest.mark.parametrize("name", ["csv", "zstandard", "folder of csv", "json lines", "parquet", "sqlite"])
def test_batches_need_little_memory(wide, name):
    assert grown(wide(name), "batches") < 160


def test_duckdb_keeps_its_own_memory_small(written, tmp_path):
    df = read(written("duckdb"), "SELECT current_setting('memory_limit') AS memory, current_setting('temp_directory') AS spill")
    assert df["memory"][0] == "488.2 MiB" and not Path(df["spill"][0]).exists()
    assert not [path for path in written("duckdb").parent.iterdir() if ".tmp" in path.name or ".wal" in path.name]


def test_the_whole_table_needs_its_memory(wide):
    """So the test above would fail if batches held everything."""
    assert grown(wide("csv"), "whole") > 200
