"""`mlsys score` on real files: alike with the service, resumed after kill -9, refused where it must be."""
import json
import os
import signal
import time

import conftest
import pandas as pd
import pytest

from mlsys.prediction_log import PredictionLog
from mlsys.registry import Registry
from mlsys.serving import Runtime
from mlsys.sources import read_batches

ROWS = 120_000


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """More rows than two parts hold, one of them broken."""
    rows = conftest.awkward(4_000)
    rows["возраст"] = rows["возраст"].astype(object)
    rows.loc[5, "возраст"] = "old"
    whole = pd.concat([rows, *[conftest.awkward(4_000)] * (ROWS // 4_000 - 1)], ignore_index=True)
    path = tmp_path_factory.mktemp("batch") / "rows.csv"
    whole.drop(columns="Bought? [y/n]").to_csv(path, index=False)
    return path


def score(cli, project, table, out, *options):
    return cli("score", table, "-o", out, *options, folder=project.root)


@pytest.fixture(scope="module")
def scores(cli, project, table):
    out = table.parent / "scores.parquet"
    answer = score(cli, project, table, out, "--no-log", "--workers", "2", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert (told["rows"], told["scored"], told["report"]["bad_rows"]) == (ROWS, ROWS - 1, 1)
    return pd.read_parquet(out)


def test_a_file_is_scored_as_the_service_would(project, table, scores):
    assert 5 not in set(scores["row"])
    schema = Registry(project).champion().schema
    rows = next(read_batches(table, rows=40)).drop(index=5)
    answered = Runtime(project).predict(schema.json_rows(schema.repair(rows)))["predictions"]
    some = scores.head(39)
    assert some["row"].tolist() == rows.index.tolist()
    assert some["score"].tolist() == pytest.approx([one["score"] for one in answered], abs=1e-12)
    assert some["decision"].tolist() == [one["decision"] for one in answered]
    assert set(scores["model"]) == {Registry(project).champion().version}


@pytest.mark.stress
def test_killed_with_9_it_goes_on_and_logs_nothing_twice(cli, project, table, scores):
    log = PredictionLog(project.database_url)
    before = len(log.predictions())
    out = table.parent / "killed.csv.gz"
    parts = table.parent / ".killed.csv.gz.parts"
    process = conftest.start("score", table, "-o", out, "--workers", "1", folder=project.root)
    deadline = time.monotonic() + 120
    while not list(parts.glob("[0-9]*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists() and list(parts.glob("[0-9]*.json"))
    answer = score(cli, project, table, out, "--workers", "1", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told["resumed"] >= 50_000 and told["scored"] == ROWS - 1
    after = pd.read_csv(out)
    assert after["score"].tolist() == scores["score"].tolist()
    assert not parts.exists() and sorted(path.name for path in table.parent.glob(".*")) == []
    logged = log.predictions()
    assert len(logged) - before == ROWS - 1 and {one["id"] for one in logged} >= set(after["prediction"])


@pytest.mark.stress
def test_what_cannot_be_scored_is_refused(cli, project, table, scores, tmp_path):
    taken = table.parent / "scores.parquet"
    typo = tmp_path / "typo.csv"
    pd.read_csv(table, nrows=5).rename(columns={"1st": "first"}).to_csv(typo, index=False)
    empty = tmp_path / "empty.csv"
    empty.write_text(table.read_text().splitlines()[0] + "\n")
    for source, out, options, said in [
        (table, taken, [], "--overwrite"), (table, tmp_path / "x.xlsx", [], "no known ending"),
        (table, table, [], "another name"),
        (tmp_path / "none.csv", tmp_path / "x.csv", [], "none.csv"), (typo, tmp_path / "x.csv", [], "'1st' is missing"),
        (empty, tmp_path / "x.csv", [], "no rows"), (table, tmp_path / "x.csv", ["--version", "v99"], "v99"),
    ]:
        answer = score(cli, project, source, out, *options)
        assert answer.code == 2 and said in answer.err, (answer, said)
        assert not (tmp_path / "x.csv").exists()


def test_too_many_bad_rows_write_no_file(cli, project, table, tmp_path):
    wrong = tmp_path / "wrong.csv"
    pd.read_csv(table, nrows=50).rename(columns={"Unnamed: 2": ""}).assign(**{"возраст": "old"}).to_csv(wrong, index=False)
    answer = score(cli, project, wrong, tmp_path / "x.csv")
    assert answer.code == 1 and "no file was written" in answer.err and not (tmp_path / "x.csv").exists()
    answer = score(cli, project, wrong, tmp_path / "x.csv", "--max-bad-rows", "1")
    assert answer.code == 0 and "Scored 0 of 50 rows" in answer.out
