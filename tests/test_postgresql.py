"""Everything that the project keeps in a database, on a real PostgreSQL server."""
import datetime as dt
import multiprocessing
import os
import signal
import time

import pandas as pd
import pytest
from database_server import server  # noqa: F401  a fixture

from mlsys.core import MlsysError, Project, Unavailable
from mlsys.history import HistorySet, HistoryStore, Past, digest, recall
from mlsys.labelling import LabelBook
from mlsys.prediction_log import PredictionLog
from mlsys.predictions import Which, count_predictions, export_predictions, forget, read_losses, read_predictions
from mlsys.published import publish, read_published
from mlsys.registry import Ledger
from mlsys.schema import Schema
from mlsys.scope import Scope

START = dt.datetime(2026, 3, 31, 8, tzinfo=dt.UTC)


def make_predictions(count: int, prefix: str) -> list[dict]:
    return [{"id": f"{prefix}{number}", "at": START + dt.timedelta(seconds=number), "version": "v1", "role": "champion",
             "entity": f"e{number % 3}", "row": {"amount": float(number), "odd": "\x00'\""}, "score": 0.25,
             "decision": "no", "warnings": [], "explanation": b'{"base":1.5,"contributions":[]}'} for number in range(count)]


@pytest.fixture(scope="module")
def url(server) -> str:  # noqa: F811
    return server.database("shared")


def write_batches(url: str, name: str, acknowledge: int, batches: int) -> None:
    log = PredictionLog(url)
    for number in range(batches):
        log.record(make_predictions(5, f"{name}-{number}-"))
        os.write(acknowledge, b".")


def test_four_processes_begin_at_once_and_one_is_killed(server):  # noqa: F811
    """They find no tables; all of them make them, and what was acknowledged is there."""
    url = server.database("crowd")
    fork = multiprocessing.get_context("fork")
    pipes = {name: os.pipe() for name in ("killed", "a", "b", "c")}
    writers = {name: fork.Process(target=write_batches, args=(url, name, pipe[1], 10**6 if name == "killed" else 20))
               for name, pipe in pipes.items()}
    for writer in writers.values():
        writer.start()
    for _, end in pipes.values():
        os.close(end)
    acknowledged = {"killed": len(os.read(pipes["killed"][0], 1))}
    os.kill(writers["killed"].pid, signal.SIGKILL)
    for name, (begin, _) in pipes.items():
        with os.fdopen(begin, "rb") as pipe:
            acknowledged[name] = acknowledged.get(name, 0) + len(pipe.read())
        writers[name].join(60)
    assert [writers[name].exitcode for name in pipes] == [-signal.SIGKILL, 0, 0, 0]
    ids = [one["id"] for one in PredictionLog(url).predictions()]
    for name, batches in acknowledged.items():
        kept = sum(one.startswith(f"{name}-") for one in ids)
        assert kept % 5 == 0 and kept >= 5 * batches


def test_rows_come_back_as_they_went_in(url):
    log = PredictionLog(url)
    given = make_predictions(3, "same")
    log.record(given)
    assert log.predictions() == [{**one, "explanation": {"base": 1.5, "contributions": []}} for one in given]
    with pytest.raises(MlsysError, match="ids must be new"):
        log.record([{**given[0], "id": "fresh"}, given[1]])
    assert log.prediction("fresh") is None
    with pytest.raises(MlsysError, match="A prediction's version"):
        log.record([{**given[0], "id": "fresh", "version": "v" * 33}])
    log.close()


def test_labels_count_once_and_the_latest_holds(url):
    log = PredictionLog(url)
    log.record(make_predictions(2, "told"))
    label = {"id": "told0", "label": "yes", "at": "2026-04-01"}
    assert log.label([label, {"id": "nobody", "label": "no"}]) == {"kept": 1, "repeated": 0, "unknown": ["nobody"]}
    assert log.label([label, {**label, "at": "2026-05-01"}]) == {"kept": 0, "repeated": 2, "unknown": []}
    assert log.label([{**label, "label": "no", "at": "2026-04-03"}])["kept"] == 1
    assert [one["label"] for one in read_predictions(log, Which(ids=("told0", "told1")))] == ["no", None]
    assert log.labelled(version="v1").set_index("id").loc["told0", "label"] == "no"
    log.close()


