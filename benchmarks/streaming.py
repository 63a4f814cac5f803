"""Memory of profiling, inferring and checking a Parquet file of 20 million rows, batch by batch, beside reading it whole."""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

rows, columns_of_numbers = 20_000_000, 6


def write(path: Path, rows: int) -> None:
    """A table of trips with gaps, levels, dates and a few broken cells, written a million rows at a time."""
    rng = np.random.default_rng(0)
    writer = None
    for start in range(0, rows, 1_000_000):
        size = min(1_000_000, rows - start)
        frame = pd.DataFrame({f"reading_{i}": rng.normal(size=size) for i in range(columns_of_numbers)})
        frame["started"] = pd.Timestamp("2025-01-01") + pd.to_timedelta(start + np.arange(size), unit="s")
        frame["zone"] = rng.choice(["north", "south", "east", "west"], size)
        frame["stops"] = rng.integers(0, 12, size)
        frame["fare"] = np.round(rng.lognormal(2, .5, size), 2).astype(str)
        broken = rng.random(size) < .001
        frame.loc[broken, "fare"] = [f"about {fare:.0f}" for fare in rng.lognormal(2, .5, broken.sum())]
        frame.loc[rng.random(size) < .05, "reading_0"] = np.nan
        frame["tip"] = rng.choice(["yes", "no"], size)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def peak_mb() -> float:
    """This process's largest memory so far; getrusage would count what its parent had, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def job(path: str, how: str) -> None:
    """One of the two ways, in a process of its own: prints what it took."""
    from mlsys.profile import check_stream, infer_stream
    from mlsys.scope import Scope
    from mlsys.sources import read, read_batches

    start, began = peak_mb(), time.perf_counter()
    if how == "whole":
        found = {"rows": len(read(path))}
    else:
        scope = Scope(name="trips", task="binary", target="tip", positive="yes", time="started")
        schema, profile = infer_stream(lambda: read_batches(path), scope)
        report = check_stream(schema, read_batches(path))
        found = {"rows": profile.rows, "kinds": [column.kind for column in schema.columns], "bad_rows": report.bad_rows}
    print(json.dumps(found | {"peak_mb": peak_mb(), "imports_mb": start, "seconds": time.perf_counter() - began}))


def main() -> None:
    """Write the table, then measure each way in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trips.parquet"
        write(path, rows)
        print(f"{rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB of Parquet")
        for how in ("stream", "whole"):
            words = [sys.executable, "-m", "benchmarks.streaming", str(path), how]
            found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            print(f"{how:<8} peak {found['peak_mb']:,.0f} MB, {found['seconds']:.0f} s   {found}")


if __name__ == "__main__":
    job(*sys.argv[1:]) if sys.argv[1:] else main()
