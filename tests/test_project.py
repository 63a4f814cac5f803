"""What a user does with a table, from `mlsys new` to a Bento elsewhere: real commands, a real service, real requests."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlsys.core import Project
from mlsys.demo import command, request, served
from mlsys.registry import Registry
from mlsys.service import free_port
from mlsys.serving import Runtime

shared = Path(__file__).parents[2] / "shared" / "data"
feature = '''#| export
@feature
def price_per_km(price: pd.Series, distance_km: pd.Series) -> pd.Series:
    """What a kilometre of this ride cost."""
    return price / distance_km.clip(lower=0.1)
'''


def mlsys(folder: Path, *words: str, code: int = 0, **environment: str) -> str:
    """What an `mlsys` command printed, which ended as expected and without a stack trace."""
    done = subprocess.run(command(*words), cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == code, f"mlsys {' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def rides(rows: int = 1200, seed: int = 0) -> pd.DataFrame:
    """Taxi rides: whether there was a tip, how much was paid, what the ride was for, and when."""
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({
        "ride": [f"R{number:05}" for number in rng.permutation(rows)],
        "begun": pd.Timestamp("2026-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 120 * 24 * 60, rows)), unit="min"),
        "distance_km": rng.lognormal(1.5, 0.7, rows).round(2),
        "passengers": rng.integers(1, 5, rows),
        "paid_by": rng.choice(["card", "cash", "app"], rows, p=[0.5, 0.3, 0.2]),
        "rating": np.where(rng.random(rows) < 0.2, np.nan, rng.integers(1, 6, rows)),
    })
    df["price"] = (4 + 2.2 * df.distance_km * rng.lognormal(0, 0.4, rows)).round(2)
    happy = 1.5 * (df.paid_by == "card") - 3 * np.log(df.price / df.distance_km) + 0.5 * df.rating.fillna(3) + 1.5
    df["tip"] = np.where(rng.random(rows) < 1 / (1 + np.exp(-happy)), "yes", "no")
    far = np.log(df.distance_km) + 0.4 * rng.normal(size=rows)
    return df.assign(purpose=np.select([far < 1, far < 2], ["errand", "work"], "airport"))


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Child processes find this very library, and no setting of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLSYS")]:
            patch.delenv(name)
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tips") / "rides.csv"
    rides().drop(columns=["begun", "purpose"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def project(table: Path) -> Project:
    """A new project with its first champion."""
    mlsys(table.parent, "new", "tips", "--data", str(table), "--target", "tip", "--id", "ride")
    mlsys(table.parent / "tips", "retrain", "-p", "trials=0")
    return Project.find(table.parent / "tips")


@pytest.fixture(scope="module")
def url(project: Project) -> Iterator[str]:
    """Where `mlsys serve` answers."""
    with served(project.root, project.var / "logs" / "test.log") as url:
        yield url


@pytest.fixture(scope="module")
def second(project: Project, url: str) -> dict[str, Any]:
    """What the retraining said after a feature was added in the notebook, as an editor would."""
    notebook = project.notebooks / "02_features.ipynb"
    content = json.loads(notebook.read_text(encoding="utf-8"))
    place = next(i for i, cell in enumerate(content["cells"]) if "FeatureSet(collect" in "".join(cell["source"]))
    cell = {"cell_type": "code", "id": "0f1e2d3c", "source": feature.splitlines(keepends=True), "execution_count": 3,
            "metadata": {"collapsed": False}, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["tried\n"]}]}
    content["cells"].insert(place, cell)
    notebook.write_text(json.dumps(content, indent=4), encoding="utf-8")
    mlsys(project.root, "export")
    return json.loads(mlsys(project.root, "retrain", "-p", "trials=1", "--json", OMP_NUM_THREADS="1", PYTHONHASHSEED="1"))


def inputs(project: Project, count: int = 20) -> list[dict[str, Any]]:
    rows = rides(count, seed=1)[["distance_km", "passengers", "paid_by", "rating", "price"]]
    return json.loads(rows.to_json(orient="records"))


def predict(url: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    status, answer = request(f"{url}/predict", {"rows": rows, "explain": True})
    assert status == 200, answer
    return answer["predictions"]


def serves(url: str, version: str) -> None:
    """Wait until a running service has followed the ledger."""
    deadline = time.monotonic() + 20
    while (model := request(f"{url}/model")[1]["model"]) != version:
        assert time.monotonic() < deadline, f"{model} still serves"
        time.sleep(0.2)


def check_same(predictions: list[dict[str, Any]], project: Project, version: str, rows: list[dict[str, Any]]) -> None:
    """What was said over HTTP is what the loaded version says in this process."""
    loaded = Registry(project).get(version)
    frame = loaded.schema.frame(loaded.schema.check_rows(rows).clean)
    explanation = loaded.explainer.explain(frame)
    assert {one["model"] for one in predictions} == {version}
    np.testing.assert_allclose([one["score"] for one in predictions], loaded.score(frame), rtol=0, atol=1e-9)
    for number, one in enumerate(predictions):
        told = {part["feature"]: part["contribution"] for part in one["explanation"]["contributions"]}
        ours = dict(zip(explanation.features, explanation.contributions[number], strict=True))
        assert told.keys() == ours.keys() and max(abs(told[name] - ours[name]) for name in ours) < 1e-9


def test_a_served_prediction_adds_up_and_is_the_one_of_the_version(project, url):
    rows = inputs(project)
    predictions = predict(url, rows)
    for one in predictions:
        total = one["explanation"]["base"] + sum(part["contribution"] for part in one["explanation"]["contributions"])
        assert total == pytest.approx(np.log(one["score"] / (1 - one["score"])), abs=1e-6)
        assert one["decision"] in ("yes", "no") and not one["warnings"]
    check_same(predictions, project, "v1", rows)


def test_labels_come_back_in_a_file(project, url, tmp_path):
    ids = [one["id"] for one in predict(url, inputs(project, 3))]
    labels = pd.DataFrame({"id": [*ids, "nobody"], "label": ["yes", "no", "yes", "no"]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    kept = json.loads(mlsys(project.root, "feedback", str(tmp_path / "labels.csv"), "--json"))
    assert kept == {"kept": 3, "repeated": 0, "unknown": ["nobody"], "empty": 0}


def test_a_feature_gives_a_version_that_is_compared_with_the_champion(project, url, second):
    assert second["version"] == "v2" and second["champion"] == "v1" and second["passed"] and second["promoted"]
    assert set(second["comparison"]) == {"trivial", "champion v1"}
    assert "price_per_km" in Registry(project).get("v2").features.names
    assert "tried" not in (project.notebooks / "02_features.ipynb").read_text()  # export cleans
    serves(url, "v2")
    check_same(predict(url, inputs(project)), project, "v2", inputs(project))


def test_the_project_keeps_its_promises(project, second):
    assert "passed" in mlsys(project.root, "test")


def test_a_rollback_reaches_the_running_service(project, url, second):
    models = json.loads(mlsys(project.root, "models", "--json"))
    assert all({"version", "digest", "roles", "created", "metrics"} <= set(one) for one in models)
    assert {one["version"]: one["roles"] for one in models if one["roles"]} == {"v2": ["champion"]}
    assert json.loads(mlsys(project.root, "rollback", "--json"))["version"] == "v1"
    serves(url, "v1")
    mlsys(project.root, "promote", "v2", "--why", "it was fine")
    ledger = json.loads(mlsys(project.root, "ledger", "--json"))
    assert [(row["version"], row["role"]) for row in ledger[:4]] == [(v, "champion") for v in ("v1", "v2", "v1", "v2")]
    assert ledger[3]["why"] == "it was fine"
    serves(url, "v2")


def test_training_again_gives_the_same_digest(project, second):
    words = ["retrain", "-p", "trials=1", "--no-promote", "--json"]
    again = json.loads(mlsys(project.root, *words, OMP_NUM_THREADS="2", PYTHONHASHSEED="7"))
    assert again["digest"] == second["digest"] and again["version"] == "v3" and not again["promoted"]
    assert Registry(project).champion().version == "v2"


@pytest.mark.stress
def test_a_gate_says_no_to_noise(project, second, table, tmp_path):
    noise = pd.read_csv(table)
    noise["tip"] = noise["tip"].sample(frac=1, random_state=0).to_numpy()
    noise.to_csv(tmp_path / "noise.csv", index=False)
    said = mlsys(project.root, "retrain", "--data", str(tmp_path / "noise.csv"), "-p", "trials=0", code=1)
    assert "Verdict   FAILED" in said and "no: better than the trivial model" in said and "v2 serves on" in said
    assert Registry(project).champion().version == "v2"
    runs = json.loads(mlsys(project.root, "runs", "--json"))
    assert {one["status"] for one in runs} == {"done"} and sum(one["results"]["passed"] for one in runs) == len(runs) - 1


@pytest.mark.stress
def test_an_old_version_keeps_its_own_features(project, second):
    rows = inputs(project)
    notebook = project.notebooks / "02_features.ipynb"
    before = notebook.read_text(encoding="utf-8")
    edited = before.replace("return price / distance_km.clip(lower=0.1)", "return distance_km * 0 - price")
    notebook.write_text(edited, encoding="utf-8")
    try:
        mlsys(project.root, "export")
        script = (
            "import json, sys, pandas as pd, tips.features as now\n"
            "from mlsys.core import Project\nfrom mlsys.serving import Runtime\n"
            "assert now.price_per_km(pd.Series([6.0]), pd.Series([2.0]))[0] == -6\n"
            "print(json.dumps(Runtime(Project.find(), None).predict(json.load(sys.stdin), explain=True)))"
        )
        words = [sys.executable, "-c", script]
        done = subprocess.run(words, cwd=project.root, input=json.dumps(rows), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        predictions = json.loads(done.stdout)["predictions"]
    finally:
        notebook.write_text(before, encoding="utf-8")
        mlsys(project.root, "export")
    check_same(predictions, project, "v2", rows)


def test_a_bento_answers_alike_in_another_place(project, second, tmp_path):
    built = Path(json.loads(mlsys(project.root, "build", "--json"))["bento"])
    bento, log = tmp_path / "carried" / "bento", tmp_path / "log"
    shutil.copytree(built, bento)
    (tmp_path / "elsewhere").mkdir()
    nowhere = "http://127.0.0.1:9"  # whoever calls home gets no answer
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1"}
    environment |= {"BENTOML_HOME": str(tmp_path / "home")}
    port = free_port()
    words = [sys.executable, "-m", "bentoml", "serve", str(bento), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as sink:
        process = subprocess.Popen(words, cwd=tmp_path / "elsewhere", env=environment, stdout=sink, stderr=sink)
    try:
        deadline, status = time.monotonic() + 90, 0
        while status != 200:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
            try:
                status = request(f"http://127.0.0.1:{port}/readyz")[0]
            except OSError:
                continue
        check_same(predict(f"http://127.0.0.1:{port}", inputs(project)), project, "v2", inputs(project))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def new_and_retrain(
    folder: Path, name: str, df: pd.DataFrame, *options: str
) -> tuple[Project, dict[str, Any], dict[str, Any]]:
    """The project, the retraining's results, and a prediction for the table's first row."""
    df.to_csv(folder / f"{name}.csv", index=False)
    mlsys(folder, "new", name, "--data", str(folder / f"{name}.csv"), *options)
    results = json.loads(mlsys(folder / name, "retrain", "-p", "trials=0", "--json"))
    project = Project.find(folder / name)
    version = Registry(project).get(results["version"])
    (prediction,) = Runtime(project, None).predict(version.golden[:1], explain=True)["predictions"]
    return project, results, prediction


@pytest.mark.stress
def test_numbers_in_time_and_classes_go_through(tmp_path):
    df = rides(900).drop(columns=["ride", "tip"])
    with ThreadPoolExecutor(2) as pool:
        options = ["--target", "price", "--time", "begun"]
        price = pool.submit(new_and_retrain, tmp_path, "prices", df.drop(columns="purpose"), *options)
        options = ["--target", "purpose", "--drop", "begun", "--drop", "price"]
        purpose = pool.submit(new_and_retrain, tmp_path, "purposes", df, *options)
        (_, numbers, price), (classes, labels, purpose) = price.result(), purpose.result()
    assert "by time" in numbers["split"] and numbers["metric"] == "rmse" and numbers["passed"]
    total = price["explanation"]["base"] + sum(part["contribution"] for part in price["explanation"]["contributions"])
    assert total == pytest.approx(price["score"], abs=1e-6)
    held_out = df[df.begun >= pd.Timestamp(numbers["split"].split(" from ")[1][:19])]
    assert len(held_out) == pytest.approx(0.3 * len(df), abs=2)
    assert labels["metric"] == "accuracy" and labels["passed"]
    assert set(purpose["score"]) == {"airport", "errand", "work"} and sum(purpose["score"].values()) == pytest.approx(1)
    assert purpose["decision"] == max(purpose["score"], key=purpose["score"].get)
    assert "price" not in {column.name for column in Registry(classes).get("v1").schema.inputs}


@pytest.mark.skipif(not shared.exists(), reason="the shared tables are not here")
def test_a_real_table_without_an_edit(tmp_path):
    said = mlsys(tmp_path, "new", "churn", "--data", str(shared / "telco_churn.csv.gz"), "--target", "Churn")
    assert "customerID (id" in said
    results = json.loads(mlsys(tmp_path / "churn", "retrain", "-p", "trials=0", "--json"))
    assert results["passed"] and results["metrics"]["roc_auc"] > 0.82 and results["bad_rows"] == 0
    schema = Registry(Project.find(tmp_path / "churn")).get("v1").schema
    assert schema.column("TotalCharges").kind == "number" and 0 < schema.column("TotalCharges").missing_share < 0.01
