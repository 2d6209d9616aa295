"""A table encodes to what its rows encode to, or is refused with the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlops.data.schema import Column, DataContract
from raymlops.data.tables import TableRows, encode_table_rows
from raymlops.errors import ContractViolation

KINDS: list[Any] = ["number", "integer", "boolean", "category"]
TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int8": (pa.int8(), st.integers(-128, 127)),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1])),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "float32": (pa.float32(), st.floats(width=32)),
    "float64": (pa.float64(), st.floats() | st.integers(-5, 5).map(float) | st.just(1e39)),
    "bool": (pa.bool_(), st.booleans()),
    "string": (pa.string(), st.sampled_from(["x", "y", "new", ""])),
    "large_string": (pa.large_string(), st.sampled_from(["x", "y", "new", ""])),
    "coded": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["x", "y", "new"])),
    "null": (pa.null(), st.none()),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[DataContract, pa.Table]:
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    columns = tuple(
        Column(
            name=name,
            kind=draw(st.sampled_from(KINDS)),
            nullable=draw(st.booleans()),
            minimum=None,
            maximum=None,
            categories=("x", "y"),
        )
        for name in names
    )
    given_names = draw(st.permutations(names))
    if draw(st.integers(0, 9)) == 0:
        given_names = [*given_names, "extra"] if draw(st.booleans()) else given_names[1:]
    count = draw(st.integers(1, 4))
    arrays = {}
    for name in given_names:
        kind, values = TYPES[draw(st.sampled_from(sorted(TYPES)))]
        some = values | st.none() if draw(st.booleans()) else values
        arrays[name] = pa.array(draw(st.lists(some, min_size=count, max_size=count)), type=kind)
    if not arrays:
        arrays["extra"] = pa.array([1.0] * count)
    table = pa.table(arrays)
    if draw(st.booleans()):
        table = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    return DataContract(columns=columns, label="z", task="regression"), table


def outcome(encode: Callable[[], Any]) -> tuple[Any, tuple[str, str] | None]:
    try:
        return encode(), None
    except ContractViolation as error:
        return None, (error.code, error.message)


@given(tables())
def test_a_table_is_encoded_as_its_rows_are(made: tuple[DataContract, pa.Table]) -> None:
    contract, table = made
    rows = table.to_pylist()
    expected, refusal = outcome(lambda: contract.encode_rows(rows))
    got, same = outcome(lambda: encode_table_rows(contract, table))
    assert same == refusal
    np.testing.assert_array_equal(got, expected)


@given(tables())
def test_rows_of_a_table_are_a_sequence_of_rows(made: tuple[DataContract, pa.Table]) -> None:
    table = made[1]
    rows, plain = TableRows(table), table.to_pylist()
    assert len(rows) == len(plain)
    assert repr(list(rows)) == repr(plain)
    assert repr([rows[i] for i in range(len(rows))]) == repr(plain)
    assert repr(rows[1:]) == repr(plain[1:])
    assert repr(rows[-1]) == repr(plain[-1])
    with pytest.raises(IndexError):
        rows[len(plain)]
