"""What features promise, are worth, cost and give away: on tables with a known truth, on a real one, and by command."""
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from mlsys.data import read, usable_rows
from mlsys.demo import command
from mlsys.features import FeatureSet, feature
from mlsys.schema import Column, Schema, infer
from mlsys.scope import Personal, Scope
from mlsys.worth import (
    BrokenPromise,
    check_feature,
    feature_worth,
    find_proxies,
    outside_reads,
    plot_worth,
    refused_inputs,
)

adult = Path(__file__).parents[2] / "shared" / "data" / "adult_income.csv.gz"
schema = Schema(columns=[
    Column(name="amount", kind="number", low=0.0, high=1000.0), Column(name="count", kind="integer", low=0, high=20),
    Column(name="shop", kind="category", categories=["Oslo", "Rome"]),
    Column(name="paid", kind="datetime", low="2025-01-01", high="2025-12-31"),
    Column(name="late", kind="category", role="target", categories=["no", "yes"])])
late = pd.Series([0.0, 1.0], name="late")
calls: list[int] = []
counter = 0


# Promises

def named(function, name="tried"):
    function.__doc__, function.__name__ = "Tried.", name
    return feature(function)


def counted(amount: pd.Series) -> pd.Series:
    global counter
    counter += 1
    return amount


@pytest.mark.parametrize("function, promise, told", [
    (lambda amount: amount.where(~amount.between(600, 700), np.inf), "never infinite", "amount=6"),  # inside of the range
    (lambda amount, count: amount / (count - 7), "never infinite", "count=7"),
    (lambda shop: shop.map(len), "raises nothing", "shop=missing"),
    (lambda paid: paid.dt.strftime("%s").astype(int), "raises nothing", "paid=missing"),
    (lambda paid: paid.dt.normalize(), "numbers or text", "Timestamp"),
    (lambda amount: amount if len(amount) > 1 else amount.astype(str), "a row alone as among others", "alone"),
    (lambda amount: amount.sample(frac=1), "one value for each row, in order", "index"),
    (lambda amount: amount.sample(frac=1).set_axis(amount.index), "the same again", "random"),
    (lambda amount: amount.fillna(amount.median()), "a row alone as among others", "amount=missing"),
    (lambda shop: shop.map(shop.value_counts()), "a row alone as among others", "history feature"),
    (lambda amount: amount.cumsum(), "in any order of rows", "reversed"),
    (lambda amount: calls.append(1) or amount + len(calls), "the same again", "remembers"),
    (lambda paid: (pd.Timestamp.now() - paid).dt.days, "reads nothing but its inputs", "the clock"),
    (lambda shop: shop.map(lambda name: late.mean()), "reads nothing but its inputs", "holds the target"),
    (lambda amount: amount + len(os.environ), "reads nothing but its inputs", "'os'"),
    (counted, "reads nothing but its inputs", "which it changes"),
])
def test_a_broken_promise_is_named_with_an_example_and_a_remedy(function, promise, told):
    with pytest.raises(BrokenPromise) as caught:
        check_feature(named(function), schema)
    assert caught.value.promise == promise and told in str(caught.value) and "'tried'" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("function", [
    lambda amount, count: amount / count.where(count > 0),
    lambda amount: np.log1p(amount.clip(lower=0)),
    lambda shop: shop.str.upper().str[:2],
    lambda shop: shop.map({"Oslo": 1.0, "Rome": 2.0}),
    lambda paid: paid.dt.dayofweek,
    lambda paid: (paid - pd.Timestamp("2025-01-01")) / pd.Timedelta(days=1),
    lambda amount: pd.cut(amount, [-np.inf, 10, 100, np.inf], labels=["low", "middle", "high"]).astype("str"),
    lambda amount, shop: pd.Series(np.where(shop == "Oslo", amount, 0.0), index=amount.index),
    lambda amount: amount > 100,
])
def test_careful_features_pass(function):
    check_feature(named(function), schema)


