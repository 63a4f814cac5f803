"""Labelling from end to end: rows chosen, a form in a real kernel, files from spreadsheets, two labellers, the next snapshot."""
import json

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import environment, shop
from nbclient import NotebookClient

from mlsys.core import Project
from mlsys.data import list_snapshots
from mlsys.labelling import LabelBook, agreed_labels
from mlsys.registry import Registry
from mlsys.runs import find_notebook, prepare_notebook


@pytest.fixture(scope="module")
def project(cli, tmp_path_factory):
    """A shop in which a quarter of the visitors are not labelled yet."""
    folder = tmp_path_factory.mktemp("labels")
    visitors = shop(600).assign(visitor=[f"V{i:04}" for i in range(600)])
    visitors.loc[visitors.index % 4 == 0, "bought"] = ""
    visitors.to_csv(folder / "shop.csv", index=False)
    assert cli("new", "shop", "--data", "shop.csv", "--target", "bought", "--id", "visitor", folder=folder).code == 0
    project = Project.find(folder / "shop")
    done = cli("retrain", "-p", "trials=0", folder=project.root)
    assert done.code == 0, done.err
    return project


def asked(cli, project, *words):
    """The rows that a labeller would be shown."""
    answer = cli("label", "--json", *words, folder=project.root)
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def filled(project, name, labels):
    """A table as somebody fills it in."""
    pd.DataFrame({"visitor": list(labels), "bought": list(labels.values())}).to_csv(project.root / name, index=False)
    return name


def test_uncertain_rows_are_asked_first(cli, project):
    found = asked(cli, project, "--by", "Ada", "--rows", "10")
    assert found["labels"] == ["no", "yes"] and found["waiting"] == 150 and len(set(found["ids"])) == 10
    champion = Registry(project).champion()
    rows = pd.read_csv(project.root.parent / "shop.csv").set_index("visitor")
    open_rows = rows[rows["bought"].isna()]
    scores = pd.Series(champion.score(champion.schema.repair(open_rows.reset_index())), index=open_rows.index)
    doubt = (scores - champion.threshold).abs()
    assert doubt[found["ids"]].max() <= doubt.sort_values().iloc[99]      # out of the hundred most uncertain


def test_a_click_in_a_real_kernel_keeps_a_label(project):
    prepared = prepare_notebook(find_notebook("label", project), {"by": "Clio", "rows": 4})
    notebook = nbformat.reads(json.dumps(prepared), as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("LabelForm("))
    clicks = ["form.buttons['yes'].click()", "form.skip.click()", "form.buttons['no'].click()"]
    notebook.cells[place].source = "\n".join(["form = LabelForm(task)", *clicks, "form"])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(project.root)}})
    client.execute(env=environment() | {"PYTHONPATH": f"{project.root}:{environment()['PYTHONPATH']}"})
    labels = LabelBook(project.database_url).labels()
    assert labels[labels["by"] == "Clio"]["label"].tolist() == ["yes", "no"]
    widget = notebook.cells[place].outputs[-1]["data"]
    assert "application/vnd.jupyter.widget-view+json" in widget


def test_a_wrong_label_refuses_the_whole_file(cli, project):
    ids = asked(cli, project, "--by", "Ben", "--rows", "5")["ids"]
    before = len(LabelBook(project.database_url).history())
    for wrong, said in (({ids[0]: "yes", ids[1]: "yess"}, "Did you mean 'yes'?"), ({ids[0]: "yes", "V9": "no"}, "'V9'")):
        answer = cli("label", "--file", filled(project, "wrong.csv", wrong), "--by", "Ben", folder=project.root)
        assert answer.code == 2 and said in answer.err
    assert len(LabelBook(project.database_url).history()) == before


@pytest.mark.stress
def test_two_labellers_are_compared_and_the_next_training_learns_from_both(cli, project):
    rows = pd.read_csv(project.root.parent / "shop.csv").set_index("visitor")
    ids = list(rows.index[rows["bought"].isna()][:40])
    truth = np.where(rows.loc[ids, "age"] > 50, "yes", "no")
    other = truth.copy()
    other[:4] = np.where(other[:4] == "yes", "no", "yes")
    for by, labels in (("Ada", truth), ("Ben", other)):
        answer = cli("label", "--json", "--file", filled(project, f"{by}.csv", dict(zip(ids, labels, strict=True))), "--by", by,
                     folder=project.root)
        assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    pair = next(one for one in found["agreement"] if {one["first"], one["second"]} == {"Ada", "Ben"})
    assert (pair["rows"], pair["same"]) == (40, 36) and pair["low"] < pair["kappa"] < pair["high"]
    assert 0 < pair["kappa"] < 0.9      # the same in 0.9 of the rows, part of it by chance
    assert set(found["divided"]) >= set(ids[:4]) - set(LabelBook(project.database_url).labels().query("by == 'Clio'")["row_id"])

    agreed = agreed_labels(project, project.load("scope").scope)
    done = cli("retrain", "-p", "trials=0", "--json", folder=project.root)
    assert done.code == 0, done.err
    newest = list_snapshots(project.var / "snapshots")[-1].load()
    assert (newest["bought"].fillna("") != "").sum() == 450 + len(agreed)
    kept = newest.set_index("visitor")["bought"]
    assert (kept[agreed["visitor"]].to_numpy() == agreed["bought"].to_numpy()).all()
    assert "come from different snapshots" in cli("models", folder=project.root).out


def test_a_filled_in_file_is_not_written_over(cli, project):
    name = filled(project, "mine.csv", {"V0000": "yes"})
    answer = cli("label", "--by", "Eve", "--out", name, folder=project.root)
    assert answer.code == 2 and f"mlsys label --file {name}" in answer.err
    assert "yes" in (project.root / name).read_text()


def test_without_an_id_or_without_open_rows_it_says_what_to_do(cli, project, tmp_path):
    shop(60).to_csv(tmp_path / "shop.csv", index=False)
    assert cli("new", "shop", "--data", "shop.csv", "--target", "bought", folder=tmp_path).code == 0
    answer = cli("label", "--json", folder=tmp_path / "shop")
    assert answer.code == 2 and "Set `id`" in answer.err
    shop(60).assign(visitor=[f"V{i}" for i in range(60)]).to_csv(tmp_path / "all.csv", index=False)
    assert cli("new", "full", "--data", "all.csv", "--target", "bought", "--id", "visitor", folder=tmp_path).code == 0
    answer = cli("label", "--json", folder=tmp_path / "full")
    assert answer.code == 2 and "Every row of the table has a value" in answer.err
    answer = cli("label", folder=tmp_path / "full")  # and starts no Lab for it
    assert answer.code == 2 and "Every row of the table has a value" in answer.err and "Opening" not in answer.out
