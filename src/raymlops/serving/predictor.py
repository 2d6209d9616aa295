"""A package loaded for prediction: one row or a million, ONNX Runtime or native (whichever is faster), no Ray."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.data.features import FeatureFunction, apply_features
from raymlops.data.raw import check_raw, frame_of
from raymlops.data.schema import Column, DataContract, Sent
from raymlops.data.tables import TableRows, encode_table_rows
from raymlops.errors import ContractViolation, DataError
from raymlops.explain.explainers import explainer_for
from raymlops.explain.explanation import Explainer
from raymlops.registry.package import BATCH_SIZES, DECISION, PROFILE, Manifest, Reference, verify
from raymlops.registry.runtime import OnnxRuntime, Runtime, load_estimator, load_native
from raymlops.search.decision import Decision
from raymlops.serving.batching import layout_of
from raymlops.sketch.histogram import Bins
from raymlops.sketch.profile import Profile

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.floating[Any]]
_PLANNED = sorted(
    {size * step // 8 for size in BATCH_SIZES for step in range(8, 32, 2)}
)  # four steps between two sizes


class Predictor:
    """Answers for one version. Made by :meth:`load`; ``predict`` may be called from several threads.

    Attributes
    ----------
    contract : the columns the model takes, after ``features``
    features : the user's function from request rows to those columns, or ``None``
    raw : the columns ``features`` was trained on, where the package knows them; requests may hold no others
    manifest : of the package
    version : the number the caller gave, 0 when none
    layout : see :attr:`raymlops.serving.batching.Model.layout`
    decision : calibration and threshold; :meth:`predict` calibrates, :meth:`answer` decides by the threshold
    """

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        contract: DataContract,
        features: FeatureFunction | None,
        manifest: Manifest,
        folder: Path,
        decision: Decision | None = None,
    ) -> None:
        self.contract = contract
        self.decision = decision or Decision()
        self._calibrate = self.decision.calibration.mapper() if self.decision.calibrates else None
        self._cut = self.decision.threshold.value
        self.features = features
        self.layout = layout_of(contract) if features is None else None
        self.manifest = manifest
        self.version = 0
        self.raw: tuple[Column, ...] | None = None
        self._runtimes = runtimes
        # Which runtime from which number of rows on; the last entry that is reached counts.
        steps = [(rows, manifest.runtime_for(rows)) for rows in _PLANNED]
        changes = [step for before, step in zip([(0, None), *steps], steps, strict=False) if before[1] != step[1]]
        self._plan = [(rows, runtimes[name]) for rows, name in changes]
        self._folder = folder
        self._reference: Reference | None = None
        self._profile: Profile | None = None
        self._explainer: Explainer | None = None
        self._explaining = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, version: int = 0, digest: str | None = None) -> Predictor:
        """Verify a package and load it.

        Raises
        ------
        DigestMismatch : a byte of it was changed; nothing was parsed
        """
        root = Path(folder)
        manifest = verify(root, digest)
        contract = DataContract.from_dict(json.loads((root / "contract.json").read_bytes()))
        wanted = {manifest.runtime_for(rows) for rows in _PLANNED}
        runtimes: dict[str, Runtime] = {}
        if "onnx" in wanted:
            runtimes["onnx"] = OnnxRuntime((root / "model.onnx").read_bytes(), contract.task)
        if "native" in wanted:
            runtimes["native"] = load_native(root, manifest.form, contract.task, len(contract.classes))
        features = pickle.loads((root / "features.pkl").read_bytes()) if "features.pkl" in manifest.files else None
        decision = None
        if DECISION in manifest.files:
            decision = Decision.from_dict(json.loads((root / DECISION).read_bytes()))
        loaded = cls(runtimes, contract, features, manifest, root, decision)
        loaded.version = version
        if "raw.json" in manifest.files:
            loaded.raw = tuple(Column.from_dict(item) for item in json.loads((root / "raw.json").read_bytes()))
        # The first call is slow in every library; no request should be the one to pay for it.
        for runtime in runtimes.values():
            runtime.predict(np.zeros((1, len(contract.columns)), dtype=np.float32))
        return loaded

    @property
    def inputs(self) -> tuple[Column, ...]:
        """What a request row holds: the contract's columns, or what ``features`` makes them of."""
        return self.raw or self.contract.columns

    @property
    def reference(self) -> Reference:
        """The held-out rows of the package; read when first asked for: by the monitor, or for the first explanation."""
        if self._reference is None:
            self._reference = Reference.from_bytes((self._folder / "reference.npz").read_bytes())
        return self._reference

    @property
    def profile(self) -> Profile:
        """The reference as counts, frozen with the version; a package from before there was one has it learned again."""
        if self._profile is None:
            made = PROFILE in self.manifest.files
            self._profile = (
                Profile.from_bytes((self._folder / PROFILE).read_bytes())
                if made
                else self.reference.profile(self.contract)
            )
        return self._profile

    @property
    def bins(self) -> Bins:
        """What this version's traffic is counted in."""
        return self.profile.bins

    @property
    def explainer(self) -> Explainer:
        """Explains what the model itself says, before calibration; made when first asked for, which takes a moment.

        Raises
        ------
        DigestMismatch : the package was changed since it was loaded
        """
        with self._explaining:
            if self._explainer is None:
                verify(self._folder, self.manifest.digest or None)
                contract = self.contract
                trained = load_estimator(self._folder, self.manifest.form, contract.task, len(contract.classes))
                self._explainer = explainer_for(trained, contract, self.reference.x)
            return self._explainer

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
        """Request rows as the model's matrix, ``(n_rows, n_features)`` float32.

        Raises
        ------
        ContractViolation : rows that break the contract, or that ``features`` cannot work on
        """
        return self._encode(rows)[0]

    def _encode(self, rows: Sequence[Mapping[str, Any]]) -> tuple[npt.NDArray[np.float32], Sent | None]:
        table = rows.table if isinstance(rows, TableRows) else None
        if self.features is None:
            return self.contract.encode_sent(rows) if table is None else (encode_table_rows(self.contract, table), None)
        if self.raw is not None:
            check_raw(self.raw, rows)
        try:
            made = apply_features(self.features, self._frame(rows) if table is None else table.to_pandas())
        except DataError as error:
            raise ContractViolation(f"{error.message} The rows do not fit this endpoint.") from error
        return self.contract.encode(made), None

    def _frame(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(list(rows)) if self.raw is None else frame_of(self.raw, rows)

    def _runtime_for(self, count: int) -> Runtime:
        runtime = self._plan[0][1]
        for rows, faster in self._plan:
            if rows > count:
                break
            runtime = faster
        return runtime

    def predict(self, x: Floats) -> Floats:
        """Positive-class probability ``(n,)``, class probabilities ``(n, k)``, or values ``(n,)``, float64."""
        count = len(x)
        if count == 0:
            k = len(self.contract.classes)
            return np.empty((0, k) if self.contract.task == "multiclass" else 0)
        prediction = self._runtime_for(count).predict(x)
        return prediction if self._calibrate is None else self._calibrate(prediction)

    def predict_rows(self, rows: Sequence[Mapping[str, Any]]) -> tuple[npt.NDArray[np.float32], Floats, Sent | None]:
        """The encoded rows, the prediction for them, and the rows as they were sent when no ``features`` work on them.

        Raises :class:`ContractViolation`.
        """
        x, sent = self._encode(rows)
        return x, self.predict(x), sent

    def score(self, prediction: Floats) -> npt.NDArray[np.float64]:
        """One number a row ``(n,)``, as the log and the monitor keep it: positive probability, class index, or value."""
        if self.contract.task == "multiclass":
            return np.asarray(prediction.argmax(axis=1), dtype=np.float64)
        return np.asarray(prediction, dtype=np.float64)

    def answer(self, prediction: Floats) -> tuple[list[Any], list[Any] | None]:
        """What a client reads: predictions, and probabilities or ``None``; both JSON-serialisable.

        A binary task answers with a class (from the threshold on the positive one) and the positive class's probability, a
        multiclass one with a class and the probabilities in the order of ``contract.classes``, a regression with values.
        """
        classes = self.contract.classes
        if self.contract.task == "regression":
            return prediction.tolist(), None
        if self.contract.task == "binary":
            values = prediction.tolist()
            cut = self._cut
            return [classes[1] if value >= cut else classes[0] for value in values], values
        return [classes[index] for index in prediction.argmax(axis=1).tolist()], prediction.tolist()


def measure_latency(predictor: Predictor, row: Mapping[str, Any] | Floats, n: int = 200) -> float:
    """p99 of answering one row, in milliseconds: the smallest of three blocks of ``n`` calls.

    What else the machine does is not the model's doing, so the least disturbed block counts, and in it
    :func:`undisturbed_p99`: a gate that is run beside other work must not refuse a model for it.

    Parameters
    ----------
    row : a request row, which is encoded each time, or an encoded one ``(1, n_features)``, which is not
    """
    return min(_p99_ms(predictor, row, n) for _ in range(3))


def _p99_ms(predictor: Predictor, row: Mapping[str, Any] | Floats, n: int) -> float:
    wall, busy = np.empty(n), np.empty(n)
    for i in range(n):
        began, worked = time.perf_counter(), time.thread_time()
        prediction = predictor.predict_rows([row])[1] if isinstance(row, Mapping) else predictor.predict(row)
        predictor.answer(prediction)
        busy[i], wall[i] = time.thread_time() - worked, time.perf_counter() - began
    return undisturbed_p99(wall, busy) * 1000.0


def undisturbed_p99(wall: npt.NDArray[np.float64], busy: npt.NDArray[np.float64]) -> float:
    """p99 of ``wall`` seconds ``(n,)`` as on a machine that does nothing else: of the thread's own ``busy`` seconds, times what a
    usual call takes for each busy second. Waiting that every call does counts; being kept from the processor now and then does not.
    """
    waits = float(np.median(wall)) / max(float(np.median(busy)), 1e-9)
    return min(float(np.quantile(busy, 0.99)) * max(1.0, waits), float(np.quantile(wall, 0.99)))
