"""The registry between processes: equal digests, racing registrations and promotions, sudden death, tampering."""
import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from mlsys import versions as versions_module
from mlsys.core import MlsysError, Project, UsageError
from mlsys.evaluate import evaluate
from mlsys.explain import Explainer
from mlsys.models import boosting, build_pipeline, encode_target, linear, predict_scores
from mlsys.registry import Registry
from mlsys.schema import infer
from mlsys.scope import Scope
from mlsys.versions import ModelVersion, adopt_code, dump_model, import_copy, load_model, load_version, verify_version

fork = multiprocessing.get_context("fork")


# The model file

def make_table() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({
        "age": rng.normal(40, 10, 800), "income": rng.lognormal(8, 1, 800),
        "city": rng.choice(["Oslo", "Rome", "Lima"], 800), "plan": rng.choice(["a", "b"], 800),
    }).astype({"city": object, "plan": object})
    rows.loc[::7, "age"] = np.nan
    rows.loc[::11, "city"] = None
    return rows, (rows.income + 3000 * (rows.city == "Rome") + rng.normal(0, 2000, 800) > 5000).to_numpy().astype(int)


def make_models() -> dict[str, Pipeline]:
    numbers, words = ["age", "income"], ["city", "plan"]
    fill = SimpleImputer(missing_values=None, strategy="constant", fill_value="(missing)")
    scaled = Pipeline([("fill", SimpleImputer(add_indicator=True)), ("scale", StandardScaler())])
    one_hot = Pipeline([("fill", fill), ("encode", OneHotEncoder(handle_unknown="ignore", min_frequency=5))])
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    spread = ColumnTransformer([("numbers", scaled, numbers), ("words", one_hot, words)])
    compact = ColumnTransformer([("numbers", "passthrough", numbers), ("words", codes, words)])
    logs = ColumnTransformer([("logs", FunctionTransformer(np.log1p), ["income"])])
    trees = {"max_iter": 20, "random_state": 0}
    return {
        "logistic": Pipeline([("prepare", spread), ("model", LogisticRegression(max_iter=500))]),
        "boosting": Pipeline([("prepare", compact), ("model", HistGradientBoostingClassifier(**trees))]),
        "regression": Pipeline([("prepare", compact), ("model", HistGradientBoostingRegressor(**trees))]),
        "forest": Pipeline([("prepare", compact), ("model", RandomForestClassifier(5, random_state=0))]),
        "function": Pipeline([("prepare", logs), ("model", LogisticRegression())]),
        "sets": Pipeline([("prepare", OneHotEncoder()), ("model", LogisticRegression(class_weight={0: 1.0, 1: 2.0}))]),
    }


def dump_all(folder: Path) -> None:
    """Fit and write every model: what a process of its own does."""
    rows, y = make_table()
    for name, model in make_models().items():
        model.fit(rows, y)
        model.notes_ = {"oslo", "rome", "lima", "bonn", "bern"}  # a set, whose order the hash seed decides
        (folder / name).write_bytes(dump_model(model))


