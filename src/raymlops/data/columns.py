"""The contract over Arrow columns: a table as the model's matrix, and for each row that is refused the reason.

What a column's type settles is settled for all rows at once; a row in doubt is put to the contract's own row check, so
bulk scoring accepts, refuses and encodes exactly what a request with the same values would meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.data.contract_checks import bounded_columns, broken_rows
from raymlops.data.contract_rules import Vector
from raymlops.data.features import FeatureFunction, apply_features
from raymlops.data.schema import MAX_WHOLE, Column, DataContract, Kind
from raymlops.data.schema_column import rule_kind
from raymlops.errors import ContractViolation, DataError

TextKind = Literal["number", "boolean", "text", "time"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$|^[+-]?(?i:nan|inf|infinity)$"
_WHOLE = r"^[+-]?\d{1,18}$"
_MAX_FAILURES_OF_FEATURES = 200
_WORDS = {"number": "number", "boolean": "boolean", "time": "time"}


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A table as the model takes it.

    Attributes
    ----------
    x : the matrix, float32, ``(n_rows, n_features)``; rows that are refused hold NaN
    refused : row number to the reason, in the contract's words
    """

    x: npt.NDArray[np.float32]
    refused: Mapping[int, str]

    def accepted(self) -> npt.NDArray[np.intp]:
        """Numbers of the rows that can be predicted, increasing."""
        keep = np.ones(len(self.x), dtype=bool)
        keep[list(self.refused)] = False
        return np.flatnonzero(keep)


def encode_table(contract: DataContract, table: pa.Table) -> Encoded:
    """Rows of a typed table by the contract; columns the contract does not name are ignored.

    Raises
    ------
    ContractViolation : a column of the contract is not in the table
    """
    table = _plain_numbers(_required(contract, table))
    columns = [table.column(name).combine_chunks() for name in contract.names]

    def decide(row: int) -> npt.NDArray[np.float32]:
        values = {name: column[row].as_py() for name, column in zip(contract.names, columns, strict=True)}
        return contract.encode_rows([values])[0]

    return _encode(contract, columns, decide)


def encode_text(contract: DataContract, table: pa.Table) -> Encoded:
    """As :func:`encode_table` for a table of text, as a CSV file holds it: each cell is read as its column's kind.

    Blanks around a cell are dropped, an empty cell is missing, and a cell that does not read as a number or as ``true``
    or ``false`` is refused as the text it is.
    """
    table = _required(contract, table)
    texts = [trimmed(table.column(name)) for name in contract.names]
    parsed = [parse_text(_text_kind(c.kind), text) for c, text in zip(contract.columns, texts, strict=True)]

    # A text has no type: whole numbers in it are doubles as much as any.
    typed = [value.cast(pa.float64(), safe=False) if pa.types.is_integer(value.type) else value for value, _ in parsed]
    unread = [bad for _, bad in parsed]

    def decide(row: int) -> npt.NDArray[np.float32]:
        values = {
            column.name: (text if bad[row] else value)[row].as_py()
            for column, text, value, bad in zip(contract.columns, texts, typed, unread, strict=True)
        }
        return contract.encode_rows([values])[0]

    doubt = np.zeros(len(table), dtype=bool)
    for bad in unread:
        doubt |= bad
    return _encode(contract, typed, decide, doubt)


def encode_features(contract: DataContract, features: FeatureFunction, table: pa.Table) -> Encoded:
    """As :func:`encode_table` with the features function between: it runs once, over all rows as a pandas frame.

    When it fails, or changes what it must not, halves of the table are tried until the rows it fails on are alone.

    Raises
    ------
    ContractViolation : the function fails on more than 200 rows, or makes no column of that name
    """
    frame = _plain_times(table).to_pandas()
    x = np.full((len(frame), len(contract.columns)), np.nan, dtype=np.float32)
    refused: dict[int, str] = {}
    failures = 0
    waiting = [(0, len(frame))]
    while waiting:
        start, stop = waiting.pop()
        if start == stop:
            continue
        try:
            made = apply_features(features, frame.iloc[start:stop].reset_index(drop=True))
        except DataError as error:
            failures += stop - start == 1
            if failures > _MAX_FAILURES_OF_FEATURES:
                raise ContractViolation(f"{error.message} The rows do not fit this endpoint.") from error
            if stop - start == 1:
                refused[start] = error.message
            else:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
            continue
        part = encode_frame(contract, made)
        x[start:stop] = part.x
        refused.update({start + row: reason for row, reason in part.refused.items()})
    return Encoded(x, dict(sorted(refused.items())))


def encode_frame(contract: DataContract, frame: pd.DataFrame) -> Encoded:
    """As :func:`encode_table` for a pandas frame; a row in doubt is put to :meth:`DataContract.encode`."""
    missing = [name for name in contract.names if name not in frame.columns]
    if missing or not len(frame):
        return Encoded(contract.encode(frame), {})  # this raises when columns are missing, in its own words
    columns = [_arrow_of(frame[name]) for name in contract.names]
    return _encode(contract, columns, lambda row: contract.encode(frame.iloc[[row]])[0])


