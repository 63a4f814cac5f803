"""The service keeps what its OpenAPI says, whoever asks and whatever they send."""
import subprocess
import sys
from pathlib import Path

import httpx


def schemathesis(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Its run; the seed makes it the same each time."""
    command = [Path(sys.executable).parent / "schemathesis", "run", *words, "--seed", "20261126", "--no-color",
               "--generation-database", "none"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)


def test_schemathesis_finds_nothing(service: str, tmp_path: Path) -> None:
    done = schemathesis(f"{service}/docs.json", "--phases", "examples,coverage,fuzzing", "--max-examples", "60", folder=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Tested: 8" in done.stdout, done.stdout[-2000:]


def test_schemathesis_finds_a_contract_that_is_not_kept(service: str, tmp_path: Path) -> None:
    contract = httpx.get(f"{service}/docs.json").json()
    contract["servers"] = [{"url": service}]
    contract["components"]["schemas"]["Labels"]["properties"]["labels"]["items"]["properties"]["id"] = {"type": "string"}
    (tmp_path / "docs.json").write_text(httpx.Response(200, json=contract).text)
    done = schemathesis(str(tmp_path / "docs.json"), "--url", service, "--phases", "coverage", "--include-path", "/feedback",
                        folder=tmp_path)
    assert done.returncode == 1 and "POST /feedback" in done.stdout, done.stdout[-3000:]


def test_the_examples_in_it_work(service: str) -> None:
    contract = httpx.get(f"{service}/docs.json").json()
    example = contract["components"]["schemas"]["Row"]["example"]
    assert httpx.post(f"{service}/predict", json={"rows": [example], "explain": True}).status_code == 200


def test_without_an_entity_nothing_is_asked_by_it(service: str) -> None:
    contract = httpx.get(f"{service}/docs.json").json()
    assert "By" not in contract["components"]["schemas"] and "409" not in contract["paths"]["/predict"]["post"]["responses"]
    answer = httpx.post(f"{service}/predict", json={"by": {"index": 1}})
    assert answer.status_code == 400 and "names no entity" in answer.json()["errors"][0]["problem"]