def test_export_and_forgetting(url, tmp_path):
    log = PredictionLog(url)
    log.record(make_predictions(9, "out"))
    mine = Which(ids=tuple(f"out{number}" for number in range(9)))
    assert export_predictions(log, tmp_path / "out.parquet", mine) == 9
    assert pd.read_parquet(tmp_path / "out.parquet")["input.amount"].sum() == 36
    assert forget(log, Which(ids=mine.ids, entities=("e1",))).predictions == 3
    assert forget(log, mine, part=2).predictions == 6 and count_predictions(log, mine) == 0
    log.close()


def made(entity: str, at: dt.datetime, score: float, moment: str = "") -> dict:
    return {"entity": entity, "at": at, "version": "v1", "moment": moment, "row": {"odd": "'\""}, "score": score,
            "decision": None, "warnings": [], "explanation": None}


def publish_scores(url: str, at: dt.datetime, score: float, backwards: bool) -> None:
    log, names = PredictionLog(url), [f"p{number}" for number in range(3_000)]
    publish(log, [made(name, at, score) for name in (reversed(names) if backwards else names)], part=3_000)
    log.close()


def test_of_what_is_published_the_newest_counts(url):
    log, later = PredictionLog(url), START + dt.timedelta(hours=1)
    publish(log, [made("'; --", later, 0.3, "b"), made("'; --", later, 0.2, "a"), made("e1", START, 0.7)])
    publish(log, [made("'; --", START, 0.1, "c"), made("e1", START, 0.8)])
    found = read_published(log, ["'; --", "e1", "e2"])
    assert {name: one["score"] for name, one in found.items()} == {"'; --": 0.3, "e1": 0.8}
    assert found["e1"] == made("e1", START, 0.8)
    assert forget(log, Which(entities=("e1",))).published == 1 and forget(log, Which(until=later)).published == 0
    assert set(read_published(log, ["'; --", "e1"])) == {"'; --"}
    log.close()


