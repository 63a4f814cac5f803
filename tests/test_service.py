"""The HTTP service as a client meets it: real processes, real requests, a real model."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest

from benchmarks.parcels import make_project, make_table
from mlsys.core import MlsysError, Project
from mlsys.keys import KeyBook
from mlsys.prediction_log import PredictionLog
from mlsys.registry import Registry
from mlsys.service import build_bento, check_start, free_port, running_service
from mlsys.serving import Runtime


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("parcels"))


@pytest.fixture(scope="module")
def service(project: Project):
    with running_service(project) as running:
        yield running


@pytest.fixture(scope="module")
def client(service) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=60)


@pytest.fixture
def row(client: httpx.Client) -> dict:
    return client.get("/schema").json()["examples"][0]


def predict(client: httpx.Client, rows, **more) -> dict:
    answer = client.post("/predict", json={"rows": rows, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def errors(client: httpx.Client, status: int, content, path: str = "/predict") -> list[dict]:
    """The errors of a request that has to be refused with this status."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    told = answer.json()["errors"]
    assert all(set(one) == {"row", "field", "problem"} and one["problem"] for one in told)
    return told


def test_an_answer_has_what_the_contract_names(client, row):
    first, second = predict(client, [row, {**row, "amount": 5000.0, "email": "ignored@example.org"}])
    assert set(first) == {"id", "score", "decision", "model", "role", "warnings", "explanation"}
    assert first["model"] == "v1" and first["role"] == "champion" and first["explanation"] is None
    assert first["decision"] == ("yes" if first["score"] >= 0.3 else "no")
    assert first["id"] != second["id"] and first["warnings"] == []
    assert [warning["field"] for warning in second["warnings"]] == ["amount"]


def test_over_http_as_in_process(client, project):
    rows = [json.loads(line) for line in make_table(200).drop(columns="lost").to_json(
        orient="records", date_format="iso", lines=True).splitlines()]
    there, here = predict(client, rows, explain=True), Runtime(project).predict(rows, explain=True)["predictions"]
    for one, other in zip(there, here, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-9)
        for left, right in zip(one["explanation"]["contributions"], other["explanation"]["contributions"], strict=True):
            assert left["feature"] == right["feature"]
            assert left["contribution"] == pytest.approx(right["contribution"], abs=1e-9)


@pytest.mark.parametrize("explain", [True, 1, 2, 100])
def test_an_explanation_adds_up_to_the_margin(client, row, explain):
    (answer,) = predict(client, [row], explain=explain)
    told = answer["explanation"]
    margin = np.log(answer["score"] / (1 - answer["score"]))
    assert told["base"] + sum(one["contribution"] for one in told["contributions"]) == pytest.approx(margin, abs=1e-9)
    assert all(set(one) == {"feature", "value", "contribution"} for one in told["contributions"])
    if explain in (1, 2) and explain is not True:
        assert [one["feature"] for one in told["contributions"]][explain:] == ["(other)"]


@pytest.mark.parametrize("change, field, problem", [
    ({"colour": "red"}, "colour", "unknown field"),
    ({"amuont": 1}, "amuont", "unknown field"),
    ({"amount": "much"}, "amount", "not a number"),
    ({"amount": [1]}, "amount", "not a single value"),
    ({"amount": float("nan")}, "amount", "not a finite number"),
    ({"amount": float("inf")}, "amount", "not a finite number"),
    ({"amount": True}, "amount", "not a number"),
    ({"carrier": 7}, "carrier", "not text"),
    ({"carrier": "x" * 2**20}, "carrier", "1,048,576 characters"),
    ({"carrier": "\ud800"}, "carrier", "surrogate"),
    ({"sent": "yesterday"}, "sent", "not a date"),
    ({"express": "perhaps"}, "express", "neither true nor false"),
])
def test_a_broken_row_is_refused_whole(client, project, row, change, field, problem):
    log = PredictionLog(project.database_url)
    before = len(log.predictions())
    (told,) = errors(client, 400, {"rows": [row, {**row, **change}]})
    assert told["row"] == 1 and told["field"] == field and problem in told["problem"]
    assert len(log.predictions()) == before


