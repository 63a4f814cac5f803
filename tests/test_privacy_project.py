"""Nothing personal in what a project leaves behind: a real project from a table of marked values, searched to the last file."""
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import Cli, start
from stdnum import luhn
from stdnum.iso7064 import mod_97_10

from mlsys.core import MlsysError, Project
from mlsys.prediction_log import PredictionLog
from mlsys.registry import Registry
from mlsys.service import running_service
from mlsys.serving import Runtime

pytestmark = [pytest.mark.stress, pytest.mark.timeout(900)]  # trainings and a docs site

# what no file may hold: each value of a personal column has one of these in it
fatal = ("mkmail", "Mklast", "49291234", "7771234", "50010517", "Mkstreet", "1971-03-0")
key = "a key of this test alone, which no file may hold"


def buyers(rows: int = 300) -> pd.DataFrame:
    """Who bought what, with everything that a shop knows about them."""
    rng = np.random.default_rng(0)
    def digits(count: int) -> pd.Series: return pd.Series([f"{n:0{count}}" for n in rng.integers(0, 10**count, rows)])
    letters = pd.Series(["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(rows)])
    age, spent = rng.integers(18, 80, rows), rng.lognormal(3, 1, rows).round(2)
    likely = 1 / (1 + np.exp(-(age - 45) / 6 - (np.log(spent) - 3)))
    mail = "mkmail." + letters + "@example.org"
    account = ("50010517" + digits(10)).map(lambda body: "DE" + mod_97_10.calc_check_digits(body + "DE") + body)
    said = pd.Series(rng.choice(["fine", "too late", "broken"], rows)) + " " + digits(4)
    return pd.DataFrame({
        "age": age, "spent": spent, "area": rng.choice(["north", "south"], rows), "visits": rng.integers(0, 9, rows),
        "email": mail.mask(rng.random(rows) < 0.1, ""), "phone": "+49 30 7771234" + digits(3),
        "card": ("49291234" + digits(7)).map(lambda body: body + luhn.calc_check_digit(body)), "iban": account,
        "Customer Name": "Mklast" + letters + ", Anna", "address": "Mkstreet" + letters + " Street " + digits(2),
        "complaint": said.mask(rng.random(rows) < 0.1, said + ", write to " + mail),
        "birth_date": pd.Timestamp("1971-03-01") + pd.to_timedelta(rng.integers(0, 9, rows), unit="D"),
        "bought": np.where(rng.random(rows) < likely, "yes", "no"),
    })


personal = {"email", "phone", "card", "iban", "Customer Name", "address", "complaint", "birth_date"}


def texts(path: Path) -> Iterator[str]:
    """What a file holds, unpacked: Parquet, zip archives, and everything else as it is."""
    if path.suffix == ".parquet":
        yield pd.read_parquet(path).to_csv()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name).decode("latin-1") for name in archive.namelist())
    elif path.read_bytes().startswith(b"SQLite format 3"):
        with sqlite3.connect(path) as database:
            yield "\n".join(database.iterdump())
    yield path.read_bytes().decode("latin-1")


