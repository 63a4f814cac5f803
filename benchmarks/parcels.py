"""A small project that serves: parcels and whether they are lost, with columns of every kind and two versions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from mlsys.core import Project
from mlsys.evaluate import evaluate
from mlsys.explain import Explainer
from mlsys.models import boosting, build_pipeline, encode_target, linear, predict_scores
from mlsys.registry import Registry, adopt_code, import_copy
from mlsys.schema import infer
from mlsys.scope import Scope

features = '''
import numpy as np
import pandas as pd
from mlsys.features import FeatureSet, collect, feature

@feature
def log_amount(amount: pd.Series) -> pd.Series:
    """The amount on a scale on which twice as much is one step."""
    return np.log2(amount.clip(lower=0.01))

features = FeatureSet(collect(globals()))
'''
scope = Scope(
    name="parcels", goal="Ask for a signature where a parcel is likely to be lost", task="binary", target="lost",
    positive="yes", id="parcel", personal={"email": "a customer's address"},
)


def make_table(rows: int = 1500) -> pd.DataFrame:
    """Parcels; the dear ones by the red carrier are lost."""
    rng = np.random.default_rng(0)
    df = pd.DataFrame({
        "parcel": [f"P{number:06}" for number in range(rows)],
        "amount": rng.lognormal(3, 1, rows).round(2),
        "weight": np.where(rng.random(rows) < 0.1, np.nan, rng.uniform(0.1, 20, rows).round(1)),
        "carrier": rng.choice(["red", "green", "blue"], rows),
        "express": rng.choice([True, False], rows),
        "sent": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 90 * 24, rows), unit="h"),
        "email": "someone@example.org",
    })
    risk = np.log(df.amount) - 4 + (df.carrier == "red") * 1.5 - df.express
    return df.assign(lost=np.where(rng.random(rows) < 1 / (1 + np.exp(-risk)), "yes", "no"))


def make_project(root: Path, durable: bool = True) -> Project:
    """A project in an empty folder, with a linear version, which serves, and one of trees; `durable` as in its scope."""
    (root / "settings.ini").write_text("[DEFAULT]\nproject = parcels\n")
    shutil.copy(Path(__file__).parents[1] / "bentofile.yaml", root)
    project = Project.find(root)
    project.source.mkdir()
    (project.source / "__init__.py").touch()
    (project.source / "features.py").write_text(features)
    table = make_table()
    schema = infer(table, scope)
    frame = schema.repair(table)
    schema, (y, classes) = schema.learn(frame), encode_target(table.lost, scope)
    bound = import_copy(adopt_code(project.source, project.package), "features").features.bind(schema)
    golden = json.loads(table.head(5).drop(columns=["lost", "email"]).to_json(orient="records", date_format="iso"))
    own = scope.model_copy(update={"durable": durable})
    for spec in (linear(), boosting()):
        pipeline = build_pipeline(spec, bound, scope.task).fit(frame, y)
        Registry(project).register(
            scope=own, schema=schema, pipeline=pipeline, explainer=Explainer.of(pipeline, frame, scope.task),
            threshold=0.3, classes=classes, golden=golden,
            evaluation=evaluate(y, predict_scores(pipeline, frame, scope.task), scope.task, scope.metric, resamples=50))
    Registry(project).promote("v1", "the first")
    return project


