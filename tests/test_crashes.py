"""kill -9 at any moment of a registration, a promotion or a rollback leaves the registry whole and a champion that loads."""
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from test_registry import fork, train, write_package

from mlsys.core import MlsysError, Project
from mlsys.registry import Registry, verify_version


def change_for_ever(project: Project, parts: dict, seed: int) -> None:
    """What a busy team does, until somebody kills the process."""
    registry, draw = Registry(project), random.Random(seed)
    kinds = ("register",) if seed % 3 == 0 else ("promote", "promote", "rollback", "canary", "alias")
    while True:
        with contextlib.suppress(MlsysError):  # such as a rollback with nothing before it
            what = draw.choice(kinds)
            version = draw.choice(registry.versions())
            if what == "register":
                registry.register(**parts)
            elif what == "rollback":
                registry.rollback("worse")
            elif what == "alias":
                registry.alias("stable", version)
            else:
                role, share = ("canary", 0.1) if what == "canary" else ("champion", None)
                registry.promote(version, "better", role=role, share=share)


@pytest.mark.stress
def test_a_hundred_sudden_deaths_leave_a_champion_and_an_unbroken_ledger(tmp_path: Path) -> None:
    project = write_package(tmp_path)
    parts, draw = train(project), random.Random(0)
    registry = Registry(project)
    for _ in range(2):
        registry.register(**parts)
    registry.promote("v1", "the first")
    before: list[dict] = registry.ledger()
    for number in range(100):
        process = fork.Process(target=change_for_ever, args=(project, parts, number))
        process.start()
        time.sleep(draw.uniform(0.1, 0.7) if number % 3 == 0 else draw.uniform(0.01, 0.2))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        rows = registry.ledger()  # verifies the chain of hashes
        assert rows[: len(before)] == before, "a row that had been written was lost"
        assert registry.champion() is not None
        for version in {row["version"] for row in rows if row["version"]}:
            verify_version(registry.root / version)
        before = rows
    begun = len(list(registry.root.glob(".new-*"))) + len(registry.versions()) - 2
    assert len(before) > 20 and begun > 5, "the processes did nothing"
    assert registry.promote(registry.versions()[0], "after all that", force=True).version == registry.champion().version


ROWS = [("altered", "update ledger set why = 'I never said that' where id = 2", "row 2 was altered"),
        ("removed", "delete from ledger where id = 2", "row 2 is missing"),
        ("last removed", "delete from ledger where id = 4", "row 4 is missing"),
        ("exchanged", "update ledger set id = id + 100 where id in (2, 3); update ledger set id = 3 where id = 102; "
                      "update ledger set id = 2 where id = 103", "row 2 was altered; row 3 was altered"),
        ("added", "insert into ledger select 5, at, version, role, share, why, evidence, by, null, null from ledger where id = 4",
         "row 5 has no hash")]


@pytest.mark.parametrize(("name", "statement", "told"), ROWS, ids=[row[0] for row in ROWS])
def test_a_ledger_that_somebody_altered_says_which_row(tmp_path: Path, name: str, statement: str, told: str) -> None:
    project = write_package(tmp_path)
    registry, parts = Registry(project), train(project)
    for _ in range(2):
        registry.register(**parts)
    for version in ("v1", "v2", "v1", "v2"):
        registry.promote(version, "because")
    with contextlib.closing(sqlite3.connect(project.var / "mlsys.db")) as connection:
        connection.executescript(statement)
    for call in (registry.ledger, registry.champion, lambda: registry.promote("v1", ""), lambda: registry.rollback("")):
        with pytest.raises(MlsysError, match=told):
            call()
    assert registry.read_ledger()[0] and registry.seal("looked at it")
    assert registry.promote("v1", "goes on").role == "champion" and registry.champion().version == "v1"
    assert [row["evidence"]["problems"] for row in registry.ledger() if row["role"] == "seal"]


def test_a_ledger_from_before_there_were_hashes_loses_nothing(tmp_path: Path) -> None:
    project = write_package(tmp_path)
    registry, parts = Registry(project), train(project)
    for version in ("v1", "v2"):
        registry.register(**parts)
        registry.promote(version, "because")
    with contextlib.closing(sqlite3.connect(project.var / "mlsys.db")) as connection:
        connection.executescript("alter table ledger drop column hash; alter table ledger drop column previous; "
                                 "drop table ledger_end")
    old = Registry(project)
    assert [row["version"] for row in old.ledger()] == ["v1", "v2"] and old.champion().version == "v2"
    old.promote("v1", "the first row with a hash")
    with contextlib.closing(sqlite3.connect(project.var / "mlsys.db")) as connection:
        connection.executescript("update ledger set why = 'rewritten' where id = 1")
    with pytest.raises(MlsysError, match="a row before row 3 was altered"):
        old.ledger()
    shutil.rmtree(project.var)
