"""An immutable dataset version: Parquet in the lake, named by the SHA-256 of what it holds, split once and for all."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.data.assess import Assessment
from raymlops.data.columns import encode_into
from raymlops.data.schema import DataContract
from raymlops.data.snapshot_origin import Origin
from raymlops.data.snapshot_print import ContentPrint, row_hashes
from raymlops.data.snapshot_profile import ColumnProfile, profile
from raymlops.data.split import Split, SplitBy, column_of, split_rows
from raymlops.errors import DataError
from raymlops.lake import Lake

_PROFILE_ROWS = 262_144
_FILL_ROWS = 16_384  # so many rows of some tens of columns stay in a core's cache while their columns are written


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSnapshot:
    """What a model was trained on.

    Attributes
    ----------
    fingerprint : SHA-256 over what the rows hold, the contract, the split and the code that made them
    key : folder in the lake, ``snapshots/{name}/{fingerprint}``
    source : a few words on where the rows came from
    created_at : seconds since 1970
    content : :class:`raymlops.data.snapshot_print.ContentPrint` of the rows: the same for the same rows in any order
    profile : each stored column in figures
    origin : files, code and plan that made the rows
    """

    name: str
    fingerprint: str
    key: str
    rows: int
    contract: DataContract
    time: str | None
    split: Split
    source: str
    created_at: float
    assessment: Assessment
    content: str = ""
    profile: tuple[ColumnProfile, ...] = ()
    origin: Origin = field(default_factory=Origin)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        names = ("name", "fingerprint", "key", "rows", "time", "source", "created_at", "content")
        parts = ("contract", "split", "assessment", "origin")
        return (
            {name: getattr(self, name) for name in names}
            | {name: getattr(self, name).to_dict() for name in parts}
            | {"profile": [column.to_dict() for column in self.profile]}
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetSnapshot:
        parts = {
            "contract": DataContract.from_dict(data["contract"]),
            "split": Split(**data["split"]),
            "assessment": Assessment.from_dict(data["assessment"]),
            "profile": tuple(ColumnProfile.from_dict(column) for column in data.get("profile", ())),
            "origin": Origin.from_dict(data["origin"]) if "origin" in data else Origin(),
        }
        return cls(**{**data, **parts})


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """A snapshot, encoded: ``x_*`` float32 (n, n_features), ``y_*`` float64 (n,), ``time_test`` seconds (n,)."""

    x_train: npt.NDArray[np.float32]
    y_train: npt.NDArray[np.float64]
    x_validation: npt.NDArray[np.float32]
    y_validation: npt.NDArray[np.float64]
    x_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.float64]
    time_test: npt.NDArray[np.float64] | None


# --- order and split -----------------------------------------------------------------------------------


def order_by_time(frame: pd.DataFrame, time: str | None) -> pd.DataFrame:
    """The rows in the order of ``time`` (stable; text is parsed as times), with a fresh index.

    Raises
    ------
    DataError : text that is not a time, a missing time
    """
    if time is None:
        return frame.reset_index(drop=True)
    column = times_in(frame[time])
    missing = int(column.isna().sum())
    if missing:
        raise DataError(f"The time column {time!r} is missing in {missing} of {len(frame)} rows: drop or repair them.")
    return frame.assign(**{time: column}).sort_values(time, kind="stable", ignore_index=True)


def times_in(column: pd.Series) -> pd.Series:
    """A time column as numbers, or as timestamps that are naive in UTC; text is parsed.

    Raises
    ------
    DataError : text that is not a time
    """
    if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)):
        try:
            column = pd.to_datetime(column)
        except (ValueError, TypeError) as error:
            advice = "Give numbers, timestamps, or text such as 2026-01-31 12:00:00."
            raise DataError(f"The time column {column.name!r} cannot be read as times: {error}. {advice}") from error
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    return column


def seconds_of(column: pd.Series) -> npt.NDArray[np.float64]:
    """A time column as float seconds (numbers are taken as they are), shape (n,)."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return np.asarray(column.astype("datetime64[us]").astype("int64"), dtype=np.float64) / 1e6
    return np.asarray(column, dtype=np.float64)


# --- writing and reading -------------------------------------------------------------------------------


