"""The prediction log under many processes, sudden death, full disks and locked files."""
import contextlib
import datetime as dt
import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mlsys import prediction_log, records
from mlsys.cli import main
from mlsys.core import MlsysError, Unavailable
from mlsys.prediction_log import EntityKey, PredictionLog
from mlsys.published import publish
from mlsys.predictions import entities, export_predictions, forget_entity, read_losses
from mlsys.schema import Schema
from mlsys.scope import Scope

START = dt.datetime(2026, 3, 31, 8, tzinfo=dt.UTC)


def make_predictions(count: int, prefix: str = "") -> list[dict]:
    return [
        {"id": f"{prefix}{number:08x}", "at": START + dt.timedelta(seconds=number), "version": "v1", "role": "champion",
         "row": {"amount": float(number), "device": "phone"}, "score": 0.25, "decision": "no", "warnings": []}
        for number in range(count)
    ]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/var/mlsys.db"


def write_batches(url: str, name: str, acknowledge: int, batches: int) -> None:
    """What each process does: one byte goes out for each batch that the log has taken."""
    log = PredictionLog(url)
    for number in range(batches):
        log.record(make_predictions(20, f"{name}-{number}-"))
        os.write(acknowledge, b".")


def test_four_processes_insert_at_once_and_one_is_killed(url: str) -> None:
    fork = multiprocessing.get_context("fork")
    pipes = {name: os.pipe() for name in ("killed", "a", "b", "c")}
    writers = {
        name: fork.Process(target=write_batches, args=(url, name, pipe[1], 1_000_000 if name == "killed" else 30))
        for name, pipe in pipes.items()
    }
    for writer in writers.values():
        writer.start()
    for _, end in pipes.values():
        os.close(end)
    acknowledged = {"killed": len(os.read(pipes["killed"][0], 1))}
    os.kill(writers["killed"].pid, signal.SIGKILL)
    for name, (start, _) in pipes.items():
        with os.fdopen(start, "rb") as pipe:
            acknowledged[name] = acknowledged.get(name, 0) + len(pipe.read())
        writers[name].join(60)
    assert [writers[name].exitcode for name in pipes] == [-signal.SIGKILL, 0, 0, 0]
    assert acknowledged["killed"] >= 1 and acknowledged["a"] == acknowledged["b"] == acknowledged["c"] == 30

    ids = [one["id"] for one in PredictionLog(url).predictions()]
    for name, batches in acknowledged.items():
        kept = sum(one.startswith(f"{name}-") for one in ids)
        assert kept % 20 == 0, "half a request was kept"
        assert kept >= 20 * batches, f"{name}: an acknowledged request was lost"


def test_twenty_thousand_rows_are_one_request(url: str) -> None:
    log = PredictionLog(url)
    log.record(make_predictions(20_000))
    with pytest.raises(MlsysError, match="ids must be new"):
        log.record(make_predictions(5_000, "x") + make_predictions(1))
    assert log.prediction(f"x{0:08x}") is None, "a refused request left rows of an earlier chunk"

    labels = [{"id": f"{number:08x}", "label": "yes"} for number in range(0, 20_000, 10)]
    assert log.label(labels) == {"kept": 2000, "repeated": 0, "unknown": []}
    assert len(log.labelled(since=START + dt.timedelta(seconds=10_000))) == 1000


