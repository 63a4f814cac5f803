"""Whether anything passes the gates on pure noise: `python -m benchmarks.noise [--times 20]`.

The target of a real table is shuffled, each time by another seed, so that no column can tell anything about it; then
`mlsys new` and `mlsys retrain` run as commands, with their default settings. Whatever passes would have served. The tables lie
beside the repository, in ../shared/data.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.tables import run, tables


def main() -> None:
    """Count what passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--rows", type=int, default=3000, help="rows of a table to take at most")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    options = parser.parse_args()
    chosen = [table for table in tables if table.name in ("titanic", "telco_churn", "online_shoppers", "dry_bean")]
    passed = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(options.times):
            table = chosen[seed % len(chosen)]
            target = table.options[table.options.index("--target") + 1]
            df = pd.read_csv(options.data / f"{table.name}.csv.gz")
            df = df.sample(min(len(df), options.rows), random_state=seed)
            df[target] = np.random.default_rng(seed).permutation(df[target].to_numpy())
            source, name = Path(temporary) / f"{seed}.csv", f"noise_{seed}"
            df.to_csv(source, index=False)
            run(Path(temporary), "new", name, "--data", str(source), *table.options)
            found = json.loads(run(Path(temporary) / name, "retrain", "--json")[1])
            passed += [seed] * bool(found["passed"])
            verdict = "PASSED" if found["passed"] else "refused"
            print(f"{seed}: {table.name}, {found['model']} {verdict}", file=sys.stderr, flush=True)
    refused = options.times - len(passed)
    print(f"{refused} of {options.times} models of noise were refused" + (f"; passed: {passed}" if passed else ""))


if __name__ == "__main__":
    main()
