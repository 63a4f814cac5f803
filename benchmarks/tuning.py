"""Three ways to spend the same time on tuning: `python -m benchmarks.tuning [TABLE ...] [--seconds 20]`.

On the same folds and in the same space of parameters: the race of chapter tuning, Optuna's default sampler with its median
pruner, which looks after each fold, and scikit-learn's successive halving over growing samples. Each gets so many seconds of
the processor; halving cannot be told, so its own time is shown. What counts is the figure on rows that no way has seen.
Optuna is no dependency: pip install optuna. The tables lie beside the repository, in ../shared/data.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import HalvingRandomSearchCV, train_test_split

from benchmarks.tables import Table, plain_table, report
from mlsys.evaluate import find_metric
from mlsys.features import FeatureSet
from mlsys.models import boosting, build_pipeline, encode_target, fit, predict_scores
from mlsys.schema import infer
from mlsys.scope import Scope
from mlsys.tuning import make_folds, tune

names = ["telco_churn", "online_shoppers", "vehicle_claim_fraud", "adult_income"]
sizes = [50, 100, 200, 300]  # trees, for those that do not stop early
Params = dict[str, Any]


def space() -> Params:
    """What there is to choose from."""
    search = boosting().search
    assert not callable(search)
    return {**search, "model__max_iter": sizes}


def by_race(build: Callable[[Params], Any], df: pd.DataFrame, y: np.ndarray, scope: Scope, features: FeatureSet, seed: int,
            seconds: float) -> tuple[Params, int]:
    """The project's own way."""
    tuned = tune(boosting(), features, df, y, scope, 200, 3, seed, seconds=seconds, clock=time.process_time)
    return tuned.params, len(tuned.trials)


def by_optuna(build: Callable[[Params], Any], df: pd.DataFrame, y: np.ndarray, scope: Scope, features: FeatureSet, seed: int,
              seconds: float) -> tuple[Params, int]:
    """Optuna with its defaults; a trial that is worse than the median after a fold ends there."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pairs, metric, ends = make_folds(df, y, scope, 3, seed), find_metric(scope.metric), time.process_time() + seconds

    def draw(trial: Any) -> Params:
        return {name: values.ppf(trial.suggest_float(name, 0.001, 0.999)).item() if hasattr(values, "ppf")
                else trial.suggest_categorical(name, values) for name, values in space().items()}

    def judge(trial: Any) -> float:
        figures: list[float] = []
        for step, (fit_on, judge_on) in enumerate(pairs):
            pipeline = fit(build(draw(trial)), df.iloc[fit_on], y[fit_on])
            figures.append(metric.function(y[judge_on], predict_scores(pipeline, df.iloc[judge_on], scope.task)))
            trial.report(float(np.mean(figures)), step)
            if trial.should_prune():
                raise optuna.TrialPruned
            if time.process_time() > ends:
                trial.study.stop()
        return float(np.mean(figures))

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed),
                                pruner=optuna.pruners.MedianPruner(n_startup_trials=3))
    study.optimize(judge)
    return draw(study.best_trial), len(study.trials)


def by_halving(build: Callable[[Params], Any], df: pd.DataFrame, y: np.ndarray, scope: Scope, features: FeatureSet, seed: int,
               seconds: float) -> tuple[Params, int]:
    """scikit-learn's successive halving with its defaults."""
    search = HalvingRandomSearchCV(build({}), space(), n_candidates=24, scoring=scope.metric, cv=make_folds_of(scope, seed),
                                   random_state=seed, refit=False, min_resources=1000)
    search.fit(df, y)
    return search.best_params_, len(search.cv_results_["params"])


def make_folds_of(scope: Scope, seed: int) -> Any:
    """Three shuffled folds, which halving cuts out of its samples."""
    from sklearn.model_selection import StratifiedKFold

    return StratifiedKFold(3, shuffle=True, random_state=seed)


def measure(table: Table, source: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each way."""
    df, target = plain_table(source, table.options)
    df = df.sample(min(options.rows, len(df)), random_state=0)
    scope = Scope(name="bench", task="binary", target=target, positive=sorted(df[target].astype(str).unique())[-1])
    schema = infer(df, scope)
    df = schema.repair(df).reset_index(drop=True)
    y = encode_target(df[target], scope)[0]
    metric = find_metric(scope.metric)
    found: dict[str, list[tuple[float, float, int]]] = {}
    for seed in range(options.seeds):
        train, test = train_test_split(np.arange(len(df)), test_size=0.3, random_state=seed, stratify=y)
        mine, features = df.iloc[train].reset_index(drop=True), FeatureSet().bind(schema)

        def build(params: Params, features: FeatureSet = features, seed: int = seed) -> Any:
            return build_pipeline(boosting(), features, "binary", seed, params)

        ways = {"untuned": lambda *_: ({}, 0), "race": by_race, "Optuna": by_optuna, "successive halving": by_halving}
        for way, function in ways.items():
            started = time.process_time()
            params, tried = function(build, mine, y[train], scope, features, seed, options.seconds)
            taken = time.process_time() - started
            fitted = fit(build(params), mine, y[train])
            score = metric.function(y[test], predict_scores(fitted, df.iloc[test], "binary"))
            found.setdefault(way, []).append((score, taken, tried))
    return [{"table": table.name, "way": way, f"{scope.metric} on unseen rows": f"{np.mean([one[0] for one in told]):.4f}",
             "CPU s": f"{np.mean([one[1] for one in told]):.0f}", "trials": f"{np.mean([one[2] for one in told]):.0f}"}
            for way, told in found.items()]


def main() -> None:
    """Measure and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--seeds", type=int, default=3)
    report(parser, names, "optuna", measure)


if __name__ == "__main__":
    main()
