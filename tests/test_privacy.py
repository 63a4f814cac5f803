"""Personal data: what is found and what is not, tokens and steps, and nothing of it in what a project leaves behind."""
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import luhn
from stdnum.iso7064 import mod_97_10

from mlsys.privacy import coarsen_value, coarsen_values, detect, hash_value, hash_values, protect_value, protect_values
from mlsys.schema import Column, parse_column, parse_value

shared = Path(__file__).parents[2] / "shared" / "data"
rows = 600


# What is personal in the shared tables, judged by reading them. `customerID` names a contract, and only its owner's books
# tell whose; age, sex and race are protected attributes, not signs of one person.
truly_personal: dict[str, set[str]] = {
    "adult_income": set(), "bike_sharing_hourly": set(), "dirty_cafe_sales": set(), "dry_bean": set(), "elec2": set(),
    "online_shoppers": set(), "telco_churn": set(), "titanic": {"Name"}, "vehicle_claim_fraud": set(),
}


@pytest.mark.parametrize("name", truly_personal)
def test_the_shared_tables_have_one_personal_column_and_no_false_alarm(name):
    if not (shared / f"{name}.csv.gz").exists():
        pytest.skip("the shared tables are not here")
    table = pd.read_csv(shared / f"{name}.csv.gz", low_memory=False)
    assert {one.column for one in detect(table)} == truly_personal[name]


def test_the_raw_originals():
    if not (shared / "raw").exists():
        pytest.skip("the raw originals are not here")
    for path in (shared / "raw").glob("*.csv"):
        table = pd.read_csv(path, sep=None, engine="python", encoding="latin-1", encoding_errors="replace", on_bad_lines="skip")
        assert {one.column for one in detect(table)} <= {"Director"}, path.name


# Tables made here: what must be found, and what only looks like it

def digits(rng: np.random.Generator, count: int) -> pd.Series:
    return pd.Series(["".join(map(str, row)) for row in rng.integers(0, 10, (rows, count))])


def mixed(rng: np.random.Generator, *forms: Callable[[], pd.Series]) -> pd.Series:
    """Each cell in one of several forms."""
    made = pd.DataFrame({number: form() for number, form in enumerate(forms)}).to_numpy()
    return pd.Series(made[np.arange(rows), rng.integers(0, len(forms), rows)])


def dirty(rng: np.random.Generator, values: pd.Series, share: float = 0.15) -> pd.Series:
    """Some cells missing, said in words, or with spaces around them."""
    values = values.where(rng.random(rows) > share / 3, "  " + values + " ")
    return values.mask(rng.random(rows) < share / 3, "unknown").mask(rng.random(rows) < share / 3)


def with_check(bodies: pd.Series) -> pd.Series:
    return bodies.map(lambda body: body + luhn.calc_check_digit(body))


def grouped(numbers: pd.Series, by: str = " ") -> pd.Series:
    return numbers.map(lambda number: by.join(number[i:i + 4] for i in range(0, len(number), 4)))


def account(country: str, body: pd.Series) -> pd.Series:
    return body.map(lambda body: country + mod_97_10.calc_check_digits(body + country) + body)


