"""What checking costs beside pandera and pydantic: `python -m benchmarks.checks [--rows 1000000]`.

One table of 30 columns (numbers, integers, categories, dates) with broken, unseen and far-off cells is checked as Parquet
gives it (typed) and as CSV gives it (text), then row by row. All find the same cells, or the comparison stops. The targets
are 3 s for 1,000,000 rows on one core and 100 microseconds for a row. Seconds are the process's own CPU time, the best of
several runs in turn, because everything else that runs on the machine only ever adds to it.
"""

import argparse
import datetime as dt
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model

from mlsys.kinds import number_pattern
from mlsys.schema import Column, Schema

kinds = {"number": 12, "integer": 8, "category": 7, "datetime": 3}
levels = [f"level {i}" for i in range(12)]
first, last = pd.Timestamp("2024-01-01"), pd.Timestamp("2026-01-01")


def make_schema() -> Schema:
    """Thirty columns, and what is usual in them."""
    seen: dict[str, dict[str, Any]] = {"number": {"low": 0.0, "high": 1000.0}, "integer": {"low": 0.0, "high": 1000.0},
                                       "category": {"categories": levels}, "datetime": {}}
    return Schema(columns=[Column(name=f"{kind}_{i}", kind=kind, missing_share=0.1, **seen[kind])  # type: ignore[arg-type]
                           for kind, count in kinds.items() for i in range(count)])


def make_typed(rows: int, seed: int = 0) -> pd.DataFrame:
    """A table in its own types: 2 % missing; per column 0.1 % of what training never saw, and infinite numbers."""
    rng = np.random.default_rng(seed)
    data: dict[str, Any] = {}
    for column in make_schema().columns:
        few = rng.random(rows) < 0.001
        if column.kind == "category":
            words = np.array([*levels, "unheard of"], dtype=object)
            values = pd.Series(words[np.where(few, 12, rng.integers(0, 12, rows))], dtype="str")
        elif column.kind == "datetime":
            values = pd.Series(first + (last - first) * rng.random(rows)).astype("datetime64[us]").dt.floor("s")
        else:
            numbers = rng.random(rows) * 1000 if column.kind == "number" else rng.integers(0, 1000, rows).astype(float)
            numbers[few] = 5000
            numbers[rng.random(rows) < (0.0005 if column.kind == "number" else 0)] = np.inf
            values = pd.Series(numbers)
        data[column.name] = values.mask(rng.random(rows) < 0.02)
    return pd.DataFrame(data)


def make_text(typed: pd.DataFrame, seed: int = 1) -> pd.DataFrame:
    """The same table as a CSV file gives it, with words among the numbers and days that no calendar has."""
    rng, data = np.random.default_rng(seed), {}
    for column in make_schema().columns:
        values, few = typed[column.name], rng.random(len(typed)) < 0.001
        if column.kind == "datetime":
            text = values.dt.strftime("%Y-%m-%d %H:%M:%S").mask(few, "2025-02-30")
        elif column.kind == "integer":
            text = values.astype("Int64").astype("str").mask(few, "many")
        else:
            text = values.astype("str") if column.kind == "category" else values.round(4).astype("str").mask(few, "much")
        data[column.name] = text.astype("str").fillna("")
    return pd.DataFrame(data)


Counts = dict[str, int]


def by_mlsys(df: pd.DataFrame, schema: Schema) -> Counts:
    """Cells per column that are broken or that training never saw."""
    report = schema.check(df)
    found = dict.fromkeys(map(str, df), 0)
    for violation in report.violations:
        found[violation.field] += len(violation.rows)
    for unusual in report.unusual:
        found[unusual.field] += unusual.rows
    return found


def by_pandera(df: pd.DataFrame, schema: Any) -> Counts:
    """The same, by pandera's lazy validation."""
    import pandera.pandas as pa

    found: Counts = dict.fromkeys(map(str, df), 0)
    try:
        schema.validate(df, lazy=True)
    except pa.errors.SchemaErrors as errors:
        found |= errors.failure_cases.groupby("column")["index"].nunique().to_dict()
    return found


def pandera_typed(schema: Schema) -> Any:
    """The rules for typed columns in pandera's words."""
    import pandera.pandas as pa

    def column(one: Column) -> Any:
        if one.kind == "category":
            return pa.Column("str", pa.Check.isin(levels), nullable=True)
        if one.kind == "datetime":
            return pa.Column("datetime64[us]", nullable=True)
        return pa.Column(float, pa.Check.in_range(-0.0, 1050.0), nullable=True)
    return pa.DataFrameSchema({one.name: column(one) for one in schema.columns})


