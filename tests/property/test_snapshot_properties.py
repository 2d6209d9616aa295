"""What must hold for any rows: neither order nor partitioning changes their print or their profile; any change of a value does."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raymlops.data.snapshot_print import ContentPrint
from raymlops.data.snapshot_profile import profile

KINDS = {"x": pa.float64(), "n": pa.int64(), "b": pa.bool_(), "w": pa.string(), "t": pa.timestamp("us")}
VALUES = {
    "x": st.one_of(st.none(), st.floats(allow_nan=False)),
    "n": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    "b": st.one_of(st.none(), st.booleans()),
    "w": st.one_of(st.none(), st.text(max_size=3)),
    "t": st.one_of(st.none(), st.integers(-(10**15), 10**15)),
}
ROW = st.fixed_dictionaries(VALUES)
ROWS = st.lists(ROW, min_size=1, max_size=12)


def tabled(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in KINDS.items()})


@given(ROWS, st.randoms(use_true_random=False), st.lists(st.integers(0, 12), max_size=3), st.permutations(list(KINDS)))
@settings(max_examples=120, deadline=None)
def test_any_order_and_any_partitioning_give_the_same(
    rows: list[dict[str, Any]], random: Any, cuts: list[int], names: list[str]
) -> None:
    whole = ContentPrint.of(tabled(rows))
    shuffled = random.sample(rows, len(rows))
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = [tabled(shuffled[a:b]).select(names) for a, b in itertools.pairwise(edges)]
    total = sum((ContentPrint.of(part) for part in parts), ContentPrint())
    assert total == whole
    assert str(total) == str(whole)
    assert ContentPrint.of(pa.concat_tables(parts)) == whole  # a table of several chunks, too
    one = {column.name: column for column in profile([tabled(rows)])}
    several = {column.name: column for column in profile(parts)}
    for name, column in one.items():
        other = several[name]
        assert (other.rows, other.nulls, other.distinct, other.top) == (
            column.rows,
            column.nulls,
            column.distinct,
            column.top,
        )
        assert (other.minimum, other.maximum, other.quantiles) == (column.minimum, column.maximum, column.quantiles)


@given(ROWS, ROW, st.integers(0, 11), st.sampled_from(list(KINDS)))
@settings(max_examples=150, deadline=None)
def test_one_other_value_gives_another_print(
    rows: list[dict[str, Any]], other: dict[str, Any], at: int, name: str
) -> None:
    at %= len(rows)
    assume(rows[at][name] != other[name])
    changed = [*rows[:at], {**rows[at], name: other[name]}, *rows[at + 1 :]]
    assert ContentPrint.of(tabled(changed)) != ContentPrint.of(tabled(rows))


@given(ROWS, st.integers(0, 11))
@settings(max_examples=60, deadline=None)
def test_duplicates_count(rows: list[dict[str, Any]], at: int) -> None:
    doubled = [*rows, rows[at % len(rows)]]
    assert ContentPrint.of(tabled(doubled)) != ContentPrint.of(tabled(rows))
    # Nor do two of one and one of the other pass for one and two.
    first, second = rows[0], rows[-1]
    if any(first[name] != second[name] for name in KINDS):
        assert ContentPrint.of(tabled([first, first, second])) != ContentPrint.of(tabled([first, second, second]))


@given(st.lists(st.one_of(st.none(), st.integers(-(2**53), 2**53)), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_whole_numbers_that_became_floats_for_a_missing_value_are_the_same(values: list[int | None]) -> None:
    whole = pa.table({"n": pa.array(values, pa.int64())})
    assert ContentPrint.of(pd.DataFrame({"n": pd.Series(values, dtype=float)})) == ContentPrint.of(whole)
    assert ContentPrint.of(pd.DataFrame({"n": pd.Series(values, dtype="Int64")})) == ContentPrint.of(whole)


def test_kinds_names_and_swapped_columns_are_told_apart() -> None:
    made = [
        pd.DataFrame({"a": [1, 0], "b": [0, 1]}),
        pd.DataFrame({"a": [0, 1], "b": [1, 0]}).rename(columns={"a": "b", "b": "c"}),
        pd.DataFrame({"a": [1, 1], "b": [0, 0]}),
        pd.DataFrame({"a": [True, False], "b": [False, True]}),
        pd.DataFrame({"a": ["1", "0"], "b": ["0", "1"]}),
        pd.DataFrame({"a": [1, 0]}),
        pd.DataFrame({"a": [1, 0, None], "b": [0, 1, None]}),
        pd.DataFrame({"a": [2**62, 2**62 + 1], "b": [0, 1]}),
        pd.DataFrame({"a": [2**62, 2**62 + 2], "b": [0, 1]}),
    ]
    assert len({ContentPrint.of(frame) for frame in made}) == len(made)
    zoned = pd.DataFrame({"t": pd.to_datetime(["2026-01-01T12:00:00+01:00"])})
    assert ContentPrint.of(zoned) == ContentPrint.of(pd.DataFrame({"t": pd.to_datetime(["2026-01-01T11:00:00"])}))
    assert ContentPrint.of(pd.DataFrame({"x": [-0.0, np.nan]})) == ContentPrint.of(pd.DataFrame({"x": [0.0, None]}))
    assert ContentPrint.of(pd.DataFrame({"c": pd.Categorical(["u", "v"])})) == ContentPrint.of(
        pd.DataFrame({"c": ["u", "v"]})
    )
    assert str(ContentPrint()) == "0" * 48


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_figures_are_those_of_the_values(values: list[float]) -> None:
    (column,) = profile(
        [pd.DataFrame({"x": values[:7]}), pd.DataFrame({"x": [*values[7:], np.nan]})]
        if len(values) > 7
        else [pd.DataFrame({"x": values})]
    )
    assert column.minimum == min(values)
    assert column.maximum == max(values)
    assert column.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)
    assert column.std == pytest.approx(np.std(values), rel=1e-6, abs=1e-6)
    ordered = np.sort(np.array(values) + 0.0)
    for share, quantile in column.quantiles.items():
        exact = ordered[int(float(share) * (len(ordered) - 1))]
        assert quantile == pytest.approx(exact, rel=0.0051, abs=1e-11)


def test_figures_of_many_values() -> None:
    rng = np.random.default_rng(1)
    rows = 100_000
    frame = pd.DataFrame(
        {
            "wide": rng.integers(0, 50_000, rows),
            "word": rng.choice(["a", "b", "c"], rows, p=[0.7, 0.2, 0.1]),
            "key": [f"k{i}" for i in range(rows)],
            "t": pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(rows), unit="h"),
        }
    )
    halves = [frame.iloc[: rows // 3], frame.iloc[rows // 3 :]]
    wide, word, key, t = profile(halves)
    assert wide.distinct == pytest.approx(frame.wide.nunique(), rel=0.05)
    assert [text for text, _ in word.top] == ["a", "b", "c"]
    assert dict(word.top) == frame.word.value_counts().to_dict()
    assert key.distinct == pytest.approx(rows, rel=0.05)
    assert t.kind == "time"
    assert t.quantiles["0.5"] == pytest.approx(frame.t.median().timestamp(), abs=86400)