def personal_table(seed: int = 1) -> pd.DataFrame:
    """Columns about people, none with the words of the chapter's examples."""
    rng = np.random.default_rng(seed)
    def pick(words): return pd.Series(rng.choice(words.split(), rows))
    family = pick("Achterberg Bianchi Çelik Dvořák Eriksen Fujimoto Gonçalves Haugen Ivanović Jankowski Kovács Lefèvre Müller")
    given = pick("Aylin Benedikt Chiara Dagny Elodie Fabrizio Gudrun Hiroko Ilse Jorge Katya Leif Margot Nils Oksana Pavel")
    place = pick("Birch Castle Elm Garden High Mill North Orchard Queen River Station Temple Victoria Willow York")
    mail = given.str.lower() + digits(rng, 2) + "@" + pick("mail post web").add(".example.") + pick("com org de co.uk")
    words = pick("late broken fine good slow lost wet").radd("it was ") + " and " + pick("cold small wrong nice heavy")
    visa, master, amex = (with_check(prefix + digits(rng, count))
                          for prefix, count in (("4", 14), ("53", 13), ("37", 12)))
    german, british = account("DE", digits(rng, 18)), account("GB", "WEST" + digits(rng, 14))
    born = pd.Timestamp("1940-01-01") + pd.to_timedelta(rng.integers(0, 25000, rows), unit="D").to_series(index=range(rows))
    octet = pd.DataFrame(rng.integers(0, 256, (rows, 4))).astype(str)
    hexes = pd.DataFrame(rng.integers(0, 65536, (rows, 8))).map(lambda n: f"{n:x}")
    american = "(" + pd.Series(rng.integers(201, 989, rows)).astype(str) + ") 555-" + digits(rng, 4)
    return pd.DataFrame({
        "kontakt": dirty(rng, mail), "EMAIL_ADDR": mail.str.upper(),
        "remarks": words.mask(rng.random(rows) < 0.02, words + ", mail me: " + mail + "!"),
        "reach": dirty(rng, mixed(rng, lambda: "+49 30 " + digits(rng, 7), lambda: "+1 (212) 555-" + digits(rng, 4),
                                  lambda: "+33" + digits(rng, 9), lambda: "+44 20 7" + digits(rng, 3) + " " + digits(rng, 4))),
        "notes": words.mask(rng.random(rows) < 0.03, "please call +49 171 " + digits(rng, 7) + ", " + words),
        "us": dirty(rng, american), "MobilePhone": "0" + digits(rng, 9).str.replace("^0", "1", regex=True),
        "tel": dirty(rng, mixed(rng, lambda: "030/" + digits(rng, 7), lambda: "0171 " + digits(rng, 3) + " " + digits(rng, 4))),
        "phone_number": rng.integers(2_010_000_000, 9_890_000_000, rows),
        "payment": dirty(rng, mixed(rng, lambda: visa, lambda: grouped(master), lambda: grouped(visa, "-"), lambda: amex)),
        "pan": visa.astype("int64"),
        "hint": words.mask(rng.random(rows) < 0.05, "paid by " + grouped(visa) + " twice"),
        "konto": dirty(rng, mixed(rng, lambda: german, lambda: grouped(german), lambda: grouped(british).str.lower())),
        "source": octet[0] + "." + octet[1] + "." + octet[2] + "." + octet[3],
        "log": "GET /item from " + octet[0] + ".168." + octet[2] + "." + octet[3] + ":8080 took 3 ms",
        "client": hexes.agg(":".join, axis=1), "ip_address": "10.0.0." + octet[3],
        "mac": pd.DataFrame(rng.integers(0, 256, (rows, 6))).map(lambda n: f"{n:02X}").agg(":".join, axis=1),
        "Name": dirty(rng, given + " " + family), "lastName": family, "customer_name": family.str.upper() + ", " + given,
        "Vorname": dirty(rng, given), "username": given.str.lower() + digits(rng, 3),
        "dob": dirty(rng, born.dt.strftime("%d.%m.%Y")), "birth_date": born, "Geburtsdatum": born.dt.strftime("%Y-%m-%d"),
        "residence": dirty(rng, "1" + digits(rng, 1) + " " + place + " " + pick("Street Road Ave Lane")),
        "wohnt": place + "straße " + digits(rng, 2), "street_address": place + " " + digits(rng, 3) + ", flat " + digits(rng, 1),
        "SSN": digits(rng, 3) + "-" + digits(rng, 2) + "-" + digits(rng, 4), "passport_no": "C" + digits(rng, 8),
        "pickup_latitude": rng.normal(40.75, 0.1, rows).round(6), "pickup_longitude": rng.normal(-73.9, 0.1, rows).round(6),
        "position": "48." + digits(rng, 5) + ", 11." + digits(rng, 5),
    })