def pandera_text(schema: Schema) -> Callable[[pd.DataFrame], Counts]:
    """For text pandera first matches the pattern of a number, then the numbers are read and checked."""
    import pandera.pandas as pa

    number = pa.Check.str_matches(f"^(?:{number_pattern.pattern}|)$")
    date = pa.Check(lambda text: (text == "") | pd.to_datetime(text, format="ISO8601", errors="coerce").notna())
    column = {"number": pa.Column("str", number), "integer": pa.Column("str", number), "datetime": pa.Column("str", date),
              "category": pa.Column("str", pa.Check.isin([*levels, ""]))}
    shapes = pa.DataFrameSchema({one.name: column[one.kind] for one in schema.columns})
    numeric = [one.name for one in schema.columns if one.kind in ("number", "integer")]
    ranges = pa.DataFrameSchema({name: pa.Column(float, pa.Check.in_range(-0.0, 1050.0), nullable=True) for name in numeric})

    def check(df: pd.DataFrame) -> Counts:
        found = by_pandera(df, shapes)
        values = df[numeric].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
        beyond = by_pandera(values.astype(float), ranges)
        return {name: count + beyond.get(name, 0) for name, count in found.items()}
    return check


def pydantic_row(schema: Schema) -> TypeAdapter[Any]:
    """A strict model of one row; a date may come as text, as JSON has no other way."""
    types: dict[str, Any] = {
        "number": Annotated[float, Field(strict=True, allow_inf_nan=False)], "integer": Annotated[float, Field(strict=True)],
        "category": Annotated[str, Field(strict=True)], "datetime": dt.datetime}
    fields: dict[str, Any] = {one.name: (types[one.kind] | None, ...) for one in schema.columns}
    return TypeAdapter(create_model("Row", __config__=ConfigDict(extra="forbid"), **fields))


def refused(adapter: TypeAdapter[Any], row: dict[str, Any]) -> set[str]:
    """The fields that pydantic refuses."""
    try:
        adapter.validate_python(row)
    except ValidationError as error:
        return {str(problem["loc"][0]) for problem in error.errors()}
    return set()


def seconds(*jobs: Callable[[], Any], repeats: int = 3) -> list[float]:
    """The best CPU time of each job, run in turn."""
    best = [float("inf")] * len(jobs)
    for _ in range(repeats):
        for i, job in enumerate(jobs):
            started = time.process_time()
            job()
            best[i] = min(best[i], time.process_time() - started)
    return best


def compare_tables(rows: int, repeats: int) -> list[tuple[str, float, float]]:
    """(what, our seconds, pandera's seconds) for the typed and the text table, after the same verdicts."""
    schema, typed = make_schema(), make_typed(rows)
    peers = {"typed, as from Parquet": (typed, partial(by_pandera, schema=pandera_typed(schema))),
             "text, as from CSV": (make_text(typed), pandera_text(schema))}
    lines = []
    for name, (df, peer) in peers.items():
        ours, theirs = by_mlsys(df, schema), peer(df)
        if ours != theirs:
            raise SystemExit(f"{name}: the verdicts differ: { {k: (ours[k], theirs[k]) for k in ours if ours[k] != theirs[k]} }")
        print(f"{name}: {sum(ours.values()):,} cells found by both")
        mine, other = seconds(partial(schema.check, df), partial(peer, df), repeats=repeats)
        lines.append((name, mine, other))
    return lines


def compare_rows(repeats: int) -> tuple[float, float, int]:
    """(our seconds, pydantic's seconds, rows with the same verdicts) for one row of 30 fields."""
    schema, adapter = make_schema(), pydantic_row(make_schema())
    good = {column.name: {"number": 12.5, "integer": 7, "category": levels[3], "datetime": "2025-03-04T05:06:07"}[column.kind]
            for column in schema.columns}
    wrong: dict[str, list[Any]] = {"number": ["much", float("inf"), True, [1]], "integer": ["many", {}, False],
                                   "category": [5, True, ["level 1"]], "datetime": ["2025-02-30", "soon", [5]]}
    rows = [good, *({**good, column.name: value} for column in schema.columns for value in [None, *wrong[column.kind]])]
    for row in rows:
        ours = {error["field"] for error in schema.check_rows([row]).errors}
        if ours != refused(adapter, row):
            raise SystemExit(f"the verdicts differ: {ours} and {refused(adapter, row)}")
    many = 2000
    best = seconds(lambda: [schema.check_rows([good]) for _ in range(many)],
                   lambda: [adapter.validate_python(good) for _ in range(many)], repeats=repeats)
    return best[0] / many, best[1] / many, len(rows)


def main() -> None:
    """Measure and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="pandera")
    lines = compare_tables(options.rows, options.repeats)
    print(f"\n{options.rows:,} rows x {sum(kinds.values())} columns, CPU s   mlsys   pandera   ratio")
    for name, ours, theirs in lines:
        print(f"  {name:<38} {ours:7.2f} {theirs:9.2f} {theirs / ours:6.1f} x")
    ours, theirs, same = compare_rows(max(options.repeats, 5))
    print(f"\none row of 30 fields, microseconds ({same} rows judged alike)   mlsys   pydantic   ratio")
    print(f"  {'mlsys repairs and warns, too':<54} {ours * 1e6:7.1f} {theirs * 1e6:10.1f} {ours / theirs:6.1f} x")


if __name__ == "__main__":
    main()
