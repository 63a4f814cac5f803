"""The wheel, installed bare outside the checkout, makes a project, trains it, and answers over HTTP.

Run by CI: python tests/wheel_check.py
"""
import csv
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*words: object, cwd: Path) -> None:
    """A command that has to succeed, shown with what it printed and how long it took."""
    started = time.monotonic()
    print("$", *(Path(str(word)).name for word in words), flush=True)
    # a fresh environment holds no bytecode: whoever writes none compiles every package in every process
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MLSYS_VAR", "MLSYS_DATABASE_URL", "PYTHONDONTWRITEBYTECODE")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    subprocess.run(list(map(str, words)), cwd=cwd, env=clean, check=True)
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)


def install_bare(folder: Path) -> Path:
    """Build the wheel and install it with nothing but its own dependencies; returns the folder of its commands."""
    uv, environment = BIN / "uv", folder / "environment"
    shutil.rmtree(ROOT / "build", ignore_errors=True)    # setuptools packs whatever an older build left there
    dist = folder / "dist"
    run(sys.executable, "-m", "build", "--wheel", "--quiet", "--no-isolation", "--outdir", dist, ROOT, cwd=folder)
    wheel = next(dist.glob("*.whl"))
    run(uv, "venv", "--quiet", "--python", sys.executable, environment, cwd=folder)
    run(uv, "pip", "install", "--quiet", "--python", environment / "bin" / "python",
        "--constraint", ROOT / "requirements.lock", wheel, cwd=folder)
    return environment / "bin"


def write_customers(path: Path, rows: int = 1500) -> None:
    """Customers of a shop; those who wait long and buy little leave."""
    draw = random.Random(7)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["customer", "days_since_order", "orders", "plan", "basket", "left"])
        for number in range(rows):
            days, orders, plan = draw.randint(0, 365), draw.randint(1, 40), draw.choice(["free", "plus", "family"])
            margin = days / 60 - orders / 8 - (plan == "family") + draw.gauss(0, 1)
            basket = "" if draw.random() < 0.03 else round(draw.lognormvariate(3.5, 0.5), 2)
            table.writerow([f"c{number:05}", days, orders, plan, basket, "yes" if margin > 1 else "no"])


def post(url: str, body: dict) -> tuple[int, dict]:
    """Status and answer of a JSON request."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def wait_until_ready(url: str, server: subprocess.Popen, seconds: float = 90) -> None:
    """Return as soon as the service says that it is ready."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"mlsys serve ended with exit code {server.returncode}")
        try:
            with urlopen(f"{url}/readyz", timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise SystemExit(f"mlsys serve was not ready after {seconds:.0f} s")


def check_service(url: str) -> None:
    """One prediction that explains itself, and one row that is refused."""
    row = {"days_since_order": 300, "orders": 2, "plan": "free", "basket": 20.5}
    status, answer = post(f"{url}/predict", {"rows": [row], "explain": True})
    assert status == 200, answer
    prediction = answer["predictions"][0]
    explanation = prediction["explanation"]
    margin = explanation["base"] + sum(part["contribution"] for part in explanation["contributions"])
    assert math.isclose(1 / (1 + math.exp(-margin)), prediction["score"], rel_tol=1e-6), prediction
    assert prediction["score"] > 0.5 and prediction["decision"] == "yes", prediction
    status, answer = post(f"{url}/predict", {"rows": [{**row, "orders": "many"}]})
    assert status == 400 and answer["errors"][0]["field"] == "orders", answer
    print(f"  score {prediction['score']:.3f} by {prediction['model']}; contributions add up; a bad row is refused")


def serve_and_check(mlsys: Path, project: Path) -> None:
    """Start the service on a free port, check it, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print("$ mlsys serve", flush=True)
    server = subprocess.Popen([mlsys, "serve", "--port", str(port)], cwd=project)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", server)
        check_service(f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(timeout=60)


def main() -> None:
    """From the checkout to a prediction by the installed wheel."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        mlsys, work = install_bare(folder) / "mlsys", folder / "work"
        work.mkdir()
        write_customers(work / "customers.csv")
        run(mlsys, "new", "shop", "--data", "customers.csv", "--target", "left", "--id", "customer", cwd=work)
        run(mlsys, "retrain", cwd=work / "shop")
        serve_and_check(mlsys, work / "shop")
        run(mlsys, "demo", cwd=work)
    print("the wheel works")


if __name__ == "__main__":
    main()