def encode_into(contract: DataContract, batch: pa.RecordBatch, out: npt.NDArray[np.float32]) -> Mapping[int, str]:
    """As :func:`encode_frame` for Arrow columns, into rows that are there already ``(n_rows, n_features)``; what was refused."""
    columns = [batch.column(name) for name in contract.names]

    def decide(row: int) -> npt.NDArray[np.float32]:
        return contract.encode(batch.slice(row, 1).to_pandas())[0]

    def decide_all(rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        return contract.encode(batch.take(pa.array(rows)).to_pandas())

    return _encode(contract, columns, decide, out=out, decide_all=decide_all).refused


# --- text ------------------------------------------------------------------------------------------------


def parse_text(kind: TextKind, text: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Trimmed text as values, and which cells could not be read; those are null.

    Numbers are doubles, or 64-bit integers when all are whole and none is missing, as pandas would have them.
    """
    if kind == "text":
        return text, np.zeros(len(text), dtype=bool)
    if kind == "number":
        good = pc.match_substring_regex(text, _NUMBER)
        values = pc.utf8_ltrim(pc.if_else(good, text, None), "+")
        whole = text.null_count == 0 and len(text) > 0 and pc.all(pc.match_substring_regex(text, _WHOLE)).as_py()
        return values.cast(pa.int64() if whole else pa.float64()), _bad(text, good)
    if kind == "boolean":
        lowered = pc.utf8_lower(text)
        good = pc.is_in(lowered, pa.array(["true", "false"], lowered.type))
        return pc.if_else(good, pc.equal(lowered, "true"), None), _bad(text, good)
    return _parse_times(text)


def refuse_text(kinds: Mapping[str, TextKind], table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """A table of text with each column as its kind, and the rows with a cell that does not read as it (null there)."""
    columns: list[pa.Array] = []
    refused: dict[int, str] = {}
    for name in table.column_names:
        kind = kinds.get(name, "text")
        text = trimmed(table.column(name))
        typed, bad = parse_text(kind, text)
        columns.append(typed)
        for row in np.flatnonzero(bad).tolist():
            reason = f"column {name!r}: expected {_WORDS[kind]}, got {text[row].as_py()[:60]!r}"
            refused[row] = f"{refused[row]}; {reason}" if row in refused else reason
    return pa.Table.from_arrays(columns, names=table.column_names), dict(sorted(refused.items()))


def kinds_of(schema: pa.Schema) -> dict[str, TextKind]:
    """How to read each column of text, from the types a reader inferred on its first rows."""
    kinds: dict[str, TextKind] = {}
    for field in schema:
        if pa.types.is_boolean(field.type):
            kinds[field.name] = "boolean"
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            kinds[field.name] = "number"
        elif pa.types.is_timestamp(field.type) or pa.types.is_date(field.type):
            kinds[field.name] = "time"
        else:
            kinds[field.name] = "text"
    return kinds


def _text_kind(kind: Kind) -> TextKind:
    return "text" if kind == "category" else "boolean" if kind == "boolean" else "number"


def trimmed(column: pa.ChunkedArray) -> pa.Array:
    """Text without the blanks around it; nothing left is null."""
    text = pc.utf8_trim_whitespace(column.combine_chunks())
    return pc.if_else(pc.equal(text, ""), None, text)


def _bad(text: pa.Array, good: pa.Array) -> npt.NDArray[np.bool_]:
    bad: npt.NDArray[np.bool_] = pc.and_(pc.is_valid(text), pc.invert(pc.fill_null(good, False))).to_numpy(
        zero_copy_only=False
    )
    return bad


def _parse_times(text: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    bad = np.zeros(len(text), dtype=bool)
    try:
        return text.cast(pa.timestamp("us")), bad
    except pa.ArrowInvalid:
        values = []
        for row, cell in enumerate(text):
            try:
                values.append(cell.cast(pa.timestamp("us")).as_py())
            except pa.ArrowInvalid:
                values.append(None)
                bad[row] = True
        return pa.array(values, pa.timestamp("us")), bad


# --- columns ---------------------------------------------------------------------------------------------


def _encode(
    contract: DataContract,
    columns: list[pa.Array],
    decide: Callable[[int], npt.NDArray[np.float32]],
    doubt: npt.NDArray[np.bool_] | None = None,
    out: npt.NDArray[np.float32] | None = None,
    decide_all: Callable[[npt.NDArray[np.intp]], npt.NDArray[np.float32]] | None = None,
) -> Encoded:
    rows = len(columns[0]) if columns else 0
    x = np.empty((rows, len(columns)), dtype=np.float32, order="C") if out is None else out
    doubt = np.zeros(rows, dtype=bool) if doubt is None else doubt
    looked_at = bounded_columns(contract) if contract.bounded else []
    for index, (column, values) in enumerate(zip(contract.columns, columns, strict=True)):
        x[:, index], unsure = _encode_column(column, values)
        np.logical_or(doubt, unsure, out=doubt)
    if contract.bounded:
        vectors = {c.name: _vector(c, v) for c, v in zip(contract.columns, columns, strict=True) if c.name in looked_at}
        doubt |= broken_rows(contract, vectors, rows)
    refused: dict[int, str] = {}
    doubtful = np.flatnonzero(doubt)
    if decide_all is not None and len(doubtful) > 1:  # a column of large whole numbers puts every row in doubt
        with suppress(ContractViolation):
            x[doubtful] = decide_all(doubtful)
            return Encoded(x, refused)
    for row in doubtful.tolist():
        try:
            x[row] = decide(row)
        except ContractViolation as error:
            x[row] = np.nan
            reasons = [str(reason).removesuffix(" (row 0)") for reason in error.details.get("failures", ())]
            refused[row] = "; ".join(reasons) or error.message
    return Encoded(x, refused)


def _encode_column(column: Column, values: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Codes, and the rows for which the type alone does not settle them."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    missing = (
        values.is_null().to_numpy(zero_copy_only=False) if values.null_count else np.zeros(len(values), dtype=bool)
    )
    strict_missing = missing & (not column.nullable)
    if column.kind == "number" and pa.types.is_float32(kind):
        # What most tables hold: nothing is converted, and only infinities and strict NaN are left to settle.
        single = values.to_numpy(zero_copy_only=False)
        finite = np.isfinite(single)
        if finite.all():
            return single, ~finite
        return np.where(finite, single, np.float32(np.nan)), ~finite & (not column.nullable)
    if column.kind in ("number", "integer") and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        doubles = values.cast(pa.float64(), safe=False)
        numbers = doubles.to_numpy(zero_copy_only=False)
        usable = np.abs(numbers) <= _FLOAT32_MAX  # false for NaN too
        codes = np.where(usable, numbers, np.nan)
        # Between the largest float32 and infinity rounding decides; the row check does it in its own order.
        doubt = ~usable & (np.isfinite(numbers) | (not column.nullable))
        if pa.types.is_integer(kind):
            doubt |= np.abs(numbers) >= MAX_WHOLE
        if column.kind == "integer":
            doubt |= usable & (codes != np.floor(codes))
        if column.kind == "integer" or pa.types.is_integer(kind):
            doubt |= np.abs(numbers) >= MAX_WHOLE  # a whole number that a double may not hold
        return codes, doubt
    if column.kind == "boolean" and pa.types.is_boolean(kind):
        return values.cast(pa.float64()).to_numpy(zero_copy_only=False), strict_missing
    if column.kind == "category" and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        known = pa.array(column.categories, kind)
        return pc.index_in(values, value_set=known).cast(pa.float64()).to_numpy(zero_copy_only=False), strict_missing
    if pa.types.is_null(kind):
        return np.full(len(values), np.nan), strict_missing
    return np.full(len(values), np.nan), np.ones(len(values), dtype=bool)


def number_codes(name: str, values: pa.Array) -> npt.NDArray[Any]:
    """Numbers and booleans as a model takes them, ``(n_rows,)``: NaN for nulls and infinities; float32 is not copied.

    Raises
    ------
    DataError : a type that is no number
    """
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    kind = values.type
    flag = pa.types.is_boolean(kind)
    if not (flag or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"Column {name!r} is of type {kind}, which no model takes: make numbers, booleans or text of it, or drop it."
        )
    column = Column(name=name, kind="boolean" if flag else "number", nullable=True, minimum=None, maximum=None)
    return _encode_column(column, values)[0]


def _vector(column: Column, values: pa.Array) -> Vector:
    """A column as the rules see it; values of another type are unknown here, and in doubt anyway."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if column.kind in ("number", "integer") and (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return Vector.of_series(pd.Series(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)))
    return Vector.of_values(values.to_pylist(), rule_kind(column))


def _required(contract: DataContract, table: pa.Table) -> pa.Table:
    """The contract's columns. Raises :class:`ContractViolation` in the contract's words when one is missing."""
    if any(name not in table.column_names for name in contract.names):
        contract.encode(pd.DataFrame({name: [] for name in table.column_names}))
    return table.select(list(contract.names))


def _plain_numbers(table: pa.Table) -> pa.Table:
    """Decimals as doubles, which is what training made of them."""
    fields = [
        pa.field(field.name, pa.float64() if pa.types.is_decimal(field.type) else field.type) for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _plain_times(table: pa.Table) -> pa.Table:
    """Times naive in UTC with microseconds, dates as times, decimals as doubles: what training handed to features."""
    fields = []
    for field in _plain_numbers(table).schema:
        timed = pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)
        fields.append(pa.field(field.name, pa.timestamp("us") if timed else field.type))
    return table.cast(pa.schema(fields), safe=False)


def _arrow_of(series: pd.Series) -> pa.Array:
    """A pandas column as Arrow; one of mixed values as doubtful binary, so that each row is looked at."""
    try:
        made = pa.array(series, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        made = pa.array([b""] * len(series), pa.binary())
    return made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made