def test_equal_fits_give_equal_bytes_in_other_processes(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    code = f"import pathlib, test_registry; test_registry.dump_all(pathlib.Path({str(there)!r}))"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as other:
        dump_all(here)
        assert other.wait(120) == 0
    rows, y = make_table()
    for name, model in make_models().items():
        content = (there / name).read_bytes()
        assert content == (here / name).read_bytes(), name
        loaded = load_model(content, "churn")
        predict = "predict" if name == "regression" else "predict_proba"
        np.testing.assert_array_equal(getattr(loaded, predict)(rows), getattr(model.fit(rows, y), predict)(rows))
        assert loaded.notes_ == {"oslo", "rome", "lima", "bonn", "bern"}
        assert dump_model(loaded) == content, f"{name} changes when it is saved again"


class HomeMade(RegressorMixin, BaseEstimator):
    """An estimator outside of any package that we trust."""

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> "HomeMade":
        self.mean_ = float(np.mean(y))
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return np.full(len(X), self.mean_)


def test_what_we_do_not_trust_is_not_loaded() -> None:
    content = dump_model(Pipeline([("model", HomeMade().fit(*make_table()))]))
    with pytest.raises(MlsysError, match=r"uses test_registry\.HomeMade, which cannot be loaded safely.*'churn'"):
        load_model(content, "churn")
    assert load_model(content, "test_registry")

    for function in (os.system, eval, np.load, pd.read_pickle):
        with pytest.raises(MlsysError, match="cannot be loaded safely"):
            load_model(dump_model(Pipeline([("model", FunctionTransformer(function))])), "churn")


def test_a_model_that_needs_a_pickle_is_refused() -> None:
    with pytest.raises(MlsysError, match="The model cannot be saved"):
        dump_model(Pipeline([("model", FunctionTransformer(open(os.devnull)))]))


# Code that stays with its version

FROM_MLSYS = "from mlsys.features import FeatureSet, collect, feature\n"
FEATURES = '''
import pandas as pd
{imports}

@feature
def is_large(amount: pd.Series) -> pd.Series:
    """The invoice is a large one."""
    return (amount > {limit}).astype(float)

features = FeatureSet(collect(globals()))
'''


def write_package(
    root: Path, package: str = "invoices", limit: int = 600, imports: str = "", text: str = "large"
) -> Project:
    folder = root.joinpath(*package.split("."))
    folder.mkdir(parents=True, exist_ok=True)
    (root / "requirements.lock").write_text("numpy==2\n")
    (folder / "__init__.py").write_text("")
    (folder / "limits.py").write_text(f"large = {limit}\n")
    lines = imports or FROM_MLSYS + "from .limits import large"
    (folder / "features.py").write_text(FEATURES.format(imports=lines, limit=text))
    return Project(root, package, root / "nbs")


@pytest.mark.parametrize(("package", "imports", "limit"), [
    ("invoices", FROM_MLSYS + "from .limits import large", "large"),
    ("invoices", FROM_MLSYS + "from invoices.limits import large", "large"),
    ("invoices", FROM_MLSYS + "from . import limits", "limits.large"),
    ("invoices", FROM_MLSYS + "import invoices.limits as l", "l.large"),
    ("invoices", FROM_MLSYS + "import invoices.limits", "invoices.limits.large"),
    ("mlsys.project", "from ..features import FeatureSet, collect, feature\nfrom .limits import large", "large"),
    ("mlsys.project", "from mlsys.features import *\nfrom mlsys.project.limits import large", "large"),
])
def test_every_way_to_import_stays_within_the_copy(tmp_path: Path, package: str, imports: str, limit: str) -> None:
    amounts = pd.Series([500.0, 700.0])
    results = []
    for number, threshold in enumerate((600, 400)):
        project = write_package(tmp_path / str(number), package, threshold, imports, limit)
        module = import_copy(adopt_code(project.source, package), "features")
        results.append(module.is_large(amounts).tolist())
        assert not list(project.source.rglob("__pycache__"))
    assert results == [[0.0, 1.0], [1.0, 1.0]]
    assert package == "mlsys.project" or package not in sys.modules


def test_a_copy_that_does_not_import_says_so(tmp_path: Path) -> None:
    project = write_package(tmp_path, imports="import a_library_that_is_not_installed")
    with pytest.raises(MlsysError, match="invoices.features .* does not import: ModuleNotFoundError"):
        import_copy(adopt_code(project.source, "invoices"), "features")


# Versions

def make_rows(task: str = "binary") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"amount": rng.uniform(1, 1000, 300).round(2), "country": rng.choice(["DE", "FR"], 300)})
    rows.loc[::9, "country"] = None
    late = np.where(rng.random(300) < np.where(rows.amount > 600, 0.8, 0.2), "yes", "no")
    rows["target"] = {"binary": late, "multiclass": np.where(rows.amount > 900, "very", late),
                      "regression": rows.amount * 2 + rng.normal(0, 10, 300)}[task]
    return rows


