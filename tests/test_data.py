"""Snapshots across processes, crashes and the command line."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Cli, environment, shop
from hypothesis import given, settings
from hypothesis import strategies as some

from mlsys import data
from mlsys.changes import diff, plot_diff
from mlsys.core import MlsysError, Project, UsageError
from mlsys.data import Snapshot, append, find_snapshot, freeze, list_snapshots, survey, take_snapshot
from mlsys.scope import Scope

shared = Path(os.environ.get("MLSYS_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
table = shop()


def python(code: str, *words: object, **options: Any) -> subprocess.Popen[str]:
    """A process of its own."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def written(folder: Path) -> dict[str, bytes]:
    """Every file of the snapshots, but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# One name for one content

cells = {
    "whole": some.integers(-2**62, 2**62), "number": some.floats(allow_nan=True) | some.integers(-99, 99).map(float),
    "flag": some.booleans(), "text": some.text(max_size=5), "maybe": some.none() | some.text(max_size=3),
    "mixed": some.none() | some.integers(0, 9) | some.text(max_size=2), "nothing": some.none(),
    "day": some.none() | some.datetimes(min_value=pd.Timestamp(1900, 1, 1), max_value=pd.Timestamp(2200, 1, 1)).map(pd.Timestamp),
}


@settings(max_examples=25, deadline=None)
@given(some.data())
def test_a_name_depends_on_the_rows_alone(data):
    tmp_path = Path(tempfile.mkdtemp())
    rows = data.draw(some.lists(some.fixed_dictionaries(cells), min_size=1, max_size=12))
    df = pd.DataFrame({name: [row[name] for row in rows] for name in cells})
    df["day"] = pd.to_datetime(df["day"]).astype("datetime64[us]")
    cuts = sorted(data.draw(some.lists(some.integers(0, len(df)), max_size=3)))
    pieces = [df[i:j] for i, j in zip([0, *cuts], [*cuts, len(df)], strict=True) if i < j]
    whole, parts = freeze(df, tmp_path / "whole"), freeze(iter(pieces), tmp_path / "parts")
    grown = freeze(pieces[0], tmp_path / "grown")
    for piece in pieces[1:]:
        grown = append(grown, piece)
    assert whole.name == parts.name == grown.name
    for one in (parts, grown):
        pd.testing.assert_frame_equal(one.load(), whole.load())
    pd.testing.assert_frame_equal(pd.concat(whole.batches(rows=5), ignore_index=True), whole.load())
    assert freeze(whole.load(), tmp_path / "again").name == whole.name
    shutil.rmtree(tmp_path)


@settings(max_examples=25, deadline=None)
@given(some.lists(some.fixed_dictionaries(cells), min_size=1, max_size=5), some.sampled_from(list(cells)), some.integers(0, 4),
       some.data())
def test_another_cell_gives_another_name(rows, column, row, data):
    row, tmp_path = row % len(rows), Path(tempfile.mkdtemp())
    other = data.draw(cells[column])
    before, after = (freeze(pd.DataFrame(table).astype({"day": "datetime64[us]"}), tmp_path)
                     for table in (rows, [*rows[:row], {**rows[row], column: other}, *rows[row + 1:]]))
    same = before.load().equals(after.load()) and before.manifest["columns"] == after.manifest["columns"]
    zeros = {str(one.load()[column].iloc[row]) for one in (before, after)} == {"0.0", "-0.0"}
    assert (before.name == after.name) == same or zeros
    shutil.rmtree(tmp_path)


def test_a_name_is_the_same_in_every_process(tmp_path):
    code = ("import sys, pathlib; sys.path.insert(0, 'tests'); from conftest import awkward; from mlsys.data import freeze\n"
            "print(freeze(awkward(), pathlib.Path(sys.argv[1])).name)")
    names = set()
    for seed in "12":
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], cwd=Path(__file__).parents[1], check=True,
                              capture_output=True, text=True, env=environment() | {"PYTHONHASHSEED": seed})
        names.add(done.stdout.strip())
    assert len(names) == 1


def test_types_that_differ_between_batches_meet(tmp_path):
    batches = [{"a": [1, 2], "b": [None, None], "c": ["x", "y"]}, {"a": [1.5, 2], "b": [3, 4], "c": ["z", None]},
               {"a": [7, 8], "b": [1, 2], "c": [5, 6]}]
    frames = [pd.DataFrame(batch) for batch in batches]
    rows = freeze(iter(frames), tmp_path)
    assert rows.manifest["columns"] == {"a": "float64", "b": "float64", "c": "str"}
    assert rows.load()["c"].tolist()[4:] == ["5", "6"] and rows.load()["b"].tolist()[2:] == [3, 4, 1, 2]
    with pytest.raises(UsageError, match="'b' is not in all parts"):
        freeze([frames[0], frames[1].drop(columns="b")], tmp_path)
    with pytest.raises(UsageError, match="no rows"):
        freeze(iter([]), tmp_path / "none")
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".freezing*"))


# Files on disk

def test_appended_rows_share_the_old_file(tmp_path):
    long = pd.DataFrame(np.random.default_rng(0).normal(size=(50_000, 4)), columns=list("abcd"))
    first = freeze(long, tmp_path)
    alone = sum(len(raw) for raw in written(tmp_path).values())
    second = append(first, long.head(100))
    assert second.manifest["parent"] == first.name
    assert [part["rows"] for part in second.manifest["parts"]] == [50_000, 100]
    assert (first.folder / "rows-0000.parquet").stat().st_ino == (second.folder / "rows-0000.parquet").stat().st_ino
    on_disk = {path.stat().st_ino: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert sum(on_disk.values()) < 1.02 * alone
    source_that_grew = pd.concat([long, long.head(100), long.tail(3)])
    assert freeze(source_that_grew, tmp_path).manifest["parent"] == second.name
    assert freeze(pd.concat([long.tail(3), long]), tmp_path).manifest["parent"] is None


def test_where_there_are_no_hard_links_files_are_copied(tmp_path, monkeypatch):
    first = freeze(table, tmp_path)
    monkeypatch.setattr(data.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    second = append(first, table)
    assert (first.folder / "rows-0000.parquet").stat().st_ino != (second.folder / "rows-0000.parquet").stat().st_ino
    assert len(second.load()) == 2 * len(table)


def test_rows_beyond_memory_are_written_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_memory", 1000)
    first = freeze((table[i:i + 50] for i in range(0, 400, 50)), tmp_path)
    assert first.load().equals(freeze(table, tmp_path / "whole").load())
    grown = freeze((pd.concat([table, table.head(9)])[i:i + 30] for i in range(0, 409, 30)), tmp_path)
    assert [part["rows"] for part in grown.manifest["parts"]] == [400, 9] and grown.verify()
    wide = freeze([table[:200], table[200:].assign(age=0.5)], tmp_path)
    assert wide.manifest["columns"]["age"] == "float64" and wide.load()["age"].tolist()[:200] == table["age"].tolist()[:200]


def edited(snapshot: Snapshot, change: Any) -> None:
    """A manifest after somebody has edited it."""
    manifest = json.loads((snapshot.folder / "manifest.json").read_text())
    change(manifest)
    (snapshot.folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("change", [
    lambda manifest: manifest.update(rows=3),
    lambda manifest: manifest["parts"].reverse(),
    lambda manifest: manifest["parts"][0].update(rows=1),
    lambda manifest: manifest["parts"].pop(),
    lambda manifest: manifest.update(source="elsewhere.csv"),
    lambda manifest: manifest["columns"].pop("city"),
    lambda manifest: manifest.update(name="0" * 16),
])
def test_an_edited_manifest_is_refused_and_healed(tmp_path, change):
    grown = append(freeze(table, tmp_path, "shop.csv"), table.head(7))
    edited(grown, change)
    with pytest.raises(MlsysError, match="altered on disk.*Freeze its source again"):
        Snapshot.open(grown.folder)
    with pytest.raises(MlsysError, match="altered on disk"):
        find_snapshot(tmp_path, grown.name[:5])
    assert grown.name in survey(tmp_path)[1] and grown.name not in [one.name for one in list_snapshots(tmp_path)]
    assert len(freeze(pd.concat([table, table.head(7)]), tmp_path).load()) == 407


def altered(part: Path) -> None:
    part.chmod(0o644)
    raw = bytearray(part.read_bytes())
    raw[len(raw) // 2] ^= 1
    part.write_bytes(raw)


def swapped(part: Path) -> None:
    other = part.with_name("rows-0001.parquet")
    part.rename(part.with_name("x"))
    other.rename(part)
    part.with_name("x").rename(other)


@pytest.mark.parametrize("harm", [altered, swapped, Path.unlink, lambda part: os.truncate(part, 10)])
def test_an_altered_file_is_refused_and_healed(tmp_path, harm):
    first = freeze(table, tmp_path, "shop.csv")
    grown = append(first, table.head(7))
    harm(grown.folder / "rows-0000.parquet")
    for reading in (grown.load, lambda: list(grown.batches()), lambda: append(grown, table)):
        with pytest.raises(MlsysError, match=r"altered on disk .*rows-000.*Freeze its source again \(shop.csv\)"):
            reading()
    again = freeze(pd.concat([table, table.head(7)]), tmp_path)
    assert again.name == grown.name and len(again.load()) == 407
    assert freeze(table, tmp_path).load().equals(table.astype({"city": "str", "bought": "str"}))


def test_a_snapshot_of_another_version_is_told(tmp_path):
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "manifest.json").write_text(json.dumps({"name": "abc", "rows": 3, "sha256": "x", "created": "2026"}))
    with pytest.raises(MlsysError, match="not written by this version of mlsys"):
        find_snapshot(tmp_path, "abc")
    (tmp_path / "abc" / "manifest.json").write_text("{half")
    with pytest.raises(MlsysError, match="not valid JSON"):
        find_snapshot(tmp_path, "abc")


# Processes

slow_freeze = """
import pathlib, sys, time, pandas as pd
from mlsys.data import freeze
def batches():
    for number in range(int(sys.argv[2])):
        yield pd.DataFrame({"a": range(number * 1000, number * 1000 + 1000)})
        print("batch", flush=True)
        time.sleep(float(sys.argv[3]))
