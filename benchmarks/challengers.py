"""Whether LightGBM would pay for its place beside HistGradientBoosting: `python -m benchmarks.challengers [TABLE ...]`.

Both grow 200 trees with 31 leaves on the same rows, prepared alike, one thread each: the mean of five shuffled folds, the
processor's time for a fit, and what one row costs to predict and explain. LightGBM predicts and explains by its own code,
ours by the tables of chapter trees. It is no dependency: pip install lightgbm. The tables lie beside the repository, in
../shared/data.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from benchmarks.tables import Table, plain_table, report
from mlsys.features import FeatureSet
from mlsys.models import boosting, build_pipeline, encode_target
from mlsys.schema import infer
from mlsys.scope import Scope
from mlsys.trees import TreeShapley, read_trees

names = ["telco_churn", "adult_income", "online_shoppers", "dry_bean"]


def prepared(source: Path, options: tuple[str, ...]) -> tuple[Any, pd.DataFrame, np.ndarray, str]:
    """The pipeline without its model, the rows, the target and the task."""
    table, target = plain_table(source, options)
    levels = sorted(table[target].dropna().astype(str).unique())
    task = "binary" if len(levels) == 2 else "multiclass"
    scope = Scope(name="bench", task=task, target=target, positive=levels[-1] if task == "binary" else None)
    schema = infer(table, scope)
    rows = schema.repair(table)
    y = encode_target(rows[target], scope)[0]
    return build_pipeline(boosting(), FeatureSet().bind(schema), task)[:-1], rows, y, task


def spent(job: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """Seconds of the processor, the best of so many."""
    best, result = float("inf"), None
    for _ in range(times):
        started = time.process_time()
        result = job()
        best = min(best, time.process_time() - started)
    return best, result


def asking(label: str, fitted: Any, width: int) -> list[Callable[[np.ndarray], Any]]:
    """What predicts and what explains a row."""
    if label == "LightGBM":
        return [partial(fitted.booster_.predict, raw_score=True), partial(fitted.booster_.predict, pred_contrib=True)]
    trees = read_trees(fitted)
    return [trees.predict, TreeShapley(trees, width=width).contributions]


def measure(table: Table, source: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each of the two."""
    import lightgbm

    before, rows, y, task = prepared(source, table.options)
    models = {
        "HistGradientBoosting": HistGradientBoostingClassifier(max_iter=200, early_stopping=False, random_state=0),
        "LightGBM": lightgbm.LGBMClassifier(n_estimators=200, num_leaves=31, n_jobs=1, random_state=0, verbose=-1),
    }
    score = roc_auc_score if task == "binary" else lambda y, scores: accuracy_score(y, scores.argmax(axis=1))
    lines = []
    for label, model in models.items():
        figures, seconds = [], 0.0
        for fit_on, judge_on in StratifiedKFold(5, shuffle=True, random_state=0).split(rows, y):
            ready = clone(before).fit(rows.iloc[fit_on], y[fit_on])
            train, test = (np.asarray(ready.transform(rows.iloc[part]), dtype=float) for part in (fit_on, judge_on))
            taken, fitted = spent(lambda model=model, train=train, mine=y[fit_on]: clone(model).fit(train, mine))
            said = fitted.predict_proba(test)
            figures.append(score(y[judge_on], said[:, 1] if task == "binary" else said))
            seconds += taken
        costs = [10_000 * spent(lambda one=one, row=test[:1]: [one(row) for _ in range(100)], 10)[0]
                 for one in asking(label, fitted, test.shape[1])]
        lines.append({"table": table.name, "model": label, "5-fold": f"{np.mean(figures):.4f}",
                      "fit, CPU s": f"{seconds / 5:.2f}",
                      "row predicted, us": f"{costs[0]:.0f}", "row explained, us": f"{costs[1]:.0f}"})
    return lines


def main() -> None:
    """Measure and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    report(parser, names, "lightgbm", measure)


if __name__ == "__main__":
    main()