def train(project: Project, task: str = "binary", spec: Callable = linear) -> dict:
    """What `register` takes, trained on the spot."""
    rows = make_rows(task)
    scope = Scope(name="invoices", task=task, target="target", positive="yes" if task == "binary" else None)
    schema = infer(rows, scope)
    frame = schema.repair(rows)
    y, classes = encode_target(rows.target, scope)
    features = import_copy(adopt_code(project.source, project.package), "features").features
    pipeline = build_pipeline(spec(), features.bind(schema), task).fit(frame, y)
    scores = predict_scores(pipeline, frame, task)
    return {
        "scope": scope, "schema": schema, "pipeline": pipeline, "explainer": Explainer.of(pipeline, frame, task),
        "threshold": 0.5 if task == "binary" else None, "classes": classes,
        "evaluation": evaluate(y, scores, task, scope.metric, resamples=20),
        "golden": json.loads(rows.drop(columns="target").head(5).to_json(orient="records")), "lineage": {"seed": 0},
    }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return write_package(tmp_path)


@pytest.mark.parametrize(("task", "spec"), [
    ("binary", linear), ("multiclass", linear), ("regression", linear), ("binary", boosting),
])
def test_a_version_serves_as_the_model_in_memory_does(project: Project, task: str, spec: Callable) -> None:
    parts = train(project, task, spec)
    Registry(project).register(**parts)
    elsewhere = project.root / "somewhere else"
    shutil.move(project.var / "registry" / "v1", elsewhere)
    shutil.rmtree(project.source)
    version = load_version(elsewhere)
    rows = version.schema.repair(make_rows(task))
    np.testing.assert_array_equal(version.score(rows), predict_scores(parts["pipeline"], rows, task))
    explained = version.explainer.explain(rows.head(5))
    np.testing.assert_array_equal(explained.contributions, parts["explainer"].explain(rows.head(5)).contributions)
    assert (version.scope, version.classes, version.threshold) == (parts["scope"], parts["classes"], parts["threshold"])
    assert version.evaluation == parts["evaluation"]
    assert version.golden == parts["golden"]
    assert version.lineage["seed"] == 0 and version.lineage["created"]


def test_classes_of_the_package_come_from_the_copy(project: Project) -> None:
    (project.source / "blends.py").write_text(
        "from sklearn.linear_model import Ridge\n\nclass Doubled(Ridge):\n"
        "    def predict(self, X):\n        return 2 * super().predict(X)\n")
    doubled = import_copy(adopt_code(project.source, "invoices"), "blends").Doubled
    parts = train(project, "regression")
    y = make_rows("regression").target.to_numpy()
    pipeline = Pipeline([*parts["pipeline"].steps[:-1], ("model", doubled())])
    pipeline.fit(parts["schema"].repair(make_rows("regression")), y)
    version = Registry(project).register(**{**parts, "pipeline": pipeline, "explainer": None})
    assert b'"invoices.blends"' in (version.folder / "model.skops").read_bytes(), "a private name went into the file"
    model = version.pipeline.named_steps["model"]
    assert type(model).__name__ == "Doubled" and type(model).__module__.startswith("_mlsys_code_")


def test_features_that_were_not_exported_are_found_out(project: Project) -> None:
    parts = train(project)
    (project.source / "limits.py").write_text("large = 100\n")
    with pytest.raises(MlsysError, match="Run mlsys export, restart the kernel"):
        Registry(project).register(**parts)
    assert list((project.var / "registry").iterdir()) == []