def lookalike_table(seed: int = 2) -> pd.DataFrame:
    """Columns that only look personal."""
    rng = np.random.default_rng(seed)
    def pick(*words): return pd.Series(rng.choice(words, rows))
    def joined(by, *counts): return pd.DataFrame({i: digits(rng, count) for i, count in enumerate(counts)}).agg(by.join, axis=1)
    moment = pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 900 * 86400, rows), unit="s"))
    small = pd.DataFrame(rng.integers(0, 20, (rows, 4))).astype(str)
    product = pick("Wireless", "Blue", "Steel", "Organic", "Smart") + " " + pick("Mouse", "Denim Jacket", "Bottle", "Tea", "Lamp")
    ship = pick(*"Amber Boreal Coral Dusky Ebony Frosty Golden Hidden".split())
    ship += " " + pick("Albatross", "Breeze", "Comet", "Dolphin") + " " + pick("Alpha", "Beta", "Gamma", "Delta")
    return pd.DataFrame({
        "order_number": "4" + digits(rng, 15), "order_int": rng.integers(4 * 10**15, 6 * 10**15, rows),
        "sequence": [str(4_000_000_000_000_000 + number) for number in range(rows)], "grouped": joined(" ", 4, 4, 4, 4),
        "reference": joined("-", 3, 3, 4), "batch": joined("-", 3, 4, 4), "isbn": "978-0-" + joined("-", 3, 5, 1),
        "sku": "00" + digits(rng, 6), "code": pick("AB", "DE", "GB", "FR") + digits(rng, 20), "uuid": joined("-", 8, 4, 4, 4, 12),
        "version": small[0] + "." + small[1] + "." + small[2] + "." + small[3], "release": "v" + small[0] + "." + small[1] + ".3",
        "iso": moment.dt.strftime("%Y-%m-%d"), "german": moment.dt.strftime("%d.%m.%Y"),
        "american": moment.dt.strftime("%m/%d/%Y"),
        "stamp": moment.dt.strftime("%Y-%m-%d %H:%M:%S"), "clock": moment.dt.strftime("%H:%M:%S"), "zone": "+02:00",
        "compact": moment.dt.strftime("%Y%m%d%H%M%S"), "unix": moment.astype("int64"), "ordered_at": moment,
        "amount": rng.lognormal(3, 1, rows).round(2), "fraction": rng.random(rows), "length": rng.uniform(-90, 90, rows),
        "late": rng.uniform(0, 90, rows), "change": pd.Series(rng.normal(0, 1e8, rows)).map("{:+.2f}".format),
        "long": pick("yes", "no"), "latency": rng.uniform(0, 90, rows), "lat_rounded": rng.uniform(48, 49, rows).round(1),
        "lat_long_shape": pick("round", "square"), "revenue": pd.Series(rng.lognormal(10, 1, rows)).map("$ {:,.2f}".format),
        "product_name": product, "name": product, "Name": ship, "file_name": product.str.lower().str.replace(" ", "_") + ".csv",
        "company_name": pick("Acme Ltd", "Globex", "Initech GmbH"), "country name": pick("Norway", "Peru"),
        "icon": product.str.lower().str.replace(" ", "-") + "@2x.png", "package": "lodash@4.17." + small[0],
        "handle": "@" + product.str.lower().str.split().str[0], "remote": "git@github.com:team/" + small[0],
        "AddressChange": pick("1 year", "2 to 3 years", "no change"), "PhoneService": pick("Yes", "No"),
        "mobile_bytes": rng.lognormal(14, 3, rows).astype("int64"), "phone_calls": rng.integers(0, 90, rows),
        "ip_type": pick("static", "dynamic"), "birth_weight": rng.normal(3300, 400, rows).round(), "has_passport": pick("Y", "N"),
        "birth_year": rng.integers(1940, 2010, rows), "tax_rate": rng.random(rows).round(2), "mac_os": pick("10.15", "11.2"),
        "CustomerType": pick("private", "business"), "director_votes": rng.integers(0, 10**6, rows),
        "email_sent": pick("yes", "no"), "emails_opened": rng.integers(0, 40, rows), "street_type": pick("paved", "gravel"),
        "nested": product + " (" + small[0] + " of " + small[1] + ")", "zipped": pick("true", "false"),
    })


