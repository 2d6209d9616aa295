"""What must hold for any frame: rows and frames encode alike, contracts survive JSON, splits lose no row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raymlops.data.rows import FlatRows, join_rows
from raymlops.data.schema import Column, DataContract, learn_contract
from raymlops.data.snapshot import fingerprint_of
from raymlops.data.snapshot_print import ContentPrint
from raymlops.errors import ContractViolation

VALUES = {
    "number": st.one_of(st.none(), st.floats(width=32, allow_subnormal=False)),
    "whole": st.integers(-(2**31), 2**31),
    "flag": st.booleans(),
    "word": st.one_of(st.none(), st.text(max_size=3)),
}
ROWS = st.lists(st.fixed_dictionaries(VALUES), min_size=2, max_size=20)
ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers()))


def framed(rows: list[dict[str, object]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.assign(number=frame.number.astype(float), word=frame.word.astype(object), y=np.arange(len(rows)) % 2)


def outcome(encode: Any, rows: list[dict[str, object]]) -> tuple[Any, str]:
    """The matrix, or the words of the refusal."""
    try:
        return encode(rows), ""
    except ContractViolation as error:
        return np.empty(0), error.message


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_rows_and_frame_encode_alike(rows: list[dict[str, object]]) -> None:
    frame = framed(rows)
    contract = learn_contract(frame, "y", "binary")
    encoded = contract.encode(frame)
    np.testing.assert_array_equal(encoded, contract.encode_rows(rows))
    assert not np.isinf(encoded).any()
    assert DataContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


@given(ROWS)
@example([{"number": None, "whole": 0, "flag": False, "word": word} for word in ("", "", "\x00")])
@settings(max_examples=60, deadline=None)
def test_a_decoded_row_encodes_to_the_same_again(rows: list[dict[str, object]]) -> None:
    frame = framed(rows)
    contract = learn_contract(frame, "y", "binary")
    encoded = contract.encode(frame)
    again = contract.encode_rows([contract.decode_row(row) for row in encoded])
    np.testing.assert_array_equal(again, encoded)


@given(ROWS, st.dictionaries(st.sampled_from([*VALUES, "other"]), ANYTHING, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_row_is_encoded_or_refused_in_words(rows: list[dict[str, object]], row: dict[str, object]) -> None:
    contract = learn_contract(framed(rows), "y", "binary")
    refused: ContractViolation | None = None
    try:
        encoded = contract.encode_rows([row])
    except ContractViolation as error:
        refused = error
    if refused is not None:
        assert 1 <= len(refused.details["failures"]) <= 10
        assert "column" in str(refused)
    else:
        assert set(row) == set(VALUES)
        assert encoded.shape == (1, 4)
        assert not np.isinf(encoded).any()


@given(ROWS, st.lists(st.dictionaries(st.sampled_from([*VALUES]), ANYTHING, min_size=3, max_size=4), max_size=3))
@settings(max_examples=150, deadline=None)
def test_the_fast_encoding_is_the_slow_one(rows: list[dict[str, object]], odd: list[dict[str, object]]) -> None:
    contract = learn_contract(framed(rows), "y", "binary")
    for asked in (rows, rows + odd, odd):
        slow, said = outcome(contract._encode_slowly, asked)
        fast, said_too = outcome(contract.encode_rows, asked)
        assert said_too == said
        np.testing.assert_array_equal(fast, slow)


@given(
    st.lists(
        st.tuples(st.floats(width=32), st.integers(-(2**63) + 1, 2**63 - 1), st.booleans()), min_size=1, max_size=10
    )
)
@settings(max_examples=100, deadline=None)
def test_what_was_sent_is_kept_to_the_bit(values: list[tuple[float, int, bool]]) -> None:
    columns = tuple(
        Column(name=name, kind=kind, nullable=True, minimum=None, maximum=None)
        for name, kind in (("x", "number"), ("n", "integer"), ("b", "boolean"))
    )
    contract = DataContract(columns=columns, label="y", task="regression")
    rows = [dict(zip(contract.names, row, strict=True)) for row in values]
    _, sent = contract.encode_sent([*rows, dict.fromkeys(contract.names)])
    if any(abs(n) >= 2**53 for _, n, _ in values):
        assert sent is None
    else:
        assert sent is not None
        np.testing.assert_array_equal(sent.values[:-1], np.array(values, dtype=float))
        assert np.isnan(sent.values[-1]).all()


@given(ROWS)
@settings(max_examples=40, deadline=None)
def test_the_fingerprint_follows_the_values_only(rows: list[dict[str, object]]) -> None:
    frame = framed(rows)
    again = framed([dict(row) for row in rows]).set_index(np.arange(len(rows)) + 5)
    first = fingerprint_of(ContentPrint.of(frame), {})
    assert first == fingerprint_of(ContentPrint.of(again), {})
    assert first != fingerprint_of(ContentPrint.of(frame.assign(whole=frame.whole + 1)), {})
    assert first != fingerprint_of(ContentPrint.of(frame), {"time": "t"})


@given(ROWS, st.permutations(sorted(VALUES)), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_flat_list_of_values_encodes_as_the_rows_it_stands_for(
    rows: list[dict[str, object]], order: list[str], odd: bool
) -> None:
    contract = learn_contract(framed(rows), "y", "binary")
    names = tuple(order) if odd else contract.names
    flat = FlatRows(names, [row[name] for row in rows for name in names])
    assert list(flat) == rows
    assert (flat[-1], flat[:2]) == (rows[-1], rows[:2])
    np.testing.assert_array_equal(contract.encode_rows(flat), contract.encode_rows(rows))
    joined = join_rows([flat, flat])
    assert isinstance(joined, FlatRows)
    np.testing.assert_array_equal(contract.encode_rows(joined), contract.encode_rows(rows + rows))
    assert join_rows([flat, rows]) == rows + rows


@given(ROWS, st.lists(ANYTHING, min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_a_flat_list_is_refused_in_the_words_of_its_rows(rows: list[dict[str, object]], values: list[object]) -> None:
    contract = learn_contract(framed(rows), "y", "binary")
    flat = FlatRows(contract.names, [*values, *(rows[0][name] for name in contract.names)])
    fast, said = outcome(contract.encode_rows, flat)
    slow, said_too = outcome(contract._encode_slowly, list(flat))
    assert said == said_too
    np.testing.assert_array_equal(fast, slow)
