"""Notebook runs with real kernels: every way to fail is reported, and nothing secret or broken stays on disk."""

import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mlsys.core import Project, UsageError
from mlsys.runs import (
    RunFailed,
    Secret,
    _injected_source,
    bind_parameters,
    list_runs,
    parse_value,
    read_parameters,
    run_notebook,
)

repository = Path(__file__).resolve().parents[1]


def write_notebook(path: Path, *cells: str, tag: str = "parameters") -> Path:
    """A notebook of code cells, the first of which is tagged."""
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])
    notebook.cells[0].metadata["tags"] = [tag]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook))
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project; the kernel imports mlsys from this checkout."""
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.delenv("MLSYS_VAR", raising=False)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nproject = shop\n")
    return Project(tmp_path, "shop", tmp_path / "nbs")


def has_ended(pid: int) -> bool:
    """Whether the process ends within 20 seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.2)
    return False


def fail(project: Project, *cells: str, **options: object) -> RunFailed:
    """The failure of a run of these cells, after the checks that hold for every failed run."""
    path = write_notebook(project.run_notebooks / "job.ipynb", "rows: int = 3", *cells)
    with pytest.raises(RunFailed) as caught:
        run_notebook(path, {"rows": 5}, project, progress=False, **options)
    run = caught.value.run
    record = json.loads((run.folder / "run.json").read_text())
    assert record["status"] == run.status == list_runs(project)[0].status == "failed"
    assert record["error"] and record["error"] in str(caught.value) and "Traceback" not in record["error"]
    assert record["exit_code"] == caught.value.exit_code
    assert "rows = 5" in [cell.source for cell in nbformat.read(run.executed, as_version=4).cells]
    assert not (run.folder / ".reserve").exists()
    return caught.value