def test_a_global_that_is_no_target_may_be_read():
    rates = pd.Series({"Oslo": 0.25, "Rome": 0.22})
    assert outside_reads(lambda shop: shop.map(rates), "late") == []
    assert outside_reads(lambda shop: shop.map(late), "late") == ["the table 'late', which holds the target"]
    inside = late
    assert outside_reads(lambda shop: shop.map(inside), "late") == ["a table that holds the target"]


# Worth

def sales(rows: int = 1500, seed: int = 0) -> pd.DataFrame:
    """A table of which it is known what matters: `a` and `b`, their ratio, and nothing else."""
    draw = np.random.default_rng(seed)
    df = pd.DataFrame(draw.lognormal(size=(rows, 4)), columns=list("abcd"))
    df["word"] = pd.Series(draw.choice(["p", "q", "r"], rows), dtype="str")
    df["day"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(rows), unit="h")
    df["level"] = 3 * np.log(df.a / df.b) + draw.normal(size=rows)
    df["bought"] = np.where(df.level > 0, "yes", "no")
    df["size"] = pd.cut(df.level, [-np.inf, -2, 2, np.inf], labels=["small", "medium", "large"]).astype("str")
    return df


def described(target: str, *names: str) -> Schema:
    kinds = {"word": "category", "day": "datetime"}
    columns = [Column(name=name, kind=kinds.get(name, "number"), categories=["p", "q", "r"] if name == "word" else [])
               for name in names]
    return Schema(columns=[*columns, Column(name=target, kind="category", role="target")])


@feature
def ratio(a: pd.Series, b: pd.Series) -> pd.Series:
    """What matters."""
    return a / b


@feature
def doubled(c: pd.Series) -> pd.Series:
    """What does not."""
    return 2 * c


@pytest.mark.parametrize("fields", [
    dict(task="binary", target="bought", positive="yes"), dict(task="multiclass", target="size"),
    dict(task="regression", target="level"), dict(task="binary", target="bought", positive="yes", time="day"),
], ids=["binary", "multiclass", "regression", "in time"])
def test_what_matters_stays_and_what_does_not_is_named(fields):
    scope = Scope(name="t", **fields)
    features = FeatureSet([ratio, doubled], raw=["c", "d", "word"]).bind(described(scope.target, *"abcd", "word"))
    worth = feature_worth(features, sales(1000), scope)
    assert worth.table.loc["ratio", "verdict"] == "earns its place" and worth.table.index[0] == "ratio"
    assert "doubled" in worth.candidates and "µs of each request" in worth.candidates["doubled"]
    assert worth.together.low <= 0 and "ratio" not in worth.candidates
    assert worth.columns.loc["a", "read_by"] == "ratio" and worth.columns.loc["a", "low"] > 0
    least = 500 if scope.time else 600      # folds in time judge the younger half
    assert json.loads(json.dumps(worth.to_dict()))["rows"] == worth.rows >= least
    assert "doubled" in worth._repr_html_() and len(plot_worth(worth)) == 2


def test_a_column_saves_nothing_while_a_function_that_stays_reads_it():
    @feature
    def ratio_again(a: pd.Series, b: pd.Series) -> pd.Series:
        """Its twin: each of the two can go, but not both."""
        return 2 * a / b

    scope = Scope(name="t", task="binary", target="bought", positive="yes")
    features = FeatureSet([ratio, ratio_again], raw=["a", "c"]).bind(described("bought", *"abc"))
    worth = feature_worth(features, sales(1000), scope)
    assert len({"ratio", "ratio_again"} & set(worth.candidates)) == 1 and "a" not in worth.candidates
    stays = next(name for name in ("ratio", "ratio_again") if name not in worth.candidates)
    assert worth.table.loc[stays, "verdict"].startswith("may stay") and "once" in worth.table.loc[stays, "verdict"]


