"""Scoring one part of a large input with a verified package: Parquet or CSV in, Parquet out. No Ray."""

from __future__ import annotations

import io
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.data.columns import Encoded, encode_features, encode_table, encode_text, refuse_text
from raymlops.data.parts import Part, read_part
from raymlops.data.schema import DataContract
from raymlops.errors import ContractViolation, DataError, ModelFault
from raymlops.lake import Lake
from raymlops.registry.runtime import OnnxRuntime, Runtime, load_native
from raymlops.serving.bulk_run import RECORDS, REFUSED, SAMPLE_ROWS, Bulk, PartRecord, RuntimeName, write_seen
from raymlops.serving.predictor import Predictor
from raymlops.sketch.histogram import Bins
from raymlops.sketch.observed import Observed, keys_of
from raymlops.sketch.profile import with_score

REASON = "reason"
_MEASURED_ROWS = 8192
_NOT_FINITE = "the model's prediction is not a finite number"


class Scorer:
    """A verified package that scores parts."""

    def __init__(self, bulk: Bulk, predictor: Predictor, folder: Path) -> None:
        self._bulk, self._predictor = bulk, predictor
        self._runtime = load_runtime(folder, predictor, bulk.runtime)
        self._lake = Lake(bulk.output)

    def score(self, part: Part) -> PartRecord:
        """Read, predict and write one part; its record is the last thing that is written.

        Raises
        ------
        DataError : the part cannot be read
        ContractViolation, ModelFault : a row is refused and the run is to fail then
        """
        bulk, rows = self._bulk, 0
        seen = _Seen(self._predictor.bins, part)
        stem = f"part-{part.number:05d}"
        scored = _Files(self._lake, stem, bulk)
        refused = _Files(self._lake, f"{REFUSED}/{stem}", bulk)
        for table in read_part(part, bulk.source, bulk.block_rows):
            encoded = self.encode(table)
            accepted = encoded.accepted()
            x = encoded.x if len(accepted) == len(encoded.x) else encoded.x[accepted]
            prediction = self._predict(x)
            finite = np.isfinite(prediction) if prediction.ndim == 1 else np.isfinite(prediction).all(axis=1)
            reasons = {**encoded.refused, **dict.fromkeys(accepted[~finite].tolist(), _NOT_FINITE)}
            if reasons and bulk.on_bad == "fail":
                raise self._failure(part, rows, reasons, bool(encoded.refused))
            if not finite.all():
                accepted, x, prediction = accepted[finite], x[finite], prediction[finite]
            whole = len(accepted) == len(table)
            scored.add(self._answers(table if whole else table.take(pa.array(accepted)), prediction))
            if reasons:
                refused.add(_refusals(table, part, rows, reasons))
            seen.add(x, self._predictor.score(prediction))
            rows += len(table)
        files = {**scored.close(), **refused.close()}
        write_seen(self._lake, part.number, seen.observed)
        record = PartRecord(
            number=part.number, rows=rows, scored=scored.rows, refused=refused.rows, files=dict(sorted(files.items()))
        )
        if record.rows != record.scored + record.refused:
            raise DataError(f"{part.file}: of {rows} rows {scored.rows} were scored and {refused.rows} refused.")
        self._lake.write(f"{RECORDS}/{part.number:05d}.json", json.dumps(asdict(record)).encode())
        return record

    def encode(self, table: pa.Table) -> Encoded:
        """A block as the model takes it, by the same contract as a request."""
        contract, features = self._predictor.contract, self._predictor.features
        text = bool(self._bulk.source.separator)
        if features is None:
            return encode_text(contract, table) if text else encode_table(contract, table)
        if not text:
            return encode_features(contract, features, table)
        typed, refused = refuse_text(self._bulk.kinds, table)
        if not refused:
            return encode_features(contract, features, typed)
        readable = np.delete(np.arange(len(table)), list(refused))
        part = encode_features(contract, features, typed.take(pa.array(readable)))
        x = np.full((len(table), len(contract.columns)), np.nan, dtype=np.float32)
        x[readable] = part.x
        return Encoded(x, {**refused, **{int(readable[row]): reason for row, reason in part.refused.items()}})

    def _predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if not len(x):
            return self._predictor.predict(x)
        try:
            return self._runtime.predict(x)
        except Exception as error:
            raise ModelFault(
                f"Version {self._bulk.version} failed on a block of {len(x)} rows: {type(error).__name__}: {error}"
            ) from error

    def _failure(self, part: Part, before: int, reasons: dict[int, str], contract: bool) -> DataError | ModelFault:
        first = min(reasons)
        kind = ContractViolation if contract else ModelFault
        return kind(
            f"{part.file}, row {before + first} of part {part.number}: {reasons[first]}. {len(reasons)} rows of this block "
            "cannot be scored. Correct them, or put such rows aside with --on-bad keep (and --resume).",
            {"file": part.file, "part": part.number, "row": before + first, "refused": len(reasons)},
        )

    def _answers(self, table: pa.Table, prediction: npt.NDArray[Any]) -> pa.Table:
        answers = answer_columns(self._predictor.contract, prediction)
        named = set(self._predictor.contract.names)
        keep = self._bulk.keep
        kept = [name for name in table.column_names if (name not in named if keep is None else name in keep)]
        columns = {_apart(name, answers): table.column(name) for name in kept}
        return pa.table({**columns, **answers})


