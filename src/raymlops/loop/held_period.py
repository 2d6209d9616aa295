"""The held-out period of a version, counted whole: which rows, how they are encoded and scored, and where. No Ray.

Which rows is fixed by the snapshot: all behind the train rows of its one Parquet file, in the order of that file. They are read,
encoded, scored and counted chunk by chunk, each chunk the same way whoever has it, so that a process of its own and Spark's
workers count the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymlops.data.columns import encode_into
from raymlops.errors import DataError
from raymlops.registry.package import REFERENCE_ROWS, categories_of
from raymlops.sketch.period import CHUNK, PeriodPart, PeriodPlan, counted
from raymlops.sketch.profile import SCORE, Profile, with_score

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract
    from raymlops.data.snapshot import Arrays, DatasetSnapshot
    from raymlops.lake import Lake
    from raymlops.search.decision import Decision
    from raymlops.search.estimators import Estimator

SPARK_VALUES = 500_000_000
"""Held-out values (rows times columns) from which Spark is asked: this process counts them for three quarters of a minute, and two
cores of Spark start and count in about as long (ADR 28)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutModel:
    """What a gated model says of held-out rows, each by a fit that has not learnt from it.

    Attributes
    ----------
    before : fitted on the train rows alone; says what is said of the validation rows
    after : the gated one; of the test rows
    validation : how many of the held-out rows, which come first, are validation rows
    """

    before: Estimator
    after: Estimator
    decision: Decision
    validation: int
    multiclass: bool

    def scores(self, first: int, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores ``(n,)`` of the held-out rows ``x`` ``(n, d)`` from number ``first`` on, as a package's reference holds them."""
        cut = min(max(self.validation - first, 0), len(x))
        parts = [
            np.asarray(model.predict(rows), dtype=np.float64)
            for model, rows in ((self.before, x[:cut]), (self.after, x[cut:]))
            if len(rows)
        ]
        said = self.decision.apply(np.concatenate(parts))
        return said.argmax(axis=1).astype(np.float64) if self.multiclass else said


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodWork:
    """All that counting chunks of a held-out period needs; travels to wherever that is done.

    Attributes
    ----------
    lake, key : where the snapshot's file lies
    first, rows : of the file's rows the first that is held out, and how many are
    """

    lake: Lake
    key: str
    contract: DataContract
    first: int
    rows: int
    model: HeldOutModel
    plan: PeriodPlan

    @property
    def stored_bytes(self) -> int:
        """Size of the snapshot's file."""
        with self.lake.open(self.key) as stream:
            return stream.seek(0, os.SEEK_END)

    @property
    def chunks(self) -> range:
        return range(-(-self.rows // CHUNK))

    def count(self, number: int, x: NDArray[np.float32]) -> PeriodPart:
        """Chunk ``number``, whose encoded rows are ``x``."""
        return self.plan.count(number, with_score(x, self.model.scores(number * CHUNK, x)))

    def tasks(self) -> list[range]:
        """Runs of chunks to share out: each of those that begin in one row group, which is then read once or hardly more."""
        with self.lake.open(self.key) as stream:
            footer = pq.ParquetFile(stream).metadata
            sizes = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        starts = np.ceil((np.cumsum([0, *sizes]) - self.first) / CHUNK).astype(int).clip(0, len(self.chunks))
        return [range(a, b) for a, b in pairwise(starts.tolist()) if b > a]

    def count_stored(self, chunks: range) -> PeriodPart:
        """A run of chunks, read from the lake."""
        return counted(self.count(number, x) for number, x in zip(chunks, self._read(chunks), strict=True))

    def _read(self, chunks: range) -> Iterator[NDArray[np.float32]]:
        """Encoded rows of each chunk of a run; there is never more than one, and one block of the file, at a time."""
        end = self.first + min(chunks.stop * CHUNK, self.rows)
        row = self.first + chunks.start * CHUNK
        with self.lake.open(self.key) as stream:
            file = pq.ParquetFile(stream)
            bounds = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
            groups = [i for i in range(file.num_row_groups) if bounds[i] < end and bounds[i + 1] > row]
            at, x, filled = int(bounds[groups[0]]), self._room(row, end), 0
            for batch in file.iter_batches(CHUNK, row_groups=groups, columns=list(self.contract.names)):
                rows = batch.slice(max(row - at, 0))
                at += batch.num_rows
                while rows.num_rows and row < end:
                    taken = rows.slice(0, len(x) - filled)
                    self._encode(taken, x[filled : filled + taken.num_rows], row)
                    rows, row, filled = rows.slice(taken.num_rows), row + taken.num_rows, filled + taken.num_rows
                    if filled == len(x):
                        yield x
                        x, filled = self._room(row, end), 0
                if row >= end:
                    return

    def _room(self, row: int, end: int) -> NDArray[np.float32]:
        return np.empty((min(CHUNK, end - row), len(self.contract.columns)), dtype=np.float32)

    def _encode(self, batch: Any, into: NDArray[np.float32], row: int) -> None:
        refused = encode_into(self.contract.unbounded(), batch, into)
        if refused:
            at, reason = next(iter(refused.items()))
            raise DataError(f"The snapshot's file {self.key} is damaged: in row {row + at} {reason}.")


def period_work(lake: Lake, snapshot: DatasetSnapshot, arrays: Arrays, model: HeldOutModel) -> PeriodWork | None:
    """What is to be counted, with borders from 10,000 rows spread evenly over it; ``None`` where no more rows than those are
    held out, which the package keeps one by one."""
    contract, rows = snapshot.contract, len(arrays.y_validation) + len(arrays.y_test)
    if rows <= REFERENCE_ROWS:
        return None
    spread = np.linspace(0, rows - 1, REFERENCE_ROWS).astype(int)
    cut = int(np.searchsorted(spread, model.validation))
    early, late = arrays.x_validation[spread[:cut]], arrays.x_test[spread[cut:] - model.validation]
    scores = [model.scores(0, early), model.scores(model.validation, late)]
    seen = with_score(np.concatenate((early, late)), np.concatenate(scores))
    return PeriodWork(
        lake=lake,
        key=f"{snapshot.key}/data.parquet",
        contract=contract,
        first=snapshot.split.train,
        rows=rows,
        model=model,
        plan=PeriodPlan.learn(seen, (*contract.names, SCORE), categories_of(contract)),
    )


def count_here(work: PeriodWork, arrays: Arrays) -> PeriodPart:
    """The whole period, from the arrays of this process."""

    def held(start: int) -> NDArray[np.float32]:
        cut = work.model.validation
        parts: Sequence[NDArray[np.float32]] = (
            arrays.x_validation[start : start + CHUNK],
            arrays.x_test[max(start - cut, 0) : max(start + CHUNK - cut, 0)],
        )
        return np.concatenate(parts)

    return counted(work.count(number, held(number * CHUNK)) for number in work.chunks)


def count_period(
    work: PeriodWork, arrays: Arrays, ordered: bool, elsewhere: Callable[[PeriodWork], PeriodPart | None] | None = None
) -> Profile:
    """The frozen reference of a held-out period: counted here; or ``elsewhere``, where there is such a place, so much to count
    that it pays, and it does not fail (``None``)."""
    much = work.rows * len(work.contract.columns) >= SPARK_VALUES
    part = elsewhere(work) if elsewhere is not None and much else None
    return work.plan.profile(count_here(work, arrays) if part is None else part, ordered)
