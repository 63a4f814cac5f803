"""`mlsys docs` in a project of one's own, through the command line."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from wheel_check import write_customers

from mlsys.site import execute_all

MLSYS = Path(sys.executable).parent / "mlsys"


def mlsys(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MLSYS, *words], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_customers(folder / "customers.csv", rows=300)
    made = mlsys("new", "shop", "--data", "customers.csv", "--target", "left", "--id", "customer", cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder / "shop"


def test_a_notebook_that_fails_is_named_and_nothing_is_left(project, tmp_path):
    broken = shutil.copytree(project, tmp_path / "shop")
    for notebook in broken.glob("nbs/0[123]_*.ipynb"):
        notebook.unlink()
    scope = json.loads((broken / "nbs" / "00_scope.ipynb").read_text("utf-8"))
    scope["cells"].append({"cell_type": "code", "id": "broken", "metadata": {}, "outputs": [], "execution_count": None,
                           "source": "scope.no_such_field"})
    (broken / "nbs" / "00_scope.ipynb").write_text(json.dumps(scope), "utf-8")
    done = mlsys("docs", cwd=broken)
    assert done.returncode == 1 and not (broken / "_docs").exists()
    assert "nbs/00_scope.ipynb" in done.stderr and "no_such_field" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.stress
def test_the_site_of_a_project_is_complete(project):
    done = mlsys("docs", cwd=project)
    assert done.returncode == 0, done.stderr
    site = project / "_docs"
    front = (site / "index.html").read_text("utf-8")
    for notebook in ("00_scope", "01_explore", "02_features", "03_models", "runs/retrain"):
        assert (site / f"{notebook}.html").exists() and f'href="{notebook}.html"' in front
    assert list((site / "_images").glob("*.png"))                        # what the exploration shows
    assert "retrain" in (site / "searchindex.js").read_text("utf-8")


def test_executed_notebooks_are_kept_for_the_same_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLSYS_EXECUTED", raising=False)
    notebook, kept = tmp_path / "nbs" / "one.ipynb", tmp_path / "kept"
    notebook.parent.mkdir()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nproject = one\n")

    def run(source: str) -> str:
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="one")]), notebook)
        return execute_all([notebook], tmp_path)[notebook].cells[0].outputs[0].data["text/plain"]

    runs = str(tmp_path / "runs")
    source = f"from pathlib import Path\nwith Path({runs!r}).open('a') as file: file.write('.')\nPath({runs!r}).read_text()"
    assert (run(source), run(source)) == ("'.'", "'..'")
    monkeypatch.setenv("MLSYS_EXECUTED", str(kept))
    assert (run(source), run(source)) == ("'...'", "'...'")
    (tmp_path / "helper.py").write_text("other = 1\n")
    assert run(source) == "'....'"  # other code could say something else
    assert run(source + "\n") == "'.....'"
