"""Bad input through the real command line and real HTTP: what is refused says why and leaves nothing behind."""
import gzip
import io
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Cli, awkward, ending, shop, start

from mlsys.data import list_snapshots, read
from mlsys.registry import Registry
from mlsys.schema import Schema

shared = Path(os.environ.get("MLSYS_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
table = shop()
csv = table.to_csv(index=False)
number = pd.Series(range(len(table)))


def files(folder: Path) -> dict[str, float]:
    """Everything below a folder, hidden or not, with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime for path in folder.rglob("*") if "__pycache__" not in path.parts}


def refused(cli: Cli, folder: Path, *words: object, says: str, code: int = 2) -> None:
    """A command that has to be refused with all these words, and changes nothing."""
    before = files(folder)
    answer = cli(*words, folder=folder)
    assert answer.code == code, answer
    for part in says.split("|"):
        assert part in answer.err, f"{part!r} is not in: {answer.err}"
    assert files(folder) == before


def written(folder: Path, content: Any, name: str = "t.csv") -> str:
    """A file with bytes, text or a table in it; nothing for None."""
    path = folder / name
    if isinstance(content, pd.DataFrame) and name.endswith(".parquet"):
        content.to_parquet(path)
    elif isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False)
    elif content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def zipped(*names: str, text: str = csv) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, text)
    return buffer.getvalue()


days = pd.Series(pd.date_range("2026-01-01", periods=12).repeat(40)[:len(table)])
tables = {
    "missing": (None, "No file t.csv"),
    "empty": (b"", "t.csv is empty"),
    "blank": ("\n \n", "t.csv is empty"),
    "header only": (csv.split("\n")[0] + "\n", "no rows"),
    "binary": (bytes(range(256)) * 20, "binary data|Bring CSV"),
    "binary late": (csv + "12,1,A\0,yes\n", "binary data|Bring CSV"),
    "pdf": ("%PDF-1.4\n1 0 obj\n", "binary data|Bring CSV"),
    "json by columns": (table.to_json(), "one JSON object that holds everything|lines=True"),
    "broken json": (table.to_json(orient="records", lines=True)[:-20], "not one JSON object in a line|lines=True"),
    "html": ("<!DOCTYPE html>\n<html><p>Not, found</p>\n</html>", "JSON or HTML|Bring CSV"),
    "zip of two": (zipped("a.csv", "b.csv"), "holds 2 files (a.csv, b.csv)|Unpack it"),
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "Excel|Save the sheet as CSV"),
    "xls": (b"\xd0\xcf\x11\xe0" + b"\0" * 500, "binary data|Bring CSV"),
    "cyrillic": (csv.replace("A", "Москва").replace("B", "Казань").encode("cp1251"), "is not UTF-8|Save it as UTF-8: iconv"),
    "damaged gzip": (gzip.compress(csv.encode())[:-20], "damaged gzip|Fetch it again"),
    "damaged parquet": (table.to_parquet()[:-30], "Parquet but cannot be read"),
    "duplicate names": (csv.replace("income", "age", 1), "duplicate column names: 'age'|its own name"),
    "duplicate years": (csv.replace("age,income", "2020,2020", 1), "duplicate column names: '2020'"),
    "no header": (csv.split("\n", 1)[1], "No column 'bought' for --target|column_1, column_2"),
    "half a header": (csv.replace("age", "17", 1), "looks like data in some columns|Add a line with a name"),
    "a longer line": (csv + "1,2,A,yes,more\n", "Expected 4 fields in line 402, saw 5|Mend that line"),
    "longer lines": (csv.replace("yes", "yes,more").replace("no", "no,more"), "more cells than the 4 column names"),
    "open quote": (csv.replace("A", '"A', 1), "inside string|Mend that line"),
    "one row": (table.head(1), "'bought' is constant|Choose another --target"),
    "few rows": (table.head(19), "Only 19 rows|at least 20"),
    "constant target": (table.assign(bought="yes"), "'bought' is constant ('yes' in every row)|Choose another --target"),
    "no target values": (table.assign(bought=""), "'bought' is empty|Choose another --target"),
    "rare target": (table.assign(bought=["yes"] + ["no"] * 399), "Only 1 rows have the target 'bought' = 'yes'|at least 10"),
    "target of texts": (table.assign(bought="L" + number.astype(str)), "400 different texts|Choose another --target"),
    "target alone": (table[["bought"]], "No column is left for the model"),
}


@pytest.mark.parametrize("name", tables)
def test_a_table_that_cannot_be_learned_is_refused(cli, tmp_path, name):
    content, says = tables[name]
    refused(cli, tmp_path, "new", "shop", "--data", written(tmp_path, content), "--target", "bought", says=says)


@pytest.mark.parametrize("data, says", [
    (".", "is a folder"), ("sqlite:///none.db", "No file none.db"), ("https://example.org/t.csv", "Bring a file's path"),
    ("simulate://payments?rows=many", "write simulate://payments?rows=50000"),
])
def test_a_source_that_is_no_file_is_refused(cli, tmp_path, data, says):
    refused(cli, tmp_path, "new", "shop", "--data", data, "--target", "bought", says=says)


@pytest.mark.parametrize("name, says", [
    ("my shop", "'my shop' cannot be|Try 'my_shop'"), ("class", "Try 'project_class'"), ("größe", "Try 'gr_e'"),
    ("json", "would hide|Try 'json_model'"), ("taken", "taken exists already|Choose another name"),
])
def test_a_name_that_cannot_be_is_refused(cli, tmp_path, name, says):
    (tmp_path / "taken").mkdir()
    refused(cli, tmp_path, "new", name, "--data", written(tmp_path, csv), "--target", "bought", says=says)


@pytest.mark.parametrize("options, says", [
    ("--target bougt", "No column 'bougt' for --target|Did you mean 'bought'?"),
    ("--target bought --time agee", "No column 'agee' for --time|Did you mean 'age'?"),
    ("--target bought --id nr", "No column 'nr' for --id|age, income, city"),
    ("--target bought --drop citi", "No column 'citi' for --drop|Did you mean 'city'?"),
    ("--target bought --id bought", "--id bought is the target|leave --id out"),
    ("--target bought --time age --drop age", "--drop age would drop the column of --time"),
    ("--target bought --positive ja", "never 'ja'; it is no, yes"),
    ("--target bought --time city", "'city' holds|Write its dates as YYYY-MM-DD"),
    ("--target bought --time day", "'day' is ambiguous|Write its dates as YYYY-MM-DD"),
    ("--target bought --dir t.csv", "t.csv|Check the path"),
])
def test_options_that_do_not_fit_the_table_are_refused(cli, tmp_path, options, says):
    data = written(tmp_path, table.assign(day=days.dt.strftime("%d/%m/%Y")))
    refused(cli, tmp_path, "new", "shop", "--data", data, *options.split(), says=says, code=1 if "--dir" in options else 2)


odd = {
    "latin-1": ("t.csv", csv.replace("A", "Köln").encode("latin-1")),
    "utf-16": ("t.csv", csv.replace("A", "Köln").encode("utf-16")),
    "old Mac lines": ("t.csv", csv.replace("A", "Köln").replace("\n", "\r")),
    "json": ("t.csv", table.replace({"A": "Köln"}).to_json(orient="records", indent=2).encode()),
    "json lines": ("t.json", table.replace({"A": "Köln"}).to_json(orient="records", lines=True).encode()),
    "zip": ("t.csv", zipped("any.csv", text=csv.replace("A", "Köln"))),
    "gzipped tabs": ("t.csv", gzip.compress(table.replace({"A": "Köln"}).to_csv(index=False, sep="\t").encode())),
    "index": ("t.parquet", table.replace({"A": "Köln"}).set_index("city")),
}


@pytest.mark.parametrize("name", odd)
def test_a_table_in_another_shape_keeps_its_values(cli, tmp_path, name):
    file, content = odd[name]
    made = cli("new", "shop", "--data", written(tmp_path, content, file), "--target", "bought", folder=tmp_path)
    assert made.code == 0, made.err
    rows = list_snapshots(tmp_path / "shop" / "var" / "snapshots")[0].load()
    assert rows["city"].tolist() == table["city"].replace({"A": "Köln"}).tolist()
    assert rows["income"].astype(float).tolist() == table["income"].tolist()


def test_a_parquet_file_of_all_types_is_read(cli, tmp_path):
    content = table.assign(
        bought=(table.bought == "yes").astype(int), mixed=[b"a", b"b"] * 200, big=10**18 + number * 7,
        lists=[[1, k % 3] for k in number], maybe=(table.age > 40).astype("boolean").where(table.age > 20), nothing=np.nan,
        whole=table.age.astype("Int64").where(table.age > 30), when=pd.date_range("2026", periods=len(table), tz="Europe/Berlin"))
    words = ("--data", written(tmp_path, content, "t.parquet"), "--target", "bought", "--time", "when")
    made = cli("new", "shop", *words, folder=tmp_path)
    assert made.code == 0 and "positive '1'" in made.out, made.err
    schema = Schema.from_json((tmp_path / "shop" / "nbs" / "schema.json").read_text())
    kinds = {column.name: column.kind for column in schema.columns}
    assert kinds["big"] == "id" and kinds["maybe"] == "boolean" and kinds["nothing"] == "constant" and kinds["when"] == "datetime"
    assert [c.name for c in schema.inputs] == ["age", "income", "city", "mixed", "lists", "maybe", "whole", "when"]
    again = cli("new", "tens", "--data", "t.parquet", "--target", "maybe", folder=tmp_path)
    assert again.code == 0 and "positive 'True'" in again.out, again.err


def test_the_awkward_table_kept_its_values(project):
    rows = list_snapshots(project.var / "snapshots")[0].load()
    wanted = awkward().rename(columns={"": "column_3"})
    assert rows.columns.tolist() == wanted.columns.tolist()
    for column in ("wide", "note", "Straße [Nr.] (x) <b>"):
        assert rows[column].tolist() == wanted[column].tolist()
    for column in ("index", "class", "column_3", "1st", "возраст"):
        assert rows[column].astype(float).tolist() == wanted[column].tolist()
    schema = Schema.from_json(project.schema_path.read_text(encoding="utf-8"))
    assert schema.column("wide").kind == "id" and schema.column("nothing").kind == "constant"
    assert schema.column("limit").kind == "number" and set(schema.column("limit").missing) == {"inf", "-inf"}


@pytest.mark.parametrize("words, says", [
    ("retrian", "No command 'retrian'|Did you mean 'retrain'?"),
    ("retrain -p trails=5", "no parameter 'trails'|Did you mean 'trials'?"),
    ("retrain -p trials=five", "trials='five' is no int"),
    ("retrain -p trials", "-p takes NAME=VALUE, not 'trials'"),
    ("run retrian", "No notebook 'retrian'|Did you mean 'retrain'?"),
    ("serve --port 99999", "99999"),
    ("feedback none.csv", "No file none.csv"),
])
def test_wrong_words_are_refused(cli, project, words, says):
    refused(cli, project.root, *words.split(), says=says)


def test_promoting_a_version_that_is_not_there(cli, project):
    before = Registry(project).ledger()
    answer = cli("promote", "v99", folder=project.root)
    assert answer.code in (1, 2) and "v99" in answer.err and "v1" in answer.err
    assert Registry(project).ledger() == before


def test_outside_of_a_project(cli, tmp_path):
    for command in ("retrain", "models"):
        refused(cli, tmp_path, command, says="No mlsys project in|mlsys new")


def test_serving_without_a_model_and_on_a_port_in_use(cli, project, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(cli, project.root, "serve", "--port", port, says=f"Port {port}|choose another one", code=1)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nproject = nothing\n")
    answer = cli("serve", folder=tmp_path)
    assert answer.code == 1 and "no model" in answer.err and "mlsys retrain" in answer.err


def test_a_retraining_on_a_wrong_file_changes_no_model(cli, project):
    registry = Registry(project)
    before = registry.versions(), registry.ledger()
    answer = cli("retrain", "--data", "none.csv", folder=project.root)
    assert answer.code == 2 and "No file" in answer.err and "none.csv" in answer.err
    assert (registry.versions(), registry.ledger()) == before


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_new_leaves_nothing(cli, tmp_path, kind):
    big = pd.concat([table] * 50, ignore_index=True)
    words = ("new", "shop", "--data", written(tmp_path, big), "--target", "bought")
    before, process = files(tmp_path), start(*words, folder=tmp_path)
    while not list(tmp_path.glob(".shop.*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(kind)
    answer = ending(process)
    assert answer.code == 130 and "can be run again" in answer.err and files(tmp_path) == before
    assert cli(*words, folder=tmp_path).code == 0


@pytest.mark.stress
def test_a_killed_retraining_leaves_the_champion_and_two_at_once_take_turns(project):
    registry = Registry(project)
    champion, runs = registry.champion().version, project.var / "runs"
    known = len(list(runs.iterdir()))
    process = start("retrain", "-p", "trials=0", folder=project.root)
    while len(list(runs.glob("*/retrain.ipynb"))) == known:
        time.sleep(0.05)
    time.sleep(2)
    process.kill()
    process.communicate()
    assert registry.champion().version == champion
    before = len(registry.versions())
    first, second = (start("retrain", "-p", "trials=0", "--no-promote", folder=project.root) for _ in range(2))
    answers = [ending(first), ending(second)]
    assert [answer.code for answer in answers] == [0, 0], answers
    assert sum("Another retraining is running" in answer.err for answer in answers) == 1
    assert len(registry.versions()) == before + 2 and registry.champion().version == champion
    assert not [path for path in (project.var / "registry").iterdir() if path.name.startswith(".") and path.is_dir()]


@pytest.mark.stress
def test_ten_thousand_levels_go_through(cli, tmp_path):
    big = pd.concat([table] * 55, ignore_index=True)
    codes = [f"L{k * 7919 % 10_000}" for k in range(len(big))]
    data = written(tmp_path, big.assign(code=codes, age=big.age + np.random.default_rng(1).integers(0, 9, len(big))))
    assert cli("new", "shop", "--data", data, "--target", "bought", folder=tmp_path).code == 0
    answer = cli("retrain", "-p", "trials=0", folder=tmp_path / "shop")
    assert answer.code == 0, answer.out + answer.err
    schema = Schema.from_json((tmp_path / "shop" / "nbs" / "schema.json").read_text())
    assert len(schema.column("code").categories) == 10_000


def post(url: str, body: Any) -> tuple[int, str]:
    """The status and the text of an answer to POST /predict."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/predict", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="session")
def row(service: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{service}/schema", timeout=60) as answer:
        return json.loads(answer.read())["examples"][0]


city = "Straße [Nr.] (x) <b>"
bad_rows = {
    "unknown field": (lambda row: {"rows": [{**row, "clas": 1}]}, 400, "'clas'|unknown field"),
    "missing field": (lambda row: {"rows": [{k: v for k, v in row.items() if k != "class"}]}, 400, "'class'|missing|null"),
    "wrong type": (lambda row: {"rows": [{**row, "class": "much"}]}, 400, "'class'|'much' is not a number"),
    "a number for a text": (lambda row: {"rows": [{**row, city: 7}]}, 400, "not text"),
    "NaN": (lambda row: {"rows": [{**row, "class": float("nan")}]}, 400, "'class'|not a finite number|null"),
    "infinite": (lambda row: {"rows": [{**row, "class": float("-inf")}]}, 400, "not a finite number"),
    "too large": (lambda row: {"rows": [{**row, "class": 10**400}]}, 400, "too large"),
    "1 MB": (lambda row: {"rows": [{**row, city: "x" * 2**20}]}, 400, "1,048,576 characters|at most"),
    "a list in a cell": (lambda row: {"rows": [{**row, city: ["A"]}]}, 400, "not a single value"),
    "second row": (lambda row: {"rows": [row, {**row, "1st": True}]}, 400, "'row': 1|'1st'"),
    "no rows": (lambda row: {"rows": []}, 400, "send at least one row"),
    "no list": (lambda row: {"rows": row}, 400, "rows is a list"),
    "no object": (lambda row: {"rows": ["row"]}, 400, "a row is an object"),
    "100,000 rows": (lambda row: {"rows": [row] * 100_000}, 413, ""),
    "100,001 empty rows": (lambda row: {"rows": [{}] * 100_001}, 413, "at most 10,000|in parts"),
    "broken JSON": (lambda row: b'{"rows": [{"class": 1', 400, "JSON"),
    "no JSON": (lambda row: b"hello", 400, "JSON"),
    "no text": (lambda row: b"\xff\xfe\x00", 400, "JSON"),
    "empty body": (lambda row: b"", 400, ""),
}


@pytest.mark.parametrize("name", bad_rows)
def test_a_bad_request_is_refused_and_the_next_is_answered(service, row, name):
    make, status, says = bad_rows[name]
    got, text = post(service, make(row))
    assert got == status and "Traceback" not in text, text[:1000]
    told = json.loads(text)["errors"]
    assert told and all(set(one) == {"row", "field", "problem"} for one in told)
    for part in says.split("|"):
        assert part in str(told), told
    good, answer = post(service, {"rows": [row], "explain": True})
    assert good == 200 and json.loads(answer)["predictions"][0]["decision"] in ("yes", "no")


def test_a_service_takes_missing_and_unseen_values_with_a_warning(service, row):
    status, text = post(service, {"rows": [{**row, city: "Paris", "class": None, "index": 1e9, "wide": "ignored"}]})
    assert status == 200, text
    warned = {warning["field"] for warning in json.loads(text)["predictions"][0]["warnings"]}
    assert {city, "class", "index"} <= warned


raw = {
    "adult_no_header_space_after_comma.csv": "column_1 to column_15",
    "adult_test_label_trailing_dot.csv": "column_1 to column_15",
    "drybean_semicolon_decimal_comma.csv": "decimal commas in 14 columns",
    "fraud_bom.csv": "",
    "imdb_semicolon_non_utf8.csv": "read as cp1252",
}


@pytest.mark.skipif(not (shared / "raw").is_dir(), reason="the shared tables are not here")
@pytest.mark.parametrize("name", raw)
def test_awkward_originals_are_read(cli, tmp_path, name):
    path = shared / "raw" / name
    answer = cli("new", "original", "--data", path, "--target", "nothing", folder=tmp_path)
    assert answer.code == 2 and not list(tmp_path.iterdir())
    df = read(path)
    assert len(df) >= 100 and df.shape[1] > 10 and not df.columns[0].startswith("\ufeff")
    assert raw[name] in " ".join(df.attrs["notes"])
    assert "No column 'nothing' for --target" in answer.err and str(df.columns[0]) in answer.err
