"""What the prediction log makes of whole batches is what it would make of each request by itself."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.blocks import request_id
from raymlops.data.schema import Column, DataContract
from raymlops.serving.batching import Answer
from raymlops.serving.logfile import Served, own_ids, packed, to_parquet
from raymlops.serving.sheets import matrix_of

SERIES = "00f1e2d3c4b5a697"
NUMBERS = st.integers(1, 2**60 - 1)
ITEMS = st.lists(
    st.lists(st.tuples(st.one_of(NUMBERS, st.sampled_from(["a", "b-1"])), st.integers(1, 3)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_ids_are_made_together_as_one_by_one(numbers: list[int]) -> None:
    made = own_ids(SERIES, np.array(numbers, dtype=np.int64))
    made.validate(full=True)
    assert made.to_pylist() == [request_id(SERIES, number) for number in numbers]


def served(items: list[list[tuple[int | str, int]]]) -> list[Served]:
    """Batches whose rows count up through all of them, every seventh without a finite score."""
    made, at = [], 0
    for index, requests in enumerate(items):
        rows = sum(count for _, count in requests)
        scores = np.arange(at, at + rows, dtype=np.float64)
        scores[scores % 7 == 6] = np.nan
        answer = Answer(np.zeros((rows, 1), np.float32), scores, np.isfinite(scores), [0] * rows, None)
        sent: list[dict[str, Any]] = [{"row": at + row} for row in range(rows)]
        ids, counts = [given for given, _ in requests], [count for _, count in requests]
        variant = "champion" if index % 2 else "challenger"
        made.append(Served(ids, counts, sent, answer, index + 1, variant, float(index), 1.0))
        at += rows
    return made


@given(ITEMS)
@settings(max_examples=100, deadline=None)
def test_every_row_of_the_log_carries_its_own_request(items: list[list[tuple[int | str, int]]]) -> None:
    batches = served(items)
    (content,) = to_parquet(batches, SERIES)
    rows = pq.read_table(io.BytesIO(content)).to_pylist()
    at = 0
    for index, requests in enumerate(items):
        for name, count in requests:
            own = name if isinstance(name, str) else request_id(SERIES, name)
            for row in range(count):
                score = None if at % 7 == 6 else float(at)
                variant = "champion" if index % 2 else "challenger"
                expected = {"request_id": own, "row_index": row, "version": index + 1, "variant": variant}
                assert rows[at] == expected | {"score": score, "served_at": float(index), "row": at}
                at += 1
    assert len(rows) == at


@given(ITEMS)
@settings(max_examples=100, deadline=None)
def test_every_request_is_in_the_block_or_a_row_by_itself(items: list[list[tuple[int | str, int]]]) -> None:
    # A gateway's own numbers only grow.
    numbers = iter(range(1, 100))
    counted = [[(n if isinstance(n, str) else next(numbers), count) for n, count in requests] for requests in items]
    batches = served(counted)
    block, single = packed(SERIES, batches)
    found = {(row.request_id, row.served_at, row.row_index, row.score) for row in single}
    expected_single, at = set(), 0
    for index, requests in enumerate(counted):
        for name, count in requests:
            scores = [None if (at + row) % 7 == 6 else float(at + row) for row in range(count)]
            at += count
            if isinstance(name, str):
                expected_single |= {(name, float(index), row, score) for row, score in enumerate(scores)}
                continue
            assert block is not None
            held = block.rows(name)
            assert [row["score"] for row in held] == scores
            assert {(row["version"], row["served_at"]) for row in held} == {(index + 1, float(index))}
            assert {row["variant"] for row in held} == {"champion" if index % 2 else "challenger"}
    assert found == expected_single
    assert (block is None) == all(isinstance(name, str) for requests in items for name, _ in requests)


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats()), st.one_of(st.none(), st.integers(-(2**53), 2**53)), st.booleans()),
        min_size=1,
        max_size=10,
    )
)
@settings(max_examples=200, deadline=None)
def test_the_matrix_of_what_was_sent_is_the_one_the_model_saw(
    values: list[tuple[float | None, int | None, bool]],
) -> None:
    columns = tuple(
        Column(name=name, kind=kind, nullable=True, minimum=None, maximum=None)
        for name, kind in (("x", "number"), ("n", "integer"), ("b", "boolean"))
    )
    contract = DataContract(columns=columns, label="y", task="regression")
    x, sent = contract.encode_sent([dict(zip(contract.names, row, strict=True)) for row in values])
    if sent is not None:
        np.testing.assert_array_equal(matrix_of(sent.values), x)
