"""History: the past as training sees it is the past as the service sees it, through processes that race and die."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from conftest import Cli, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

import mlsys.history
from mlsys.core import MlsysError, Project, UsageError
from mlsys.history import (
    Event,
    HistorySet,
    HistoryStore,
    Past,
    _insert,
    digest,
    event_table,
    exact_sum,
    look_back,
    recall,
)
from mlsys.prediction_log import PredictionLog
from mlsys.registry import Registry
from mlsys.schema import Column, Schema
from mlsys.scope import Scope
from mlsys.serving import Runtime

SCOPE = Scope(name="visits", task="binary", target="bought", positive="yes", id="visit", time="at", entity="customer")
SCHEMA = Schema(columns=[
    Column(name="visit", kind="id", role="id"), Column(name="customer", kind="id", role="entity"),
    Column(name="at", kind="datetime", role="time"), Column(name="spent", kind="number", missing_share=.1),
    Column(name="shop", kind="category", missing_share=.1), Column(name="bought", kind="category", role="target"),
])


def figures(windows: tuple[str | None, ...] = ("1h", "1d", None)) -> HistorySet:
    """Every aggregate, over every window, with and without a condition, by one column and by two."""
    said = {"description": "as it says"}
    made = []
    for window in windows:
        for condition in ({}, {"shop": ["A", "B"]}):
            for aggregate, column in (("count", None), ("count", "spent"), ("sum", "spent"), ("mean", "spent"), ("min", "spent"),
                                      ("max", "spent"), ("nunique", "shop"), ("nunique", "spent"), ("last", "shop"),
                                      ("last", "spent"), ("since", None), ("since", "spent")):
                made.append(Past(f"f{len(made)}", aggregate, column, window, condition, **said))
        made.append(Past(f"f{len(made)}", "sum", "spent", window, by=["customer", "shop"], **said))
    return HistorySet(made).bind(SCHEMA, SCOPE)


def visits(rows: int, customers: int, seed: int, minutes: int = 3) -> pd.DataFrame:
    """Canonical rows in no order: ties, gaps, missing customers, amounts that do not add up in binary."""
    rng = np.random.default_rng(seed)
    at = pd.Timestamp("2026-03-01") + pd.to_timedelta(rng.integers(0, rows, rows) * minutes, "min")
    return pd.DataFrame({
        "visit": [f"V{i}" for i in rng.permutation(rows)],
        "customer": pd.Series(rng.choice([f"C{i}" for i in range(customers)], rows), dtype="str").mask(rng.random(rows) < .03),
        "at": pd.Series(at).astype("datetime64[us]").mask(rng.random(rows) < .02),
        "spent": pd.Series((rng.lognormal(2, 3, rows) * rng.choice([1, -1], rows)).round(2)).mask(rng.random(rows) < .1),
        "shop": pd.Series(rng.choice(list("ABCD"), rows), dtype="str").mask(rng.random(rows) < .1),
        "bought": pd.Series(rng.choice(["yes", "no"], rows), dtype="str"),
    })


def requests(df: pd.DataFrame) -> list[dict]:
    """The rows as clients send them."""
    named = df[["visit", "customer"]].astype(object).where(df[["visit", "customer"]].notna(), None).to_dict("records")
    return [inputs | names for inputs, names in zip(SCHEMA.json_rows(df), named, strict=True)]


def ask(history: HistorySet, rows: list[dict], store: HistoryStore | None):
    """What a service does before it predicts."""
    checked = SCHEMA.check_rows(rows)
    assert not checked.errors
    return recall(history, SCHEMA, rows, checked.clean, store)


def assert_same_bits(answers: list[dict], trained: pd.DataFrame) -> None:
    """Equal to the last bit, missing where missing."""
    got = pd.DataFrame(answers, columns=list(trained))
    assert len(got) == len(trained)
    for name in trained:
        expected, found = trained[name].reset_index(drop=True), got[name]
        if pd.api.types.is_numeric_dtype(expected):
            bits = [one.astype("float64").fillna(-7e77).to_numpy().view("int64") for one in (expected, found)]
            wrong = np.flatnonzero(bits[0] != bits[1])
            assert not len(wrong), f"{name}, row {wrong[0]}: training {expected[wrong[0]]!r}, service {found[wrong[0]]!r}"
        else:
            assert expected.fillna("-").tolist() == found.fillna("-").tolist(), name


# The definition

@pytest.mark.parametrize("seed", range(3))
def test_a_replay_event_by_event_gives_the_training_values_exactly(tmp_path, seed):
    df, history = visits(150, 6, seed).dropna(subset="at"), figures()
    store = HistoryStore(f"sqlite:///{tmp_path}/mlsys.db")
    store.backfill(history, SCHEMA, df.head(0))
    arriving = df.sort_values("at", kind="stable")
    answers = []
    for row in requests(arriving):
        recalled = ask(history, [row], store)
        store.record(recalled.events)
        answers.append(recalled.values[0])
    assert_same_bits(answers, history.join(df).loc[arriving.index, history.names])


finite = st.floats(allow_nan=False, allow_infinity=False)
amounts = st.one_of(st.none(), finite, st.sampled_from([0.1, 0.2, -0.0, 1e308, -1e308, 5e-324]))
shops = st.sampled_from(["A", "B", "Ö", None])
events = st.lists(st.tuples(st.integers(0, 3 * 3600), amounts, shops, st.sampled_from("XY")), max_size=25)


@settings(max_examples=60, deadline=None)
@given(events)
def test_the_table_and_the_row_never_disagree(drawn):
    history, start = figures(("1h", None)), pd.Timestamp("2026-03-01")
    df = pd.DataFrame({
        "visit": [f"V{i}" for i in range(len(drawn))], "customer": pd.Series([one[3] for one in drawn], dtype="str"),
        "at": pd.Series([start + pd.Timedelta(one[0], "s") for one in drawn], dtype="datetime64[us]"),
        "spent": pd.Series([one[1] for one in drawn], dtype="float64"), "shop": pd.Series([one[2] for one in drawn], dtype="str"),
    })
    if df.empty:
        return
    rows = requests(df.assign(bought="no"))
    every = [Event(int(start.value // 1000) + second * 10**6, "", row) for row, (second, *_) in zip(rows, drawn, strict=True)]
    def seen(event: Event, one: Past) -> object:
        mine = [event.values[name] for name in one.by]
        past = sorted((other for other in every if [other.values[name] for name in one.by] == mine), key=lambda other: other.at)
        return None if None in mine else look_back(one, past, event.at)
    assert_same_bits([{one.name: seen(event, one) for one in history.definitions} for event in every],
                     history.join(df)[history.names])


def test_what_comes_later_changes_nothing():
    df, history = visits(400, 10, 5), figures()
    now = df["at"].median()
    before = df["at"] <= now
    changed = df.assign(spent=df["spent"].mask(df["at"] >= now, 9e9), shop=df["shop"].mask(df["at"] >= now, "A"))
    pd.testing.assert_frame_equal(history.join(changed)[before][history.names], history.join(df)[before][history.names])
    alone = df[before]
    pd.testing.assert_frame_equal(history.join(alone)[history.names], history.join(df)[before][history.names])


def test_a_look_at_the_same_moment_would_be_noticed(tmp_path, monkeypatch):
    """The replay is a check that can fail: a training join that sees its own moment, or adds up in running floats, fails it."""
    df, history = visits(200, 5, 1).dropna(subset="at"), figures(("1d",))
    store = HistoryStore(f"sqlite:///{tmp_path}/mlsys.db")
    store.backfill(history, SCHEMA, df)
    answers = ask(history, requests(df), store).values
    assert_same_bits(answers, history.join(df)[history.names])
    honest = mlsys.history._positions

    def leaky(who, at, rows_who, rows_at, span):
        return honest(who, at, rows_who, rows_at + 1, span)

    def running(values, low, high):
        totals = np.concatenate([[0], values.cumsum()])
        return totals[high] - totals[low]

    for name, wrong in (("_positions", leaky), ("_exact_sums", running)):
        with monkeypatch.context() as patched, pytest.raises(AssertionError, match="training"):
            patched.setattr(mlsys.history, name, wrong)
            assert_same_bits(answers, history.join(df)[history.names])


@given(st.lists(finite), st.randoms())
def test_a_sum_does_not_depend_on_the_order(values, rng):
    shuffled = rng.sample(values, len(values))
    assert exact_sum(values) == exact_sum(shuffled)


def test_a_hundred_thousand_rows_take_seconds():
    df, history = visits(100_000, 5_000, 0), figures(("1d",))
    started = time.process_time()
    history.join(df)
    assert time.process_time() - started < 15  # 25 figures


def test_one_entity_with_all_the_rows_is_no_trap():
    df, history = visits(50_000, 1, 0), figures((None,))
    started = time.process_time()
    history.join(df)
    assert time.process_time() - started < 15


# The store

def test_late_repeated_and_simultaneous_events(tmp_path):
    df, history = visits(300, 8, 2).dropna(subset=["at", "customer"]), figures()
    store = HistoryStore(f"sqlite:///{tmp_path}/mlsys.db")
    store.backfill(history, SCHEMA, df.head(0))
    rows = requests(df)
    for part in (rows[200:], rows[100:250], rows[:150], rows):  # out of order, and again
        store.record(ask(history, part, store).events)
    trained = history.join(df)[history.names]
    assert_same_bits(ask(history, rows, store).values, trained)
    assert_same_bits([ask(history, [row], store).values[0] for row in rows[:40]], trained.head(40))


def test_a_second_delivery_says_nothing_new(tmp_path):
    df, history = visits(60, 3, 4).dropna(subset=["at", "customer"]), figures(("1d",))
    twice = pd.concat([df, df.assign(spent=1e6)], ignore_index=True)
    assert_same_bits(history.join(df)[history.names].to_dict("records"), history.join(twice)[history.names].head(len(df)))
    store = HistoryStore(f"sqlite:///{tmp_path}/mlsys.db")
    store.backfill(history, SCHEMA, twice)
    assert_same_bits(ask(history, requests(df), store).values, history.join(df)[history.names])


def test_a_retried_request_without_a_time_does_not_see_itself(tmp_path):
    history = HistorySet([Past("before", "count", description="Visits before")]).bind(SCHEMA, SCOPE)
    store = HistoryStore(f"sqlite:///{tmp_path}/mlsys.db")
    store.backfill(history, SCHEMA, visits(5, 1, 0).head(0))
    row = {"visit": "V1", "customer": "C1", "at": None, "spent": 3.0, "shop": "A"}
    for _ in range(3):
        recalled = ask(history, [row], store)
        store.record(recalled.events)
        assert recalled.values == [{"before": 0.0}]
    assert ask(history, [{**row, "visit": "V2"}], store).values == [{"before": 1.0}]
    assert ask(history, [{**row, "visit": 7, "customer": None}], store).values == [{"before": None}]


def test_the_table_corrects_the_store_and_old_events_can_be_forgotten(tmp_path):
    df, history = visits(80, 3, 6).dropna(subset=["at", "customer"]), figures(("1d",))
    store = HistoryStore(f"sqlite:///{tmp_path}/mlsys.db")
    store.record(ask(history, requests(df.assign(spent=-1.0)), store).events)
    assert store.backfill(history, SCHEMA, df) == store.backfill(history, SCHEMA, df)
    assert_same_bits(ask(history, requests(df), store).values, history.join(df)[history.names])
    assert store.forget(df["at"].max() + pd.Timedelta("1h")) and store.holds("customer")
    assert store.read("customer", [digest("C0")], None, 2**61) == {}


def test_a_store_that_was_never_filled_knows_nothing(tmp_path):
    history, df = figures(("1d",)), visits(30, 2, 0).dropna(subset=["at", "customer"])
    for store in (None, HistoryStore(f"sqlite:///{tmp_path}/mlsys.db")):
        recalled = ask(history, requests(df), store)
        assert {value for row in recalled.values for value in row.values()} == {None}
        assert all("no past is at hand" in row[0]["problem"] for row in recalled.warnings)


def test_every_statement_is_understood_by_postgresql():
    store = HistoryStore.__new__(HistoryStore)
    store.engine = SimpleNamespace(dialect=postgresql.dialect())
    for statement, ending in ((_insert(postgresql.dialect()).on_conflict_do_nothing(), "ON CONFLICT DO NOTHING"),
                              (store._upsert(), "history_events.owner IS DISTINCT FROM excluded.owner")):
        assert str(statement.compile(dialect=postgresql.dialect())).endswith(ending)
    assert "BIGINT" in str(sa.schema.CreateTable(event_table).compile(dialect=postgresql.dialect()))


def test_a_broken_database_says_so(tmp_path):
    (tmp_path / "mlsys.db").write_text("something else entirely, and long enough to be looked at" * 20)
    with pytest.raises(MlsysError, match="store of events .* could not be opened: file is not a database"):
        HistoryStore(f"sqlite:///{tmp_path}/mlsys.db")


WORKER = """
import json, sys
from mlsys.history import HistorySet, HistoryStore, recall
from mlsys.schema import Schema
store, history, schema = HistoryStore(sys.argv[1]), HistorySet.from_dict(json.loads(sys.argv[2])), Schema.from_json(sys.argv[3])
for line in sys.stdin:
    row = json.loads(line)
    recalled = recall(history, schema, [row], schema.check_rows([row]).clean, store)
    store.record(recalled.events)
    print(json.dumps([row["visit"], recalled.values[0]]), flush=True)