print(freeze(batches(), pathlib.Path(sys.argv[1])).name)
"""


def test_a_killed_process_leaves_nothing_that_is_used(tmp_path):
    killed = python(slow_freeze, tmp_path, 50, 0.1)
    for _ in range(3):
        assert killed.stdout.readline() == "batch\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(tmp_path.glob(".freezing-*")) and survey(tmp_path) == ([], {})
    whole = freeze(pd.DataFrame({"a": range(50_000)}), tmp_path)
    assert not list(tmp_path.glob(".freezing-*")) and [one.name for one in list_snapshots(tmp_path)] == [whole.name]
    again = python(slow_freeze, tmp_path, 50, 0)
    assert again.communicate()[0].split()[-1] == whole.name


def test_two_processes_that_freeze_the_same_rows_agree(tmp_path):
    both = [python(slow_freeze, tmp_path, 20, 0.01) for _ in range(3)]
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], ends
    assert len({out.split()[-1] for out, _ in ends}) == 1 and len(list_snapshots(tmp_path)) == 1
    assert len(list_snapshots(tmp_path)[0].load()) == 20_000


def test_memory_stays_bounded(tmp_path):
    code = """
import pathlib, resource, sys, numpy as np, pandas as pd
from mlsys.data import freeze
rng = np.random.default_rng(0)
freeze(pd.DataFrame({"x": [1.0]}), pathlib.Path(sys.argv[1]) / "warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = freeze((pd.DataFrame(rng.integers(0, 99, (200_000, 10))) for _ in range(50)), pathlib.Path(sys.argv[1]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(made.manifest["rows"], (after - before) // 1024)
"""
    out, err = python(code, tmp_path).communicate(timeout=300)
    rows, megabytes = map(int, out.split())
    assert rows == 10_000_000 and megabytes < 500, err  # the rows are 800 MB


# Passwords and people

@pytest.mark.parametrize("source", [
    "postgresql://ada:hush@host/shop", "postgresql+psycopg://ada:hu/sh@x:hush@host:5432/shop?sslmode=on",
    "s3://key:hush@bucket/t.parquet", "https://hush@host/t.csv", "https://host/t.csv?token=hush",
    "az://box/t.csv?sig=hush&se=1", "mysql://host/shop?user=ada;password=hush", "mssql://?odbc_connect=PWD%3Dhush",
])
def test_no_password_reaches_the_disk(tmp_path, source):
    first = freeze(table, tmp_path, source)
    append(first, table, source)
    assert "***" in first.manifest["source"] and not any(b"hush" in raw for raw in written(tmp_path).values())


def people() -> pd.DataFrame:
    return table.assign(id=[f"v{i:04}" for i in range(400)], mail=[f"person{i}@example.org" for i in range(400)])


def test_personal_columns_never_reach_a_snapshot(tmp_path, monkeypatch):
    scope = Scope(name="shop", task="binary", target="bought", positive="yes", id="id", source="people.csv",
                  personal={"mail": "an address"})
    people().to_csv(tmp_path / "people.csv", index=False)
    monkeypatch.delenv("MLSYS_VAR", raising=False)
    project = Project(tmp_path, "shop", tmp_path / "nbs")
    first = take_snapshot(project, scope)
    assert first.manifest["left_out"] == ["mail"] and "mail" not in first.load()
    labels = pd.DataFrame({"id": ["v0001"], "label": ["yes"]})
    take_snapshot(project, scope, labels=labels)
    assert not any(b"example.org" in raw for raw in written(tmp_path / "var").values())
    kept = take_snapshot(project, scope.model_copy(update={"personal": {}}))
    assert any(b"example.org" in raw for raw in written(tmp_path / "var").values())  # the search finds what is there
    (tmp_path / "people.csv").unlink()
    late = take_snapshot(project, scope)
    assert late.name == first.name and kept.name != late.name


def test_what_was_appended_is_used_until_the_source_moves_on(tmp_path, monkeypatch, capsys):
    scope = Scope(name="shop", task="binary", target="bought", positive="yes", source="t.csv")
    table.to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.delenv("MLSYS_VAR", raising=False)
    project = Project(tmp_path, "shop", tmp_path / "nbs")
    first = take_snapshot(project, scope)
    grown = append(first, first.load().head(5), "today.csv")
    assert take_snapshot(project, scope).name == grown.name and "5 rows were appended" in capsys.readouterr().out
    assert take_snapshot(project, scope, "t.csv").name == first.name
    table.tail(300).to_csv(tmp_path / "t.csv", index=False)
    assert take_snapshot(project, scope).manifest["rows"] == 300


# What changed

def test_a_diff_tells_what_was_done_to_the_rows(tmp_path):
    before = freeze(people().assign(day=pd.date_range("2026-01-01", periods=400, freq="h")), tmp_path)
    moved = before.load().iloc[50:].assign(age=lambda df: df["age"] + 30, day=lambda df: df["day"] + pd.Timedelta(days=9))
    moved.loc[moved.index[:100], "income"] = None
    found = diff(before, freeze(moved, tmp_path), id="id", hidden=["mail"])
    assert [found.rows[name] for name in ("added", "removed", "in_both", "changed")] == [0, 50, 350, 350]
    by_name = {change.name: change for change in found.changes}
    assert [change.name for change in found.changes][:2] == ["day", "age"] and by_name["day"].kind == "date"
    assert by_name["income"].missing == (0.0, pytest.approx(100 / 350)) and by_name["income"].distance > 0.25
    assert by_name["city"].distance < 2 * by_name["city"].by_chance
    text, page = json.dumps(found.to_dict()), found._repr_html_()
    assert "example.org" not in text + page + str(found) and "<table>" in page and "day" in str(found)
    assert len(plot_diff(found).patches) == len(found.changes)
    by_cells = diff(before, freeze(before.load()[::-1], tmp_path))
    assert [by_cells.rows[name] for name in ("added", "removed", "in_both")] == [0, 0, 400]
    assert not any(change.distance for change in by_cells.changes)


def test_a_diff_of_levels_columns_and_types(tmp_path):
    before = freeze(table, tmp_path)
    other = table.assign(city=table["city"].replace("A", "<b>Z</b>"), age=table["age"].astype(str), colour="red")
    after = freeze(other.drop(columns="income"), tmp_path)
    found = diff(before, after)
    city = found.changes[0]
    count = int((table["city"] == "A").sum())
    assert city.name == "city" and city.new == {"<b>Z</b>": count} and city.gone == {"A": count}
    assert city.distance == pytest.approx(count / 400)
    assert found.added == {"colour": "str"} and found.removed == {"income": "float64"}
    assert found.types == {"age": ("int64", "str")}
    assert {change.name: change.distance for change in found.changes}["age"] == 0
    assert "<b>Z" not in found._repr_html_() and "new: <b>Z</b>" in str(found)


def test_quiet_samples_of_one_table_show_no_change_beyond_chance(tmp_path):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"id": [f"k{i}" for i in range(4000)], "few": rng.choice(list("abc"), 4000),
                          "many": rng.zipf(1.5, 4000).clip(max=10**6).astype(str), "number": rng.normal(size=4000)})
    excess = []
    for seed in range(8):
        mixed = frame.sample(frac=1, random_state=seed)
        halves = freeze(mixed[:2000], tmp_path), freeze(mixed[2000:], tmp_path)
        excess += [change.beyond_chance for change in diff(*halves).changes]
    assert max(excess) < 0.04 and abs(np.mean(excess)) < 0.01


@pytest.mark.skipif(not shared.is_dir(), reason="the shared tables are not here")
def test_the_second_year_of_bikes_differs_in_what_grew(tmp_path):
    rows = data.read(shared / "bike_sharing_hourly.csv.gz")
    first = rows["date"].str.startswith("2011")
    found = diff(freeze(rows[first], tmp_path, time="date"), freeze(rows[~first], tmp_path, time="date"))
    by_name = {change.name: change for change in found.changes}
    assert found.changes[0].name == "date" and by_name["date"].distance == 1
    assert {"cnt", "registered"} <= {change.name for change in found.changes[:4]}
    assert by_name["holiday"].beyond_chance < 0.01


# The command line

@pytest.fixture(scope="module")
def made(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project about people, trained."""
    folder = tmp_path_factory.mktemp("data")
    people().to_csv(folder / "people.csv", index=False)
    new = cli("new", "visits", "--data", "people.csv", "--target", "bought", "--id", "id", folder=folder)
    assert new.code == 0, new.err
    trained = cli("retrain", "-p", "trials=0", folder=folder / "visits")
    assert "Version   v1" in trained.out, trained
    return folder / "visits"


@pytest.mark.stress
def test_the_command_line_lists_appends_and_compares(cli, made):
    day = people().tail(30).assign(id=[f"v{i:04}" for i in range(390, 420)])
    day.iloc[:10] = people().iloc[390:].to_numpy()
    day.to_csv(made / "day.csv", index=False)
    day.rename(columns={"city": "town"}).to_csv(made / "town.csv", index=False)
    day.assign(city="Z").to_csv(made / "corrected.csv", index=False)
    first = json.loads(cli("data", "--json", folder=made).out)[0]
    assert first["versions"] == ["v1"] and first["rows"] == 400
    assert first["left_out"] == ["mail"] and "people.csv" in first["source"]
    nothing = cli("data", "diff", folder=made)
    assert nothing.code == 2 and "no snapshot before" in nothing.err
    done = json.loads(cli("data", "append", "day.csv", "--json", folder=made).out)
    assert (done["added"], done["left_out"], done["rows"]) == (20, 10, 420)
    again = cli("data", "append", "day.csv", folder=made)
    assert again.code == 0 and "Nothing to add" in again.out and "30 left out" in again.out
    refusals = {"town.csv": "lack the column 'city'", "corrected.csv": "Corrections cannot be appended", "none.csv": "No file"}
    for file, says in refusals.items():
        refused = cli("data", "append", file, folder=made)
        assert refused.code == 2 and says in refused.err
    listed = cli("data", folder=made)
    assert listed.code == 0 and "v1" in listed.out and "day.csv" in listed.out and "420" in listed.out
    told = cli("data", "diff", folder=made)
    assert told.code == 0 and "20 added, 0 removed, 400 in both (matched by 'id')" in told.out
    backwards = json.loads(cli("data", "diff", done["snapshot"][:6], first["name"][:6], "--json", folder=made).out)
    assert backwards["rows"] == {"by": "id", "added": 0, "removed": 20, "in_both": 400, "changed": 0}
    assert cli("data", "diff", done["snapshot"][:6], folder=made).out == told.out
    typo = cli("data", "diff", first["name"][:-1] + "x", folder=made)
    assert typo.code == 2 and f"Did you mean '{first['name']}'?" in typo.err
    assert cli("data", "dif", folder=made).code == 2 and cli("data", "diff", "a", "b", "c", folder=made).code == 2


def test_nothing_personal_in_what_a_project_made(made):
    holding = [path for path in made.parent.rglob("*") if path.is_file() and re.search(rb"person\d+@", path.read_bytes())]
    assert {path.suffix for path in holding} == {".csv"}  # what the user brought, and nothing of ours


def test_the_project_notebooks_run_without_the_personal_column(made):
    code = "from execnb.shell import CaptureShell; CaptureShell().execute('01_explore.ipynb', exc_stop=True)"
    paths = {"PYTHONPATH": f"{made}{os.pathsep}{environment()['PYTHONPATH']}", "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", code], cwd=made / "nbs", capture_output=True, text=True,
                          env=environment() | paths)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_damaged_snapshot_is_listed_with_its_remedy(cli, made):
    part = freeze(table.head(30), made / "var" / "snapshots", "t.csv")
    edited(part, lambda manifest: manifest.update(rows=31))
    listed = cli("data", folder=made)
    assert listed.code == 0 and f"{part.name} was altered on disk" in listed.out
    assert [one for one in json.loads(cli("data", "--json", folder=made).out) if "problem" in one][0]["name"] == part.name
    refused = cli("data", "diff", part.name, folder=made)
    assert refused.code == 1 and "Freeze its source again (t.csv)" in refused.err
