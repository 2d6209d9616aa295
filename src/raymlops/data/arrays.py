"""Arrow tables, one after the other, into the arrays a model is fitted on: one matrix, filled in place.

A block's column is copied once, to where it stays; of float32 nothing is converted. Texts become codes of one dictionary for all
blocks. Beside the matrix there is never more than one block.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raymlops.data.columns import number_codes
from raymlops.data.packed import columns_of, matrix_of
from raymlops.data.schema_column import FLOAT32_MAX
from raymlops.errors import DataError, nearest

_FILL_ROWS = 8192  # so many rows of some tens of columns stay in a core's cache while their columns are written
_FIRST_BYTES = 1 << 24
_MAX_CATEGORIES = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingArrays:
    """A table as arrays.

    Attributes
    ----------
    x : float32 ``(n_rows, n_features)``, rows contiguous: numbers, booleans as 0 and 1, texts as codes; NaN for missing
    names : of the columns of ``x``
    categories : texts of each coded column, sorted; a code is the index
    label : float64 ``(n_rows,)``, coded as a column of ``x`` would be; ``None`` when none was asked for
    times : datetime64[us] in UTC ``(n_rows,)``, NaT for missing
    texts : what was to be left as text, over the blocks' own memory
    """

    x: npt.NDArray[np.float32]
    names: tuple[str, ...]
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    label: npt.NDArray[np.float64] | None = None
    times: dict[str, npt.NDArray[np.datetime64]] = field(default_factory=dict)
    texts: dict[str, pa.ChunkedArray] = field(default_factory=dict)


def training_arrays(
    tables: Iterable[pa.Table],
    *,
    label: str | None = None,
    texts: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> TrainingArrays:
    """The rows of tables of the same columns as arrays, in their order; each table is let go before the next is taken.

    Parameters
    ----------
    label : column that is no feature
    texts : columns to leave as text rather than make codes of
    names : the order of columns, where it is not the tables'

    Raises
    ------
    DataError : no rows, other columns than the first table has, a column of a type no model takes, more than 1,000 categories,
        a label that is a time or is to be left as text
    """
    filling: _Filling | None = None
    for table in tables:
        if filling is None:
            filling = _Filling(table.schema, label, texts, names)
        filling.add(table)
        del table
    if filling is None:
        raise DataError("No rows were handed over.")
    return filling.arrays()


class Dictionary:
    """Texts and their codes, over any number of arrays; codes are by first appearance until :meth:`sorted` is asked."""

    def __init__(self, name: str, most: int = _MAX_CATEGORIES) -> None:
        self._name, self._most = name, most
        self._known: dict[str, int] = {}

    def codes(self, column: pa.Array) -> npt.NDArray[np.float32]:
        """The code of each value, NaN for null.

        Raises
        ------
        DataError : more distinct texts than a category may have
        """
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        known = self._known
        # The last of them is what -1, a null, finds.
        table = [known.setdefault(text, len(known)) for text in coded.dictionary.to_pylist()] + [np.nan]
        if len(known) > self._most:
            raise DataError(
                f"Column {self._name!r} holds more than {self._most} distinct texts: it looks like free text or an "
                "identifier. Drop it, group its values, or leave it as text (texts=)."
            )
        at = coded.indices
        codes = np.asarray(at.fill_null(-1) if at.null_count else at)
        return np.array(table, dtype=np.float32)[codes]

    def sorted(self) -> tuple[tuple[str, ...], npt.NDArray[np.float32] | None]:
        """The texts in order, and by old code the new one; ``None`` when they are the same."""
        texts = tuple(sorted(self._known))
        if texts == tuple(self._known):
            return texts, None
        new = {text: code for code, text in enumerate(texts)}
        return texts, np.array([new[text] for text in self._known], dtype=np.float32)


class Growing:
    """Rows of one type in memory that grows at its end: pages are moved to larger ranges, their bytes are not copied.

    Parameters
    ----------
    width : values a row
    """

    def __init__(self, width: int, dtype: npt.DTypeLike) -> None:
        self._dtype, self._width = np.dtype(dtype), width
        self._row_bytes = max(1, self._dtype.itemsize * width)
        self._memory = mmap.mmap(-1, self._whole(_FIRST_BYTES), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.rows = 0

    def take(self, rows: int) -> npt.NDArray[Any]:
        """The next ``rows`` rows ``(rows, width)``, to be written; to be let go before more are taken."""
        start, self.rows = self.rows, self.rows + rows
        needed = self.rows * self._row_bytes
        if needed > len(self._memory):
            self._memory.resize(self._whole(max(needed, 2 * len(self._memory))))
        return self._view(start, rows)

    def array(self) -> npt.NDArray[Any]:
        """All rows ``(n_rows, width)``; what was too much is given back."""
        self._memory.resize(self._whole(self.rows * self._row_bytes))
        return self._view(0, self.rows)

    def _view(self, start: int, rows: int) -> npt.NDArray[Any]:
        flat = np.frombuffer(self._memory, self._dtype, rows * self._width, start * self._row_bytes)
        return flat.reshape(rows, self._width)

    @staticmethod
    def _whole(size: int) -> int:
        return max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE


class _Filling:
    """The arrays while they are filled."""

    def __init__(self, schema: pa.Schema, label: str | None, texts: Sequence[str], names: Sequence[str] | None) -> None:
        kinds = {
            name: field.type.value_type if columns_of(field) != (field.name,) else field.type
            for field in schema
            for name in columns_of(field)
        }
        for name in (*([label] if label else []), *texts):
            if name not in kinds:
                raise DataError(f"The rows have no column {name!r}.{nearest(name, kinds)}")
        self._schema, self._label = set(schema.names), label
        times = [n for n, kind in kinds.items() if pa.types.is_timestamp(kind) or pa.types.is_date(kind)]
        if label is not None and (label in times or label in texts):
            what = "is a time" if label in times else "is to be left as text (texts=)"
            raise DataError(f"The label {label!r} {what}: a label is a number, a boolean or a category.")
        self._texts: dict[str, list[pa.Array]] = {name: [] for name in texts}
        self._times = {name: Growing(1, "int64") for name in times if name not in texts}
        self._names = [
            name for name in names or kinds if name not in self._texts and name not in self._times and name != label
        ]
        self._place = {name: index for index, name in enumerate(self._names)}
        coded = [*self._names, *([label] if label else [])]
        self._coded = {name: Dictionary(name) for name in coded if _is_text(kinds[name])}
        self._x = Growing(len(self._names), "float32")
        self._y = Growing(1, "float64")

    def add(self, table: pa.Table) -> None:
        if set(table.column_names) != self._schema:
            other = sorted(set(table.column_names) ^ self._schema)
            raise DataError(f"The blocks differ in columns {', '.join(map(repr, other))}: hand over rows of one table.")
        for batch in table.to_batches():
            self._fill(batch)

    def _fill(self, batch: pa.RecordBatch) -> None:
        rows, out = batch.num_rows, self._x.take(batch.num_rows)
        places: list[int] = []
        columns: list[npt.NDArray[Any]] = []
        for told, column in zip(batch.schema, batch.columns, strict=True):
            inner = columns_of(told)
            if inner != (told.name,):
                for name, values in zip(inner, self._packed(column, inner, out), strict=True):
                    if values is not None and name in self._place:
                        places.append(self._place[name])
                        columns.append(values)
            elif told.name in self._times:
                self._times[told.name].take(rows)[:, 0] = _micros(column)
            elif told.name in self._texts:
                self._texts[told.name].append(column)
            elif told.name == self._label:
                self._y.take(rows)[:, 0] = self._numbers(told.name, column)
            else:
                places.append(self._place[told.name])
                columns.append(self._numbers(told.name, column))
        for start in range(0, rows, _FILL_ROWS):
            part = slice(start, start + _FILL_ROWS)
            for place, values in zip(places, columns, strict=True):
                out[part, place] = values[part]

    def _packed(
        self, column: pa.FixedSizeListArray, inner: Sequence[str], out: npt.NDArray[np.float32]
    ) -> list[npt.NDArray[Any] | None]:
        """The columns that are packed in one, ``None`` for those that have been written: all at once, where they stay together."""
        values, missing = matrix_of(column)
        if missing is not None:
            values = np.where(missing, np.nan, values)
        if values.dtype.kind == "f":
            usable = np.isfinite(values) if values.dtype == np.float32 else np.abs(values) <= FLOAT32_MAX
            if not usable.all():
                values = np.where(usable, values, values.dtype.type(np.nan))
        if self._label in inner:
            self._y.take(len(values))[:, 0] = values[:, inner.index(self._label)]
        places = [self._place.get(name, -1) for name in inner]
        if values.dtype == np.float32 and places == list(range(places[0], places[0] + len(places))) and places[0] >= 0:
            out[:, places[0] : places[0] + len(places)] = values
            return [None] * len(inner)
        return [values[:, index] for index in range(len(inner))]

    def _numbers(self, name: str, column: pa.Array) -> npt.NDArray[Any]:
        if name in self._coded:
            return self._coded[name].codes(column)
        return number_codes(name, column)

    def arrays(self) -> TrainingArrays:
        x, y = self._x.array(), self._y.array()[:, 0]
        categories = {}
        for name, dictionary in self._coded.items():
            categories[name], renamed = dictionary.sorted()
            if renamed is not None:
                _rename(y if name == self._label else x[:, self._place[name]], renamed)
        return TrainingArrays(
            x=x,
            names=tuple(self._names),
            categories=categories,
            label=None if self._label is None else y,
            times={name: times.array()[:, 0].view("datetime64[us]") for name, times in self._times.items()},
            texts={name: _joined(kept) for name, kept in self._texts.items()},
        )


def _rename(codes: npt.NDArray[Any], new: npt.NDArray[np.float32]) -> None:
    """Old codes to new ones, in place, NaN as it is."""
    table = np.append(new, np.float32(np.nan))
    for start in range(0, len(codes), _FILL_ROWS):
        part = codes[start : start + _FILL_ROWS]
        part[:] = table[np.where(np.isnan(part), -1, part).astype(np.intp)]


def _micros(column: pa.Array) -> npt.NDArray[np.int64]:
    micros = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    if micros.null_count:
        micros = micros.fill_null(np.iinfo(np.int64).min)  # what NumPy takes for not-a-time
    return micros.to_numpy()


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _joined(arrays: list[pa.Array]) -> pa.ChunkedArray:
    """Texts, some of them coded, as one column of the first one's type."""
    same = len({array.type for array in arrays}) == 1
    return pa.chunked_array(
        arrays if same else [a.dictionary_decode() if pa.types.is_dictionary(a.type) else a for a in arrays]
    )