def test_two_scorings_publish_at_once(url):
    """In opposite order, the younger one begins first; neither blocks the other for good, and the younger one stays."""
    fork = multiprocessing.get_context("fork")
    later = START + dt.timedelta(days=1)
    writers = [fork.Process(target=publish_scores, args=(url, at, score, backwards))
               for at, score, backwards in ((later, 0.9, False), (START, 0.1, True), (later, 0.9, True))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    log = PredictionLog(url)
    assert {one["score"] for one in read_published(log, [f"p{number}" for number in range(3_000)]).values()} == {0.9}
    log.close()


def test_a_server_that_stops_and_comes_back(server, tmp_path):  # noqa: F811
    url, counted = server.database("moody"), {}

    def count(what: str, rows: int) -> None:
        counted[what] = counted.get(what, 0) + rows

    strict = PredictionLog(url)
    lenient = PredictionLog(url, when_log_fails="answer", spill=tmp_path / "spill", count=count)
    hasty = PredictionLog(url, durable=False, spill=tmp_path / "spill2")
    for name, log in (("s", strict), ("l", lenient)):
        log.record(make_predictions(1, f"{name}before"))
    server.stop()
    try:
        hasty.record(make_predictions(2, "hasty"))  # answered before anybody knew
        with pytest.raises(Unavailable, match="could not"):
            strict.record(make_predictions(1, "refused"))
        lenient.record(make_predictions(2, "meanwhile"))
        while not hasty.failing:
            time.sleep(0.05)
        with pytest.raises(Unavailable):
            hasty.record(make_predictions(1, "too late"))
        assert list((tmp_path / "spill").glob("*.jsonl")) and list((tmp_path / "spill2").glob("*.jsonl"))
        late = PredictionLog(url, when_log_fails="answer", spill=tmp_path / "spill3")  # a worker that starts in the outage
        late.record(make_predictions(1, "late"))
    finally:
        server.start()
    deadline = time.monotonic() + 20
    expected = {"sbefore0", "lbefore0", "meanwhile0", "meanwhile1", "hasty0", "hasty1", "late0"}
    while (kept := {one["id"] for one in strict.predictions()}) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    assert kept == expected
    assert counted == {"recorded": 1, "spilled": 2, "replayed": 2}
    strict.record(make_predictions(1, "after"))
    assert not list(tmp_path.glob("spill*/*.jsonl")) and read_losses(strict) == [] and strict.failing is None
    for log in (strict, lenient, hasty, late):
        log.close()


def test_a_log_process_that_dies_while_the_server_is_away(server, tmp_path):  # noqa: F811
    """The next one knows that the server is away, and writes what the first has put aside, though nothing comes any more."""
    url = server.database("apart")
    log = PredictionLog(url, durable=False, when_log_fails="answer", spill=tmp_path / "spill", apart=True)
    log.record(make_predictions(3, "before-"))
    log.flush()

    def until(true, what: str) -> None:
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline, what
            time.sleep(0.1)
    server.stop()
    try:
        log.record(make_predictions(3, "during-"))
        log.flush()
        assert log.failing and list((tmp_path / "spill").glob("*.jsonl"))
        first = log._process.child.process
        first.kill()
        until(lambda: log._process.child.process is not first, "no process came in its place")
        time.sleep(1)
        assert log.failing
    finally:
        server.start()
    until(lambda: not log.failing and not list((tmp_path / "spill").glob("*.jsonl")), "what was put aside lies there still")
    log.close()
    assert len(PredictionLog(url).predictions()) == 6


def test_the_history_store(url):
    scope = Scope(name="s", task="binary", target="t", positive="y", id="id", time="at", entity="card")
    schema = Schema(columns=[{"name": "id", "kind": "id", "role": "id"}, {"name": "at", "kind": "datetime", "role": "time"},
                             {"name": "card", "kind": "id", "role": "entity"}, {"name": "amount", "kind": "number"},
                             {"name": "t", "kind": "category", "role": "target"}])
    history = HistorySet([Past("seen", "count", description="how often")]).bind(schema, scope)
    store, log = HistoryStore(url), PredictionLog(url)
    assert not store.holds("card")
    days = pd.to_datetime(["2026-01-01", "2026-01-02"])
    rows = pd.DataFrame({"id": ["1", "2"], "at": days, "card": ["c", "c"], "amount": [1.0, 2.0]})
    assert store.backfill(history, schema, rows) == 2 and store.backfill(history, schema, rows) == 2 and store.holds("card")
    row = {"id": "3", "at": "2026-01-03", "card": "c", "amount": 3.0}
    recalled = recall(history, schema, [row], schema.check_rows([row]).clean, store)
    assert recalled.values == [{"seen": 2.0}]
    log.record(make_predictions(1, "with-past"), recalled.events)  # in one transaction
    assert len(store.read("card", [digest("c")], None, 2**60)[digest("c")]) == 3
    assert store.forget_owner(digest("c")) == 3
    log.close()


def append_row(url: str, name: str) -> None:
    ledger = Ledger(url)
    for number in range(5):
        told = {"version": f"v{number}", "role": "champion", "why": name, "evidence": {"digest": "d"}}
        ledger.append(lambda rows, told=told: told)


def test_the_ledger_keeps_one_order_for_all_processes(server):  # noqa: F811
    url = server.database("ledger")
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=append_row, args=(url, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    rows = Ledger(url).rows()
    assert [row["id"] for row in rows] == list(range(1, 16))
    assert sorted(row["why"] for row in rows) == sorted("abc" * 5)


def test_the_book_of_labels(url):
    book = LabelBook(url)
    book.add("r1", "yes", "Ada")
    book.add_all({"r1": "no", "r2": "yes"}, "Bob")
    book.add("r1", "no", "Ada")
    held = book.labels().sort_values(["row_id", "by"])
    assert held[["row_id", "label", "by"]].values.tolist() == [["r1", "no", "Ada"], ["r1", "no", "Bob"], ["r2", "yes", "Bob"]]
    book.close()


def test_the_variable_is_all_that_changes(url, monkeypatch, tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nproject = shop\n")
    monkeypatch.setenv("MLSYS_DATABASE_URL", url.replace("postgresql://", "postgres://"))
    log = PredictionLog(Project.find(tmp_path).database_url)
    assert log.engine.dialect.name == "postgresql" and log.engine.dialect.driver == "psycopg"
    log.close()


def test_a_missing_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(MlsysError, match=r"pip install 'mlsys\[postgresql\]'"):
        PredictionLog("postgresql://localhost/none")