def test_a_missing_field_is_named_and_null_is_allowed(client, row):
    (told,) = errors(client, 400, {"rows": [{name: value for name, value in row.items() if name != "amount"}]})
    assert told["field"] == "amount" and "missing" in told["problem"]
    (answer,) = predict(client, [{**row, "amount": None, "weight": None, "carrier": "violet"}])
    assert {warning["field"] for warning in answer["warnings"]} == {"amount", "carrier"}


@pytest.mark.parametrize("status, body", [
    (400, {"rows": []}), (400, {"rows": {}}), (400, {"rows": [7]}), (400, {"row": []}), (400, []), (400, 7),
    (400, {"rows": [{}], "explain": "yes"}), (400, {"rows": [{}], "explain": -1}), (400, {"rows": [{}], "explian": 1}),
    (400, b'{"rows": [{"amount": 1}'), (400, b""), (400, b"\xff\xfe"), (400, b"[" * 50_000),
    (400, b'{"rows": ' + b"9" * 5000 + b"}"),
    (413, {"rows": [{}] * 100_000}), (413, b'{"rows": "' + b"x" * 20_000_000 + b'"}'),
])
def test_a_broken_request_is_refused(client, status, body):
    assert errors(client, status, body)[0]["problem"]


def test_every_refusal_has_its_status(client):
    form = client.post("/predict", data={"rows": "1"})
    wrong = [(form, 415), (client.get("/predict"), 405), (client.post("/model"), 405), (client.get("/etc"), 404)]
    for answer, status in wrong:
        assert answer.status_code == status
        assert set(answer.json()) == {"errors"}


def test_labels_come_back(client, project, row):
    (answer,) = predict(client, [row])
    labels = [{"id": answer["id"], "label": "yes", "at": "2026-04-01T12:00:00+02:00"}, {"id": "nobody", "label": "no"}]
    kept = client.post("/feedback", json={"labels": labels})
    assert (kept.status_code, kept.json()) == (200, {"kept": 1, "repeated": 0, "unknown": ["nobody"]})
    known = PredictionLog(project.database_url).labelled().set_index("id")
    assert known.label[answer["id"]] == "yes" and known.label_at[answer["id"]].hour == 10
    (told,) = errors(client, 400, {"labels": [{"id": answer["id"], "label": "maybe"}]}, "/feedback")
    assert told["field"] == "label"
    assert len(errors(client, 400, {"labels": [{"id": 3, "label": "no", "at": "soon", "why": "?"}]}, "/feedback")) == 3


def test_the_log_keeps_inputs_and_nothing_personal(client, project, service, row):
    predict(client, [{**row, "amount": 777.25, "email": "secret@example.org", "parcel": "P999"}], explain=2)
    last = PredictionLog(project.database_url).predictions(limit=1)[0]
    assert last["row"]["amount"] == 777.25 and set(last["row"]) == set(row)
    assert last["explanation"]["contributions"][-1]["feature"] == "(other)"
    for file in (service.log, project.var / "mlsys.db", project.var / "mlsys.db-wal"):
        assert b"secret@example.org" not in (file.read_bytes() if file.exists() else b"")
    assert b"777.25" not in service.log.read_bytes()


def test_the_openapi_description_is_the_contract(client, row):
    docs = client.get("/docs.json").json()
    schemas = docs["components"]["schemas"]
    assert set(schemas["Row"]["required"]) == set(row) and schemas["Row"]["additionalProperties"] is False
    assert schemas["Row"]["example"] == row
    amount = schemas["Row"]["properties"]["amount"]
    assert {"type": "number"} in amount["anyOf"] and amount["nullable"] and len(amount["x-training-range"]) == 2
    assert set(docs["paths"]["/predict"]["post"]["responses"]) >= {"200", "400", "401", "413", "415", "500", "503"}
    (answer,) = predict(client, [row], explain=1)
    prediction = schemas["Predictions"]["properties"]["predictions"]["items"]
    assert set(prediction["properties"]) == set(answer)
    assert set(prediction["properties"]["explanation"]["properties"]) == set(answer["explanation"])