def test_values_of_every_type_arrive_in_the_kernel(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs in the project's root on this interpreter, whatever `python3` is registered."""
    wrong = project.root / "jupyter" / "kernels" / "python3"
    wrong.mkdir(parents=True)
    wrong_kernel = {"argv": ["/bin/false"], "display_name": "wrong", "language": "python"}
    (wrong / "kernel.json").write_text(json.dumps(wrong_kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(wrong.parents[1]))
    write_notebook(
        project.run_notebooks / "types.ipynb",
        "import datetime as dt\nfrom datetime import date\nfrom pathlib import Path\nfrom typing import Literal\n"
        'code: str = "1"\nday: date | None = None\nat: dt.datetime | None = None\ndays: list[date] = []\n'
        'end: date | None = date(2026, 1, 1)\nsizes: list[int] = [1]\nengine: Literal["local", "dask"] = "local"\n'
        'data: Path | None = None\nshare: float = 1\ndry: bool = False\nlate: "date | None" = None\n'
        "kept: int = 7  # stays",
        "values = dict(code=code, day=day, at=at, days=days, end=end, sizes=sizes, engine=engine, data=data,\n"
        "              share=share, dry=dry, late=late, kept=kept)",
        "import os, sys\nfrom mlsys.runs import finish\n"
        "finish(values={name: repr(value) for name, value in values.items()}, cwd=os.getcwd(),\n"
        "       python=sys.executable, run=os.environ['MLSYS_RUN_ID'], folder=os.environ['MLSYS_RUN_FOLDER'],\n"
        "       on_path=os.getcwd() in sys.path, metrics={'auc': 0.9}, snapshot='s1')",
    )
    run = run_notebook("types", {
        "code": "007", "day": "2026-07-01", "at": dt.datetime(2026, 7, 1, 12, 30), "days": "2026-01-01,2026-01-02",
        "end": "None", "sizes": "[3, 4]", "engine": "dask", "data": "new data.csv", "share": "0.5", "dry": "yes",
        "late": dt.date(2026, 2, 3),
    }, project, progress=False)
    assert run.status == "done" and run.exit_code == 0 and run.metrics == {"auc": 0.9} and run.snapshot == "s1"
    assert run.results["values"] == {
        "code": "'007'", "day": "datetime.date(2026, 7, 1)", "at": "datetime.datetime(2026, 7, 1, 12, 30)",
        "days": "[datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)]", "end": "None", "sizes": "[3, 4]",
        "engine": "'dask'", "data": "PosixPath('new data.csv')", "share": "0.5", "dry": "True",
        "late": "datetime.date(2026, 2, 3)",
        "kept": "7",
    }
    assert run.results["cwd"] == str(project.root) and run.results["on_path"]
    assert run.results["python"] == sys.executable
    assert run.results["run"] == run.id and run.results["folder"] == str(run.folder)
    assert run.peak_memory_mb > 20 and 0 < run.duration_s < 60 and run.lock_hash
    assert run.parameters["day"] == "2026-07-01" and run.parameters["kept"] == 7
    page = run.html.read_text()
    assert "2026-07-01" in page and 'src="http' not in page and 'href="http' not in page
    assert list_runs(project) == [run]


@pytest.mark.parametrize("parameters, message", [
    ({"trails": 1}, "Did you mean 'trials'?"), ({"trials": "many"}, "trials: int = 20  # tuning"),
    ({"trials": 1.5}, "no int"), ({"until": "soon"}, "date | None"), ({"trials": "env:MLSYS_NOT_SET"}, "MLSYS_NOT_SET"),
])
def test_a_wrong_parameter_fails_before_anything_starts(project: Project, parameters: dict, message: str) -> None:
    """There is a message that lists what exists, and no run folder."""
    write_notebook(project.run_notebooks / "retrain.ipynb", "trials: int = 20  # tuning\nuntil: date | None = None")
    with pytest.raises(UsageError, match=re.escape(message)):
        run_notebook("retrain", parameters, project)
    assert not project.var.exists()


def test_a_notebook_that_is_missing_untagged_or_broken_is_refused(project: Project) -> None:
    """So is one that needs a value that nobody gave."""
    good = write_notebook(project.run_notebooks / "retrain.ipynb", "trials: int")
    with pytest.raises(UsageError, match="Did you mean 'retrain'.*there are retrain"):
        run_notebook("retrian", {}, project)
    with pytest.raises(UsageError, match="needs a value for trials"):
        run_notebook("retrain", {}, project)
    with pytest.raises(UsageError, match="No notebook"):
        run_notebook("elsewhere/retrain.ipynb", {}, project)
    write_notebook(good, "trials: int = 1", tag="example")
    with pytest.raises(UsageError, match="tagged `parameters`"):
        run_notebook("retrain", {}, project)
    good.write_text("{not json")
    with pytest.raises(UsageError, match="no Jupyter notebook"):
        run_notebook("retrain", {}, project)
    assert not project.var.exists()


def test_a_cell_that_raises(project: Project) -> None:
    """The partial notebook shows what ran, the error, and that the rest did not run."""
    failure = fail(project, "print('before')", "1 / 0", "print('after')", "from mlsys.runs import finish; finish()")
    assert failure.run.error == "code cell 4: ZeroDivisionError: division by zero" and failure.exit_code == 1
    text, page = failure.run.executed.read_text(), failure.run.html.read_text()
    assert '"before\\n"' in text and '"after\\n"' not in text and "ZeroDivisionError" in page
    states = [cell.metadata.papermill.status for cell in nbformat.reads(text, 4).cells if cell.cell_type == "code"]
    assert states == ["completed"] * 3 + ["failed"] + ["pending"] * 2


def test_a_wrong_use_in_a_cell_keeps_its_message_and_exit_code(project: Project) -> None:
    """What a chapter refuses as wrong use is wrong use of the command line as well."""
    failure = fail(project, "from mlsys.core import UsageError\nraise UsageError('No column x.')", "1")
    assert failure.exit_code == 2 and failure.run.error == "No column x."


def test_a_killed_kernel(project: Project) -> None:
    """papermill marks every cell completed; the run does not."""
    failure = fail(project, "import os; print('here', flush=True); os.kill(os.getpid(), 9)", "1")
    assert "code cell 3: the kernel died: killed by signal 9 (SIGKILL)" in failure.run.error
    states = [cell.metadata.papermill.status for cell in nbformat.read(failure.run.executed, 4).cells]
    assert states == ["completed", "completed", "failed", "pending"]


def test_a_timeout_ends_the_kernel_and_its_children(project: Project) -> None:
    """A process that the notebook started does not outlive it."""
    started = time.monotonic()
    failure = fail(
        project, "import subprocess\nchild = subprocess.Popen(['sleep', '300'])",
        "open('pid', 'w').write(str(child.pid))",
        "import time\ntime.sleep(300)", "1", timeout=6,
    )
    assert "still running when the 6 s for the whole run were over" in failure.run.error
    assert time.monotonic() - started < 40 and has_ended(int((project.root / "pid").read_text()))


@pytest.mark.parametrize("cells, message", [
    (["import sys; sys.exit(0)", "from mlsys.runs import finish; finish()"], "cell 3: sys.exit(0) ended the notebook"),
    (["from mlsys.runs import finish; finish()", "1"], "did not call finish"),
])
def test_a_notebook_that_does_not_come_to_its_end(project: Project, cells: list[str], message: str) -> None:
    """Done means that the last cell said so."""
    assert message in fail(project, *cells).run.error


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(project: Project, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last whole notebook stays, and the record says why the run failed."""
    monkeypatch.setenv("MLSYS_VAR", str(small_disk))
    failure = fail(project, "print('before')", "print('x' * 3_000_000)", "from mlsys.runs import finish; finish()")
    assert "the disk is full" in failure.run.error
    assert "before" in failure.run.executed.read_text()


def test_a_file_that_may_not_grow(project: Project) -> None:
    """The same without a disk of its own: a limit on the size of files."""
    write_notebook(project.run_notebooks / "job.ipynb", "rows: int = 3", "print('x' * 3_000_000)", "finish()")
    script = ("import resource, sys; from mlsys.core import Project; from mlsys.runs import run_notebook\n"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
              "run_notebook('job', {}, Project.find(sys.argv[1]))")
    done = subprocess.run([sys.executable, "-c", script, str(project.root)], capture_output=True, text=True)
    run, = list_runs(project)
    assert done.returncode == 1 and run.status == "failed" and "the disk is full" in run.error
    nbformat.read(run.executed, as_version=4)


def test_secrets_are_never_written(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the parameters, not by a print, a table, an error or a result; and the notebook does get them."""
    text, pin = 'pa"ss-<w0rd>-ü', 86420975
    monkeypatch.setenv("SHOP_TOKEN", text)
    monkeypatch.setenv("SHOP_PIN", str(pin))
    path = write_notebook(
        project.run_notebooks / "job.ipynb", 'token: str = ""\npin: int = 0\nlimit: int | None = None',
        "print(token); print(repr(token), pin)\nprint(token[:5], end='', flush=True); print(token[5:])",
        "import pandas as pd\npd.DataFrame({'t': [token], 'p': [pin]})",
        "from mlsys.runs import finish\n"
        "finish(token=token, pin=pin, length=len(token), right=pin == 86000000 + 420975, nested={'list': [token]})",
    )
    names = {"token": "env:SHOP_TOKEN", "pin": "env:SHOP_PIN", "limit": 5}
    run = run_notebook(path, names, project, progress=False)
    hidden = {"token": "***", "pin": "***", "nested": {"list": ["***"]}}
    assert run.results == hidden | {"length": len(text), "right": True} and run.parameters == names
    write_notebook(path, 'token: str = ""', "raise ValueError(f'wrong token {token}')")
    with pytest.raises(RunFailed) as caught:
        run_notebook(path, {"token": "env:SHOP_TOKEN"}, project, progress=False)
    assert caught.value.run.error == "code cell 3: ValueError: wrong token ***" and "w0rd" not in str(caught.value)
    files = [file for file in (project.var / "runs").rglob("*") if file.is_file()]
    assert len(files) == 6
    for file in files:
        assert "w0rd" not in file.read_text() and str(pin) not in file.read_text(), file


def test_a_secret_of_the_wrong_type_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable, not its value."""
    monkeypatch.setenv("SHOP_PIN", "not-a-number")
    known = read_parameters(write_notebook(tmp_path / "job.ipynb", "pin: int = 0"))
    with pytest.raises(UsageError, match="'SHOP_PIN' holds no int") as refused:
        bind_parameters(known, {"pin": "env:SHOP_PIN"}, "job")
    assert "not-a-number" not in str(refused.value)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_runner_leaves_a_whole_notebook(project: Project, by: signal.Signals) -> None:
    """The kernel ends with it, and the run is seen to have failed."""
    write_notebook(project.run_notebooks / "job.ipynb", "rows: int = 3", "print('before')",
                   "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(120)", "1")
    script = ("import signal, sys; from mlsys.core import Project; from mlsys.runs import run_notebook\n"
              "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts without it\n"
              "run_notebook('job', {}, Project.find(sys.argv[1]))")
    runner = subprocess.Popen([sys.executable, "-c", script, str(project.root)], stderr=subprocess.PIPE, text=True)
    mark, deadline = project.root / "pid", time.monotonic() + 60
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [run.status for run in list_runs(project)] == ["running"]
    runner.send_signal(by)
    said = runner.communicate(timeout=30)[1]
    assert "never retrieved" not in said and "DeadKernelError" not in said
    run, = list_runs(project)
    assert run.status == "failed" and "interrupted" in run.error
    cells = nbformat.read(run.executed, as_version=4).cells
    assert cells[1].outputs[0].text == "before\n"
    assert has_ended(int(mark.read_text()))


def test_listing_runs_loads_nothing_heavy(project: Project) -> None:
    """`mlsys runs` answers at once."""
    script = "import sys; from mlsys.core import Project; from mlsys.runs import list_runs, read_parameters\n" \
             "assert list_runs(Project.find(sys.argv[1])) == []\n" \
             "assert not {'papermill', 'nbformat', 'IPython', 'jupyter_client', 'pandas', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script, str(project.root)], check=True)


def test_the_parameters_tag_survives_nbdev_clean(tmp_path: Path) -> None:
    """Without `allowed_cell_metadata_keys = tags` a retraining would silently use its defaults."""
    path = write_notebook(tmp_path / "retrain.ipynb", "trials: int = 20", "trials")
    subprocess.run([Path(sys.executable).with_name("nbdev_clean"), "--fname", str(path)], cwd=repository, check=True)
    assert [parameter.name for parameter in read_parameters(path)] == ["trials"]
    assert "allowed_cell_metadata_keys = tags" in (repository / "settings.ini").read_text()


@settings(max_examples=60, deadline=None)
@given(some.dictionaries(some.sampled_from("abc"), some.one_of(
    some.text(), some.integers(), some.floats(allow_nan=False, allow_infinity=False), some.none(), some.booleans(),
    some.dates(), some.datetimes(), some.text(min_size=1).map(Path), some.lists(some.text()), some.lists(some.dates()),
)))
def test_the_injected_cell_gives_every_value_back(values: dict) -> None:
    """Whatever the value is, the source that is written for it means that value."""
    space: dict = {}
    exec(_injected_source(values), space)
    assert {name: space[name] for name in values} == values


@given(some.lists(some.integers()))
def test_a_list_is_read_in_both_spellings(values: list[int]) -> None:
    """`[1, 2]` and `1,2` mean the same."""
    assert parse_value(str(values), "list[int]") == parse_value(",".join(map(str, values)), "list[int]") == values


def test_a_secret_in_the_injected_cell_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is resolved where the cell runs."""
    monkeypatch.setenv("SHOP_DAY", "2026-07-01")
    space: dict = {}
    exec(_injected_source({"day": Secret("SHOP_DAY", "date | None"), "text": Secret("SHOP_DAY", "str")}), space)
    assert space["day"] == dt.date(2026, 7, 1) and space["text"] == os.environ["SHOP_DAY"]
