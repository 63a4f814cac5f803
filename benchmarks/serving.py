"""A prediction over HTTP, beside what people write by hand: `python -m benchmarks.serving [--seconds 3] [--rounds 2]`.

One model (200 trees with 31 leaves, 30 columns), one row a request, one worker and one thread for its arithmetic each, everything
on in ours: checks, warnings, the log within a second, metrics, roles. Before anything is measured, every server has to give the
same scores and contributions. Servers are measured in turn, at each concurrency, several rounds; the best round counts, for
everything else on the machine only ever slows down; meanwhile the other servers are stopped. The client shares the machine with
the one that is asked. FastAPI and MLflow come with `mlsys[mlflow]`. `--write FILE` keeps the table as a page of the docs.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.explain import columns, make_rows, size
from benchmarks.peers import BENTO, write_mlflow
from benchmarks.tables import markdown
from mlsys.core import Project
from mlsys.evaluate import evaluate
from mlsys.explain import Explainer
from mlsys.features import FeatureSet
from mlsys.models import boosting, build_pipeline, fit
from mlsys.registry import Registry
from mlsys.schema import Column, Schema
from mlsys.scope import Scope
from mlsys.service import free_port, running_service

root = Path(__file__).parents[1]


@dataclass
class Server:
    """One server: where it listens, what it is asked, and how its answer is read."""
    name: str
    port: int
    paths: dict[str, str]
    wrap: Any
    read: Any = None
    process: int = 0  # with all those that it started

    def processes(self) -> list[psutil.Process]:
        """All of its processes."""
        own = psutil.Process(self.process)
        return [own, *own.children(recursive=True)]


def make_project(folder: Path) -> Project:
    """A project whose one version serves."""
    (folder / "settings.ini").write_text("[DEFAULT]\nproject = bench\n")
    shutil.copy(root / "bentofile.yaml", folder)
    project = Project.find(folder)
    project.source.mkdir()
    (project.source / "__init__.py").touch()
    (project.source / "features.py").write_text("from mlsys.features import FeatureSet\n\nfeatures = FeatureSet([])\n")
    table, y = make_rows(20_000)
    scope = Scope(name="bench", task="binary", target="y", positive="1", durable=False)
    kinds = [Column(name=name, kind="number") for name in columns] + [Column(name="y", kind="category", role="target")]
    schema = Schema(columns=kinds).learn(table.assign(y=y.astype(str)))
    pipeline = fit(build_pipeline(boosting(), FeatureSet().bind(schema), "binary", params=size), table, y)
    Registry(project).register(
        scope=scope, schema=schema, pipeline=pipeline, explainer=Explainer.of(pipeline, table, "binary"), threshold=0.5,
        classes=["0", "1"], golden=schema.json_rows(table.head(5)),
        evaluation=evaluate(y, pipeline.predict_proba(table)[:, 1], "binary", "roc_auc", resamples=20))
    Registry(project).promote("v1", "the benchmark's")
    return project


def post(server: Server, kind: str, row: dict[str, Any]) -> Any:
    """One answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{server.paths[kind]}",
                                     json.dumps(server.wrap(row, kind)).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


