"""The rules of the house, as functions that list what breaks them. `test_house.py` shows that each can fail.

Run as a script, it only says whether the notebooks are clean and the package says what they say.
"""
import ast
import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
TOP = {"service", "starter", "demo", "cli"}    # only the command line imports these


def chapters() -> dict[str, int]:
    """Module names of the chapters, in order, with their numbers."""
    return {path.stem[3:]: int(path.stem[:2]) for path in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))}


def package_sources() -> dict[str, str]:
    """Code by module name below mlsys, such as `scope` or `project.features`."""
    paths = [path for path in sorted((ROOT / "mlsys").rglob("*.py")) if path.stem not in ("_modidx", "__init__")]
    names = [".".join(path.relative_to(ROOT / "mlsys").with_suffix("").parts) for path in paths]
    return {name: path.read_text("utf-8") for name, path in zip(names, paths, strict=True)}


def imports(code: str, module: str) -> set[str]:
    """What a module of mlsys imports, anywhere in it, in full: `mlsys.core`, `pandas`."""
    found: set[str] = set()
    parents = ["mlsys", *module.split(".")]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(parents[:-node.level] if node.level else []), *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "mlsys" else {base}
    return found - {f"mlsys.{module}"}


def layer_problems(module: str, code: str, order: dict[str, int]) -> list[str]:
    """A chapter imports only chapters before it; the library never imports the project."""
    problems = []
    for name in sorted(imports(code, module)):
        target = name.split(".")[1] if name.startswith("mlsys.") else ""
        if target == "project" and not module.startswith("project."):
            problems.append(f"{module} imports {name}: the library never imports the project")
        elif target in TOP and module != "cli":
            problems.append(f"{module} imports {target}, which only cli may import")
        elif target in order and module in order and order[target] >= order[module]:
            problems.append(f"{module} imports {target}, a later chapter")
    return problems


def docstring_problems(module: str, code: str) -> list[str]:
    """Every public function and class says what it gives you."""
    tree = ast.parse(code)
    public = {name for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
              for name in ast.literal_eval(node.value)}
    return [f"{module}.{node.name} has no docstring" for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in public and not ast.get_docstring(node)]


def run_notebook_problems(notebook: NotebookNode) -> list[str]:
    """A run notebook has a tagged cell of parameters, and neither defines nor exports anything."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = any("parameters" in cell.metadata.get("tags", []) for cell in code)
    problems = [] if tagged else ["no cell is tagged parameters"]
    for cell in code:
        if re.search(r"^#\s*\|\s*(export|default_exp)", cell.source, re.M):
            problems.append(f"exports something: {cell.source.splitlines()[0]}")
        plain = "\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!")))
        problems += [f"defines {node.name}" for node in ast.walk(ast.parse(plain))
                     if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return problems


def requirement_names(text: str) -> list[str]:
    """Distribution names in a line of requirements."""
    return [normal(re.split(r"[<>=!~\[; ]", word)[0]) for word in text.split()]


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def dependency_problems(requirements: str, argued: str, imported: set[str]) -> list[str]:
    """What is required is imported or argued for, and what is imported is required.

    `argued` is the guide's text; `imported` are top-level import names.
    """
    required, by_import = set(requirement_names(requirements)), packages_distributions()
    provided = {module: {normal(name) for name in by_import.get(module, [])} for module in imported - {"mlsys"}}
    used = {name for names in provided.values() for name in names}
    argued_for = {match.lower() for match in re.findall(r"^\| ([\w-]+) \|", argued, re.M)}
    idle = sorted(required - used - argued_for)
    undeclared = sorted(module for module, names in provided.items() if names and not required & names)
    return [*(f"{name} is required, but neither imported nor argued for in decisions.ipynb" for name in idle),
            *(f"{module} is imported, but not required in settings.ini" for module in undeclared)]


def place_problems(name: str, text: str) -> list[str]:
    """A file in the repository names no folder of somebody's machine and no package index."""
    folders = r"(?<![\w.:/])/(?:home|Users|root|work|mnt|tmp/wt)/\w+"
    places = folders + r"|\bpypi\.org|pythonhosted\.org|--(?:extra-)?index-url \S+"
    return [f"{name}: {match}" for match in sorted(set(re.findall(places, text)))]


def link_problems(listing: str) -> list[str]:
    """Symbolic links among the files of `git ls-files --stage`: an archive or a copy turns them into something else."""
    return [f"{line.split(maxsplit=3)[3]} is a symbolic link" for line in listing.splitlines() if line.startswith("120000")]


def sync_problems(root: Path) -> list[str]:
    """Files that `mlsys export` would change, found in a copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / root.name
        copy.mkdir()
        library = ConfigParser(delimiters=["="], interpolation=None)
        library.read(root / "settings.ini", encoding="utf-8")
        kept = ["nbs", library["DEFAULT"]["lib_path"]]
        shutil.copy(root / "settings.ini", copy)
        for name in kept:
            ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(root / name, copy / name, ignore=ignored)
        before = contents(copy)
        subprocess.run([Path(sys.executable).parent / "mlsys", "export"], cwd=copy, check=True, capture_output=True)
        after = contents(copy)
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    problem = {True: "is not clean", False: "does not say what the notebooks say"}
    return [f"{path} {problem[path.suffix == '.ipynb']}; run: make export" for path in changed]


def contents(folder: Path) -> dict[Path, bytes]:
    """The files in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def tracked_files() -> list[Path]:
    """The text files that git knows, or all that are not made by tools where there is no git."""
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    paths = [ROOT / name for name in done.stdout.splitlines()]
    if done.returncode:
        paths = [path for part in ("nbs", "mlsys", "tests", "docs") for path in (ROOT / part).rglob("*.*")]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".gz", ".parquet", ".pyc")]


def read_notebook(name: str) -> NotebookNode:
    """A notebook below nbs."""
    return nbformat.read(ROOT / "nbs" / name, as_version=4)


if __name__ == "__main__":
    found = sync_problems(ROOT)
    sys.exit("\n".join(found) if found else print("notebooks are clean, the package says what they say"))
