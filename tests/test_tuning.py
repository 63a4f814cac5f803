"""Tuning in real processes: interrupted, killed, resumed, in time; and a champion that outlives the death of a retraining."""
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import Cli, shop, start
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys.core import MlsysError, Project, exclusive
from mlsys.registry import Registry
from mlsys.scope import Scope
from mlsys.tuning import make_folds

words = ("retrain", "-p", "trials=12", "-p", "budget=4s")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Project:
    """A project that nobody has trained yet."""
    folder = tmp_path_factory.mktemp("tuned")
    shop(300).to_csv(folder / "table.csv", index=False)
    made = cli("new", "shop", "--data", "table.csv", "--target", "bought", folder=folder)
    assert made.code == 0, made.err
    return Project.find(folder / "shop")


def trials(path: Path) -> list[bytes]:
    """The whole lines of a store of trials."""
    return [line for line in path.read_bytes().split(b"\n")[:-1] if line] if path.exists() else []


def stop(process: subprocess.Popen[str], how: signal.Signals, due: Callable[[], bool]) -> tuple[int, str]:
    """End a command as soon as it is due; its exit code and what it said, once its kernel is gone as well."""
    deadline = time.monotonic() + 120
    while not due():
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or never came that far"
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert not psutil.wait_procs(family, timeout=30)[1], "a kernel goes on without its command"
    return process.returncode, said


@pytest.mark.stress
def test_an_interrupted_tuning_goes_on_from_its_finished_trials(tuned: Project, cli: Cli) -> None:
    def store() -> Path:
        return next(iter((tuned.var / "tuning").glob("*.jsonl")), tuned.var / "none")

    def more_than(number: int) -> Callable[[], bool]:
        return lambda: len(trials(store())) > number

    code, said = stop(start(*words, folder=tuned.root), signal.SIGINT, more_than(3))
    first = trials(store())
    assert code == 130 and "the command can be run again" in said and len(first) > 3
    code, _ = stop(start(*words, folder=tuned.root), signal.SIGKILL, more_than(len(first) + 3))
    second = trials(store())
    assert code == -signal.SIGKILL and second[: len(first)] == first and len(second) > len(first)
    assert not Registry(tuned).versions()
    kept = tuned.root / "kept.jsonl"
    os.link(store(), kept)  # the store is cleared in the end; this name of it stays
    done = cli(*words, "--json", folder=tuned.root)
    assert done.code == 0, done.out + done.err
    lines = trials(kept)
    keys = [json.loads(line)[0] for line in lines]
    assert lines[: len(second)] == second and len(lines) > len(second), "it began anew"
    assert len(set(keys)) == len(keys), "a trial that was finished ran again"
    assert not store().exists() and json.loads(done.out)["version"] == "v1"


@pytest.mark.stress
def test_sudden_deaths_of_a_retraining_leave_a_champion_and_a_registry_that_loads(tuned: Project) -> None:
    """At the registry's own level test_crashes kills a hundred times."""
    draw, runs, before = random.Random(1), tuned.var / "runs", Registry(tuned).ledger()
    assert [row["version"] for row in before] == ["v1"]
    for _ in range(4):
        known, cell = set(runs.glob("*/retrain.ipynb")), draw.randrange(45)

        def due(known: set[Path] = known, cell: int = cell) -> bool:
            begun = set(runs.glob("*/retrain.ipynb")) - known
            return any(path.read_text().count('"status": "completed"') >= cell for path in begun)

        assert stop(start(*words, folder=tuned.root), signal.SIGKILL, due)[0] == -signal.SIGKILL
        registry = Registry(tuned)
        rows, serving = registry.ledger(), registry.champion()
        assert rows[: len(before)] == before and serving is not None
        assert (serving.version, serving.digest) == (rows[-1]["version"], rows[-1]["evidence"]["digest"])
        for version in registry.versions():
            registry.get(version)
        with exclusive(tuned.var / "retrain.lock", "retraining"):
            pass  # whoever died holds nothing any more
        before = rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 80), st.integers(8, 20), st.booleans(), st.sampled_from(["regression", "binary"]))
def test_no_entity_and_no_future_is_on_both_sides_of_a_fold(seed: int, rows: int, people: int, timed: bool, task: str) -> None:
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"who": rng.integers(0, people, rows).astype(str), "at": pd.Timestamp("2026-01-01")
                       + pd.to_timedelta(rng.integers(0, rows // 2, rows), unit="D"), "y": rng.integers(0, 2, rows)})
    df.loc[rng.random(rows) < 0.1, "who"] = None
    df.loc[:3, "y"], df.loc[:1, "at"] = [0, 1, 0, 1], pd.Timestamp("2025-12-01")
    scope = Scope(name="shop", goal="Sell", task=task, target="y", positive="1" if task == "binary" else None,
                  metric="rmse" if task == "regression" else "roc_auc", entity="who", time="at" if timed else None)
    try:
        pairs = make_folds(df, df["y"].to_numpy(), scope, 3, seed)
    except MlsysError as error:
        assert timed and "cannot be cut by 'at'" in str(error)
        return
    for fit_on, judge_on in pairs:
        assert not set(fit_on) & set(judge_on)
        if df["who"].nunique() > 1:
            assert not set(df["who"].iloc[fit_on].dropna()) & set(df["who"].iloc[judge_on].dropna())
        if timed:
            assert df["at"].iloc[fit_on].max() < df["at"].iloc[judge_on].min()