def write_snapshot(
    lake: Lake,
    name: str,
    frame: pd.DataFrame,
    contract: DataContract,
    time: str | None,
    source: str,
    assessment: Assessment,
    now: float,
    holdout_rows: int | None = None,
    seed: int = 0,
    by: SplitBy | None = None,
    origin: Origin | None = None,
) -> DatasetSnapshot:
    """Order, split and store ``frame``; the same rows in any order give the same snapshot, which is then not written again.

    Only the contract's columns, the label and the time are stored, of the rows that the split uses.

    Raises
    ------
    ContractViolation : the frame breaks the contract
    DataError : too few rows, or a time that cannot be read
    """
    columns = [*contract.names, contract.label, *([time] if time else [])]
    by = by or SplitBy()
    extra = [name for name in (by.group, by.stratify) if name in frame.columns and name not in columns]
    rows = order_by_time(frame[[*columns, *extra]], time)
    if time is None:
        # By what they hold, so that neither the order in which they came nor their partitions decide the split.
        rows = rows.iloc[np.lexsort(row_hashes(rows))].reset_index(drop=True)
    contract.encode(rows)
    labels = contract.encode_label(rows[contract.label])
    classes = None if contract.task == "regression" else labels
    parts = split_rows(
        len(rows),
        by,
        times=seconds_of(rows[time]) if time else None,
        keys=column_of(rows, "group", by.group) if by.group else None,
        strata=column_of(rows, "stratify", by.stratify).astype(str).to_numpy() if by.stratify else classes,
        holdout_rows=holdout_rows,
        seed=seed,
    )
    split = parts.counts()
    rows = rows[columns].iloc[parts.order].reset_index(drop=True)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    origin = origin or Origin()
    content = ContentPrint.of(table)
    meaning = {"contract": contract.to_dict(), "time": time, "split": split.to_dict(), "code": origin.digest}
    # The rows are in time order, or in an order that the seed alone decides.
    fingerprint = fingerprint_of(content, meaning | ({} if split.ordered else {"seed": seed}))
    key = f"snapshots/{name}/{fingerprint}"
    if lake.exists(f"{key}/snapshot.json"):
        return load_snapshot(lake, key)
    snapshot = DatasetSnapshot(
        name=name,
        fingerprint=fingerprint,
        key=key,
        rows=len(rows),
        contract=contract,
        time=time,
        split=split,
        source=source,
        created_at=now,
        assessment=assessment,
        content=str(content),
        profile=profile(table.slice(start, _PROFILE_ROWS) for start in range(0, table.num_rows, _PROFILE_ROWS)),
        origin=origin,
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    lake.write(f"{key}/data.parquet", sink.getvalue())
    # Written last: where snapshot.json is, the rows are complete.
    lake.write(f"{key}/snapshot.json", json.dumps(snapshot.to_dict(), indent=1).encode())
    return snapshot


def load_snapshot(lake: Lake, key: str) -> DatasetSnapshot:
    """The snapshot under ``key``. Raises :class:`DataError` when the lake holds none."""
    return DatasetSnapshot.from_dict(json.loads(lake.read(f"{key}/snapshot.json")))


def read_frame(
    lake: Lake, snapshot: DatasetSnapshot, start: int = 0, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """The stored rows in split order (train, validation, test) from ``start`` on; of ``columns`` only, when they are given."""
    content = pa.BufferReader(lake.read(f"{snapshot.key}/data.parquet"))
    table = pq.read_table(content, columns=None if columns is None else list(columns))
    return table.slice(start).to_pandas()


def load_arrays(lake: Lake, snapshot: DatasetSnapshot) -> Arrays:
    """The stored rows, encoded by the snapshot's contract and cut into its three parts.

    The matrix is filled block by block: beside it and the stored bytes there is one block of rows.
    """
    contract, time = snapshot.contract, snapshot.time
    x = np.empty((snapshot.rows, len(contract.columns)), dtype=np.float32)
    labels: list[npt.NDArray[np.float64]] = []
    times: list[npt.NDArray[np.float64]] = []
    first = snapshot.split.train
    second = first + snapshot.split.validation
    row = 0
    file = pq.ParquetFile(pa.BufferReader(lake.read(f"{snapshot.key}/data.parquet")))
    for batch in file.iter_batches(_FILL_ROWS, columns=[*contract.names, contract.label, *([time] if time else [])]):
        refused = encode_into(contract.unbounded(), batch, x[row : row + batch.num_rows])
        if refused:
            at, reason = next(iter(refused.items()))
            raise DataError(f"The snapshot {snapshot.key} is damaged: in row {row + at} {reason}.")
        labels.append(contract.encode_label(batch.column(contract.label).to_pandas()))
        row += batch.num_rows
        if time:
            skipped = max(0, second - row + batch.num_rows)
            times.append(seconds_of(batch.column(time).slice(skipped).to_pandas()))
    y = np.concatenate(labels)
    return Arrays(
        x_train=x[:first],
        y_train=y[:first],
        x_validation=x[first:second],
        y_validation=y[first:second],
        x_test=x[second:],
        y_test=y[second:],
        time_test=np.concatenate(times) if time else None,
    )


def fingerprint_of(content: ContentPrint, meaning: Mapping[str, Any]) -> str:
    """SHA-256 over what the rows hold, in whatever order, and over ``meaning``."""
    text = json.dumps({"content": str(content), **meaning}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
