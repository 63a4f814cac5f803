"""The rules of the house hold here, and each check can fail."""
import subprocess
import sys
from configparser import ConfigParser

import house
import nbformat
import pytest
from house import ROOT, chapters, package_sources

HEAVY = ("shap", "bentoml", "sklearn", "pandas")
SOURCES = package_sources()


def notebook(*cells: tuple[str, list[str]]) -> nbformat.NotebookNode:
    made = [nbformat.v4.new_code_cell(code, metadata={"tags": tags}) for code, tags in cells]
    return nbformat.v4.new_notebook(cells=made)


# Layers

@pytest.mark.parametrize("module", SOURCES)
def test_a_chapter_imports_only_chapters_before_it(module):
    assert house.layer_problems(module, SOURCES[module], chapters()) == []


@pytest.mark.parametrize("module, code", [
    ("core", "from .scope import Scope"),
    ("core", "def f():\n    import mlsys.scope"),
    ("core", "from mlsys import scope"),
    ("scope", "from mlsys.scope2 import x\nfrom mlsys.project.scope import scope"),
    ("scope", "from .cli import main"),
    ("project.scope", "from mlsys.service import MlsysService"),
])
def test_layer_problems_are_found(module, code):
    assert len(house.layer_problems(module, code, {"core": 0, "scope": 1})) == 1


def test_lower_layers_may_be_imported():
    assert house.layer_problems("scope", "import re\nfrom .core import MlsysError", {"core": 0, "scope": 1}) == []
    assert house.layer_problems("project.scope", "from ..scope import Scope", {"core": 0, "scope": 1}) == []


# Docstrings

@pytest.mark.parametrize("module", SOURCES)
def test_every_public_name_has_a_docstring(module):
    assert house.docstring_problems(module, SOURCES[module]) == []


def test_missing_docstrings_are_found():
    code = "__all__ = ['f', 'C']\ndef f(): pass\nclass C:\n    '''Says.'''\ndef _g(): pass\ndef h(): pass"
    assert house.docstring_problems("m", code) == ["m.f has no docstring"]


# Run notebooks

@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "runs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_run_notebooks_only_call_and_show(path):
    assert house.run_notebook_problems(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("cells", [
    [("x = 1", [])],
    [("x = 1", ["parameters"]), ("def f(): pass", [])],
    [("x = 1", ["parameters"]), ("if True:\n    class C: pass", [])],
    [("x = 1", ["parameters"]), ("#| export\ny = 1", [])],
])
def test_run_notebook_problems_are_found(cells):
    assert len(house.run_notebook_problems(notebook(*cells))) == 1


# Weight

STARTS = {
    "import mlsys": "import mlsys",
    "import mlsys.core": "import mlsys.core",
    "mlsys --help": "from mlsys.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    "mlsys models": "from mlsys.cli import main\ntry: main(['models'])\nexcept SystemExit: pass",
    "mlsys ledger": "from mlsys.cli import main\ntry: main(['ledger'])\nexcept SystemExit: pass",
}


def heavy_modules(code: str) -> str:
    program = f"{code}\nimport sys\nprint('heavy:', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("start", STARTS)
def test_starting_loads_nothing_heavy(start):
    if "cli" in STARTS[start] and "cli" not in SOURCES:
        pytest.skip("no command line yet")
    assert heavy_modules(STARTS[start]) == "heavy:"


def test_a_heavy_start_is_found():
    assert heavy_modules("import pandas") == "heavy: pandas"


# Dependencies

def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def guide() -> str:
    return "\n".join(cell.source for cell in house.read_notebook("guides/decisions.ipynb").cells)


def top_level_imports() -> set[str]:
    return {name.split(".")[0] for module, code in SOURCES.items() for name in house.imports(code, module)}


def test_every_dependency_has_a_reason_and_every_import_is_required():
    asked = f"{settings()['requirements']} {settings()['mlflow_requirements']}"
    assert house.dependency_problems(asked, guide(), top_level_imports()) == []


def test_every_dependency_stands_in_the_guide():
    required = house.requirement_names(" ".join(text for name, text in settings().items() if name.endswith("requirements")))
    assert [name for name in required if f"\n| {name} |" not in guide()] == []


def test_dependency_problems_are_found():
    assert house.dependency_problems("pandas>=3 leftpad<2", "| numpy | arrays |", {"pandas", "numpy"}) == [
        "leftpad is required, but neither imported nor argued for in decisions.ipynb",
        "numpy is imported, but not required in settings.ini",
    ]


# Notebooks and what is made of them

def test_notebooks_are_clean_and_the_package_is_in_sync():
    assert house.sync_problems(ROOT) == []


def test_sync_problems_are_found(tmp_path):
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text("utf-8"))
    (tmp_path / "mlsys").mkdir()
    (tmp_path / "mlsys" / "__init__.py").write_text((ROOT / "mlsys" / "__init__.py").read_text("utf-8"))
    book = notebook(("#| default_exp area", []), ("#| export\nside = 2", []))
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="left over")]
    (tmp_path / "nbs").mkdir()
    nbformat.write(book, tmp_path / "nbs" / "00_area.ipynb")
    problems = "\n".join(house.sync_problems(tmp_path))
    assert "nbs/00_area.ipynb is not clean" in problems and "mlsys/area.py does not say" in problems


def test_the_front_page_lists_every_chapter_in_order():
    front = "\n".join(cell.source for cell in house.read_notebook("index.ipynb").cells)
    listed = house.re.findall(r"^\| \[\w+\]\((\d\d_\w+)\.ipynb\)", front, house.re.M)
    assert listed == [f"{number:02}_{name}" for name, number in chapters().items()]


# Places

@pytest.mark.parametrize("path", house.tracked_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_name_no_machine_and_no_package_index(path):
    assert house.place_problems(path.name, path.read_text("utf-8")) == []


@pytest.mark.parametrize("text", ["see /" + "home/me/data.csv", "open('/" + "work/main/x')",
                                  "https://" + "pypi" + ".org/simple", "--index-" + "url https://packages.example.org"])
def test_place_problems_are_found(text):
    assert len(house.place_problems("a.txt", text)) == 1


def test_the_lock_names_no_host():
    assert "://" not in (ROOT / "requirements.lock").read_text("utf-8")


def test_there_is_no_symbolic_link():
    listing = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert listing and house.link_problems(listing) == []
    assert house.link_problems("120000 0f1e 0\tnbs/a file.yaml") == ["nbs/a file.yaml is a symbolic link"]
