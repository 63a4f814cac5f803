"""How far the default settings carry on real tables: `python -m benchmarks.tables [TABLE ...] [--keep DIR]`.

`mlsys new` and `mlsys retrain` run as commands, without an edit in between. Then the same split is given to untuned
models, and the champion's recipe is judged in a shuffled 5-fold cross-validation, the split of the tables' reference.
The tables lie beside the repository, in ../shared/data; a table that is not there is skipped.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from mlsys.core import Project
from mlsys.data import Snapshot, list_snapshots, split, usable_rows
from mlsys.evaluate import find_metric
from mlsys.models import ModelSpec, boosting, build_pipeline, encode_target, fit, linear, predict_scores
from mlsys.registry import Registry
from mlsys.schema import agreed_schema


@dataclass(frozen=True)
class Table:
    """A table, how a user would introduce it, and what untuned models got there (linear, gradient boosting).

    With `--time`, the reference is theirs on the last 30 % of the rows. `prepare` gives a table the column with its time.
    """
    name: str
    options: tuple[str, ...]
    reference: tuple[float, float]
    prepare: Callable[[pd.DataFrame], pd.DataFrame] | None = None


def half_hours(df: pd.DataFrame) -> pd.DataFrame:
    """elec2 has a row each half hour, in order, and a date that jumps."""
    return df.assign(moment=pd.date_range("1996-05-07", periods=len(df), freq="30min")).drop(columns="date")


def days(df: pd.DataFrame) -> pd.DataFrame:
    """The claims by the day that year, month, week of the month and day of the week mean; it stands for all but the last."""
    months = df.Month.map({name: number for number, name in enumerate(
        "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)})
    week_days = {name: number for number, name in enumerate(
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())}
    first = pd.to_datetime({"year": df.Year, "month": months, "day": 1})
    within = 7 * (df.WeekOfMonth - 1) + df.DayOfWeek.map(week_days) - first.dt.day_of_week
    return df.assign(moment=first + pd.to_timedelta(within, unit="D")).drop(columns=["Year", "Month", "WeekOfMonth"])


tables = [
    Table("telco_churn", ("--target", "Churn", "--drop", "customerID"), (0.845, 0.834)),
    Table("adult_income", ("--target", "income"), (0.907, 0.929)),
    Table("titanic", ("--target", "Survived", "--drop", "PassengerId", "--drop", "Name"), (0.848, 0.864)),
    Table("online_shoppers", ("--target", "Revenue", "--drop", "PageValues"), (0.743, 0.781)),
    Table("dry_bean", ("--target", "Class", "--drop", "Bean ID"), (0.923, 0.927)),
    Table("bike_sharing_hourly", ("--target", "cnt", "--time", "date", "--drop", "casual", "--drop", "registered"),
          (186, 79.3)),
    Table("vehicle_claim_fraud", ("--target", "FraudFound_P", "--drop", "PolicyNumber"), (0.798, 0.810)),
    Table("vehicle_claim_fraud", ("--target", "FraudFound_P", "--drop", "PolicyNumber", "--time", "moment"), (0.763, 0.781),
          days),
    Table("elec2", ("--target", "class", "--time", "moment"), (0.808, 0.823), half_hours),
    Table("dirty_cafe_sales", ("--target", "Total Spent", "--drop", "Quantity"), (4.74, 4.87)),
]


def plain_table(source: Path, options: tuple[str, ...]) -> tuple[pd.DataFrame, str]:
    """A table without the columns that its options drop, and the name of its target."""
    given = list(zip(options[::2], options[1::2], strict=True))
    target = next(value for option, value in given if option == "--target")
    return pd.read_csv(source).drop(columns=[value for option, value in given if option == "--drop"]), target


def run(folder: Path, *words: str) -> tuple[float, str]:
    """Seconds and output of an `mlsys` command; exit code 1 is an answer, too."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = time.perf_counter()
    command = [sys.executable, "-m", "mlsys.cli", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"mlsys {' '.join(words)}: {done.stderr}")
    return time.perf_counter() - started, done.stdout


