"""The MLflow mirror against a real server: level after one call, nothing in a second, and harmless when it is down or hangs."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from conftest import Cli, environment
from test_registry import train, write_package

from mlsys.core import Project, write_json
from mlsys.mirror import Mirrored, mirror, try_mirror
from mlsys.registry import Registry
from mlsys.runs import Run
from mlsys.service import free_port

pytestmark = pytest.mark.stress  # a real server, and trainings

quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on loopback."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    store = f"sqlite:///{folder}/mlflow.db"
    upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", store]
    subprocess.run(upgrade, env=os.environ | quiet, check=True, capture_output=True)
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", store,
             "--artifacts-destination", str(folder / "files")]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "mlflow", *words], cwd=folder, env=os.environ | quiet, stdout=log,
                                   stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://jo:secret@127.0.0.1:{listening.getsockname()[1]}"


def ran(project: Project, name: str, status: str = "done", **values: Any) -> str:
    """A run as `mlsys runs` knows it, with one picture."""
    picture = nbformat.v4.new_output("display_data", {"image/png": dot})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[picture])])
    run = Run(name, "retrain.ipynb", {"trials": 3, "until": None}, "2026-05-01T08:00:00+00:00", {}, status, duration_s=20.0,
              metrics={"roc_auc": 0.8, "lift": None}, seed=0, **values)
    write_json(project.var / "runs" / name / "run.json", run.to_dict())
    nbformat.write(notebook, project.var / "runs" / name / "retrain.ipynb")
    return name


@pytest.fixture
def registered(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Project, dict[str, Any]]:
    """A project with a version that serves, its run, and one that failed; its package has a name of its own."""
    package = "shop_" + "".join(letter for letter in request.node.name if letter.isalnum())[:40]
    project = write_package(tmp_path, package)
    (tmp_path / "settings.ini").write_text(f"[DEFAULT]\nproject = {package}\nproject_nbs = nbs\n")
    project, parts = Project.find(tmp_path), train(project)
    ran(project, "run-0", "failed", error="the kernel died")
    Registry(project).register(**{**parts, "lineage": {"run": ran(project, "run-1")}})
    Registry(project).promote("v1", "the first")
    return project, parts


def seen(project: Project, server: str) -> dict[str, Any]:
    """What a person finds on the server."""
    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(project.name)
    runs = client.search_runs([experiment.experiment_id])
    versions = {one.tags["mlsys.version"]: one for one in client.search_model_versions(f"name='{project.name}'")}
    named = {one.version: name for name, one in versions.items()}
    aliases = client.get_registered_model(project.name).aliases
    return {"client": client, "runs": {one.data.tags["mlsys.run"]: one for one in runs}, "count": len(runs),
            "versions": versions,
            "aliases": {alias: named.get(str(number)) or named[number] for alias, number in aliases.items()}}


def test_runs_figures_versions_and_names_are_there_once(registered: tuple[Project, dict[str, Any]], server: str,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    project, parts = registered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    registry = Registry(project)
    assert mirror(project) == Mirrored(2, 1, 1) and mirror(project) == Mirrored(0, 0, 0)
    found = seen(project, server)
    good, bad, client = found["runs"]["run-1"], found["runs"]["run-0"], found["client"]
    assert (good.info.status, bad.info.status, bad.data.tags["mlsys.error"]) == ("FINISHED", "FAILED", "the kernel died")
    assert good.data.metrics == {"roc_auc": 0.8} and good.data.params == {"trials": "3", "until": "None"}
    assert good.info.end_time - good.info.start_time == 20_000
    assert [one.path for one in client.list_artifacts(good.info.run_id, "figures")] == ["figures/cell-01-1.png"]
    version = found["versions"]["v1"]
    assert version.tags["mlsys.digest"] == registry.get("v1").digest and version.run_id == good.info.run_id

    registry.register(**{**parts, "lineage": {"run": "a run that is not kept here"}})
    registry.promote("v2", "better")
    registry.alias("stable", "v1")
    assert mirror(project) == Mirrored(0, 1, 2) and mirror(project) == Mirrored(0, 0, 0)
    assert seen(project, server)["aliases"] == {"champion": "v2", "stable": "v1"}
    registry.rollback("worse")
    registry.alias("stable", None)
    assert mirror(project) == Mirrored(0, 0, 2)
    found = seen(project, server)
    assert found["aliases"] == {"champion": "v1"} and found["count"] == 3 and len(found["versions"]) == 2


def test_what_was_left_half_done_is_done_again(registered: tuple[Project, dict[str, Any]], server: str,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    project, _ = registered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    client = MlflowClient(server)
    began = client.create_run(client.create_experiment(project.name), tags={"mlsys.run": "run-1"})  # and then a plug was pulled
    assert mirror(project) == Mirrored(2, 1, 1)
    found = seen(project, server)
    assert found["count"] == 2 and found["runs"]["run-1"].info.run_id != began.info.run_id


def test_mlflow_scores_as_the_version_does_and_refuses_an_altered_one(
        registered: tuple[Project, dict[str, Any]], server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import mlflow

    project, parts = registered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mirror(project)
    mlflow.set_tracking_uri(server)
    here = tmp_path / "downloaded"
    here.mkdir()
    loaded = mlflow.pyfunc.load_model(f"models:/{project.name}@champion", dst_path=str(here))
    version = Registry(project).get("v1")
    assert loaded.predict(pd.DataFrame(parts["golden"])).tolist() == version.golden_scores
    assert not list(here.rglob("*.pkl"))
    files = next(here.rglob("decision.json"))
    files.write_text(files.read_text().replace("0.5", "0.6"))
    with pytest.raises(Exception, match="altered"):
        mlflow.pyfunc.load_model(str(next(here.rglob("MLmodel")).parent))


def test_promote_and_rollback_carry_it_on_and_a_server_that_is_down_or_hangs_harms_nothing(
        registered: tuple[Project, dict[str, Any]], server: str, hanging: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    project, parts = registered
    Registry(project).register(**parts)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    done = cli("promote", "v2", "--json", folder=project.root)
    assert done.code == 0 and json.loads(done.out)["changed"] and time.monotonic() - began < 60
    assert done.err.startswith("Warning: The MLflow server http://127.0.0.1:") and "Next time it is tried again." in done.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hanging)
    began = time.monotonic()
    warning = try_mirror(project, seconds=5)
    assert "did not take everything within 5 s" in warning and "secret" not in warning and time.monotonic() - began < 15
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    done = cli("rollback", folder=project.root)
    assert done.code == 0 and not done.err
    assert seen(project, server)["aliases"] == {"champion": "v1"} and Registry(project).champion().version == "v1"


def test_a_retraining_is_mirrored_when_it_ends(registered: tuple[Project, dict[str, Any]], server: str, cli: Cli,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that only says what a real one says in its last cell: what is sent does not hang on how it was trained."""
    project, _ = registered
    results = {"version": "v1", "digest": "0" * 64, "model": "linear", "passed": True, "promoted": False, "champion": "v1",
               "metric": "roc_auc", "metrics": {"roc_auc": 0.5}, "interval": [0.4, 0.6], "bad_rows": 0, "split": "by time",
               "set_aside": {}, "comparison": {}, "verdict": {"checks": []}}
    cells = [nbformat.v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(f"from mlsys.runs import finish\nfinish(**{results!r})")]
    project.run_notebooks.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), project.run_notebooks / "retrain.ipynb")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    done = cli("retrain", "-p", "seed=7", "--json", folder=project.root)
    assert done.code == 0, done.err
    run = seen(project, server)["runs"][json.loads(done.out)["run"]]
    assert run.data.params == {"seed": "7"} and run.data.metrics == {"roc_auc": 0.5} and run.info.status == "FINISHED"


def test_without_the_variable_nothing_is_imported(registered: tuple[Project, dict[str, Any]]) -> None:
    project, _ = registered
    code = "import sys; from mlsys.cli import show_elsewhere; from mlsys.core import Project; " \
           "show_elsewhere(Project.find()); print('mlflow' in sys.modules or 'mlsys.mirror' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=project.root, env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
