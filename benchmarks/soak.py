"""The service under promotions and kill -9: `python -m benchmarks.soak [--minutes 10] [--project DIR]`.

Two workers answer a constant stream of requests. A promotion or a rollback comes every 5 s, and every 30 s a worker is
killed with -9. Counted are wrong answers, answers without a row in the log, and failed requests beyond the moments of a
kill; the memory of the workers is shown at the start and at the end. Without `--project`, the one of this folder serves; it
needs two versions.
"""

import argparse
import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import psutil

from mlsys.core import Project
from mlsys.prediction_log import PredictionLog
from mlsys.registry import Registry
from mlsys.roles import Holder
from mlsys.service import running_service


def workers(process: psutil.Process) -> list[psutil.Process]:
    """The worker processes of a service."""
    return [one for one in process.children(recursive=True) if "_bentoml_impl.worker.service" in " ".join(one.cmdline())]


def expected(registry: Registry, names: list[str]) -> tuple[dict, dict[str, float]]:
    """A row that all versions know, and what each says about it."""
    holders = {name: Holder(registry.get(name)) for name in names}
    first = next(iter(holders.values()))
    from mlsys.serving import example_rows
    row = example_rows(first.version, 1)[0]
    return row, {name: float(holder.score(holder.intake.check([row]).clean)[0]) for name, holder in holders.items()}


def ask(url: str, row: dict, scores: dict[str, float], stop: threading.Event, told: dict[str, list], pause: float) -> None:
    """One client: asks until it is stopped, and keeps ids, wrong answers and failures."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stop.wait(pause):
            at = time.monotonic()
            try:
                answer = client.post("/predict", json={"rows": [row]})
            except httpx.HTTPError:
                told["failed"].append((at, time.monotonic()))
                continue
            if answer.status_code != 200:
                told["wrong"].append(answer.text[:200])
                continue
            (one,) = answer.json()["predictions"]
            told["ids"].append(one["id"])
            if abs(one["score"] - scores.get(one["model"], float("nan"))) > 1e-9 or one["role"] == "fallback":
                told["wrong"].append(json.dumps(one)[:200])


def soak(project: Project, seconds: float, clients: int, pause: float) -> dict[str, object]:
    """Run it, and count."""
    registry = Registry(project)
    names = registry.versions()[:2]
    row, scores = expected(registry, names)
    told: dict[str, list] = {"ids": [], "failed": [], "wrong": []}
    kills: list[float] = []
    with running_service(project, workers=2) as service:
        supervisor, stop = psutil.Process(service.process.pid), threading.Event()
        threads = [threading.Thread(target=ask, args=(service.url, row, scores, stop, told, pause)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        memory = [[round(one.memory_info().rss / 1e6) for one in workers(supervisor)]]
        start = time.monotonic()
        for step in range(1, max(2, int(seconds / 5)) + 1):
            time.sleep(max(0.0, start + 5 * step - time.monotonic()))
            registry.promote(names[step % 2], "soak")
            if step % 6 == 3:
                kills.append(time.monotonic())
                os.kill(workers(supervisor)[0].pid, signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
        memory.append([round(one.memory_info().rss / 1e6) for one in workers(supervisor)])
    log = PredictionLog(project.database_url)
    unlogged = sum(log.prediction(id) is None for id in told["ids"])
    beyond = sum(not any(begun <= kill + 1 and kill <= ended + 1 for kill in kills) for begun, ended in told["failed"])
    return {"answers": len(told["ids"]), "wrong": len(told["wrong"]), "without a log row": unlogged, "kills": len(kills),
            "failed at a kill": len(told["failed"]) - beyond, "failed otherwise": beyond, "memory MB": memory,
            "for example": told["wrong"][:2]}


def main() -> None:
    """Soak, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.02)
    parser.add_argument("--project", type=Path, default=Path.cwd())
    options = parser.parse_args()
    project = Project.find(options.project)
    if len(Registry(project).versions()) < 2:
        print(f"{project.root} needs two versions: run mlsys retrain twice there, or pass --project.")
        return
    for name, value in soak(project, 60 * options.minutes, options.clients, options.pause).items():
        print(f"{name:18} {value}")


if __name__ == "__main__":
    main()
