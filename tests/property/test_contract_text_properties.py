"""What must hold for any contract: its file gives it back, its diff with itself is empty; rules treat rows and frames alike."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

import numpy as np
import pandas as pd
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.data.contract_diff import diff_contracts
from raymlops.data.contract_rules import Rule, Vector
from raymlops.data.contract_text import parse, to_yaml
from raymlops.data.schema import Column, DataContract
from raymlops.errors import ConfigError

TRAPS = st.sampled_from(
    [
        "no",
        "on",
        "Yes",
        "null",
        "~",
        "",
        "1e3",
        "1:30",
        "010",
        "0x1f",
        "2026-01-01",
        "=",
        "<<",
        "*a",
        "&b",
        "!c",
        ".inf",
        "1_000",
        "- x",
        "# y",
        "a: b",
    ]
)
TEXTS = st.one_of(TRAPS, st.text(max_size=6))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def columns(draw: Any, name: str) -> Column:
    kind = draw(st.sampled_from(["number", "integer", "boolean", "category"]))
    pair = st.one_of(st.just((None, None)), st.tuples(NUMBERS, NUMBERS).map(lambda two: tuple(sorted(two))))
    numeric = kind in ("number", "integer")
    seen, limits = draw(pair), draw(pair) if numeric else (None, None)
    texts = tuple(draw(st.lists(TEXTS, unique=True, max_size=4))) if kind == "category" else ()
    return Column(
        name=name,
        kind=kind,
        nullable=draw(st.booleans()),
        minimum=seen[0],
        maximum=seen[1],
        low=limits[0],
        high=limits[1],
        categories=texts,
        closed=kind == "category" and draw(st.booleans()),
    )


@st.composite
def contracts(draw: Any) -> DataContract:
    names = draw(st.lists(TEXTS, unique=True, min_size=1, max_size=4))
    task = draw(st.sampled_from(["binary", "multiclass", "regression"]))
    kinds = st.one_of(st.booleans(), st.integers(-9, 9), NUMBERS, TEXTS)
    classes = () if task == "regression" else tuple(draw(st.lists(kinds, max_size=3, unique_by=repr)))
    made = tuple(draw(columns(name)) for name in names)
    rules = [
        Rule(name=f"r{i}", check=f"column({name!r}) is not null", scope=draw(st.sampled_from(["rows", "data"])))
        for i, name in enumerate(names)
        if name.isprintable()
    ]
    return DataContract(
        columns=made,
        label=draw(TEXTS.filter(lambda text: text not in names)),
        task=task,
        classes=classes,
        rules=tuple(rules),
        unique=tuple(draw(st.lists(st.lists(TEXTS, min_size=1, max_size=2).map(tuple), max_size=2))),
        max_age_s=draw(
            st.one_of(st.none(), st.integers(0, 10**7).map(float), st.sampled_from([0.25, 90.5, 86400.0, 1209600.0]))
        ),
        others=draw(st.sampled_from(["learn", "refuse"])),
    )


@given(contracts())
@settings(max_examples=150, deadline=None)
def test_a_file_gives_its_contract_back(contract: DataContract) -> None:
    text = to_yaml(contract)
    again = parse(text).complete()
    assert again == contract
    assert [type(value) for value in again.classes] == [type(value) for value in contract.classes]
    assert to_yaml(again) == text
    assert diff_contracts(contract, again) == ()
    plain = yaml.safe_load(text)  # nor does a reader of YAML 1.1 take a text for anything else
    assert list(plain["columns"]) == list(contract.names)
    assert DataContract.from_dict(contract.to_dict()) == contract


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    for read in (parse, lambda given: Rule(name="r", check=given)):
        said = ""
        try:
            read(text)
        except ConfigError as error:
            said = error.message
        assert said == "" or len(said) > 10


LEAVES = st.sampled_from(["a", "b", "1", "2.5", "-3"])
SUMS = st.recursive(
    LEAVES, lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*/%"), inner), max_leaves=4
)
TESTS = st.one_of(
    st.builds("{} {} {}".format, SUMS, st.sampled_from(["<", "<=", "==", "!=", ">"]), SUMS),
    st.sampled_from(
        ["f", "a is null", "f is not null", "t == 'x'", "t in ['x', 'y']", "a in [1, 2.5]", "length(t) > 1"]
    ),
)
LOGIC = st.recursive(
    TESTS,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner), inner.map("not ({})".format)
    ),
    max_leaves=5,
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "a": st.one_of(st.none(), st.integers(-5, 5), st.floats(-5, 5)),
            "b": st.one_of(st.none(), st.integers(-2, 2)),
            "f": st.one_of(st.none(), st.booleans()),
            "t": st.one_of(st.none(), st.sampled_from(["x", "y", "zz"])),
        }
    ),
    min_size=1,
    max_size=8,
)
KINDS = {"a": "number", "b": "number", "f": "boolean", "t": "text"}


@given(LOGIC, ROWS)
@settings(max_examples=200, deadline=None)
def test_rules_treat_frames_requests_and_single_rows_alike(check: str, rows: list[dict[str, Any]]) -> None:
    rule = Rule(name="r", check=check)
    together = {name: Vector.of_values([row[name] for row in rows], kind) for name, kind in KINDS.items()}
    frame = pd.DataFrame(rows).astype({"a": float, "b": float, "f": object, "t": object})
    series = {name: Vector.of_series(frame[name]) if frame[name].notna().any() else together[name] for name in KINDS}
    broken = rule.broken(together, len(rows))
    np.testing.assert_array_equal(rule.broken(series, len(rows)), broken)
    for number, row in enumerate(rows):
        alone = {name: Vector.of_values([row[name]], kind) for name, kind in KINDS.items()}
        assert rule.broken(alone, 1)[0] == broken[number]


@given(LOGIC.filter(lambda check: "%" not in check), ROWS)
@settings(max_examples=200, deadline=None)
def test_null_is_what_it_is_in_sql(check: str, rows: list[dict[str, Any]]) -> None:
    """SQLite as the other opinion; its remainder is of whole numbers only and is left out."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE r (a REAL, b REAL, f INTEGER, t TEXT)")
    connection.executemany("INSERT INTO r VALUES (:a, :b, :f, :t)", rows)
    sql = re.sub(r"(?<![\w.'])(\d+)(?![\w.])", r"\1.0", check).replace("[", "(").replace("]", ")")
    false = [bool(row[0]) for row in connection.execute(f"SELECT coalesce(NOT ({sql}), 0) FROM r ORDER BY rowid")]
    connection.close()
    columns = {name: Vector.of_values([row[name] for row in rows], kind) for name, kind in KINDS.items()}
    assert Rule(name="r", check=check).broken(columns, len(rows)).tolist() == false
