"""What scoring a file costs beside the bare pipeline: `python -m benchmarks.batch [--rows 10000000]`.

First on chunks in memory, in turns and in the processor's seconds: the fitted pipeline's own predict_proba, and what `mlsys
score` does with a chunk before it is written: check, repair, score, decide. Both see the same typed table of 30 columns and
the same 200 trees, with one thread each, and have to give the same scores. Then `mlsys score` as a command over a Parquet
file of so many rows, made here: rows a second, and the most memory that it and its processes held.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from benchmarks.explain import make_rows, seconds
from benchmarks.serving import make_project
from mlsys.batch import score_rows
from mlsys.core import Project
from mlsys.registry import ModelVersion, Registry


def compare(version: ModelVersion, rows: int, repeats: int) -> None:
    """Print the ratio on chunks in memory."""
    table = make_rows(rows, seed=1)[0]

    def ours() -> np.ndarray:
        repaired, found = version.schema.check_and_repair(table)
        assert not len(found.bad)
        return score_rows(version, repaired)["score"].to_numpy()

    def bare() -> np.ndarray:
        return version.pipeline.predict_proba(table)[:, 1]

    with threadpool_limits(1):
        gap = np.abs(ours() - bare()).max()
        if not gap <= 1e-12:
            raise SystemExit(f"the scores differ by {gap:.2g}")
        mine, theirs = seconds(ours, bare, repeats=repeats)
    print(f"chunks of {rows:,} rows: mlsys {1e6 * mine / rows:.2f} us a row, the bare pipeline {1e6 * theirs / rows:.2f}: "
          f"{theirs / mine:.2f} of its speed; scores equal to {gap:.0e}")


def write_rows(path: Path, rows: int, chunk: int = 250_000) -> None:
    """A Parquet file of so many rows, in constant memory."""
    writer = None
    for number, start in enumerate(range(0, rows, chunk)):
        part = pa.Table.from_pandas(make_rows(min(chunk, rows - start), seed=number)[0], preserve_index=False)
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    assert writer is not None
    writer.close()


def command(project: Project, rows: int) -> None:
    """Print speed and memory of `mlsys score`."""
    source = project.root / "rows.parquet"
    write_rows(source, rows)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "mlsys.cli", "score", str(source), "-o", "scores.parquet", "--no-log"]
    began, most, ended = time.perf_counter(), [0.0], threading.Event()
    process = subprocess.Popen(words, cwd=project.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True)

    def watch() -> None:
        me = psutil.Process(process.pid)
        while not ended.wait(0.2):
            try:
                held = sum(one.memory_info().rss for one in [me, *me.children(recursive=True)])
            except psutil.Error:
                continue
            most[0] = max(most[0], held / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    said = process.communicate()[0]
    ended.set()
    watcher.join()
    took = time.perf_counter() - began
    written = pq.ParquetFile(project.root / "scores.parquet").metadata.num_rows if process.returncode == 0 else 0
    if written != rows:
        raise SystemExit(f"{written:,} rows were scored\n{said[-2000:]}")
    print(f"mlsys score: {rows:,} rows in {took:.0f} s, {rows / took:,.0f} a second; at most {most[0]:,.0f} MB in all processes")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the file")
    parser.add_argument("--chunk", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        project = make_project(Path(temporary))
        compare(Registry(project).get("v1"), options.chunk, options.repeats)
        command(project, options.rows)


if __name__ == "__main__":
    main()
