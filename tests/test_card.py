"""The model card of a real version: by the command line, in a hurry, and with a way to the notebook that made it."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli, environment

from mlsys.card import card_html, executed_notebook, model_card
from mlsys.cli import main
from mlsys.core import Project
from mlsys.registry import Registry


@pytest.fixture
def card(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`mlsys models card ...` in this process: what it printed and how it ended."""
    def ask(*words: object) -> tuple[int, str]:
        monkeypatch.chdir(project.root)
        try:
            main(["models", *map(str, words)])
        except SystemExit as ended:
            said = capsys.readouterr()
            return int(ended.code or 0), said.out + said.err
        return 0, capsys.readouterr().out
    return ask


def test_a_card_in_three_forms(card: Cli, tmp_path: Path) -> None:
    code, text = card("card", "v1")
    assert code == 0 and text.startswith("# shop v1: model card") and "**How good it is.**" in text
    page = tmp_path / "cards" / "card.html"
    assert json.loads(card("card", "--out", page, "--json")[1]) == {"file": str(page)}
    assert "<h2>What it looks at</h2>" in page.read_text() and "No summary of its explanations" not in page.read_text()
    told = json.loads(card("card", "champion", "--format", "json")[1])
    assert told["model"] == "v1" and told["served"][0]["role"] == "champion" and told["verdict"]["passed"]
    assert told == json.loads(card("card", "--json")[1])


def test_the_card_leads_to_the_notebook_that_made_the_version(project: Project, card: Cli, tmp_path: Path) -> None:
    card("card", "v1", "--out", tmp_path / "card.html")
    link = (tmp_path / "card.html").read_text().partition('<a href="')[2].partition('"')[0]
    executed = (tmp_path / link).resolve()
    assert executed.is_file() and executed == executed_notebook(project, Registry(project).get("v1").lineage)
    assert executed_notebook(project, {"run": "of another machine"}) is None and executed_notebook(project, {}) is None


def test_strange_names_stay_text(project: Project) -> None:
    version = Registry(project).get("v1")
    page = card_html(model_card(version))
    names = [column.name for column in version.schema.inputs]
    assert "Straße [Nr.] (x) <b>" in names and "Straße [Nr.] (x) &lt;b&gt;" in page and "(x) <b>" not in page


@pytest.mark.parametrize("words, said", [
    (["card", "v7"], "No version 'v7'; there are v1"),
    (["card", "v1", "--format", "pdf"], "'pdf' is not one of"),
    (["card", "challenger"], "There is no challenger now; there are v1"),
    (["crad"], "Did you mean 'card'?"),
])
def test_a_wrong_name_says_what_there_is(card: Cli, words: list[str], said: str) -> None:
    code, printed = card(*words)
    assert code == 2 and said in printed


def test_models_still_lists_the_versions(card: Cli) -> None:
    assert json.loads(card("--json")[1])[0]["version"] == "v1"
    assert "roc_auc" in card()[1]


def test_a_card_is_quick_and_needs_neither_shap_nor_matplotlib(project: Project) -> None:
    program = """
import sys, time
from pathlib import Path
from mlsys.card import card_html, model_card
from mlsys.registry import load_version
version = load_version(Path(sys.argv[1]))
times = []
for _ in range(5):
    start = time.process_time()
    card_html(model_card(version))
    times.append(time.process_time() - start)
print(min(times), [name for name in ("shap", "matplotlib") if name in sys.modules])
"""
    words = [sys.executable, "-c", program, str(Registry(project).folder("v1"))]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=True)
    seconds, heavy = done.stdout.split(" ", 1)
    assert float(seconds) < 0.05 and heavy.strip() == "[]"