def test_threads_share_one_log(url: str) -> None:
    log = PredictionLog(url)
    threads = [threading.Thread(target=log.record, args=(make_predictions(50, f"{name}-"),)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.predictions()) == 400


def test_labels_that_nobody_should_send(url: str) -> None:
    log = PredictionLog(url)
    log.record(make_predictions(2))
    strange = [None, 7, ["a"], {"a": 1}, "x" * 10_000, "\ud800", "\x00", "' OR 1=1 --", ""]
    answer = log.label([{"id": one, "label": "yes"} for one in strange] + [{"id": f"{1:08x}", "label": "yes"}])
    assert answer == {"kept": 1, "repeated": 0, "unknown": strange}
    for wrong in ([{"label": "yes"}], ["yes"], [{"id": f"{0:08x}", "label": "yes", "at": "soon"}]):
        with pytest.raises(MlsysError):
            log.label([{"id": f"{0:08x}", "label": "no"}, *wrong])
    assert log.labelled().id.tolist() == [f"{1:08x}"], "part of a refused request was kept"


def test_rows_come_back_as_they_went_in(url: str) -> None:
    log = PredictionLog(url)
    odd = {**make_predictions(1)[0], "row": {"text": "\ud800\x00é'\"", "large": 1e308, "tiny": 0.1 + 0.2, "none": None},
           "score": {"a": 0.1, "b": 0.9}, "decision": None, "explanation": {"base": -1.5, "contributions": []}}
    log.record([odd])
    assert log.predictions() == [{**odd, "entity": None}]


def test_a_full_disk(url: str) -> None:
    log = PredictionLog(url)
    log.record(make_predictions(10))
    sa.event.listen(log.engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=20"))
    log.engine.dispose()
    with pytest.raises(MlsysError, match="The disk is full: free some space"):
        log.record(make_predictions(5_000, "more"))
    assert len(log.predictions()) == 10


def test_a_database_that_somebody_holds(url: str) -> None:
    log = PredictionLog(url)
    sa.event.listen(log.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=100"))
    log.engine.dispose()
    holder = sqlite3.connect(sa.engine.make_url(url).database)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(MlsysError, match="Another process has held the database"):
        log.record(make_predictions(1))
    assert log.predictions() == [], "reading must go on while somebody writes"
    holder.rollback()
    log.record(make_predictions(1))


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlsys.db").write_text("these are not the bytes you are looking for" * 50)
    with pytest.raises(MlsysError, match="The file is something else"):
        PredictionLog(f"sqlite:///{tmp_path}/mlsys.db")


def test_passwords_stay_out_of_messages() -> None:
    with pytest.raises(MlsysError) as caught:
        PredictionLog("postgresql+psycopg://mlsys:secret@localhost:1/none")
    assert "secret" not in str(caught.value)


def test_every_statement_is_understood_by_postgresql() -> None:
    dialect = postgresql.dialect()
    statements = [sa.schema.CreateTable(table) for table in records.metadata.sorted_tables]
    statements.append(prediction_log._with_label("2026-01-01", "2026-02-01", "v1"))
    text = "\n".join(str(statement.compile(dialect=dialect)) for statement in statements)
    assert "SERIAL" in text and "TIMESTAMP WITHOUT TIME ZONE" in text and "row_number() OVER" in text


@pytest.mark.parametrize("wrong", ["nonsense", "postgresql+nodriver://host/db", "sqlite:////proc/none/mlsys.db"])
def test_urls_that_cannot_be_opened(wrong: str) -> None:
    with pytest.raises(MlsysError, match="MLSYS_DATABASE_URL"):
        PredictionLog(wrong)


def acknowledge_soon(url: str, acknowledge: int) -> None:
    """A process that answers before the disk has: one line for each answer, with its time."""
    log = PredictionLog(url, durable=False)
    for number in range(1_000_000):
        log.record(make_predictions(1, f"{number}-"))
        os.write(acknowledge, b"%.3f\n" % time.monotonic())
        time.sleep(0.001)


def test_a_killed_process_that_does_not_wait_loses_its_last_second_at_most(url: str) -> None:
    start, end = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=acknowledge_soon, args=(url, end))
    process.start()
    os.close(end)
    with os.fdopen(start) as pipe:
        first = float(pipe.readline())
        time.sleep(2.5)
        killed = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        answered = [first, *map(float, pipe.read().split())]
    process.join(30)
    kept = {int(one["id"].split("-")[0]) for one in PredictionLog(url).predictions()}
    old = [number for number, at in enumerate(answered) if at < killed - 1.0]
    assert len(old) > 10 and set(old) <= kept
    assert kept == set(range(len(kept))), "later rows were kept, and earlier ones were not"


def end_politely(url: str, ready: int) -> None:
    """A process that ends as a server does when it is told to."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log = PredictionLog(url, durable=False)
    log.record(make_predictions(7))
    os.write(ready, b".")
    time.sleep(60)


def test_what_lies_in_memory_is_written_when_a_process_is_told_to_end(url: str, tmp_path: Path) -> None:
    script = ("import os, sys; sys.path.insert(0, sys.argv[2])\n"
              "from test_prediction_log import end_politely\nend_politely(sys.argv[1], 1)")
    process = subprocess.Popen([sys.executable, "-c", script, url, str(Path(__file__).parent)], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.read(1) == b"."
    process.terminate()
    assert process.wait(30) == 0
    assert len(PredictionLog(url).predictions()) == 7


def test_a_forked_child_neither_writes_nor_loses_what_the_parent_holds(url: str) -> None:
    log = PredictionLog(url, durable=False)
    log.record(make_predictions(5, "parent"))
    child = multiprocessing.get_context("fork").Process(target=lambda: (log.record(make_predictions(5, "child")), log.flush()))
    child.start()
    child.join(30)
    log.flush()
    assert child.exitcode == 0 and len(PredictionLog(url).predictions()) == 10


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], capture_output=True).returncode:
        pytest.skip("a disk can be made small only by root, where mounts are allowed")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("policy", ["refuse", "answer"])
def test_a_disk_that_is_full_and_then_is_not(small_disk: Path, policy: str) -> None:
    counted: dict[str, int] = {}
    log = PredictionLog(f"sqlite:///{small_disk}/mlsys.db", when_log_fails=policy,
                        count=lambda what, rows: counted.update({what: counted.get(what, 0) + rows}))
    log.record(make_predictions(10))
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    if policy == "refuse":
        with pytest.raises(Unavailable, match="disk is full: free some space"):
            log.record(make_predictions(2_000, "more"))
    else:
        log.record(make_predictions(2_000, "more"))  # the spill lies on the same disk, so they wait in memory
        assert counted["held"] == 2_000 and log.failing
    assert len(log.predictions()) == 10
    ballast.unlink()
    log.record(make_predictions(1, "after"))
    assert len(log.predictions()) == (11 if policy == "refuse" else 2_011)
    assert "lost" not in counted and read_losses(log) == []
    log.close()


def beyond_a_limit(url: str) -> None:
    """A process whose files may not grow beyond 300 kB, which is how a quota feels."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    log = PredictionLog(url)
    log.record(make_predictions(10))
    with pytest.raises(Unavailable):
        log.record(make_predictions(5_000, "more"))
    assert len(log.predictions()) == 10


def test_a_quota(url: str) -> None:
    process = multiprocessing.get_context("fork").Process(target=beyond_a_limit, args=(url,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert len(PredictionLog(url).predictions()) == 10


def spill_and_die(url: str) -> None:
    """Answer while somebody holds the database, and be killed."""
    log = PredictionLog(url, when_log_fails="answer")
    sa.event.listen(log.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=100"))
    log.engine.dispose()
    log.record(make_predictions(3, "spilled"))
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_dead_process_left_on_disk_is_replayed(url: str) -> None:
    PredictionLog(url).record(make_predictions(1))
    holder = sqlite3.connect(sa.engine.make_url(url).database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    process = multiprocessing.get_context("fork").Process(target=spill_and_die, args=(url,))
    process.start()
    process.join(60)
    holder.execute("ROLLBACK")
    assert process.exitcode == -signal.SIGKILL
    left = list(Path(sa.engine.make_url(url).database).parent.glob("spill/*.jsonl"))
    assert len(left) == 1
    assert len(PredictionLog(url).predictions()) == 4 and not left[0].exists()


def test_labels_of_a_prediction_that_another_process_still_holds(url: str) -> None:
    busy, asked = PredictionLog(url, durable=False), PredictionLog(url, durable=False)
    busy.record(make_predictions(1))
    label = {"id": f"{0:08x}", "label": "yes"}
    assert asked.label([label, {"id": "nobody", "label": "no"}]) == {"kept": 1, "repeated": 0, "unknown": ["nobody"]}
    assert asked.label([label, {**label, "label": "no"}, {**label, "label": "no"}]) == {"kept": 1, "repeated": 2, "unknown": []}
    busy.close()


def send_labels(url: str, answers: int) -> None:
    label = [{"id": f"{number:08x}", "label": "yes", "at": "2026-05-01"} for number in range(50)]
    os.write(answers, b"%d\n" % PredictionLog(url).label(label)["kept"])


def test_two_senders_of_the_same_labels_keep_them_once(url: str) -> None:
    PredictionLog(url).record(make_predictions(50))
    start, end = os.pipe()
    senders = [multiprocessing.get_context("fork").Process(target=send_labels, args=(url, end)) for _ in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(60)
    os.close(end)
    with os.fdopen(start) as pipe:
        assert sorted(map(int, pipe.read().split())) == [0, 0, 0, 50]


def test_nothing_of_who_was_forgotten_is_left_in_the_file(url: str) -> None:
    log = PredictionLog(url)
    folder = Path(sa.engine.make_url(url).database).parent
    scope = Scope(name="s", task="binary", target="t", positive="y", entity="card")
    key = EntityKey(scope, Schema(columns=[{"name": "card", "kind": "id", "role": "entity"}]))
    log.record([{**one, "entity": "traceable-17", "row": {"amount": "traceable-amount"}} for one in make_predictions(40, "mine")])
    log.record(make_predictions(40, "others"))
    def found() -> bool:
        return any(b"traceable" in path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert found()
    assert forget_entity(log, key, "traceable-17").predictions == 40
    assert not found() and len(log.predictions()) == 40


def test_a_hashed_entity_is_found_by_its_value_and_by_its_token(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSYS_HASH_KEY", "k" * 64)
    scope = Scope(name="s", task="binary", target="t", positive="y", entity="phone",
                  personal={"phone": {"policy": "hash", "reason": "joins the rows of a person"}})
    key = EntityKey(scope, Schema(columns=[{"name": "phone", "kind": "id", "role": "entity", "policy": "hash"}]))
    token = key({"phone": "+49 151 7771234"})
    assert token and token.startswith("tok_") and entities(key, "+49 151 7771234") == entities(key, token) == (token,)
    log = PredictionLog(url)
    log.record([{**one, "entity": token} for one in make_predictions(2)])
    assert b"7771234" not in b"".join(path.read_bytes() for path in Path(sa.engine.make_url(url).database).parent.glob("mlsys*"))
    assert forget_entity(log, key, "+49 151 7771234").predictions == 2


def test_an_export_of_any_size_needs_the_same_memory(url: str, tmp_path: Path) -> None:
    log = PredictionLog(url)
    peaks = []
    for part in range(2):
        log.record(make_predictions(5_000 if part else 2_500, f"{part}-"))
        export_predictions(log, tmp_path / "warm.csv", newest=10)
        tracemalloc.start()
        assert export_predictions(log, tmp_path / "out.csv") == (7_500 if part else 2_500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], peaks  # parts of 2,000 rows, however many there are


def test_a_log_of_an_older_release_gains_the_new_columns(url: str) -> None:
    path = Path(sa.engine.make_url(url).database)
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE predictions (id VARCHAR(64) PRIMARY KEY, at DATETIME NOT NULL, version VARCHAR(32) NOT NULL, "
                    "role VARCHAR(32) NOT NULL, row TEXT NOT NULL, score TEXT, decision TEXT, warnings TEXT, explanation TEXT)")
        old.execute("INSERT INTO predictions VALUES ('old', '2026-01-01 00:00:00.000000', 'v1', 'champion', '{}', '0.5', "
                    "NULL, NULL, NULL)")
        old.commit()
    log = PredictionLog(url)
    log.record([{**make_predictions(1)[0], "entity": "e"}])
    assert [(one["id"], one["entity"]) for one in log.predictions()] == [("old", None), (f"{0:08x}", "e")]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A project of which only the scope and the schema are there, and its log."""
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nproject = shop\n")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "scope.py").write_text(
        "from mlsys.scope import Scope\nscope = Scope(name='shop', task='binary', target='t', positive='yes', entity='card', "
        "keep_predictions='450d')\n")
    schema = Schema(columns=[{"name": "card", "kind": "id", "role": "entity"}])
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "schema.json").write_text(schema.to_json())
    log = PredictionLog(f"sqlite:///{tmp_path}/var/mlsys.db")
    now = dt.datetime.now(dt.UTC)
    log.record([{**one, "at": now - dt.timedelta(days=100 * number), "entity": f"c{number % 2}"}
                for number, one in enumerate(make_predictions(6))])
    publish(log, [{"entity": f"c{number}", "at": now - dt.timedelta(days=number * 460), "version": "v1", "moment": "", "row": {},
                   "score": 0.5, "decision": "no", "warnings": [], "explanation": None} for number in range(3)])
    log.close()
    return tmp_path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line without a process of its own: exit code, output, errors."""
    monkeypatch.chdir(shop)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def command(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(list(words))
        except SystemExit as ending:
            code = int(ending.code or 0)
        return (code, *capsys.readouterr())
    return command


def test_the_command_line_shows_takes_out_and_forgets(shop: Path, run: Run) -> None:
    code, listed, _ = run("predictions", "--limit", "2")
    assert code == 0 and "2 of 6; --limit shows more" in listed and f"{0:08x}" in listed
    found = json.loads(run("predictions", "--entity", "c1", "--json")[1])
    assert [one["id"] for one in found] == [f"{number:08x}" for number in (5, 3, 1)]
    assert len(json.loads(run("predictions", "--since", "250d", "--json")[1])) == 3
    assert "Wrote 6 predictions to all.csv" in run("predictions", "--out", "all.csv")[1]
    assert len(pd.read_csv(shop / "all.csv")) == 6
    assert run("predictions", "--out", "all.xlsx")[0] == 2 and run("predictions", "--since", "soon")[0] == 2
    code, _, said = run("predictions", "--forget-entity", "c1", "--limit", "2", "--yes")
    assert code == 2 and "goes alone" in said
    code, _, said = run("predictions", "--forget-entity", "c1")
    assert code == 2 and "say it with --yes" in said
    code, said, _ = run("predictions", "--prune")  # of 500, and of 460 and 920 days ago; the scope keeps 450
    assert "Deleted 1 predictions" in said and "2 published predictions" in said
    assert json.loads(run("predictions", "--forget-entity", "c1", "--yes", "--json")[1]) == {
        "predictions": 2, "labels": 0, "events": 0, "published": 0}
    assert json.loads(run("predictions", "--forget-entity", "c0", "--yes", "--json")[1])["published"] == 1
    assert "No such prediction" in run("predictions", "--entity", "c1")[1]


def test_feedback_from_a_file(shop: Path, run: Run) -> None:
    (shop / "labels.csv").write_text(f"id,label,at\n{0:08x},yes,2026-05-01\n{1:08x},,\n{2:08x},no,\nnobody,no,\n")
    answer = json.loads(run("feedback", "labels.csv", "--json")[1])
    assert answer == {"kept": 2, "repeated": 0, "unknown": ["nobody"], "empty": 1}
    again = run("feedback", "labels.csv")[1].strip()
    assert again == "Kept 0 labels. 2 were there already. 1 rows have no label yet. 1 ids are unknown: nobody"
    (shop / "wrong.csv").write_text("Id,label\n1,yes\n")
    code, _, said = run("feedback", "wrong.csv")
    assert code == 2 and "no column 'id'" in said and "Did you mean 'Id'" in said