"""


def worker(url: str, history: HistorySet) -> subprocess.Popen[str]:
    """A process that answers rows on its standard input."""
    return subprocess.Popen([sys.executable, "-c", WORKER, url, json.dumps(history.to_dict()), SCHEMA.to_json()],
                            env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_processes_that_race_lose_no_event_and_count_none_twice(tmp_path):
    df, history = visits(120, 4, 7).dropna(subset=["at", "customer"]), figures(("1d",))
    url = f"sqlite:///{tmp_path}/mlsys.db"
    store = HistoryStore(url)
    store.backfill(history, SCHEMA, df.head(0))
    rows = requests(df)
    team = [worker(url, history) for _ in range(3)]
    for number, process in enumerate(team):  # every row goes to two of the three
        process.stdin.write("".join(json.dumps(row) + "\n" for i, row in enumerate(rows) if i % 3 != number))
        process.stdin.flush()
    for process in team:
        process.communicate(timeout=120)
        assert process.returncode == 0
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from history_events where stream = 'customer'").scalar() == len(df) + 1
    assert_same_bits(ask(history, rows, store).values, history.join(df)[history.names])


def test_a_replay_through_processes_that_are_killed_gives_the_training_values(tmp_path):
    df = visits(120, 4, 8).dropna(subset=["at"]).sort_values("at", kind="stable")
    history, rng = figures(("1d", None)), random.Random(0)
    url = f"sqlite:///{tmp_path}/mlsys.db"
    HistoryStore(url).backfill(history, SCHEMA, df.head(0))
    rows, answers, deaths = requests(df), {}, 0
    while len(answers) < len(rows):
        process, most = worker(url, history), rng.randint(15, 35)
        left = [row for row in rows if row["visit"] not in answers]
        for done, row in enumerate(left):
            process.stdin.write(json.dumps(row) + "\n")
            process.stdin.flush()
            if done == most:  # it is at work on this row: before, within or after its transaction
                time.sleep(rng.uniform(0, .004))
                os.kill(process.pid, signal.SIGKILL)
                deaths += 1
                break
            visit, values = json.loads(process.stdout.readline())
            answers[visit] = values
        process.communicate(timeout=60)
    assert deaths >= 3
    assert_same_bits([answers[row["visit"]] for row in rows], history.join(df)[history.names])


# The project

HISTORY = '''#| export
from mlsys.history import Past

history = HistorySet([
    Past("visits_last_week", "count", window="7d", description="Visits of this customer in the 7 days before"),
    Past("spent_last_week", "sum", "spent", "7d", description="What this customer spent in the 7 days before"),
    Past("last_shop", "last", "shop", description="Where this customer was last"),
])'''
FEATURE = '''#| export
@feature
def over_the_week(spent: pd.Series, spent_last_week: pd.Series) -> pd.Series:
    """What is spent now, beside the week before."""
    return spent - spent_last_week'''


def shop_visits() -> pd.DataFrame:
    """Customers who buy when they have come often, which no column of the row itself tells."""
    df = visits(1500, 40, 11, minutes=60).dropna(subset=["at", "customer"]).sort_values("at", ignore_index=True)
    df["spent"] = df["spent"].abs().clip(upper=500).round(2)
    often = HistorySet([Past("n", "count", window="7d", description="n")]).bind(SCHEMA, SCOPE).join(df)["n"]
    chance = 1 / (1 + np.exp(-(often - often.median())))
    return df.assign(bought=np.where(np.random.default_rng(0).random(len(df)) < chance, "yes", "no"))


def rewrite(notebook: Path, *changes: tuple[str, str]) -> None:
    """Replace the cell that holds a text."""
    nb = nbformat.read(notebook, as_version=4)
    for marker, source in changes:
        (cell,) = [cell for cell in nb.cells if cell.cell_type == "code" and marker in cell.source]
        cell.source = source
    nbformat.write(nb, notebook)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Project:
    """A project whose model looks at the past, trained and promoted by the commands that a person types."""
    folder = tmp_path_factory.mktemp("past")
    shop_visits().to_csv(folder / "visits.csv", index=False)
    roles = ["--target", "bought", "--positive", "yes", "--time", "at", "--id", "visit", "--entity", "customer"]
    made = cli("new", "visits", "--data", "visits.csv", *roles, folder=folder)
    assert made.code == 0, made.err
    features = folder / "visits" / "nbs" / "02_features.ipynb"
    rewrite(features, ("history = HistorySet()", HISTORY + "\n\n" + FEATURE.removeprefix("#| export\n")))
    for words in (["export"], ["retrain", "-p", "trials=0"]):
        done = cli(*words, folder=folder / "visits")
        assert done.code == 0, done.out + done.err
    return Project.find(folder / "visits")


def test_the_model_learned_from_the_past(project):
    version = Registry(project).champion()
    assert version.history.names == ["visits_last_week", "spent_last_week", "last_shop"]
    assert version.evaluation.primary.value > 0.7  # without the past there is nothing to learn from
    assert version.history.columns[0].high > 3
    assert "visits_last_week" in version.features.names and "over_the_week" in version.features.names


def test_the_service_answers_with_the_values_of_training(project):
    runtime = Runtime(project, PredictionLog(project.database_url))
    version, df = runtime.version, shop_visits()
    trained = version.history.join(version.schema.repair(df))[version.history.names]
    rows = json.loads(df.drop(columns="bought").tail(60).to_json(orient="records", date_format="iso"))
    answers = [runtime.predict([row], explain=True)["predictions"][0] for row in rows]
    logged = [runtime.log.prediction(one["id"])["row"] for one in answers]
    assert_same_bits([{name: row[name] for name in version.history.names} for row in logged], trained.tail(60))
    told = {entry["feature"]: entry["value"] for entry in answers[0]["explanation"]["contributions"]}
    assert told["visits_last_week"] == logged[0]["visits_last_week"]
    whole = runtime.predict(rows)["predictions"]
    assert [one["score"] for one in whole] == pytest.approx([one["score"] for one in answers], abs=1e-12)


def test_what_is_served_becomes_the_past(project):
    runtime = Runtime(project, PredictionLog(project.database_url))
    row = {"visit": "N1", "customer": "newcomer", "at": "2027-01-01T10:00:00", "spent": 0.1, "shop": "A"}
    def seen(**changes):
        (one,) = runtime.predict([row | changes])["predictions"]
        return runtime.log.prediction(one["id"])["row"], {warning["field"] for warning in one["warnings"]}
    assert seen()[0]["visits_last_week"] == 0
    assert seen()[0]["visits_last_week"] == 0  # the same visit, sent again
    later, _ = seen(visit="N2", at="2027-01-01T11:00:00", spent=0.2, shop="B")
    assert (later["visits_last_week"], later["spent_last_week"], later["last_shop"]) == (1, 0.1, "A")
    third, _ = seen(visit="N3", at="2027-01-01T12:00:00")
    assert (third["visits_last_week"], third["spent_last_week"], third["last_shop"]) == (2, 0.1 + 0.2, "B")
    nobody, warned = seen(visit="N4", customer=None)
    assert nobody["visits_last_week"] is None and "customer" in warned
    assert "visit" in seen(visit=None)[1]


def test_a_version_in_another_folder_says_that_it_knows_no_past(project, tmp_path, monkeypatch):
    version = Registry(project).champion()
    shutil.copytree(version.folder, tmp_path / "bundle")
    row = {"visit": "B1", "customer": "C1", "at": "2026-03-20T10:00:00", "spent": 1.0, "shop": "A"}
    for runtime in (Runtime(tmp_path / "bundle"), Runtime(tmp_path / "bundle", PredictionLog(f"sqlite:///{tmp_path}/new.db"))):
        (one,) = runtime.predict([row])["predictions"]
        assert any("no past is at hand" in warning["problem"] for warning in one["warnings"])
    monkeypatch.setenv("MLSYS_DATABASE_URL", project.database_url)
    (one,) = Runtime(tmp_path / "bundle").predict([row])["predictions"]
    assert not any("no past" in warning["problem"] for warning in one["warnings"])


def test_the_generated_tests_hold_with_a_past(project):
    command = [sys.executable, "-m", "pytest", "-q", "tests"]
    done = subprocess.run(command, cwd=project.root, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.stress
def test_an_old_version_keeps_its_own_past(project, cli):
    registry = Registry(project)
    old = registry.champion()
    rewrite(project.notebooks / "02_features.ipynb", ("history = HistorySet", '#| export\nfrom mlsys.history import Past\n\n'
            'history = HistorySet([Past("visits_last_week", "count", window="3d", description="Visits within three days")])'))
    for words in (["export"], ["retrain", "-p", "trials=0", "--no-promote"]):
        done = cli(*words, folder=project.root)
        assert done.code in (0, 1), done.out + done.err  # 1 where a gate prefers the champion
    again, new = registry.get(old.version), registry.get(registry.versions()[-1])
    assert again.history.to_dict() == old.history.to_dict()
    assert new.history.definitions[0].window == "3d" and old.history.definitions[0].window == "7d"
    row = {"visit": "X", "customer": "C1", "at": "2026-04-20T10:00:00", "spent": 1.0, "shop": "A"}
    seen = [recall(one.history, one.schema, [row], one.schema.check_rows([row]).clean, HistoryStore(project.database_url))
            .values[0]["visits_last_week"] for one in (again, new)]
    assert seen[0] > seen[1]


def test_a_table_without_an_id_is_told_why_not():
    with pytest.raises(UsageError, match="count once. Set `id`"):
        HistorySet([Past("n", "count", description="n")]).bind(SCHEMA, SCOPE.model_copy(update={"id": None}))
