"""What one row costs in process: `python -m benchmarks.row`.

The model of `benchmarks.serving`, 200 trees with 31 leaves, and 200 different rows in turn; microseconds of the thread's own
processor time for a row, the best of many rounds. The aim is less than 120 for a row that is checked, predicted and explained.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.explain import make_rows
from benchmarks.serving import make_project
from mlsys.serving import Runtime


def best(job: Callable[[Any], Any], rows: list[Any], rounds: int) -> float:
    """Microseconds for each of the rows."""
    found = float("inf")
    for _ in range(rounds):
        started = time.thread_time()
        for row in rows:
            job(row)
        found = min(found, 1e6 * (time.thread_time() - started) / len(rows))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        runtime = Runtime(make_project(Path(temporary)))
        holder = runtime.lineup.leader
        table = make_rows(200, seed=1)[0]
        rows = [{name: None if value != value else value for name, value in row.items()} for row in table.to_dict("records")]
        jobs: dict[str, Callable[[Any], Any]] = {
            "checked": lambda row: holder.intake.check([row]),
            "checked and predicted": lambda row: holder.answer(holder.intake.check([row]).clean),
            "checked, predicted and explained": lambda row: holder.answer(holder.intake.check([row]).clean, True),
            "the same as an answer, in JSON": lambda row: runtime.answer([row], True).to_json(),
        }
        for name, job in jobs.items():
            print(f"{name:34} {best(job, rows, options.rounds):6.1f} us")


if __name__ == "__main__":
    main()