def test_the_only_feature_and_the_parts_of_a_date_can_be_judged():
    df = sales().assign(bought=lambda df: np.where(df.day.dt.hour < 12, "yes", "no"))
    scope = Scope(name="t", task="binary", target="bought", positive="yes")
    worth = feature_worth(FeatureSet().bind(described("bought", "day")), df, scope)
    assert list(worth.table.index) == ["day"] and worth.table.loc["day", "loss"] == pytest.approx(0.5, abs=0.01)


def test_a_fold_of_one_year_has_no_column_for_the_year():
    scope = Scope(name="t", task="binary", target="bought", positive="yes", time="day")
    df = sales(1500).assign(day=pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(1500) * 8, unit="h"))
    worth = feature_worth(FeatureSet().bind(described("bought", "a", "day")), df, scope)
    assert worth.table.loc["a", "loss"] > 0.1 > worth.table.loc["day", "loss"]


def test_personal_and_mostly_missing_columns_are_named_first():
    df = sales()
    df["c"] = df["c"].where(np.arange(len(df)) % 5 == 0)
    scope = Scope(name="t", task="binary", target="bought", positive="yes",
                  personal={"d": Personal(reason="asked for", policy="keep")})
    worth = feature_worth(FeatureSet([ratio], raw=["c", "d"]).bind(described("bought", *"abcd")), df, scope)
    assert list(worth.candidates) == ["d", "c"]
    assert "personal data (d: keep)" in worth.candidates["d"] and "missing in 80%" in worth.candidates["c"]


def test_a_candidate_that_was_not_tried_with_the_others_is_no_candidate(monkeypatch):
    from mlsys import worth as chapter

    class Slow(chapter._Trial):
        def loss(self, gone):
            return None if len(gone) > 1 else super().loss(gone)  # the time is over when the trials together begin

    monkeypatch.setattr(chapter, "_Trial", Slow)
    scope = Scope(name="t", task="binary", target="bought", positive="yes")
    worth = feature_worth(FeatureSet([ratio], raw=["c", "d"]).bind(described("bought", *"abcd")), sales(800), scope)
    assert worth.candidates.keys() < {"c", "d"}
    waiting = "d" if "c" in worth.candidates else "c"
    assert "the time was over" in worth.table.loc[waiting, "verdict"]
    assert "Not fully judged" in worth.note


def test_the_same_seed_gives_the_same_losses():
    scope = Scope(name="t", task="binary", target="bought", positive="yes")
    features = FeatureSet([ratio], raw=["c"]).bind(described("bought", *"abc"))
    first, again = (feature_worth(features, sales(), scope, rows=800).table["loss"] for _ in range(2))
    pd.testing.assert_series_equal(first, again)


# What is given away

def people(seed: int, rows: int = 600) -> tuple[pd.DataFrame, Scope, FeatureSet]:
    """People whose sex and origin have nothing to do with what is known of them."""
    draw = np.random.default_rng(seed)
    df = sales(rows, seed).assign(sex=pd.Series(draw.choice(["f", "m"], rows), dtype="str"),
                                  origin=pd.Series(draw.choice([*"ABCD"], rows, p=[0.7, 0.15, 0.1, 0.05]), dtype="str"))
    scope = Scope(name="t", task="binary", target="bought", positive="yes", protected={"sex": "by law", "origin": "by law"})
    return df, scope, FeatureSet([ratio]).bind(described("bought", *"abcd", "word"))


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_flagged_where_nothing_is_given_away(seed):
    df, scope, features = people(seed)
    assert [proxy.passed for proxy in find_proxies(features, df, scope)] == [True, True]


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_proxy_is_flagged_and_its_carrier_named(seed):
    df, scope, features = people(seed)
    df["d"] = np.where(df.sex == "f", df.d + 1.5, df.d)
    sex, origin = find_proxies(features, df, scope)
    assert not sex.passed and origin.passed and next(iter(sex.carriers)) == "d"
    assert sex.finding()["limit"] == 0.7 and not sex.finding()["blocking"] and "d (" in sex.finding()["sentence"]
    tolerant = scope.model_copy(update={"max_proxy": 1.0})
    assert all(proxy.passed for proxy in find_proxies(features, df, tolerant))


