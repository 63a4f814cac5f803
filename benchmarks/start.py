"""From start to ready, and what a worker holds: `python -m benchmarks.start [--rounds 3] [--workers 1 2]`.

The model is that of `benchmarks.serving`: 200 trees with 31 leaves, 30 columns. Seconds pass from the start of the service's
process until /readyz says that the model answers. Then every worker has explained some rows, and its memory is read: RSS
counts pages that several processes share in each of them, PSS divides them. Aims: less than 8 s, and 450 MB for a worker.
"""

import argparse
import json
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.serving import make_project
from benchmarks.soak import workers
from mlsys.core import Project
from mlsys.service import Listen, champion, free_port, start_service
from mlsys.serving import example_rows


class Started(NamedTuple):
    """One start."""
    seconds: float
    rss: list[float]  # MB of each worker
    pss: list[float]
    supervisor: float  # its PSS


def measure(project: Project, number: int) -> Started:
    """Start a service with so many workers, and end it."""
    body = json.dumps({"rows": example_rows(champion(project)) * 10, "explain": True}).encode()
    begun = time.perf_counter()
    service = start_service(project, Listen(free_port(), workers=number))
    try:
        service.wait(300)
        seconds = time.perf_counter() - begun
        supervisor = psutil.Process(service.process.pid)
        for _ in range(100 * number):  # a connection each, so that every worker gets its share
            request = urllib.request.Request(f"{service.url}/predict", body, {"Content-Type": "application/json"})
            urllib.request.urlopen(request, timeout=60).close()
        held = [one.memory_full_info() for one in workers(supervisor)]
        return Started(seconds, [one.rss / 1e6 for one in held], [one.pss / 1e6 for one in held],
                       supervisor.memory_full_info().pss / 1e6)
    finally:
        service.stop()


def listed(figures: list[float]) -> str:
    """Rounded figures in a row."""
    return " + ".join(f"{figure:.0f}" for figure in figures)


def main() -> None:
    """Measure, and print a line for each start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder))
        print(f"{champion(project).version}: 200 trees; load of this machine {psutil.getloadavg()[0]:.1f}")
        for number in options.workers:
            for _ in range(options.rounds):
                one = measure(project, number)
                print(f"{number} worker{'s' if number > 1 else ''}: ready after {one.seconds:.1f} s; RSS {listed(one.rss)} MB, "
                      f"PSS {listed(one.pss)} MB; supervisor PSS {one.supervisor:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
