"""Bulk scoring meets the contract a request meets: same rows accepted, same matrix, same reasons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raymlops.data.columns import Encoded, encode_features, encode_table, encode_text
from raymlops.data.features import apply_features
from raymlops.data.schema import Column, DataContract
from raymlops.errors import ContractViolation, DataError

LARGEST = float(np.finfo(np.float32).max)
NUMBERS = st.one_of(
    st.floats(), st.floats(width=32), st.integers(-5, 5).map(float), st.sampled_from([LARGEST, LARGEST * (1 + 1e-9)])
)
# What one column of a file may hold: values of one Arrow type, or missing.
COLUMNS = st.sampled_from(
    [
        (pa.float64(), NUMBERS),
        (pa.float32(), st.floats(width=32)),
        (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
        (pa.int64(), st.integers(2**53 - 2, 2**53 + 2)),
        (pa.int8(), st.integers(-128, 127)),
        (pa.uint64(), st.integers(0, 2**64 - 1)),
        (pa.bool_(), st.booleans()),
        (pa.string(), st.sampled_from(["x", "y", "z", "", "1", "true"])),
        (pa.large_string(), st.sampled_from(["x", "y", "unseen"])),
        (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["x", "y", "unseen"])),
        (pa.binary(), st.binary(max_size=2)),
        (pa.list_(pa.int64()), st.lists(st.integers(0, 3), max_size=2)),
        (pa.null(), st.none()),
    ]
)


@st.composite
def contracts(draw: st.DrawFn) -> DataContract:
    kinds = draw(st.lists(st.sampled_from(["number", "integer", "boolean", "category"]), min_size=1, max_size=4))
    columns = tuple(
        Column(
            name=f"c{index}",
            kind=kind,
            nullable=draw(st.booleans()),
            minimum=None,
            maximum=None,
            categories=("x", "y") if kind == "category" else (),
        )
        for index, kind in enumerate(kinds)
    )
    return DataContract(columns=columns, label="label", task="binary", classes=(0, 1))


@st.composite
def tables(draw: st.DrawFn, contract: DataContract) -> pa.Table:
    rows = draw(st.integers(0, 6))
    columns = {}
    for name in (*contract.names, "another"):
        kind, values = draw(COLUMNS)
        cells = draw(st.lists(st.one_of(st.none(), values), min_size=rows, max_size=rows))
        columns[name] = pa.array(cells, kind)
    return pa.table(columns)


def by_rows(contract: DataContract, rows: list[dict[str, Any]]) -> list[np.ndarray[Any, Any] | str]:
    """What a request of each row alone would meet."""
    found: list[np.ndarray[Any, Any] | str] = []
    for row in rows:
        try:
            found.append(contract.encode_rows([{name: row[name] for name in contract.names}])[0])
        except ContractViolation as error:
            found.append(error.message)
    return found


def assert_same(encoded: Encoded, expected: list[np.ndarray[Any, Any] | str]) -> None:
    assert encoded.x.shape[0] == len(expected)
    assert encoded.x.dtype == np.float32
    for row, one in enumerate(expected):
        if isinstance(one, str):
            assert row in encoded.refused
            assert all(reason in one for reason in encoded.refused[row].split("; "))
        else:
            assert row not in encoded.refused, encoded.refused[row]
            np.testing.assert_array_equal(encoded.x[row], one)
    assert sorted({*encoded.accepted().tolist(), *encoded.refused}) == list(range(len(expected)))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_columns_and_rows_are_judged_alike(data: st.DataObject) -> None:
    contract = data.draw(contracts())
    table = data.draw(tables(contract))
    assert_same(encode_table(contract, table), by_rows(contract, table.to_pylist()))


# A cell of a CSV file beside the value a client would send for it; text that is no value is sent as text.
NUMERALS = st.one_of(
    st.floats(allow_nan=False).map(lambda value: (repr(value), value)),
    st.integers(-(10**20), 10**20).map(lambda value: (str(value), float(value) if abs(value) >= 2**53 else value)),
    st.sampled_from([("+2.5", 2.5), (" 3 ", 3), (".5", 0.5), ("5.", 5.0), ("nan", math.nan), ("-Infinity", -math.inf)]),
)
BOOLEANS = st.sampled_from([("true", True), ("False", False), (" TRUE", True)])
TEXTS = st.sampled_from([("x", "x"), (" y ", "y"), ("unseen", "unseen"), ("1_0", "1_0"), ("0x1", "0x1")])
EMPTY = st.sampled_from([("", None), ("  ", None)])


@given(contracts(), st.data())
@settings(max_examples=300, deadline=None)
def test_text_is_judged_like_the_values_it_spells(contract: DataContract, data: st.DataObject) -> None:
    spelled = {"number": NUMERALS, "integer": NUMERALS, "boolean": BOOLEANS, "category": TEXTS}
    rows = data.draw(st.integers(0, 6))
    cells: dict[str, list[str]] = {}
    values: list[dict[str, Any]] = [{} for _ in range(rows)]
    for column in contract.columns:
        one = st.one_of(spelled[column.kind], TEXTS, EMPTY)
        drawn = data.draw(st.lists(one, min_size=rows, max_size=rows))
        cells[column.name] = [text for text, _ in drawn]
        for row, (_, value) in zip(values, drawn, strict=True):
            row[column.name] = value
    table = pa.table({name: pa.array(column, pa.string()) for name, column in cells.items()})
    assert_same(encode_text(contract, table), by_rows(contract, values))


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    """Row by row; fails on a value that is no number."""
    if any(isinstance(value, str) for value in frame.c0):
        raise TypeError("text has no double")
    return frame.assign(double=frame.c0 * 2)


FEATURED = DataContract(
    columns=(
        Column(name="c0", kind="number", nullable=False, minimum=None, maximum=None),
        Column(name="double", kind="number", nullable=True, minimum=None, maximum=None),
    ),
    label="label",
    task="binary",
    classes=(0, 1),
)


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=12))
@example([None, 1.0, None])
@settings(max_examples=100, deadline=None)
def test_features_of_a_block_are_those_of_its_rows(values: list[float | None]) -> None:
    table = pa.table({"c0": pa.array(values, pa.float64())})
    expected: list[np.ndarray[Any, Any] | str] = []
    for value in values:
        try:
            made = apply_features(doubled, pd.DataFrame({"c0": pd.Series([value], dtype=float)}))
            expected.append(FEATURED.encode(made)[0])
        except DataError as error:
            expected.append(error.message)
    assert_same(encode_features(FEATURED, doubled, table), expected)