def alter(folder: Path, change: str) -> None:
    if change == "changed":
        (folder / "decision.json").write_text((folder / "decision.json").read_text().replace("0.5", "0.6"))
    elif change == "lost":
        (folder / "code" / "limits.py").unlink()
    elif change == "added":
        (folder / "code" / "numpy.py").write_text("raise SystemExit")
    elif change == "manifest":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["decision.json"] = "0" * 64
        (folder / "manifest.json").write_text(json.dumps(manifest))
    elif change == "no manifest":
        (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize("change", ["changed", "lost", "added", "manifest", "no manifest"])
def test_an_altered_version_is_not_loaded(project: Project, change: str) -> None:
    registry = Registry(project)
    folder = registry.register(**train(project)).folder
    alter(folder, change)
    with pytest.raises(MlsysError, match="altered|not valid JSON"):
        registry.get("v1")
    with pytest.raises(MlsysError, match="altered|not valid JSON"):
        registry.promote("v1", "why not")
    assert registry.ledger() == []


def test_a_version_that_was_exchanged_does_not_serve(project: Project) -> None:
    registry = Registry(project)
    registry.register(**train(project))
    registry.register(**{**train(project), "threshold": 0.7})
    registry.promote("v1", "the first")
    for name in ("v1", "v2"):
        (registry.root / name).rename(registry.root / f"moved-{name}")
    shutil.copytree(registry.root / "moved-v2", registry.root / "v1")
    with pytest.raises(MlsysError, match="is not the v2 that was promoted|is not the v1 that was promoted"):
        registry.champion()


# Many at once

def run_all(processes: list) -> list[int]:
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_processes_that_register_at_once_get_a_version_each(project: Project) -> None:
    parts = train(project)

    def register() -> None:
        for _ in range(2):
            Registry(project).register(**parts)

    assert run_all([fork.Process(target=register) for _ in range(4)]) == [0] * 4
    registry = Registry(project)
    assert registry.versions() == [f"v{number}" for number in range(1, 9)]
    manifests = [verify_version(registry.root / version) for version in registry.versions()]
    assert [manifest["version"] for manifest in manifests] == registry.versions()
    assert len({manifest["digest"] for manifest in manifests}) == 1
    assert sorted(path.name for path in registry.root.iterdir()) == sorted(registry.versions()), "something was left"


@pytest.mark.parametrize("moment", ["_check_same", "_take_next_name"])
def test_a_killed_registration_leaves_no_version(
    project: Project, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    parts, registry = train(project), Registry(project)

    def register_and_die() -> None:
        monkeypatch.setattr(versions_module, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        Registry(project).register(**parts)

    assert run_all([fork.Process(target=register_and_die)]) == [-signal.SIGKILL]
    remains = list(registry.root.glob(".new-*"))
    assert len(remains) == 1 and registry.versions() == [] and registry.summaries() == []
    assert registry.register(**parts).version == "v1"
    assert remains[0].exists(), "it could be another process still at work"
    os.utime(remains[0], (time.time() - 4000, time.time() - 4000))
    registry.register(**parts)
    assert not remains[0].exists()


def test_promotions_and_rollbacks_at_once_lose_no_row(project: Project) -> None:
    registry, parts = Registry(project), train(project)
    for _ in range(3):
        registry.register(**parts)
    registry.promote("v1", "start")
    registry.promote("v2", "start")

    def change(name: int) -> None:
        mine, done = Registry(project), 0
        for number in range(10):
            with contextlib.suppress(MlsysError):  # no earlier champion to roll back to
                wanted = f"v{1 + (number + name) % 3}"
                done += (mine.rollback(str(name)) if number % 3 == 2 else mine.promote(wanted, str(name))).changed
        os._exit(done)

    counts = run_all([fork.Process(target=change, args=(name,)) for name in range(4)])
    rows = registry.ledger()
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    for name, count in enumerate(counts):
        assert sum(row["why"] == str(name) for row in rows) == count, "a row was lost or doubled"
    for before, after in itertools.pairwise(rows):
        assert before["version"] != after["version"], "a row that changes nothing"
        assert (after["evidence"].get("rolled_back") or before["version"]) == before["version"]


def test_threads_load_versions_at_once(project: Project) -> None:
    registry, parts = Registry(project), train(project)
    for limit in (600, 300, 900):
        write_package(project.root, limit=limit)
        registry.register(**train(project))
    loaded: list[ModelVersion] = []
    def load(name: str) -> None:
        loaded.append(registry.get(name))

    threads = [threading.Thread(target=load, args=(name,)) for name in ("v1", "v2", "v3") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 9
    frame = parts["schema"].repair(make_rows())
    for version in loaded:
        limit = {"v1": 600, "v2": 300, "v3": 900}[version.version]
        expected = (frame.amount > limit).astype(float)
        np.testing.assert_array_equal(version.features.transform(frame).is_large, expected)


# The ledger

def test_the_roles_and_their_rules(project: Project) -> None:
    registry, parts = Registry(project), train(project)
    with pytest.raises(UsageError, match="there is none yet. Train one: mlsys retrain"):
        registry.promote("v1", "")
    assert registry.champion() is None and registry.summaries() == []
    for _ in range(3):
        registry.register(**parts)
    with pytest.raises(UsageError, match=r"No version 'v33'; there are v1, v2, v3\. Did you mean 'v3'\?"):
        registry.promote("v33", "")
    with pytest.raises(MlsysError, match="no champion yet"):
        registry.promote("v1", "", role="shadow")
    assert registry.promote("v1", "good", evidence={"run": "r1", "figure": np.float64(0.9)}).changed
    row = registry.ledger()[0]
    assert row["evidence"] == {"run": "r1", "figure": 0.9, "digest": registry.get("v1").digest}
    assert row["by"] and row["at"].tzinfo and row["why"] == "good" and row["share"] is None
    for wrong in ({"role": "king"}, {"role": "canary"}, {"role": "canary", "share": 2}, {"share": 0.5}):
        with pytest.raises(UsageError):
            registry.promote("v2", "", **wrong)
    with pytest.raises(UsageError, match="must be another version"):
        registry.promote("v1", "", role="canary", share=0.1)

    registry.promote("v2", "", role="canary", share=0.1)
    assert str(registry.promote("v3", "", role="shadow")) == "v3 is now the shadow."
    assert not registry.promote("v2", "", role="canary", share=0.1).changed
    assert registry.promote("v2", "", role="canary", share=0.2).changed
    assert [line["roles"] for line in registry.summaries()] == [["champion"], ["canary"], ["shadow"]]
    assert registry.roles()["canary"] == {"version": "v2", "share": 0.2}
    assert registry.promote("v1", "stop the experiments").changed, "promoting the champion ends canary and shadow"
    assert str(registry.promote("v1", "again")) == "v1 is the champion already; nothing changed."
    assert list(registry.roles()) == ["champion"]
    with pytest.raises(MlsysError, match="no earlier champion"):
        registry.rollback("")


def test_a_version_name_is_never_given_twice(project: Project) -> None:
    registry, parts = Registry(project), train(project)
    registry.register(**parts)
    registry.promote("v1", "good")
    shutil.rmtree(registry.root / "v1")
    assert registry.register(**parts).version == "v2"
    with pytest.raises(UsageError, match="No version 'v1'"):
        registry.champion()


def test_a_disk_that_takes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, parts = Registry(project), train(project)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(versions_module.os, "fsync", full)
    with pytest.raises(MlsysError, match="No space left on device. Free some space"):
        registry.register(**parts)
    monkeypatch.undo()
    assert list(registry.root.iterdir()) == []


def test_files_that_are_open_to_read(project: Project) -> None:
    folder = Registry(project).register(**train(project)).folder
    with zipfile.ZipFile(folder / "model.skops") as archive:
        names = archive.namelist()
    assert "schema.json" in names and all(name.endswith((".json", ".npy")) for name in names)
    assert json.loads((folder / "features.json").read_text())["functions"] == ["is_large"]