def judge_recipes(project: Project, recipes: dict[str, tuple[ModelSpec, dict[str, Any]]], snapshot: Snapshot,
                  test_share: float | None, seed: int) -> dict[str, tuple[float, float]]:
    """For each recipe the metric on the retraining's own held-out rows, and in shuffled 5-fold cross-validation.

    The second is NaN for tables with a time: shuffling them would let the future teach.
    """
    scope, features = project.load("scope").scope, project.load("features").features
    rows = snapshot.load()
    agreed = agreed_schema(project.schema_path, rows, scope)
    usable = usable_rows(agreed.repair(rows), scope).rows
    metric = find_metric(scope.metric)
    y, classes = encode_target(usable[scope.target], scope)

    def score(spec: ModelSpec, params: dict[str, Any], train: pd.DataFrame, test: pd.DataFrame) -> float:
        y_train, y_test = (encode_target(part[scope.target], scope, classes)[0] for part in (train, test))
        bound = features.bind(agreed.learn(train))
        pipeline = fit(build_pipeline(spec, bound, scope.task, seed, params), train, y_train)
        return metric.function(y_test, predict_scores(pipeline, test, scope.task))

    parts = split(usable, scope, test_share, seed)
    shuffled = (KFold if scope.task == "regression" else StratifiedKFold)(5, shuffle=True, random_state=0)
    folds = [] if scope.time else list(shuffled.split(usable, y))
    found = {}
    for name, (spec, params) in recipes.items():
        in_folds = [score(spec, params, usable.iloc[a], usable.iloc[b]) for a, b in folds]
        found[name] = score(spec, params, parts.train, parts.test), float(np.mean(in_folds)) if folds else float("nan")
    return found


def measure(table: Table, source: Path, folder: Path) -> dict[str, Any]:
    """One line of the report."""
    project_name = f"{table.name}_{'by_time' if '--time' in table.options else 'model'}"
    if table.prepare:
        df, source = pd.read_csv(source), folder / f"{project_name}.csv"
        table.prepare(df).to_csv(source, index=False)
    new_seconds, _ = run(folder, "new", project_name, "--data", str(source), *table.options)
    project = Project.find(folder / project_name)
    retrain_seconds, output = run(project.root, "retrain", "--json")
    results = json.loads(output)
    sys.path.insert(0, str(project.root))
    version = Registry(project).get(results["version"])
    specs = {spec.name: spec for spec in project.load("models").specs}
    recipes = {"champion": (specs[results["model"]], version.lineage["model_parameters"]),
               "linear": (linear(), {}), "boosting": (boosting(), {})}
    snapshot = next(one for one in list_snapshots(project.var / "snapshots") if one.name == results["snapshot"])
    found = judge_recipes(project, recipes, snapshot, None, 0)
    metric = find_metric(results["metric"])
    best = max(table.reference) if metric.greater_is_better else min(table.reference)
    in_folds = found["champion"][1]  # none for tables with a time
    comparable = results["metrics"][metric.name] if np.isnan(in_folds) else in_folds
    level = comparable >= best - 0.01 if metric.greater_is_better else comparable <= best * 1.03
    theirs, rounding = table.reference[1], 0.5 * 10.0 ** -len(f"{table.reference[1]:g}".partition(".")[2])
    as_good = comparable >= theirs - rounding if metric.greater_is_better else comparable <= theirs + rounding
    low, high = results["interval"]
    return {
        "table": table.name + " by time" * ("--time" in table.options),
        "new, s": f"{new_seconds:.1f}", "retrain, s": f"{retrain_seconds:.0f}", "model": results["model"],
        "gate": "passed" if results["passed"] else "no",
        "held out": f"{results['metrics'][metric.name]:.4g} ({low:.4g} to {high:.4g}) {metric.name}",
        "untuned linear / boosting, same split": f"{found['linear'][0]:.4g} / {found['boosting'][0]:.4g}",
        "5-fold: champion": f"{found['champion'][1]:.4g}",
        "untuned linear / boosting, 5-fold": f"{found['linear'][1]:.4g} / {found['boosting'][1]:.4g}",
        "reference": " / ".join(f"{value:g}" for value in table.reference), "level": "yes" if level else "NO",
        "as good as untuned boosting": "yes" if as_good else "NO",
    }


def markdown(lines: list[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    rows = [list(lines[0]), ["---"] * len(lines[0]), *[list(line.values()) for line in lines]]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def report(parser: argparse.ArgumentParser, names: list[str], package: str,
           measure: Callable[[Table, Path, argparse.Namespace], list[dict[str, Any]]]) -> None:
    """Print what is measured on some of the tables that no time orders; a package that is not here is asked for."""
    parser.add_argument("tables", nargs="*", default=names)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    options = parser.parse_args()
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not here: pip install {package}")
        return
    lines = []
    with threadpool_limits(1):
        for table in tables:
            source = options.data / f"{table.name}.csv.gz"
            if table.name in options.tables and "--time" not in table.options and source.exists():
                lines += measure(table, source, options)
    if lines:
        print(markdown(lines))


def main() -> None:
    """Measure and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help="all by default")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--keep", type=Path, help="where the projects stay; a temporary folder by default")
    options = parser.parse_args()
    wanted = [table for table in tables if not options.tables or table.name in options.tables]
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for table in wanted:
            source = options.data / f"{table.name}.csv.gz"
            if not source.exists():
                print(f"{source} is not here: skipped", flush=True)
                continue
            lines.append(measure(table, source, folder))
            print(f"{table.name}: {lines[-1]}", file=sys.stderr, flush=True)
    if lines:
        print(markdown(lines))


if __name__ == "__main__":
    main()
