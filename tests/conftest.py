"""What several files of tests share: the command line, one small trained project, and its service."""
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from mlsys.core import Project
from mlsys.service import free_port

root = Path(__file__).resolve().parent.parent
Cli = Callable[..., "Answer"]


@dataclass(frozen=True)
class Answer:
    """How a command ended."""
    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """This very library, and no setting of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLSYS")}
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return {"OMP_NUM_THREADS": "1", **kept, "PYTHONPATH": path}


def start(*words: object, folder: Path) -> subprocess.Popen[str]:
    """An `mlsys` command, begun."""
    return subprocess.Popen([sys.executable, "-m", "mlsys.cli", *map(str, words)], cwd=folder, env=environment(),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            # a job in the background starts with interrupts ignored, a person's command does not
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def ending(process: subprocess.Popen[str]) -> Answer:
    """How it ended, which was without a stack trace."""
    out, err = process.communicate(timeout=280)
    assert "Traceback" not in out + err, out + err
    return Answer(process.returncode, out, err)


@pytest.fixture(scope="session")
def cli() -> Cli:
    """The real command line: `cli("new", ..., folder=...)`."""
    return lambda *words, folder: ending(start(*words, folder=folder))


def shop(rows: int = 400) -> pd.DataFrame:
    """Visitors of a shop, and whether they bought."""
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"age": rng.integers(18, 80, rows), "income": rng.normal(3000, 800, rows).round(2),
                       "city": rng.choice(list("ABC"), rows)})
    chance = 1 / (1 + np.exp(-((df.age - 50) / 8 + (df.city == "A") * 2)))
    return df.assign(bought=np.where(rng.random(rows) < chance, "yes", "no"))


def awkward(rows: int = 500) -> pd.DataFrame:
    """The same in a table as nobody would wish it."""
    df = shop(rows)
    i = pd.Series(range(rows))
    return pd.DataFrame({
        "index": df.age, "class": df.income, "": df.age / 7,
        "Straße [Nr.] (x) <b>": df.city.replace({"A": "Köln", "B": "Łódź"}), "def": df.age % 5 + 0.5,
        "1st": -df.age, "values": df.income / 3, "T": df.city, 'a"quote': df.age / 9,
        "возраст": df.age / 3,
        "note": np.where(i % 2, 'he said "hi";\nthen left', "a;b,c"), "nothing": "", "flag": df.age > 40,
        "wide": [str(10**18 + 7 * k) for k in i],
        "limit": np.select([i % 40 == 0, i % 41 == 0], ["inf", "-inf"], (i % 37 / 4).astype(str).str.replace(".", ",")),
        "Bought? [y/n]": df.bought.mask(i % 10 == 0, ""),
    })


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Project:
    """A project with a champion, made from an awkward table: byte order mark, `;`, decimal commas, strange names.

    It is trained once, and each process that tests gets its own copy.
    """
    base = tmp_path_factory.getbasetemp()
    master = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "awkward"
    with FileLock(master.with_suffix(".lock")):
        if not master.exists():
            train_awkward(master.with_suffix(".new"), cli)
            master.with_suffix(".new").rename(master)
    folder = tmp_path_factory.mktemp("copy") / "awkward"
    shutil.copytree(master, folder)
    return Project.find(folder / "shop")


def train_awkward(folder: Path, cli: Cli) -> None:
    """The awkward table and its project, trained."""
    folder.mkdir()
    awkward().to_csv(folder / "table.csv", index=False, sep=";", decimal=",", encoding="utf-8-sig")
    made = cli("new", "shop", "--data", "table.csv", "--target", "Bought? [y/n]", folder=folder)
    assert made.code == 0, made.err
    assert "50 rows will be set aside" in made.out and "decimal commas" in made.out
    trained = cli("retrain", "-p", "trials=40", "-p", "budget=1s", folder=folder / "shop")
    assert trained.code == 0, trained.out + trained.err
    assert "50 set aside: no value in the target 'Bought? [y/n]'" in trained.out


def until_ready(process: subprocess.Popen[str]) -> str:
    """Where a service that was begun answers, as soon as it says so."""
    said = ""
    while not (found := re.search(r"Ready: (\S+)", said)):
        line = process.stdout.readline() if process.stdout else ""
        assert line, said + ending(process).err
        said += line
    return found[1]


@pytest.fixture(scope="session")
def service(project: Project) -> Iterator[str]:
    """Where `mlsys serve` answers."""
    process = start("serve", "--port", free_port(), folder=project.root)
    yield until_ready(process)
    process.terminate()
    stopped = ending(process)
    assert stopped.code == 0 and "Stopped." in stopped.out