def leaks(folder: Path, words: Iterable[str]) -> set[tuple[str, str]]:
    """The words that stand in a file, or in its name, below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {(word, str(path.relative_to(folder))) for path in paths for word in words
            if word in str(path.relative_to(folder)) or any(word in text for text in texts(path))}




@dataclass(frozen=True)
class Made:
    """A project that trained and answered, and everything that was said meanwhile."""
    project: Project
    said: str


def talk(project: Project, rows: list[dict]) -> str:
    """Send good and bad requests to a project's service, and labels; all answers, and the service's log."""
    with running_service(project) as running:
        client = httpx.Client(base_url=running.url, timeout=60)
        answers = [client.post("/predict", json={"rows": rows, "explain": True})]
        assert answers[0].status_code == 200, answers[0].text
        good, ids = rows[0], [one["id"] for one in answers[0].json()["predictions"]]
        bad = [{**good, "email": 17, "phone": ["+49 30 7771234000"], "age": "x"}, {**good, "email": {"mkmail": "mkmail"}},
               {**good, "card": 4929123400000000, "birth_date": "1971-03-0x", "age": None}, {**good, "email": "mkmail" * 3000},
               "mkmail.alone@example.org", {"email": "mkmail.only@example.org"}, ["mkmail"]]
        answers += [client.post("/predict", json={"rows": [row]}) for row in bad]
        broken = b'{"rows": [{"email": "mkmail.broken@example.org", "age": }'
        answers.append(client.post("/predict", content=broken, headers={"Content-Type": "application/json"}))
        answers += [client.get(path) for path in ("/", "/schema", "/model", "/metrics", "/docs.json")]
        client.get("/predict", params={"email": "mkmail.path@example.org"})
        client.get("/mkmail.path@example.org")
        kept = client.post("/feedback", json={"labels": [{"id": one, "label": "yes"} for one in ids]})
        assert kept.json()["kept"] == len(ids)
        client.post("/feedback", json={"labels": [{"id": "mkmail@example.org", "label": "Mklast"}]})
    # a client may be told what it sent itself, so the answers to bad requests count only where a model speaks
    heard = [answer.text for answer in answers if answer.status_code == 200] + [answer.text for answer in answers[1:8]]
    return "\n".join([*heard, running.log.read_text(errors="replace")])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Made:
    """A project as `mlsys new` makes it: everything personal is dropped."""
    folder = tmp_path_factory.mktemp("buyers")
    table = buyers()
    table.to_csv(folder / "buyers.csv", index=False)
    said = []
    for words, place in ((("new", "shop", "--data", "buyers.csv", "--target", "bought"), folder),
                         (("retrain", "-p", "trials=0"), folder / "shop"), (("docs",), folder / "shop")):
        process = start(*words, folder=place)
        said += process.communicate(timeout=800)
        assert process.returncode == 0, said[-2:]
    project = Project.find(folder / "shop")
    said.append(talk(project, json.loads(table.drop(columns="bought").head(5).to_json(orient="records", date_format="iso"))))
    labels = pd.DataFrame({"id": ["mkmail.unknown@example.org"], "label": ["yes"]})
    labels.to_csv(folder / "labels.csv", index=False)
    cli("feedback", "../labels.csv", folder=project.root)
    return Made(project, "\n".join(said))


def test_the_table_holds_the_markers():
    table = buyers()
    for word in fatal:
        assert table.astype(str).apply(lambda cells, word=word: cells.str.contains(word).any()).any(), word


def test_every_personal_column_is_named_with_its_fate(made):
    assert {name for name in buyers() if f"personal {name} (dropped)" in made.said} == personal


def test_no_file_of_the_project_holds_a_personal_value(made):
    assert leaks(made.project.root, fatal) == set()


def test_nothing_personal_was_printed_answered_or_logged(made):
    # the client's own words come back nowhere; unknown paths are its own mistake, told to nobody else
    assert [word for word in fatal if word in made.said] == []


@pytest.mark.parametrize("name", ["plain.txt", "rows.parquet", "model.zip", "mlsys.db", "mkmail.txt"])
def test_a_leak_would_be_found(tmp_path, name):
    path = tmp_path / "var" / name
    path.parent.mkdir()
    if name.endswith("parquet"):
        pd.DataFrame({"x": ["Mklastabc"] * 1000}).to_parquet(path)
    elif name.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inside", "Mklastabc" * 100)
    elif name.endswith("db"):
        with sqlite3.connect(path) as database:
            database.execute("create table t (x)")
            database.execute("insert into t values ('Mklastabc')")
    else:
        path.write_text("Mklastabc")
    assert {word for word, _ in leaks(tmp_path, fatal)} >= {"Mklast"}


# A scope that says otherwise

rules = """    personal={
        "email": {"reason": "the same buyer again", "policy": "hash"},
        "phone": {"reason": "the same household again", "policy": "hash"},
        "birth_date": {"reason": "a year is enough", "policy": "coarsen", "to": "year"},
        "address": {"reason": "the first letters show who looks", "policy": "coarsen", "to": 2},
"""


@pytest.fixture(scope="module")
def argued(made: Made) -> Iterator[Made]:
    """The same project after its owner argued for four columns, trained with a key, and asked."""
    root = made.project.root.parent / "argued" / "shop"
    shutil.copytree(made.project.root, root)
    shutil.rmtree(root / "var")
    scope = nbformat.read(root / "nbs" / "00_scope.ipynb", 4)
    for cell in scope.cells:
        lines = cell.source.splitlines(keepends=True)
        kept = [line for line in lines if not line.lstrip().startswith(("'email'", "'phone'", "'birth_date'", "'address'"))]
        cell.source = "".join(rules if line.startswith("    personal={") else line for line in kept)
    nbformat.write(scope, root / "nbs" / "00_scope.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        said = []
        for words, secret in ((("export",), ""), (("retrain", "-p", "trials=0"), ""), (("retrain", "-p", "trials=0"), key)):
            environment = ["env", f"MLSYS_HASH_KEY={secret}", sys.executable, "-m", "mlsys.cli", *words]
            done = subprocess.run(environment, cwd=root, capture_output=True, text=True, timeout=600)
            said += [f"{done.returncode}", done.stdout, done.stderr]
        patch.setenv("MLSYS_HASH_KEY", key)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
        explored = nbformat.read(root / "nbs" / "01_explore.ipynb", 4)
        here = {"metadata": {"path": str(root)}}
        nbclient.NotebookClient(explored, timeout=600, kernel_name="python3", resources=here).execute()
        nbformat.write(explored, root / "var" / "explored.ipynb")
        rows = json.loads(buyers().drop(columns="bought").head(5).to_json(orient="records", date_format="iso"))
        project = Project.find(root)
        said.append(talk(project, rows))
        yield Made(project, "\n".join(said))


def test_without_a_key_training_says_how_to_make_one(argued):
    assert argued.said.startswith("0\n") and "\n1\n" in argued.said
    assert "is to be hashed, and MLSYS_HASH_KEY is not set. Make a key once" in argued.said


def test_what_is_hashed_or_coarsened_stands_as_it_was_in_the_snapshot_alone(argued):
    holding = {word for word, path in leaks(argued.project.root, fatal) if path.startswith("var/snapshots")}
    assert holding == {"mkmail", "7771234", "Mkstreet", "1971-03-0"}  # the raw rows, of which the rules are learned
    elsewhere = {found for found in leaks(argued.project.root, fatal) if not found[1].startswith("var/snapshots")}
    assert elsewhere == set()
    assert [word for word in fatal if word in argued.said] == []


def test_the_key_is_nowhere(argued):
    assert leaks(argued.project.root, [key]) == set() and key not in argued.said


def test_the_log_holds_the_tokens_of_training(argued):
    version = Registry(argued.project).champion()
    assert version
    used = {column.name for column in version.schema.inputs}
    assert {"phone", "birth_date", "address"} <= used and "email" not in used  # different in every row: an id, hashed or not
    inputs = version.schema.repair(buyers().head(5))
    with PredictionLog(argued.project.database_url).engine.connect() as connection:
        logged = [json.loads(row) for (row,) in connection.exec_driver_sql("select row from predictions order by at, id")]
    assert {row["phone"] for row in logged} == set(inputs["phone"]) and all(row["phone"].startswith("tok_") for row in logged)
    assert {row["birth_date"][:10] for row in logged} == {"1971-01-01"} and {row["address"] for row in logged} == {"Mk"}


def test_a_service_with_another_key_does_not_start(argued, monkeypatch):
    monkeypatch.setenv("MLSYS_HASH_KEY", key[::-1])
    with pytest.raises(MlsysError, match="made for another column or with another MLSYS_HASH_KEY"):
        Runtime(argued.project)
