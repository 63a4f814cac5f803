"""What a model is served with elsewhere, for `benchmarks.serving`: one server a name, `python -m benchmarks.peers NAME PORT`.

Every peer answers one row with its score and all contributions, from the same fitted pipeline and shap's TreeExplainer over
the same trees; `kernel` and `echo` are limits, not peers: the compiled predictor behind bare uvicorn without a check or a log,
and an answer that does nothing. MODEL names the folder of the version, in the environment.
"""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


@cache
def version() -> Any:
    """The model that everybody serves."""
    from mlsys.versions import load_version

    return load_version(Path(os.environ["MODEL"]))


@cache
def explainer() -> Any:
    """What shap's documentation says to make."""
    import shap

    return shap.TreeExplainer(version().pipeline[-1], feature_perturbation="tree_path_dependent")


def by_hand(rows: list[dict[str, Any]], explain: bool) -> list[dict[str, Any]]:
    """Scores and contributions as people write it: a table, the pipeline, shap."""
    pipeline = version().pipeline
    table = pd.DataFrame(rows).astype(float)
    scores = pipeline.predict_proba(table)[:, 1].tolist()
    if not explain:
        return [{"score": score} for score in scores]
    told = explainer().shap_values(np.asarray(pipeline[:-1].transform(table), dtype=float), check_additivity=False)
    return [{"score": score, "contributions": one} for score, one in zip(scores, told.tolist(), strict=True)]


def fastapi_app() -> Any:
    """FastAPI with a function for each path."""
    from fastapi import Body, FastAPI

    app = FastAPI()
    by_hand([dict.fromkeys(version().features.names, 1.0)], True)

    @app.post("/predict")
    def predict(row: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008  FastAPI's way
        return by_hand([row], False)[0]

    @app.post("/explain")
    def explain(row: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        return by_hand([row], True)[0]

    return app


async def _body(receive: Any) -> bytes:
    whole = b""
    while True:
        message = await receive()
        whole += message["body"]
        if not message.get("more_body"):
            return whole


async def _send(send: Any, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Nothing but a body back."""
    if scope["type"] == "http":
        await _send(send, await _body(receive))


def kernel_app() -> Any:
    """The compiled predictor and JSON, and nothing else."""
    import msgspec

    from mlsys.predictor import predictor_of

    predictor, decoder, encoder = predictor_of(version()), msgspec.json.Decoder(), msgspec.json.Encoder()
    predictor.check()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        row, explain = decoder.decode(await _body(receive)), scope["path"] == "/explain"
        told = predictor.answer([row], explain)
        answer: dict[str, Any] = {"score": float(told.scores[0])}
        if explain:
            answer["contributions"] = told.contributions[0].tolist()  # type: ignore[index]
        await _send(send, encoder.encode(answer))
    return app


MLFLOW = '''
import os

import mlflow
from benchmarks.peers import by_hand


class Scorer(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return by_hand(model_input.to_dict("records"), os.environ["EXPLAIN"] == "1")


mlflow.models.set_model(Scorer())
'''


def write_mlflow(folder: Path) -> None:
    """The model as MLflow serves it."""
    import mlflow

    code = folder.parent / "scorer.py"
    code.write_text(MLFLOW)
    mlflow.pyfunc.save_model(folder, python_model=str(code), pip_requirements=["mlflow"])


BENTO = '''
from typing import Any

import bentoml
from benchmarks.peers import by_hand, version


@bentoml.service(workers=1, traffic={"timeout": 60})
class Peer:
    """BentoML's adaptive batching, as its documentation shows it."""

    def __init__(self) -> None:
        by_hand([dict.fromkeys(version().features.names, 1.0)], True)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return by_hand(rows, False)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def explain(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return by_hand(rows, True)

    @bentoml.api
    async def echo(self, row: dict[str, Any]) -> dict[str, Any]:
        return row
'''


def main(name: str, port: int) -> None:
    """Serve until killed."""
    import uvicorn

    app: Any = {"fastapi": fastapi_app, "kernel": kernel_app, "echo": lambda: echo}[name]()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