@contextlib.contextmanager
def started(command: list[str], server: Server, row: dict[str, Any], log: Path, **more: str) -> Iterator[Server]:
    """A peer for the length of a block."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True", "MLFLOW_DISABLE_TELEMETRY": "true",
                                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                                "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]), **more}
    with log.open("w") as sink:
        process = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=sink, stderr=sink, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                post(server, next(iter(server.paths)), row)
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{server.name} did not start: {error}\n{log.read_text()[-3000:]}") from error
                time.sleep(0.3)
        server.process = process.pid
        yield server
    finally:
        mine = [one.pid for one in psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def servers(stack: contextlib.ExitStack, folder: Path, project: Project, row: dict[str, Any]) -> list[Server]:
    """Everybody, up and answering."""
    ours = stack.enter_context(running_service(project))
    port = int(ours.url.rsplit(":", 1)[1])
    model = str(Registry(project).folder("v1"))
    both = {"predict": "/predict", "explain": "/explain"}

    def read_ours(answer: Any) -> tuple[float, list[float]]:
        (one,) = answer["predictions"]
        by = {entry["feature"]: entry["contribution"] for entry in one["explanation"]["contributions"]}
        return one["score"], [by[name] for name in columns]

    def plain(answer: Any) -> tuple[float, list[float]]:
        return answer["score"], answer["contributions"]

    def start(name: str, command: list[str], paths: dict[str, str], wrap: Any, read: Any, **more: str) -> Server:
        server = Server(name, int(more.pop("port")), paths, wrap, read)
        log = folder / f"{name.replace(' ', '-')}.log"
        return stack.enter_context(started(command, server, row, log, MODEL=model, **more))

    def as_it_is(row: dict[str, Any], kind: str) -> Any:
        return row

    found = [Server("mlsys", port, {"predict": "/predict", "explain": "/predict"},
                    lambda row, kind: {"rows": [row], "explain": kind == "explain"}, read_ours, ours.process.pid)]
    for name, label, paths in (("fastapi", "FastAPI + shap", both), ("kernel", "same kernel, bare uvicorn", both),
                               ("echo", "bare ASGI echo", {"explain": "/echo"})):
        port = free_port()
        found.append(start(label, [sys.executable, "-m", "benchmarks.peers", name, str(port)], paths, as_it_is,
                           None if name == "echo" else plain, port=str(port)))
    (folder / "peer.py").write_text(BENTO)
    port = free_port()
    bento = start("BentoML, adaptive batching", [sys.executable, "-m", "bentoml", "serve", "peer:Peer", "--host", "127.0.0.1",
                  "--port", str(port)], both, lambda row, kind: {"rows": [row]}, lambda answer: plain(answer[0]), port=str(port),
                  BENTOML_HOME=str(folder / "bentoml"))
    found.append(bento)
    found.append(Server("bare BentoML echo", bento.port, {"explain": "/echo"}, lambda row, kind: {"row": row},
                        process=bento.process))
    write_mlflow(folder / "mlflow")
    for kind in ("predict", "explain"):
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "mlflow"), "--env-manager", "local",
                   "-h", "127.0.0.1", "-p", str(port), "-w", "1"]
        found.append(start(f"MLflow {kind}", command, {kind: "/invocations"},
                           lambda row, kind: {"dataframe_records": [row]},
                           (lambda answer: plain(answer["predictions"][0])) if kind == "explain" else None, port=str(port),
                           EXPLAIN=str(int(kind == "explain"))))
    return found


def check_equal(found: list[Server], rows: list[dict[str, Any]]) -> float:
    """The largest difference between what the servers say; the end when it is more than 1e-9."""
    gap = 0.0
    for row in rows:
        told = [server.read(post(server, "explain", row)) for server in found if server.read and "explain" in server.paths]
        for score, contributions in told[1:]:
            gap = max(gap, abs(score - told[0][0]), float(np.abs(np.subtract(contributions, told[0][1])).max()))
    if not gap <= 1e-9:
        raise SystemExit(f"The servers say different things: {gap:.2g} apart.")
    return gap


@contextlib.contextmanager
def alone(server: Server, others: list[Server]) -> Iterator[None]:
    """The others stand still for the length of a block: what they do while nobody asks them is not what is measured."""
    still = [one for other in others if other.process != server.process for one in other.processes()]
    try:
        for one in still:
            one.suspend()
        yield
    finally:
        for one in still:
            one.resume()


def measure(server: Server, kind: str, bodies: Path, seconds: float, concurrency: int) -> dict[str, float]:
    """One run."""
    words = [str(server.port), server.paths[kind], str(bodies), str(seconds), str(concurrency)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.load", *words], cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", type=Path, help="a file for the table, in Markdown")
    options = parser.parse_args()
    best: dict[tuple[str, str, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        (folder / "project").mkdir()
        project = make_project(folder / "project")
        table = make_rows(200, seed=1)[0]
        rows = [{name: None if value != value else value for name, value in row.items()} for row in table.to_dict("records")]
        found = servers(stack, folder, project, rows[0])
        gap = check_equal(found, rows[:20])
        for round_ in range(options.rounds):
            for server in found:
                for kind in server.paths:
                    bodies = folder / "bodies.json"
                    bodies.write_text(json.dumps([json.dumps(server.wrap(row, kind)) for row in rows]))
                    for concurrency in (1, 16, 64):
                        with alone(server, found):
                            one = measure(server, kind, bodies, options.seconds, concurrency)
                        if one["failed"]:
                            print(f"{server.name}, {kind}, {concurrency}: {one['failed']:.0f} failed", file=sys.stderr)
                        key = server.name.removesuffix(f" {kind}"), kind, concurrency
                        if key not in best or one["rate"] > best[key]["rate"]:
                            best[key] = one
                        print(round_, key, one, file=sys.stderr, flush=True)
    lines = []
    for name, kind in dict.fromkeys((name, kind) for name, kind, _ in best):
        mine = [best[name, kind, concurrency] for concurrency in (1, 16, 64)]
        ratio = best["mlsys", kind, 16]["rate"] / mine[1]["rate"]
        lines.append({"server": name, "answers": "score and contributions" if kind == "explain" and "echo" not in name else
                      "itself" if "echo" in name else "score",
                      "a second at 1 / 16 / 64": " / ".join(f"{one['rate']:,.0f}" for one in mine),
                      "p50 ms": " / ".join(f"{one['p50']:.1f}" for one in mine),
                      "p99 ms": " / ".join(f"{one['p99']:.1f}" for one in mine),
                      "mlsys is so many times as fast, at 16": f"{ratio:.2f}"})
    text = (f"{markdown(lines)}\n\nMeasured on {dt.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"{platform.system()} {platform.machine()}; the client runs on the same cores. Answers agree to {gap:.1g}.")
    print(text)
    if options.write:
        options.write.write_text(text + "\n")


if __name__ == "__main__":
    main()
