"""Tables of any size through the command line: profiled, checked with the bad rows set aside, and told in a dictionary."""
import json

import pandas as pd
import pytest
from conftest import shop

from mlsys.core import Project


@pytest.fixture(scope="module")
def project(cli, tmp_path_factory):
    """A shop's project."""
    folder = tmp_path_factory.mktemp("profile")
    shop().to_csv(folder / "shop.csv", index=False)
    assert cli("new", "shop", "--data", "shop.csv", "--target", "bought", folder=folder).code == 0
    return Project.find(folder / "shop")


def test_a_profile_needs_no_project_and_counts_blanks_as_missing(cli, tmp_path):
    shop().assign(note=["", "x"] * 200).to_csv(tmp_path / "shop.csv", index=False)
    found = json.loads(cli("data", "profile", "shop.csv", "--json", folder=tmp_path).out)
    columns = {one["column"]: one for one in found["columns"]}
    assert found["rows"] == 400 and columns["note"]["missing"] == 0.5 and columns["city"]["different"] == 3
    assert (columns["age"]["lowest"], columns["age"]["highest"]) == (shop()["age"].min(), shop()["age"].max())


def test_a_check_sets_bad_rows_aside_and_says_no_when_they_are_too_many(cli, project):
    rows = shop(100).astype({"age": object})
    rows.loc[[3, 7], "age"] = "old"
    rows.to_csv(project.root / "few.csv", index=False)
    found = json.loads(cli("data", "check", "few.csv", "--json", folder=project.root).out)
    assert found["passed"] and found["bad_rows"] == 2 and found["problems"][0]["first row"] == 3
    aside = pd.concat(map(pd.read_parquet, (project.root / found["quarantine"]).iterdir()))
    assert aside["row"].tolist() == [3, 7] and aside["age"].tolist() == ["old", "old"]
    rows["age"] = "old"
    rows.to_csv(project.root / "many.csv", index=False)
    assert cli("data", "check", "many.csv", folder=project.root).code == 1


def test_a_missing_input_fails_the_check(cli, project):
    shop(50).drop(columns="income").to_csv(project.root / "less.csv", index=False)
    answer = cli("data", "check", "less.csv", folder=project.root)
    assert answer.code == 1 and "'income' is missing altogether" in answer.out


def test_the_dictionary_names_every_column_and_feature(cli, project):
    assert cli("data", "dictionary", "-o", "words.md", folder=project.root).code == 0
    text = (project.root / "words.md").read_text()
    assert all(f"| {name} |" in text for name in ("age", "income", "city", "bought"))
