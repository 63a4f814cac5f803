"""Versions rebuilt in a clean process: the same bit by bit, and where not, the input that is to blame by its name."""
import datetime as dt
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from mlsys.core import Project, read_json
from mlsys.registry import Registry
from mlsys.reproduce import compare_inputs, notebook_hash, reproduce, training_notebook

pytestmark = pytest.mark.stress  # whole trainings, again and again


def traces(project: Project) -> dict[str, Any]:
    """Everything that a rebuild must leave alone: versions, snapshots, runs, the ledger, and what serves."""
    kept = [path for name in ("registry", "snapshots", "runs") for path in (project.var / name).rglob("*") if path.is_file()]
    files = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept if ".lock" not in path.name}
    registry = Registry(project)
    return {"files": files, "ledger": registry.ledger(), "roles": registry.roles(),
            "left": sorted(path.name for path in project.var.glob(".reproduce-*"))}


@contextmanager
def altered(path: Path, change: Any) -> Iterator[None]:
    """A file that is another one for the length of a block; a new one is removed again."""
    before = path.read_bytes() if path.exists() else None
    mode = path.stat().st_mode if path.exists() else 0o644
    path.chmod(0o644) if path.exists() else None
    path.write_bytes(change(before or b""))
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)
        path.exists() and path.chmod(mode)


def edited(**values: Any) -> Any:
    """A lineage with other values, and other notes for its rebuild under `rebuild`."""
    def change(raw: bytes) -> bytes:
        lineage = json.loads(raw)
        lineage["rebuild"] |= values.get("rebuild", {})
        return json.dumps(lineage | {name: one for name, one in values.items() if name != "rebuild"}).encode()
    return change


def differing(project: Project) -> set[str]:
    """The inputs of v1 that are not what they were."""
    folder = Registry(project).folder("v1")
    lineage = read_json(folder / "lineage.json")
    found = compare_inputs(project, folder, lineage, training_notebook(project, lineage))
    return {one.name for one in found if one.same is False}


def test_a_version_comes_out_the_same_whatever_the_notebooks_say_now(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuned one, whose budget ended the race, in another process with another number of threads.

    With an hour instead of a second, a race that looked at the clock would go to its end, and another trial would win.
    """
    before = traces(project)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    features, schema = project.source / "features.py", project.schema_path
    lineage = Registry(project).folder("v1") / "lineage.json"
    with (altered(features, lambda raw: raw + b"\nchanged_since = True\n"), altered(schema, lambda raw: b"{}"),
          altered(project.root / "requirements.lock", lambda raw: b"numpy==1.0"),
          altered(lineage, edited(rebuild={"machine": {"system": "Plan 9"}}))):
        found = reproduce(project, "v1", given={"budget": "1h"}).to_dict()
    assert found["identical"] and not found["problem"], found
    assert found["digest"]["then"] == found["digest"]["now"] and all(found["files"].values())
    assert found["golden"]["difference"] == 0 and found["held_out"] == {"rows": 90, "same": True, "difference": 0.0}
    assert all(one["then"] == one["now"] for one in found["metrics"].values())
    assert found["differing"] == ["parameters", "lock", "machine"]
    assert "features.py changed since" in found["inputs"][1]["sentence"]
    assert found["reason"] == "It is the same although these inputs are not those of then: parameters, lock, machine."
    assert read_json(project.var / "reports" / "reproduce-v1.json") == found
    assert traces(project) == before and before["roles"]["champion"]["version"] == "v1"


def test_the_budget_holds(project: Project) -> None:
    """One second for forty trials of each model."""
    lineage = Registry(project).get("v1").lineage
    run = project.var / "runs" / lineage["run"]
    assert lineage["parameters"]["budget"] == "1s" and lineage["tried"]["boosting"]["trials"] < 40
    cells = [cell for cell in read_json(run / "retrain.ipynb")["cells"] if "tune_all(" in "".join(cell["source"])]
    moments = [dt.datetime.fromisoformat(cells[-1]["metadata"]["papermill"][name]) for name in ("start_time", "end_time")]
    # what there is no answer without may take longer: every spec on every fold
    assert (moments[1] - moments[0]).total_seconds() < 5


def test_another_seed_and_other_code_give_another_model_and_are_named(project: Project) -> None:
    before = traces(project)
    call = b"FeatureSet(collect(globals())"
    twice = b'@feature\ndef index_twice(index: "pd.Series") -> "pd.Series":\n    """Twice."""\n    return index * 2.0\n\n\n'
    features = project.source / "features.py"
    assert call in features.read_bytes()
    with altered(features, lambda raw: raw.replace(b"features = " + call, twice + b"features = " + call)):
        found = reproduce(project, "v1", current=True, given={"seed": 1})
    said = str(found)
    assert not found.identical and "v1 does NOT come out the same." in said, said
    assert "Not as then: code, seed." in said and "today's features.py instead of the version's" in said
    assert not found.compared["files"]["model.skops"] and "apart at most" in said
    assert traces(project) == before


def test_an_altered_snapshot_ends_it_and_is_named(project: Project, cli: Cli) -> None:
    lineage = read_json(Registry(project).folder("v1") / "lineage.json")
    rows = project.var / "snapshots" / lineage["snapshot"] / "rows-0000.parquet"
    with altered(rows, lambda raw: raw[:-1] + b"?"):
        answer = cli("reproduce", "v1", folder=project.root)
    assert answer.code == 1 and "Not as then: data." in answer.out and "was altered on disk" in answer.out


@pytest.mark.parametrize("change, name", [
    ({"seed": 7}, "seed"),
    ({"lock_hash": "0" * 64}, "lock"),
    ({"rebuild": {"packages": {"numpy": "1.0"}}}, "packages"),
    ({"rebuild": {"python": "2.7.18"}}, "python"),
    ({"rebuild": {"machine": {"system": "Linux", "processor": "arm64"}}}, "machine"),
    ({"rebuild": {"mlsys": "0" * 64}}, "mlsys"),
    ({"snapshot": "0123456789abcdef"}, "data"),
])
def test_each_input_is_named_when_it_differs(project: Project, change: dict[str, Any], name: str) -> None:
    assert differing(project) == set()
    with altered(Registry(project).folder("v1") / "lineage.json", edited(**change)):
        assert differing(project) == {name}


def test_a_notebook_that_was_changed_is_named_once_its_run_is_gone(project: Project) -> None:
    lineage = read_json(Registry(project).folder("v1") / "lineage.json")
    run, away = project.var / "runs" / lineage["run"], project.var / "away"
    ours = project.run_notebooks / "retrain.ipynb"
    run.rename(away)
    try:
        assert training_notebook(project, lineage) == ours and differing(project) == set()
        with altered(ours, lambda raw: raw.replace(b"set_seed(seed)", b"set_seed(seed + 1)")):
            assert notebook_hash(ours) != lineage["rebuild"]["notebook"] and differing(project) == {"notebook"}
    finally:
        away.rename(run)


def test_what_does_not_exist_is_wrong_usage(project: Project, cli: Cli) -> None:
    unknown = cli("reproduce", "v9", folder=project.root)
    assert unknown.code == 2 and "No version 'v9'; there are v1" in unknown.err
    mistyped = cli("reproduce", "v1", "-p", "sed=1", folder=project.root)
    assert mistyped.code == 2 and "Did you mean 'seed'?" in mistyped.err
