"""Predictions made beforehand: `mlsys score --publish`, and `POST /predict` by entity, with real processes and requests."""
import datetime as dt
import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import conftest
import httpx
import numpy as np
import pandas as pd
import pytest
from test_openapi import schemathesis
from test_service import errors, eventually, predict

from mlsys.batch import score_file
from mlsys.core import MlsysError, Project, Unavailable, UsageError
from mlsys.evaluate import evaluate
from mlsys.explain import Explainer
from mlsys.features import FeatureSet
from mlsys.models import boosting, build_pipeline, encode_target, linear, predict_scores
from mlsys.prediction_log import PredictionLog
from mlsys.published import answer_by, read_published
from mlsys.registry import Registry
from mlsys.requests import InvalidRows, NotPublished
from mlsys.schema import infer
from mlsys.scope import Scope
from mlsys.service import running_service
from mlsys.serving import Runtime, describe_inputs

SENDERS = 150


def make_table(rows: int = 600) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    df = pd.DataFrame({
        "parcel": [f"P{number:06}" for number in range(rows)],
        "sender": [f"s{number % SENDERS:03}" for number in range(rows)],
        "amount": rng.lognormal(3, 1, rows).round(2),
        "weight": np.where(rng.random(rows) < 0.1, np.nan, rng.uniform(0.1, 20, rows).round(1)),
        "carrier": rng.choice(["red", "green", "blue"], rows),
        "sent": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.permutation(rows), unit="h"),
    })
    risk = np.log(df.amount) - 3.5 + (df.carrier == "red") * 1.5 + rng.normal(0, 0.7, rows)
    return df.assign(lost=np.where(risk > 0, "yes", "no"))


def make_project(root: Path, versions=(linear, boosting), target=None, **more) -> Project:
    """A project whose first version serves."""
    (root / "settings.ini").write_text("[DEFAULT]\nproject = parcels\n")
    project = Project.find(root)
    project.source.mkdir()
    (project.source / "__init__.py").touch()
    table = make_table() if target is None else make_table().assign(lost=target)
    scope = Scope(**{"name": "parcels", "task": "binary", "target": "lost", "id": "parcel", "entity": "sender", "time": "sent",
                     "positive": "yes"} | more)
    schema = infer(table, scope)
    frame, (y, classes) = schema.repair(table), encode_target(table.lost, scope)
    schema = schema.learn(frame)
    golden = json.loads(table.head(3).drop(columns=["lost", "sender"]).to_json(orient="records", date_format="iso"))
    for spec in versions:
        pipeline = build_pipeline(spec(), FeatureSet().bind(schema), scope.task).fit(frame, y)
        Registry(project).register(
            scope=scope, schema=schema, pipeline=pipeline, explainer=Explainer.of(pipeline, frame, scope.task), classes=classes,
            threshold=0.4, golden=golden,
            evaluation=evaluate(y, predict_scores(pipeline, frame, scope.task), scope.task, scope.metric, resamples=50))
    Registry(project).promote("v1", "the first")
    return project


def newest_rows() -> dict[str, dict]:
    """The youngest row of each sender, as a client would send it; of s000 with a carrier that training had not seen."""
    rows = make_table().drop(columns="lost").sort_values("sent").groupby("sender").tail(1)
    told = {row["sender"]: row for row in json.loads(rows.to_json(orient="records", date_format="iso", double_precision=15))}
    told["s000"]["carrier"] = "violet"
    return told


def today(folder: Path, name: str = "today.csv") -> Path:
    """The file of the night, not in the order of time."""
    table = make_table().drop(columns="lost")
    youngest = table[table.sender == "s000"].sent.idxmax()
    table.loc[youngest, "carrier"] = "violet"
    table.to_csv(folder / name, index=False)
    return folder / name


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return make_project(tmp_path_factory.mktemp("parcels"))


@pytest.fixture(scope="module")
def service(project):
    with running_service(project) as running:
        yield running


@pytest.fixture(scope="module")
def client(service) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=60)


def publish(cli, project, *options) -> str:
    answer = cli("score", today(project.root), "-o", "scores.parquet", "--overwrite", "--publish", *options, folder=project.root)
    assert answer.code == 0, answer.err
    return answer.out


@pytest.fixture(scope="module")
def night(cli, project) -> dt.datetime:
    """The file was scored and published; when that began, or a little before."""
    before = dt.datetime.now(dt.UTC)
    said = publish(cli, project, "--explain")
    assert f"Published: the newest prediction of {SENDERS} entities" in said and "once v1" not in said
    return before


