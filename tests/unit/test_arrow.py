"""Arrow streams: read as tables, refused before they can unpack, answered as tables."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from raymlops.errors import ContractViolation, MalformedRequest, RaymlopsError, TooLarge, UnsupportedMedia
from raymlops.serving.arrow import format_table, parse_table

PLAIN = pa.table({"a": [1.5, None], "c": ["x", "y"]})


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def claims(rows: int) -> bytes:
    """A batch of nulls that says it has so many rows: nothing in the stream has that size."""
    true = (1234567).to_bytes(8, "little")
    body = stream(pa.table({"n": pa.nulls(1234567)}))
    assert len(body) < 200_000
    assert true in body
    return body.replace(true, rows.to_bytes(8, "little"))


def test_rows_stay_a_table() -> None:
    request = parse_table(stream(PLAIN), 10)
    assert list(request.rows) == [{"a": 1.5, "c": "x"}, {"a": None, "c": "y"}]
    coded = PLAIN.set_column(1, "c", PLAIN["c"].dictionary_encode())
    decoded = parse_table(stream(coded), 10).rows
    assert decoded.table.schema.field("c").type == pa.string()
    assert list(decoded) == list(request.rows)


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (b"", MalformedRequest, "not an Arrow IPC stream"),
        (b"{}", MalformedRequest, "not an Arrow IPC stream"),
        (b"\xff\xff\xff\xff\x10\x00\x00\x00" + b"\x07" * 16, MalformedRequest, "not an Arrow IPC stream"),
        (stream(PLAIN)[:-60], MalformedRequest, "not an Arrow IPC stream"),
        (stream(PLAIN, compression="zstd"), UnsupportedMedia, "compressed"),
        (stream(PLAIN.slice(0, 0)), ContractViolation, "The table is empty"),
        (stream(pa.concat_tables([PLAIN] * 6).combine_chunks()), TooLarge, "holds 12 rows"),
        (stream(pa.concat_tables([PLAIN] * 6)), TooLarge, "rows"),
        (claims(2**40), TooLarge, "holds 1099511627776 rows"),
        (stream(pa.table([[1], [2]], ["a", "a"])), ContractViolation, "column 'a': appears more than once"),
        (stream(pa.table({"a": [[1]]})), ContractViolation, "column 'a': expected numbers, booleans or text"),
        (stream(pa.table({"a": [{"b": 1}]})), ContractViolation, "got Arrow's struct"),
        (stream(pa.table({"a": ["x" * 5000]})), TooLarge, "a text of 5000 bytes"),
        (stream(pa.table({"a": pa.array(["x" * 5000]).dictionary_encode()})), TooLarge, "a text of 5000 bytes"),
        (stream(pa.table({"a": ["x\0"]})), MalformedRequest, "NUL"),
    ],
)
def test_other_streams_are_refused(body: bytes, kind: type[RaymlopsError], sentence: str) -> None:
    with pytest.raises(kind) as caught:
        parse_table(body, 10)
    assert sentence in caught.value.message


def test_many_columns_are_refused() -> None:
    with pytest.raises(ContractViolation, match="5 columns; at most 4"):
        parse_table(stream(pa.table({name: [1] for name in "abcde"})), 10, max_columns=4)


def mutants(body: bytes, count: int) -> list[bytes]:
    chance, made = random.Random(7), []
    for _ in range(count):
        mutant = bytearray(body)
        for _ in range(chance.choice((1, 1, 2, 8))):
            mutant[chance.randrange(len(mutant))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        made.append(bytes(mutant[: chance.randrange(len(mutant))] if chance.random() < 0.1 else mutant))
    return made


@pytest.mark.parametrize("coded", [False, True])
def test_damaged_streams_are_read_or_refused_and_nothing_else(coded: bool) -> None:
    table = pa.table({"a": [1.5, None, 2.0], "c": ["x", "y", None], "b": [True, None, False], "i": [1, 2, 3]})
    if coded:
        table = table.set_column(1, "c", table["c"].dictionary_encode())
    for body in mutants(stream(table), 1500):
        status, rows = 200, []
        try:
            rows = list(parse_table(body, 10).rows)
        except RaymlopsError as error:
            status = error.http_status
        assert (status == 200 and 0 < len(rows) <= 10) or 400 <= status < 500


@pytest.mark.parametrize(
    ("predictions", "probabilities", "kinds"),
    [
        ([1.5, 2.5], None, [pa.float64()]),
        (["no", "yes"], [0.1, 0.9], [pa.string(), pa.float64()]),
        ([0, 2], [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [pa.int64(), pa.list_(pa.float64(), 3)]),
    ],
)
def test_answers_are_tables(predictions: list[Any], probabilities: Any, kinds: list[pa.DataType]) -> None:
    body = format_table("churn", "r1", 3, "champion", predictions, probabilities)
    table = pa.ipc.open_stream(body).read_all()
    assert table["prediction"].to_pylist() == predictions
    assert [field.type for field in table.schema] == kinds
    if probabilities is not None:
        assert table["probability"].to_pylist() == probabilities
    facts = {b"endpoint": b"churn", b"request_id": b"r1", b"version": b"3", b"variant": b"champion"}
    assert table.schema.metadata == facts


def test_what_is_claimed_is_not_allocated() -> None:
    before = pa.total_allocated_bytes()
    refused: list[Callable[[], object]] = [
        lambda: parse_table(claims(2**40), 10),
        lambda: parse_table(stream(pa.table({"a": ["x" * 10_000_000]}), compression="zstd"), 10),
    ]
    for refuse in refused:
        with pytest.raises(RaymlopsError):
            refuse()
    assert pa.total_allocated_bytes() - before < 1_000_000