def test_every_kind_of_personal_column_is_found():
    table = personal_table()
    found = {one.column: one for one in detect(table)}
    assert [name for name in table if name not in found] == []
    # a column called only "Name" is proposed: here no title and no frequent given name tells people from ships
    assert [name for name in table if not found[name].sure] == ["Name"]


def test_what_is_found_is_called_by_its_name():
    found = {one.column: one.what for one in detect(personal_table())}
    assert {found[name] for name in ("kontakt", "EMAIL_ADDR", "remarks")} == {"e-mail addresses"}
    assert {found[name] for name in ("reach", "notes", "us", "MobilePhone", "tel", "phone_number")} == {"phone numbers"}
    assert {found[name] for name in ("payment", "pan", "hint")} == {"card numbers"}
    assert {found[name] for name in ("source", "log", "client", "ip_address")} == {"network addresses"}
    assert {found[name] for name in ("pickup_latitude", "pickup_longitude", "position")} == {"exact coordinates"}
    assert (found["konto"], found["SSN"], found["dob"]) == ("bank accounts", "national ids", "birth dates")


@pytest.mark.parametrize("seed", range(3))
def test_lookalikes_are_no_sure_finding(seed):
    table = lookalike_table(seed)
    alarms = {one.column: one.sure for one in detect(table)}
    assert alarms == {"Name": False}  # ships: what names are of, nobody can tell without knowing ships


@pytest.mark.parametrize("seed", range(2))
def test_no_evidence_shows_a_value(seed):
    table = personal_table(seed)
    for one in detect(table):
        words = {word for cell in table[one.column].dropna().astype(str) for word in cell.split() if len(word) > 3}
        shown = set(one.evidence.split())
        assert not [word for word in words & shown if word not in ("from", "took", "flat")], one


def test_the_same_rows_give_the_same_findings_in_another_order():
    table = personal_table()
    assert {one.column for one in detect(table)} == {one.column for one in detect(table.sample(frac=1, random_state=3))}


def test_a_wide_table_costs_some_microseconds_a_cell():
    table = pd.concat([personal_table(seed).add_suffix(f" {seed}") for seed in range(2)]
                      + [lookalike_table(seed).add_prefix(f"{seed} ") for seed in range(2)], axis=1)
    start = time.process_time()
    detect(table)
    micros = (time.process_time() - start) / table.size * 1e6
    assert micros < 60, f"{micros:.1f} µs a cell"  # about 12 on a quiet machine


# Tokens and steps: one value and a column never disagree, and what passes twice stays what it is

key = "a key of this test alone, 32 or more"
texts = st.text(max_size=30) | st.sampled_from(["ann@example.org", " ann@example.org", "tok_" + "0" * 24, "203.0.113.77", "::1"])
moments = st.datetimes(pd.Timestamp("1700-01-01").to_pydatetime(), pd.Timestamp("2200-01-01").to_pydatetime())
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-200, 200)


def canonical(values: list, dtype: str) -> pd.Series:
    return pd.Series(values, dtype=dtype)


def plain(values: pd.Series) -> list:
    return [None if pd.isna(value) else value for value in values.astype(object)]


@settings(deadline=None)
@given(st.lists(st.none() | texts, max_size=8))
def test_hashing_a_column_is_hashing_its_values(values):
    tokens = hash_values(canonical(values, "str"), key, "email")
    assert plain(tokens) == [None if value is None else hash_value(value, key, "email") for value in values]
    assert plain(hash_values(tokens, key, "email")) == plain(tokens)


@settings(deadline=None)
@given(st.lists(st.none() | texts, max_size=8), st.sampled_from([1, 3, 10, "/24", "/8"]))
def test_coarsening_texts(values, to):
    coarse = coarsen_values(canonical(values, "str"), to)
    assert plain(coarse) == [None if value is None else coarsen_value(value, to) for value in values]
    assert plain(coarsen_values(coarse, to)) == plain(coarse)


steps = st.sampled_from([0.001, 0.1, 0.25, 0.3, 1, 2.5, 10, 1e6]) | st.floats(1e-6, 1e6)


