"""Compiled and pandas ways give the same answers to whatever a stranger sends, and a version whose ways part does not serve."""
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mlsys.core import MlsysError, Project
from mlsys.explain import Explainer
from mlsys.features import FeatureSet, feature
from mlsys.models import ModelSpec, boosting, build_pipeline, encode_target, fit, linear, predict_scores, single
from mlsys.predictor import Compiled, Predictor, RowFeatures, answer_by_pandas
from mlsys.registry import Registry
from mlsys.requests import Intake, InvalidRows, Limits
from mlsys.roles import Serving
from mlsys.schema import infer
from mlsys.scope import Scope
from mlsys.versions import ModelVersion
from mlsys.worth import check_feature

TOWNS = [f"town {i}" for i in range(40)]


@feature
def heavy(weight: pd.Series, stops: pd.Series) -> pd.Series:
    """Kilograms at each stop."""
    return weight / stops.where(stops > 0)


@feature
def colour(carrier: pd.Series) -> pd.Series:
    """The carrier's first letter."""
    return carrier.str[:1]


def parcels(rows: int = 500) -> pd.DataFrame:
    """Every kind of column, with gaps."""
    draw = np.random.default_rng(3)
    table = pd.DataFrame({
        "weight": draw.gamma(2, 2, rows).round(2), "stops": draw.integers(0, 9, rows).astype(float),
        "carrier": draw.choice(["red", "blue", "grün"], rows), "town": draw.choice(TOWNS, rows),
        "code": draw.choice([11, 22, 33], rows), "fragile": draw.random(rows) < 0.3,
        "sent": pd.Timestamp("2025-01-01") + pd.to_timedelta(draw.integers(0, 9000, rows), unit="h")})
    table["late"] = (table.weight / 4 + (table.carrier == "red") + draw.normal(size=rows) / 2).round(3)
    for name in ("weight", "stops", "carrier", "sent", "town"):
        table.loc[draw.random(rows) < 0.08, name] = None
    return table


def targets(task: str, late: pd.Series) -> Any:
    """Three questions about how late a parcel is."""
    cut = {"binary": [late.median()], "multiclass": [late.quantile(0.3), late.quantile(0.7)]}.get(task)
    return late if cut is None else np.array(["early", "late", "lost"])[np.searchsorted(cut, late)]


def parts(task: str, spec: ModelSpec, functions: tuple[Any, ...], params: dict[str, Any] | None) -> dict[str, Any]:
    """What a version consists of."""
    table = parcels()
    table["late"] = targets(task, table["late"])
    scope = Scope(name="parcels", task=task, target="late", positive="late" if task == "binary" else None)
    schema = infer(table, scope)
    frame = schema.repair(table)
    y, classes = encode_target(frame["late"].astype(float) if task == "regression" else frame["late"], scope)
    pipeline = fit(build_pipeline(spec, FeatureSet(functions).bind(schema), task, params=params), frame, y)
    return {"scope": scope, "schema": schema, "pipeline": pipeline, "explainer": Explainer.of(pipeline, frame, task),
            "threshold": 0.5, "classes": classes, "golden": schema.json_rows(frame.head(6))}


@pytest.fixture(scope="module")
def version() -> Callable[..., ModelVersion]:
    """A version in memory; made once for each model."""
    made: dict[str, ModelVersion] = {}

    def make(task: str, name: str) -> ModelVersion:
        if (key := f"{task} {name}") not in made:
            spec = {"linear": linear, "boosting": boosting, "single": single}[name]()
            one = parts(task, spec, (heavy, colour), {"model__max_iter": 20} if name == "boosting" else None)
            schema, pipeline = one["schema"], one["pipeline"]
            frame = schema.frame(schema.check_rows(one["golden"]).clean)
            made[key] = ModelVersion(
                "v1", "d" * 64, Path("v1"), one["scope"], schema, pipeline[0], pipeline, one["explainer"], 0.5,
                one["classes"], None, one["golden"], predict_scores(pipeline, frame, task).tolist(), {})  # type: ignore[arg-type]
        return made[key]
    return make


numbers = st.one_of(st.none(), st.integers(-10, 1000), st.floats(allow_infinity=True),
                    st.sampled_from([0, -0.0, 1e-300, 1e300, "7"]))
known = ["red", "blue", "grün", "gr", " red ", "(missing)", "unseen", "", "NA", "nan"]
words = st.one_of(st.none(), st.sampled_from(known), st.text(max_size=8))
dates = st.datetimes(min_value=pd.Timestamp("1700-01-01").to_pydatetime())
rows = st.fixed_dictionaries({
    "weight": numbers, "stops": numbers, "carrier": words, "town": st.one_of(st.sampled_from(TOWNS), words),
    "code": st.one_of(st.sampled_from([11, 22.0, "33", None, 44]), st.integers(-3, 10**18)),
    "fragile": st.sampled_from([True, False, None, 0, 1.0, "true"]),
    "sent": st.one_of(st.none(), dates.map(str), st.just("2026-02-28"))})


