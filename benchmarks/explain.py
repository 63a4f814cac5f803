"""What explaining costs beside shap's TreeExplainer: `python -m benchmarks.explain [--rows 10000]`.

A model of 200 trees with 31 leaves on 30 columns of numbers, some of them missing. The same rows are explained by both, and
the values have to be equal to 1e-12, or the comparison stops. Explaining is measured whole, from the table: features,
encoding, the model's own margin and the check that all adds up; shap gets prepared rows and does not check. Seconds are the
process's own CPU time, the best of several runs in turn, because everything else that runs on the machine only ever adds to it.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from mlsys.explain import Explainer
from mlsys.features import FeatureSet
from mlsys.models import boosting, build_pipeline, fit
from mlsys.schema import Column, Schema

columns = [f"x{i}" for i in range(30)]
size = {"model__max_iter": 200, "model__max_leaf_nodes": 31}


def make_rows(rows: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Thirty columns of numbers, ten with gaps and ten with few values, and a target that needs interactions."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(rows, 30))
    values[:, 20:] = draw.integers(0, [2, 3, 4, 5, 6, 8, 10, 12, 20, 30], size=(rows, 10))
    full = values.copy()
    values[:, :20:2][draw.random((rows, 10)) < 0.08] = np.nan
    odds = 0.8 * full[:, 0] - 0.6 * full[:, 1] + 0.5 * full[:, 2] * full[:, 3] + 0.7 * np.sin(2 * full[:, 4])
    odds += 0.4 * (full[:, 5] > 0.5) * full[:, 6] + 0.3 * (np.sin(full[:, 20:]) * (1 + (full[:, 8:18] > 0))).sum(axis=1)
    return pd.DataFrame(values, columns=columns), (draw.random(rows) < 1 / (1 + np.exp(-odds))).astype(int)


def make_pipeline(rows: int = 20_000) -> tuple[Any, pd.DataFrame]:
    """The fitted pipeline and its training rows."""
    table, y = make_rows(rows)
    features = FeatureSet().bind(Schema(columns=[Column(name=name, kind="number") for name in columns]))
    return fit(build_pipeline(boosting(), features, "binary", params=size), table, y), table


def seconds(*jobs: Callable[[], Any], repeats: int = 3) -> list[float]:
    """The best CPU time of each job, run in turn."""
    best = [float("inf")] * len(jobs)
    for _ in range(repeats):
        for i, job in enumerate(jobs):
            started = time.process_time()
            job()
            best[i] = min(best[i], time.process_time() - started)
    return best


def compare(pipeline: Any, train: pd.DataFrame, rows: int, repeats: int) -> None:
    """Print what both need for so many rows, once their values agree."""
    import shap

    table = make_rows(rows, seed=1)[0]
    prepared = np.asarray(pipeline[:-1].transform(table), dtype=float)
    theirs = shap.TreeExplainer(pipeline[-1], feature_perturbation="tree_path_dependent")
    for perturbation in ("path_dependent", "interventional"):
        started = time.process_time()
        explainer = Explainer.of(pipeline, train, "binary", perturbation)  # type: ignore[arg-type]
        explainer.explain(table[:1])
        made = time.process_time() - started
        explained = explainer.explain(table)
        if perturbation == "path_dependent":
            gap = np.abs(theirs.shap_values(prepared, check_additivity=False) - explained.contributions).max()
            if not gap <= 1e-12:
                raise SystemExit(f"the values differ by {gap:.2g}")
        ours, other = seconds(lambda explainer=explainer: explainer.explain(table),
                              lambda theirs=theirs, prepared=prepared: theirs.shap_values(prepared, check_additivity=False),
                              repeats=repeats)
        told = f"values equal to {gap:.0e}" if perturbation == "path_dependent" else f"against all {len(train):,} rows"
        print(f"  {rows:>6,} rows, {perturbation:14}  mlsys {ours:7.2f} s   shap, path-dependent {other:7.2f} s   "
              f"{other / ours:5.1f} x; {told}; adds up to {explained.error:.0e}; made in {made:.1f} s")


def main() -> None:
    """Measure and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    with threadpool_limits(1):
        pipeline, train = make_pipeline()
        print(f"{size['model__max_iter']} trees with {size['model__max_leaf_nodes']} leaves, {len(columns)} columns, CPU seconds")
        compare(pipeline, train, options.rows, options.repeats)


if __name__ == "__main__":
    main()