def ask(client, whom, **more) -> list[dict]:
    answer = client.post("/predict", json={"by": {"sender": whom}, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def grow_old(project: Project, sender: str, hours: float) -> None:
    """As if it had been published so many hours earlier."""
    with sqlite3.connect(project.var / "mlsys.db", timeout=30) as database:
        (at,) = database.execute("SELECT at FROM published WHERE entity = ?", (sender,)).fetchone()
        older = dt.datetime.fromisoformat(at) - dt.timedelta(hours=hours)
        database.execute("UPDATE published SET at = ? WHERE entity = ?", (older.isoformat(" ", "microseconds"), sender))


def same(published: dict, online: dict) -> None:
    """Both say the same about a row."""
    for name in ("decision", "model", "warnings"):
        assert published[name] == online[name]
    assert published["score"] == pytest.approx(online["score"], abs=1e-12)
    if online["explanation"] is None:
        assert published["explanation"] is None
        return
    assert published["explanation"]["base"] == pytest.approx(online["explanation"]["base"], abs=1e-9)
    for left, right in zip(published["explanation"]["contributions"], online["explanation"]["contributions"], strict=True):
        assert (left["feature"], left["value"]) == (right["feature"], right["value"])
        assert left["contribution"] == pytest.approx(right["contribution"], abs=1e-9)


@pytest.mark.parametrize("explain", [False, True, 2])
def test_it_says_what_the_row_would_have_been_told(client, night, explain):
    rows = newest_rows()
    published, online = ask(client, list(rows), explain=explain), predict(client, list(rows.values()), explain=explain)
    assert {one["role"] for one in published} == {"published"} and len(published) == SENDERS
    assert len({one["id"] for one in published + online}) == 2 * SENDERS
    for one, other in zip(published, online, strict=True):
        same(one, other)
    assert [whom for whom, one in zip(rows, published, strict=True) if one["warnings"]] == ["s000"]


def test_its_age_counts_from_the_night(client, project, night):
    most = (dt.datetime.now(dt.UTC) - night).total_seconds()
    (young,) = ask(client, "s001")
    assert 0 < young["age"] <= most + 60
    grow_old(project, "s001", 3)
    (older,) = ask(client, "s001")
    assert older["age"] - young["age"] == pytest.approx(3 * 3600, abs=60)
    (unscoped,) = predict(client, [newest_rows()["s001"]])
    assert "age" not in unscoped


def test_too_old_is_computed_now_or_refused(client, project, night):
    row = newest_rows()["s002"]
    grow_old(project, "s002", 3)
    (stale,) = ask(client, "s002", rows=[row])
    (fresh,) = ask(client, ["s002"], rows=[row], max_age=3600)
    assert (stale["role"], fresh["role"], fresh["age"]) == ("published", "champion", 0)
    same(stale, fresh)
    (told,) = errors(client, 409, {"by": {"sender": ["s003", "s002"]}, "max_age": 3600})
    assert (told["row"], told["field"]) == (1, "sender")
    assert "at most 3,600 s" in told["problem"] and "--publish" in told["problem"]
    grow_old(project, "s002", 34)  # the scope allows 36 hours, and nobody may ask for more
    (told,) = errors(client, 409, {"by": {"sender": "s002"}, "max_age": 1e9})
    assert "at most 129,600 s" in told["problem"]


def test_missing_is_computed_now_or_refused(client, project, night):
    row = {**newest_rows()["s004"], "sender": "newcomer"}
    answers = ask(client, ["newcomer", "s004", "newcomer"], rows=[row], explain=1)
    assert [one["role"] for one in answers] == ["champion", "published", "champion"]
    assert answers[0]["id"] == answers[2]["id"]
    told = errors(client, 409, {"by": {"sender": ["s004", "nobody", "NA"]}, "rows": [row]})
    assert [(one["row"], one["field"]) for one in told] == [(1, "sender"), (2, "sender")]
    assert "nothing is published for it; send its row in `rows`" in told[0]["problem"]
    (told,) = errors(client, 400, {"by": {"sender": "s004"}, "rows": [row, {**row, "amount": "much"}]})
    assert (told["row"], told["field"]) == (1, "amount")  # broken, though nobody needs it today


def test_every_answer_is_in_the_log_with_its_inputs(client, project, night):
    row = {**newest_rows()["s005"], "sender": "another"}
    stored, computed = ask(client, ["s005", "another"], rows=[row], explain=1)
    log = PredictionLog(project.database_url)
    one, other = log.prediction(stored["id"]), log.prediction(computed["id"])
    assert (one["role"], one["entity"], one["version"]) == ("published", "s005", "v1")
    assert (other["role"], other["entity"]) == ("champion", "another")
    assert one["row"] == other["row"] and one["explanation"] == stored["explanation"]
    assert one["at"] > night
    kept = client.post("/feedback", json={"labels": [{"id": stored["id"], "label": "yes"}]})
    assert kept.json()["kept"] == 1
    eventually(lambda: 'mlsys_predictions_total{model="v1",role="published"}' in client.get("/metrics").text)


@pytest.mark.parametrize("by, row, problem", [
    ("s001", None, "an object with the entity"), ({"sendr": "s001"}, None, "an object with the entity"),
    ({"sender": "s001", "parcel": "P1"}, None, "nothing else"), ({"sender": []}, None, "an empty list"),
    ({"sender": None}, 0, "null names nobody"), ({"sender": ["s001", True]}, 1, "true names nobody"),
    ({"sender": ["s001", {"$ne": ""}]}, 1, "not a single value"), ({"sender": [["s001"]]}, 0, "not a single value"),
    ({"sender": float("nan")}, 0, "not a finite number"), ({"sender": "x" * 20_000}, 0, "at most 10,000"),
    ({"sender": "\ud800"}, 0, "surrogate"),
])
def test_a_wrong_way_of_asking_is_refused(client, night, by, row, problem):
    (told,) = errors(client, 400, {"by": by})
    assert told["row"] == row and problem in told["problem"]


@pytest.mark.parametrize("whom", [
    "' OR '1'='1", "s001'; DROP TABLE published; --", "s%", "s00_", "S001", "s001\x00", "*", 1, -0.0, 10**300, "\u202es001",
    "../../etc/passwd", "é" * 9_000])
def test_a_value_finds_itself_and_nothing_else(client, project, night, whom):
    (told,) = errors(client, 409, {"by": {"sender": whom}})
    assert "nothing is published for it" in told["problem"]
    assert len(read_published(PredictionLog(project.database_url), [f"s{n:03}" for n in range(SENDERS)])) == SENDERS


@pytest.mark.parametrize("status, more", [
    (400, {"max_age": -1}), (400, {"max_age": "1h"}), (400, {"max_age": True}), (400, {"explain": "yes"}), (400, {"rows": []}),
    (400, {"rows": None}), (400, {"max_aeg": 1}), (413, {"by": {"sender": ["s001"] * 10_001}}),
    (413, {"by": {"sender": ["s001"] * 1_001}, "explain": True}),
])
def test_a_request_that_asks_for_too_much(client, night, status, more):
    assert errors(client, status, {"by": {"sender": "s001"}, **more})[0]["problem"]


def test_max_age_goes_with_by_alone(client):
    (told,) = errors(client, 400, {"rows": [newest_rows()["s001"]], "max_age": 5})
    assert "unknown field 'max_age'" in told["problem"]


def again(project: Project, version: str, **more) -> None:
    """Publish once more, without a process of its own."""
    score_file(Registry(project).get(version), project.root / "today.csv", project.root / "again.csv", overwrite=True,
               publish_url=project.database_url, **more)


def test_after_a_promotion_only_the_new_champion_answers(client, project, night):
    registry, row = Registry(project), newest_rows()["s006"]
    assert ask(client, "s006")[0]["model"] == "v1"
    registry.promote("v2", "the better one")
    try:
        eventually(lambda: predict(client, [row])[0]["model"] == "v2")
        (told,) = errors(client, 409, {"by": {"sender": "s006"}})
        assert "was made by v1, and v2 serves" in told["problem"]
        (answer,) = ask(client, "s006", rows=[row])
        assert (answer["model"], answer["role"]) == ("v2", "champion")
        again(project, "v2")
        (answer,) = ask(client, "s006")
        assert (answer["model"], answer["role"]) == ("v2", "published")
        same(answer, predict(client, [row])[0])
        (told,) = errors(client, 409, {"by": {"sender": "s006"}, "explain": True})
        assert "has no explanation" in told["problem"]
    finally:
        registry.promote("v1", "as before")
        eventually(lambda: predict(client, [row])[0]["model"] == "v1")
        again(project, "v1", explain=True)


def test_the_contract_tells_of_it_and_its_example_works(client, night):
    schemas = client.get("/docs.json").json()["components"]["schemas"]
    (answer,) = client.post("/predict", json=schemas["By"]["example"]).json()["predictions"]
    assert answer["role"] == "champion"
    (answer,) = ask(client, "s007")
    assert set(answer) == set(schemas["Predictions"]["properties"]["predictions"]["items"]["properties"])


@pytest.mark.stress
def test_schemathesis_finds_nothing_in_it(client, service, night, tmp_path):
    done = schemathesis(f"{service.url}/docs.json", "--phases", "examples,coverage,fuzzing", "--max-examples", "60",
                        "--include-path", "/predict", folder=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]


def test_a_file_without_the_entity_is_refused(cli, project, tmp_path):
    typo = tmp_path / "typo.csv"
    make_table(20).rename(columns={"sender": "sendr"}).to_csv(typo, index=False)
    answer = cli("score", typo, "-o", tmp_path / "x.csv", "--publish", folder=project.root)
    assert answer.code == 2 and "no column 'sender'" in answer.err and "Did you mean 'sendr'?" in answer.err
    assert not (tmp_path / "x.csv").exists()


def test_before_a_promotion_it_says_that_it_waits(cli, tmp_path):
    project = make_project(tmp_path, [linear, linear])
    assert "once v2 is the champion" in publish(cli, project, "--version", "v2", "--no-log")
    assert PredictionLog(project.database_url).predictions() == []


@pytest.mark.parametrize("said, more", [
    ("names no entity", {"entity": None, "forbidden": {"sender": "not for the model"}}),
    ("drops 'sender' as personal", {"personal": {"sender": "names a person"}}),
])
def test_where_nobody_can_be_found_nothing_is_published(tmp_path, said, more):
    project = make_project(tmp_path, [linear], **more)
    with pytest.raises(UsageError, match=said):
        score_file(Registry(project).champion(), today(tmp_path), tmp_path / "x.csv", publish_url=project.database_url)
    assert not (tmp_path / "x.csv").exists()
    runtime = Runtime(project, log := PredictionLog(project.database_url))
    assert describe_inputs(runtime.version, runtime.limits)["entity"] is None
    with pytest.raises(InvalidRows, match="Until then send rows"):
        answer_by(runtime, {"by": {"sender": "s001"}})
    runtime.predict([newest_rows()["s001"]])
    assert [one["entity"] for one in log.predictions()] == [None]


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_every_task_and_of_each_entity_the_newest_row(tmp_path, task):
    amounts = make_table().amount
    target = amounts if task == "regression" else np.select([amounts < 12, amounts < 30], ["small", "middle"], "large")
    project = make_project(tmp_path, [boosting], target, task=task, positive=None)
    score_file(Registry(project).champion(), today(tmp_path), tmp_path / "out.csv", explain=True, rows=170, workers=1,
               publish_url=project.database_url)
    runtime, rows = Runtime(project, PredictionLog(project.database_url)), newest_rows()
    published = answer_by(runtime, {"by": {"sender": list(rows)}, "explain": True}).predictions
    for one, other in zip(published, runtime.answer(list(rows.values()), True).predictions, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-9)
        same({**one, "score": 0}, {**other, "score": 0})


def test_a_hashed_entity_is_found_by_its_name_and_kept_as_a_token(tmp_path, monkeypatch):
    monkeypatch.setenv("MLSYS_HASH_KEY", "k" * 64)
    project = make_project(tmp_path, [linear], personal={"sender": {"policy": "hash", "reason": "the rows are grouped by it"}})
    score_file(Registry(project).champion(), today(tmp_path), tmp_path / "out.csv", publish_url=project.database_url)
    runtime = Runtime(project, PredictionLog(project.database_url))
    (answer,) = answer_by(runtime, {"by": {"sender": "s001"}}).predictions
    assert answer["role"] == "published"
    row = newest_rows()["s002"] | {"sender": "newcomer"}
    assert answer_by(runtime, {"by": {"sender": "newcomer"}, "rows": [row]}).predictions[0]["role"] == "champion"
    kept = b"".join(path.read_bytes() for path in project.var.glob("mlsys.db*"))
    assert b"tok_" in kept and b"s001" not in kept
    monkeypatch.setenv("MLSYS_HASH_KEY", "j" * 64)
    with pytest.raises(NotPublished, match="nothing is published"):
        answer_by(runtime, {"by": {"sender": "s001"}})


def test_a_canary_and_a_shadow_see_what_is_computed_now(tmp_path):
    project = make_project(tmp_path, [linear, linear])
    score_file(Registry(project).champion(), today(tmp_path), tmp_path / "out.csv", publish_url=project.database_url)
    heard: list[tuple] = []
    for role in ({"role": "canary", "share": 0.999999}, {"role": "shadow"}):
        Registry(project).promote("v1", "the champion")
        Registry(project).promote("v2", "a look", **role)
        runtime = Runtime(project, log := PredictionLog(project.database_url), tell=lambda *what: heard.append(what))
        answered = answer_by(runtime, {"by": {"sender": "s001"}})
        runtime.keep(answered)
        runtime.shadows.wait()
        assert (answered.predictions[0]["model"], answered.predictions[0]["role"], heard) == ("v1", "published", [])
        answered = answer_by(runtime, {"by": {"sender": "new"}, "rows": [{**newest_rows()["s001"], "sender": "new"}]})
        runtime.keep(answered)
        runtime.shadows.wait()
        one = answered.predictions[0]
        assert one["role"] == "canary" or log.prediction(f"{one['id']}.v2")["role"] == "shadow"
    assert one["role"] == "champion" and heard == []


def test_while_the_store_is_away_rows_are_answered(tmp_path, monkeypatch):
    project = make_project(tmp_path, [linear])

    def away(*_):
        raise Unavailable("The prediction log could not be read: no route to host.")
    monkeypatch.setattr("mlsys.published.read_published", away)
    runtime, row = Runtime(project, PredictionLog(project.database_url)), newest_rows()["s001"]
    assert answer_by(runtime, {"by": {"sender": "s001"}, "rows": [row]}).predictions[0]["role"] == "champion"
    with pytest.raises(Unavailable):
        answer_by(runtime, {"by": {"sender": ["s001", "s002"]}, "rows": [row]})


def test_a_file_with_too_many_bad_rows_publishes_nothing(project, night, tmp_path):
    half = np.where(np.arange(40) % 2, "much", "1.5")
    make_table(40).drop(columns="lost").assign(amount=half, sender="bad").to_csv(tmp_path / "wrong.csv", index=False)
    with pytest.raises(MlsysError, match="no file was written"):
        score_file(Registry(project).champion(), tmp_path / "wrong.csv", tmp_path / "x.csv", publish_url=project.database_url)
    make_table(40).drop(columns="lost").assign(sender="b" + make_table(40).sender).to_csv(tmp_path / "wrong.csv", index=False)
    score_file(Registry(project).champion(), tmp_path / "wrong.csv", tmp_path / "x.csv", publish_url=project.database_url)
    assert set(read_published(PredictionLog(project.database_url), ["bad", "bs001"])) == {"bs001"}


@pytest.mark.stress
def test_killed_with_9_while_it_publishes_it_is_complete_the_next_time(cli, tmp_path):
    project = make_project(tmp_path, [linear])
    many = pd.concat([make_table().drop(columns="lost")] * 200, ignore_index=True)
    many["sender"] = [f"n{number}" for number in range(len(many))]
    many.to_csv(tmp_path / "many.csv", index=False)
    words = ("score", "many.csv", "-o", "out.parquet", "--publish", "--no-log", "--workers", "1")
    process = conftest.start(*words, folder=tmp_path)

    def published() -> int:
        if not (tmp_path / "var" / "mlsys.db").exists():
            return 0
        with sqlite3.connect(f"file:{tmp_path}/var/mlsys.db?mode=ro", uri=True) as database:
            try:
                return database.execute("SELECT count(*) FROM published").fetchone()[0]
            except sqlite3.OperationalError:  # no table yet
                return 0
    deadline = time.monotonic() + 200
    while not published():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    half = published()
    assert 0 < half < len(many) and half % 2_000 == 0 and not (tmp_path / "out.parquet").exists()
    before = read_published(log := PredictionLog(project.database_url), ["n0"])["n0"]["at"]
    answer = cli(*words, "--json", folder=tmp_path)
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert (told["published"], told["resumed"], published()) == (len(many), len(many), len(many))
    assert read_published(log, ["n0"])["n0"]["at"] == before  # its age counts from the first beginning
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == len(many)