def answer_columns(contract: DataContract, prediction: npt.NDArray[Any]) -> dict[str, pa.Array]:
    """Predictions as a request's answer holds them: ``prediction``, and ``probability`` (binary) or ``probabilities``.

    ``prediction`` is what :meth:`Predictor.predict` gives for n rows; ``probabilities`` are in the order of the classes.
    """
    if contract.task == "regression":
        return {"prediction": pa.array(prediction, pa.float64())}
    classes = pa.array(contract.classes)
    if contract.task == "binary":
        chosen = classes.take(pa.array((prediction >= 0.5).astype(np.int8)))
        return {"prediction": chosen, "probability": pa.array(prediction, pa.float64())}
    flat = pa.array(np.ascontiguousarray(prediction, dtype=np.float64).reshape(-1))
    chosen = classes.take(pa.array(prediction.argmax(axis=1)))
    return {"prediction": chosen, "probabilities": pa.FixedSizeListArray.from_arrays(flat, len(contract.classes))}


def load_runtime(folder: Path, predictor: Predictor, name: RuntimeName) -> Runtime:
    """One of the runtimes a verified package offers."""
    contract = predictor.contract
    if name == "onnx":
        return OnnxRuntime((folder / "model.onnx").read_bytes(), contract.task)
    return load_native(folder, predictor.manifest.form, contract.task, len(contract.classes))


def choose_runtime(folder: Path, predictor: Predictor) -> RuntimeName:
    """What is faster for a large block: the least of three timings each on rows of the reference, repeated to 8,192."""
    if "model.onnx" not in predictor.manifest.files:
        return "native"
    x = np.resize(predictor.reference.x, (_MEASURED_ROWS, len(predictor.contract.columns)))
    names: tuple[RuntimeName, ...] = ("native", "onnx")
    taken = {name: _seconds(load_runtime(folder, predictor, name), x) for name in names}
    return min(names, key=lambda name: taken[name])


def _seconds(runtime: Runtime, x: npt.NDArray[np.float32]) -> float:
    runtime.predict(x)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        runtime.predict(x)
        times.append(time.perf_counter() - began)
    return min(times)


def _refusals(table: pa.Table, part: Part, before: int, reasons: dict[int, str]) -> pa.Table:
    rows = sorted(reasons)
    own = {
        "file": pa.array([part.file] * len(rows)),
        "part": pa.array([part.number] * len(rows), pa.int64()),
        "row": pa.array([before + row for row in rows], pa.int64()),
        REASON: pa.array([reasons[row] for row in rows], pa.string()),
    }
    some = table.take(pa.array(rows, pa.int64()))
    return pa.table({**own, **{_apart(name, own): some.column(name) for name in some.column_names}})


def _apart(name: str, taken: dict[str, Any]) -> str:
    """A column that has the name of one of ours is kept as ``raw.NAME``, as in the prediction log."""
    return f"raw.{name}" if name in taken else name


class _Files:
    """Tables gathered into Parquet files of about ``file_rows`` rows; the first stays even when it is empty."""

    def __init__(self, lake: Lake, stem: str, bulk: Bulk) -> None:
        self._lake, self._stem, self._limit = lake, stem, bulk.file_rows
        self._facts = {
            "raymlops.endpoint": bulk.endpoint,
            "raymlops.version": str(bulk.version),
            "raymlops.digest": bulk.digest,
        }
        self._waiting: list[pa.Table] = []
        self._files: dict[str, int] = {}
        self.rows = self._held = 0

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._held += len(table)
        self.rows += len(table)
        if self._held >= self._limit:
            self._write()

    def close(self) -> dict[str, int]:
        if self._held or (self._waiting and not self._files):
            self._write()
        return self._files

    def _write(self) -> None:
        table = pa.concat_tables(self._waiting)
        key = f"{self._stem}-{len(self._files):04d}.parquet"
        buffer = io.BytesIO()
        # Numbers hardly repeat: looking for a dictionary in them costs more than it saves.
        words = [field.name for field in table.schema if not pa.types.is_primitive(field.type)]
        table = table.replace_schema_metadata(self._facts)
        pq.write_table(table, buffer, compression="zstd", use_dictionary=words or False)
        self._lake.write(key, buffer.getvalue())
        self._files[key] = buffer.tell()
        self._waiting, self._held = [], 0


class _Seen:
    """A part counted in the bins of the version's reference, with its share of the run's sample, the same in every run.

    Twice its share by bytes: parts whose rows are longer or shorter than others' still hold as many as the whole needs.
    """

    def __init__(self, bins: Bins, part: Part) -> None:
        self._bins, self._limit = bins, 2 * int(np.ceil(SAMPLE_ROWS * part.share)) + 20
        self._start = int(np.random.SeedSequence(part.number).generate_state(1, np.uint64)[0])
        self.observed = Observed.empty(bins)

    def add(self, x: npt.NDArray[np.float32], scores: npt.NDArray[np.float64]) -> None:
        keys = keys_of(self.observed.rows, len(x), self._start)
        fresh = Observed.of(self._bins, with_score(x, scores), 0.0, keys, limit=self._limit)
        self.observed = (self.observed + fresh).limit(self._limit)