def test_a_protected_column_cannot_be_read_by_a_function():
    @feature
    def origin_is_a(origin: pd.Series) -> pd.Series:
        """Nobody's business."""
        return (origin == "A").astype("float64")

    df, scope, _ = people(0)
    features = FeatureSet([origin_is_a])
    assert refused_inputs(features, scope) == ["'origin_is_a' reads 'origin' (protected: by law)"]
    with pytest.raises(Exception, match="its role is 'protected'"):
        features.bind(infer(df, scope))


@pytest.mark.stress
@pytest.mark.skipif(not adult.exists(), reason="the shared tables are not here")
def test_on_census_data_the_relationship_gives_the_sex_away():
    df = read(str(adult))
    scope = Scope(name="t", task="binary", target="income", positive=">50K", protected={"sex": "by law", "race": "by law"})
    schema = infer(df, scope)
    rows = usable_rows(schema.repair(df), scope).rows
    sex, race = find_proxies(FeatureSet().bind(schema), rows, scope, rows=3000)
    assert not sex.passed and sex.figure.value > 0.9 and next(iter(sex.carriers)) == "relationship"
    assert not race.passed and next(iter(race.carriers)) == "native_country"
    worth = feature_worth(FeatureSet().bind(schema), rows, scope, rows=5000)
    assert worth.table.loc["capital_gain", "verdict"] == "earns its place"
    assert len({"education", "education_num"} & set(worth.candidates)) < 2 and "fnlwgt" in worth.candidates
    assert worth.seconds < 60


# By command

def mlsys(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(folder)])}
    full = [sys.executable, "-m", "pytest", "-q", "tests"] if words == ("pytest",) else command(*words)
    return subprocess.run(full, cwd=folder, env=environment, capture_output=True, text=True)


def add_cell(notebook: Path, source: str) -> None:
    """As an editor would, before the cell that collects the features."""
    book = nbformat.read(notebook, as_version=4)
    place = next(i for i, cell in enumerate(book.cells) if "FeatureSet(collect" in cell.source)
    book.cells.insert(place, nbformat.v4.new_code_cell(source))
    nbformat.write(book, notebook)


@pytest.mark.stress
def test_a_new_project_tests_its_features_and_judges_them(tmp_path):
    sales(600).drop(columns=["level", "size", "day"]).to_csv(tmp_path / "sales.csv", index=False)
    made = mlsys(tmp_path, "new", "shop_sales", "--data", str(tmp_path / "sales.csv"), "--target", "bought")
    assert made.returncode == 0, made.stderr
    root = tmp_path / "shop_sales"
    cell = '#| export\n@feature\ndef {}(a: pd.Series) -> pd.Series:\n    """Tried."""\n    return {}\n'
    add_cell(root / "nbs" / "02_features.ipynb", cell.format("halved", "a / 2"))
    add_cell(root / "nbs" / "02_features.ipynb", cell.format("place", "a.rank(pct=True)"))
    assert mlsys(root, "export").returncode == 0
    tested = mlsys(root, "pytest")
    assert tested.returncode == 1 and "2 failed" in tested.stdout  # of the feature, and of the set
    assert "test_a_feature_keeps_its_promises[place]" in tested.stdout
    assert "'place' breaks the promise 'a row alone as among others'" in tested.stdout
    assert "Falsifying example" not in tested.stdout

    done = mlsys(root, "run", "features", "-p", "together=c+d", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    table = pd.read_csv(results["table"], index_col="feature")
    assert set(table.index) == {"a", "b", "c+d", "word", "halved", "place"} and table.loc["b", "low"] > 0
    assert "c+d" in results["candidates"] and results["findings"] == []
    wrong = mlsys(root, "run", "features", "-p", "together=c+x")
    assert wrong.returncode == 1 and "names 'x'" in wrong.stderr