def test_people_and_machines_find_what_they_need(client, row):
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    page = client.get("/")
    assert "form" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    assert "://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    card = client.get("/model").json()
    assert card["model"] == "v1" and {"value", "low", "high"} <= set(card["evaluation"]["metrics"]["roc_auc"])
    assert "signature" in client.get("/model", headers={"Accept": "text/html"}).text
    predict(client, [{**row, "carrier": "violet"}])
    errors(client, 400, {"rows": []})
    metrics = client.get("/metrics").text
    for line in ('mlsys_predictions_total{model="v1",role="champion"}', 'mlsys_warnings_total{field="carrier",model="v1"}',
                 'mlsys_requests_total{path="/predict",status="200"}', "mlsys_seconds_bucket",
                 'mlsys_errors_total{status="400"}'):
        assert line in metrics, line


def test_health_answers_while_a_large_request_is_worked_on(client, service, row):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(predict, client, [row] * 1000, explain=True)
        start = time.perf_counter()
        assert httpx.get(f"{service.url}/healthz", timeout=10).status_code == 200
        assert time.perf_counter() - start < 1
        assert len(large.result()) == 1000


def test_a_promotion_takes_effect_without_a_restart(client, project, row):
    registry = Registry(project)
    better, worse = lambda: registry.promote("v2", "the better one"), lambda: registry.rollback("it was not")
    start = time.monotonic()
    registry.get("v2")
    patience = 2 + 10 * (time.monotonic() - start)  # 2 s, and what a crowded machine takes for the same work
    for change, serves in ((better, "v2"), (worse, "v1")):
        change()
        start, models = time.monotonic(), set()
        while (model := predict(client, [row])[0]["model"]) != serves:
            models.add(model)
            assert time.monotonic() - start < patience
        assert models <= {"v1", "v2"}


def test_a_version_that_does_not_load_changes_nothing(client, project, row):
    registry = Registry(project)
    shutil.copytree(project.var / "registry" / "v2", project.var / "registry" / "v3")
    wrong = {"version": "v3", "role": "champion", "why": "half a copy", "evidence": {"digest": "0"}}
    registry._ledger.append(lambda rows: wrong)
    deadline = time.monotonic() + 10
    while "mlsys_refused_versions_total 1.0" not in client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert predict(client, [row])[0]["model"] == "v1" and client.get("/readyz").status_code == 200
    registry.promote("v1", "the one that works")


def test_a_start_that_cannot_work_is_refused(project, service, tmp_path, monkeypatch):
    port = int(service.url.rpartition(":")[2])
    with pytest.raises(MlsysError, match=f"Port {port} .* --port {port + 1}"):
        check_start(project, port, "127.0.0.1")
    with pytest.raises(MlsysError, match="MLSYS_API_KEY"):
        check_start(project, free_port(), "0.0.0.0")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nproject = nothing\n")
    with pytest.raises(MlsysError, match="mlsys retrain"):
        check_start(Project.find(tmp_path), free_port(), "127.0.0.1")
    with pytest.raises(MlsysError, match="mlsys retrain"):
        build_bento(Project.find(tmp_path))