@settings(deadline=None)
@given(st.lists(st.none() | numbers, max_size=8), steps)
def test_coarsening_numbers(values, to):
    coarse = coarsen_values(canonical(values, "float64"), to)
    assert plain(coarse) == [None if value is None else coarsen_value(value, to) for value in values]
    assert plain(coarsen_values(coarse, to)) == plain(coarse)
    for value, step in zip(values, plain(coarse)):
        assert value is None or -1e-6 * (abs(value) + to) <= value - step <= to * (1 + 1e-6) + 1e-6 * abs(value)


@settings(deadline=None)
@given(st.lists(st.none() | moments.map(pd.Timestamp), max_size=8), st.sampled_from(["year", "month", "day", "hour"]))
def test_coarsening_dates(values, to):
    coarse = coarsen_values(canonical(values, "datetime64[us]"), to)
    assert plain(coarse) == [None if value is None else coarsen_value(value, to) for value in values]
    assert plain(coarsen_values(coarse, to)) == plain(coarse)
    assert all(value is None or step <= value for value, step in zip(values, plain(coarse)))


def test_tokens_depend_on_key_and_column_and_say_nothing():
    token = hash_value("ann@example.org", key, "email")
    others = {hash_value("ann@example.org", key + "!", "email"), hash_value("ann@example.org", key, "recipient"),
              hash_value("Ann@example.org", key, "email")}
    assert len(others | {token}) == 4 and all("ann" not in one for one in others | {token})
    assert len({hash_value(str(number), key, "card") for number in range(20_000)}) == 20_000


@pytest.mark.parametrize("policy, to, value, dtype", [
    ("hash", None, "tok_0123456789abcdef01234567", "str"), ("coarsen", "/24", "Marker Street 7", "str")])
def test_a_value_that_cannot_be_protected_is_a_problem_that_does_not_show_it(policy, to, value, dtype, monkeypatch):
    monkeypatch.setenv("MLSYS_HASH_KEY", key)
    safe, problem = protect_value("email", policy, to, value)
    assert safe is None and problem and value not in problem
    column, bad = protect_values("email", policy, to, pd.Series([value, None], dtype=dtype))
    assert bad.tolist() == [True, False] and column.isna().all()


# Through the schema: a cell, a column of cells and a second reading

ruled = [
    Column(name="x", kind="category", policy="hash"), Column(name="x", kind="code", policy="hash", missing=["-1"]),
    Column(name="x", kind="id", role="entity", policy="hash"),
    Column(name="x", kind="category", policy="coarsen", to=2, missing=["Ma"]),
    Column(name="x", kind="category", policy="coarsen", to="/24"), Column(name="x", kind="number", policy="coarsen", to=0.1),
    Column(name="x", kind="integer", policy="coarsen", to=10, missing=["0", "unknown"]),
    Column(name="x", kind="datetime", policy="coarsen", to="month"),
    Column(name="x", kind="datetime", policy="coarsen", to="year", date_format="%d.%m.%Y"),
    Column(name="x", kind="category", policy="keep"),
]
awkward = ["", "NA", "Marie", "-1", "0", "7", "12", "39.5", "1e3", "31.12.1999", "1984-05-17T13:45:00", "unknown"]
cell = st.none() | texts | st.sampled_from(awkward)


@settings(deadline=None)
@given(st.sampled_from(ruled), st.lists(cell, max_size=6) | st.lists(st.none() | st.floats(-1e6, 1e6), max_size=6))
def test_a_cell_a_column_and_a_second_reading_agree(column, cells):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLSYS_HASH_KEY", key)
        single = [parse_value(column, value) for value in cells]
        for values in (pd.Series(cells, dtype=object), pd.Series(cells)):
            parsed, bad = parse_column(column, values)
            assert plain(parsed) == [value for value, _ in single]
            assert bad.tolist() == [problem is not None for _, problem in single]
        again, bad = parse_column(column, parsed)
        assert plain(again) == plain(parsed) and not bad.any()
    for value, (_, problem) in zip(cells, single):
        assert not (problem and column.policy != "keep" and isinstance(value, str) and len(value) > 4 and value in problem)