def said(answer: Callable[[], Any]) -> Any:
    """What comes out, or the first words of why nothing does."""
    try:
        return answer()
    except MlsysError as error:
        return " ".join(str(error).split()[:3])


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("name", ["linear", "boosting", "single"])
def test_both_ways_say_the_same_of_odd_rows(version: Callable[..., ModelVersion], task: str, name: str) -> None:
    model = version(task, name)
    predictor, intake = Predictor(model), Intake(model.schema, Limits())
    predictor.check()
    assert predictor.method == "compiled"
    answered = 0

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(rows, min_size=1, max_size=4))
    def compare(sent: list[dict[str, Any]]) -> None:
        nonlocal answered
        clean = []
        for row in sent:
            try:
                clean += intake.check([row]).clean
            except InvalidRows:
                continue
        if not clean:
            return
        mine = said(lambda: predictor.answer(clean, True))
        theirs = said(lambda: answer_by_pandas(model, clean, True))
        if isinstance(theirs, str) or isinstance(mine, str):
            assert mine == theirs
            return
        answered += len(clean)
        np.testing.assert_allclose(mine.scores, theirs.scores, rtol=1e-9, atol=1e-9)
        size = np.maximum(1, np.abs(theirs.contributions).max(axis=1))  # large reasons that cancel each other
        assert (np.abs(mine.base - theirs.base) <= 1e-9 * size).all()
        assert (np.abs(mine.contributions - theirs.contributions) <= 1e-9 * size[:, None]).all()
        for one, other in zip(mine.values, theirs.values, strict=True):
            assert all(a == b or (pd.isna(a) and pd.isna(b)) for a, b in zip(one, other, strict=True))
        alone = np.concatenate([predictor.answer([row]).scores for row in clean])
        np.testing.assert_allclose(alone, mine.scores, rtol=1e-9, atol=1e-9)

    compare()
    assert answered > 40


def test_a_feature_of_columns_whose_names_are_no_names_in_python() -> None:
    """The pipeline, the compiled way and the explanation call it alike, and a slip says how such a column is given."""
    @feature(inputs={"load": "gross weight [kg]"})
    def heavy_load(load: pd.Series, stops: pd.Series) -> pd.Series:
        """Kilograms at each stop."""
        return load / stops.where(stops > 0)

    table = parcels().rename(columns={"weight": "gross weight [kg]"})
    table["late"] = targets("binary", table["late"])
    schema = infer(table, Scope(name="parcels", task="binary", target="late", positive="late"))
    check_feature(heavy_load, schema)
    frame = schema.repair(table)
    pipeline = fit(build_pipeline(linear(), FeatureSet([heavy_load]).bind(schema), "binary"), frame, table["late"] == "late")
    rows = schema.check_rows(schema.json_rows(frame.head(40))).clean
    made = RowFeatures(pipeline[0], schema)(rows)
    np.testing.assert_allclose(np.array([row["heavy_load"] for row in made], dtype=float),
                               (frame["gross weight [kg]"] / frame["stops"].where(frame["stops"] > 0)).head(40), rtol=1e-12)
    told = Explainer.of(pipeline, frame, "binary").explain(frame.head(5))
    assert "heavy_load" in told.features
    with pytest.raises(MlsysError, match=r"no such column.*@feature\(inputs=\{'weight': 'its name'\}\)"):
        FeatureSet([heavy]).bind(schema)


@pytest.fixture
def registered(tmp_path: Path) -> Project:
    """A project with two versions, the first of which serves."""
    project = Project(tmp_path, "parcels", tmp_path / "nbs")
    project.source.mkdir()
    (project.source / "__init__.py").touch()
    from mlsys.evaluate import evaluate
    for spec, params in ((linear(), None), (boosting(), {"model__max_iter": 10})):
        made = parts("binary", spec, (), params)
        y = np.arange(60) % 2
        Registry(project).register(**made, evaluation=evaluate(y, np.linspace(0.1, 0.9, 60), "binary", "roc_auc", resamples=20))
    Registry(project).promote("v1", "the first")
    return project


def test_a_version_whose_ways_part_is_refused_and_the_old_one_serves_on(
        registered: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving(registered)
    assert serving.lineup.leader.predictor.method == "compiled" and serving.lineup.quick
    right = Compiled.__init__

    def wrong(self: Compiled, version: ModelVersion) -> None:
        right(self, version)
        assert version.explainer is not None
        kernel, self.explainer = version.explainer.kernel, copy.copy(version.explainer)
        self.explainer._made = lambda *rows: (kernel(*rows)[0], kernel(*rows)[1][:, ::-1])  # reasons that change places

    monkeypatch.setattr(Compiled, "__init__", wrong)
    Registry(registered).promote("v2", "looks better")
    with pytest.raises(MlsysError, match="v2 does not serve: its golden rows differ by .* between the compiled way"):
        serving.refresh()
    assert serving.serves == "v1"
    monkeypatch.undo()
    serving._watch._again = -math.inf  # type: ignore[union-attr]  # a minute later
    assert serving.refresh() and serving.serves == "v2"