def test_a_bento_answers_alike_elsewhere_and_asks_for_its_key(project, client, row, tmp_path):
    bento, port = build_bento(project), free_port()
    assert (project.var / "bento").resolve() == bento.resolve()
    assert "scikit-learn==" in (bento / "env" / "python" / "requirements.txt").read_text()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLSYS")}
    environment |= {"MLSYS_API_KEY": "open sesame", "BENTOML_HOME": str(tmp_path / "home")}
    environment |= {"BENTOML_DO_NOT_TRACK": "True"}
    page = bento / "src" / "mlsys" / "page.html"
    page.write_text(page.read_text() + "<!-- the Bento's own copy -->")
    command = [sys.executable, "-m", "bentoml", "serve", str(bento), "--host", "127.0.0.1", "--port", str(port)]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with (tmp_path / "log").open("wb") as sink:
        process = subprocess.Popen(command, cwd=elsewhere, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    try:
        key = {"Authorization": "Bearer open sesame"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as there:
            deadline = time.monotonic() + 90
            while True:
                try:
                    if there.get("/readyz").status_code == 200:
                        break
                except httpx.HTTPError:
                    assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.3)
            assert "the Bento's own copy" in there.get("/").text
            refused = there.post("/predict", json={"rows": [row]})
            assert refused.status_code == 401 and refused.json()["errors"]
            assert there.get("/schema", headers={"Authorization": "Bearer wrong"}).status_code == 401
            answer = there.post("/predict", json={"rows": [row], "explain": True}, headers=key).json()["predictions"][0]
            (ours,) = predict(client, [row], explain=True)
            assert answer["score"] == pytest.approx(ours["score"], abs=1e-9) and answer["model"] == ours["model"]
            log = PredictionLog(f"sqlite:///{elsewhere}/var/mlsys.db")
            assert log.prediction(answer["id"])["score"] == answer["score"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def eventually(true, seconds: float = 20.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_canary_gets_its_share_and_a_shadow_only_watches(client, project, row):
    registry, log = Registry(project), PredictionLog(project.database_url)
    rows = [{**row, "parcel": f"P{number}"} for number in range(60)]
    registry.promote("v2", "a try", role="canary", share=0.5)
    eventually(lambda: {one["model"] for one in predict(client, rows)} == {"v1", "v2"})
    first, again = predict(client, rows, explain=2), predict(client, rows)
    assert [one["model"] for one in first] == [one["model"] for one in again]  # always the same side
    assert {(one["model"], one["role"]) for one in first} == {("v1", "champion"), ("v2", "canary")}
    assert 10 < sum(one["role"] == "canary" for one in first) < 50
    assert {log.prediction(one["id"])["role"] for one in first} == {"champion", "canary"}
    registry.promote("v1", "the canary ends")
    registry.promote("v2", "a look", role="shadow")
    asked: list[str] = []

    def shadowed() -> bool:  # it answers when it has time
        asked.append(predict(client, [row])[0]["id"])
        return any(log.prediction(f"{id}.v2") for id in asked)
    eventually(shadowed)
    assert {one["role"] for one in predict(client, rows)} == {"champion"}
    assert 'mlsys_serves{model="v2",role="shadow"} 1.0' in client.get("/metrics").text
    registry.promote("v1", "the shadow ends")


def test_a_request_keeps_its_id_and_the_journal_its_line(client, service, row):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {"X-Request-ID": "order-4711", "traceparent": trace}
    answer = client.post("/predict?email=secret@example.org", json={"rows": [row]}, headers=headers)
    assert answer.headers["x-request-id"] == "order-4711" and answer.headers["traceparent"].split("-")[1] == trace.split("-")[1]
    assert len(client.get("/healthz").headers) and client.get("/schema").headers["x-request-id"]
    eventually(lambda: b"order-4711" in service.log.read_bytes())
    line = next(line for line in service.log.read_text().splitlines() if "order-4711" in line)
    told = json.loads(line)
    assert (told["path"], told["status"], told["rows"], told["models"]) == ("/predict", 200, 1, ["v1 champion"])
    assert "secret" not in service.log.read_text()


def test_a_key_opens_what_its_roles_name_until_it_is_revoked(client, project, row):
    book = KeyBook(project.database_url)
    token = book.add("web shop", ["predict"])
    try:
        eventually(lambda: client.get("/schema").status_code == 401)
        key = {"Authorization": f"Bearer {token}"}
        assert client.post("/predict", json={"rows": [row]}, headers=key).status_code == 200
        assert client.get("/schema", headers=key).status_code == 200
        assert client.post("/feedback", json={"labels": [{"id": "x", "label": "no"}]}, headers=key).status_code == 403
        assert client.post("/predict", json={"rows": [row]}, headers={"Authorization": f"Bearer {token}x"}).status_code == 401
        assert client.get("/healthz").status_code == 200 and client.get("/").status_code == 200
    finally:
        book.revoke("web shop")
    eventually(lambda: client.get("/schema").status_code == 200)


def test_the_gateway_stands_around_everything_that_bentoml_adds():
    """`to_asgi` is not documented as a place to extend: BentoML's worker has to go on calling it."""
    import inspect

    from _bentoml_impl.worker import service as worker

    from mlsys.gateway import Gateway
    from mlsys.service import MlsysService
    assert isinstance(MlsysService.to_asgi(), Gateway)
    assert "service.to_asgi(" in inspect.getsource(worker)
