"""What is stored of a version: the model natively and as ONNX, its contract, its features, its reference, a manifest.

Nothing in a package is parsed before every byte of it was checked against the manifest, and the manifest against the
digest that the registry holds: a damaged XGBoost file can predict wrongly without a word, and a pickle is a program.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from raymlops.by_value import dumps_by_value
from raymlops.data.features import FeatureFunction
from raymlops.data.schema import Column, DataContract
from raymlops.errors import DataError, DigestMismatch
from raymlops.lake import Lake, sha256_of
from raymlops.registry.native import Form, write_native
from raymlops.registry.runtime import OnnxRuntime, Runtime, load_native, to_onnx
from raymlops.search.decision import Decision
from raymlops.sketch.profile import Profile

if TYPE_CHECKING:
    from raymlops.search.estimators import Estimator

MANIFEST, DECISION, PROFILE = "manifest.json", "decision.json", "profile.npz"
CARD, CARD_PAGE = "card.json", "card.html"
REFERENCE_ROWS = 10_000
BATCH_SIZES = (1, 4, 16, 64, 256, 1024)  # what a gateway's tick may hold
_PARITY = 1e-4
_PARITY_ROWS = 1000
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Held-out rows and what the gated model said of them: what the monitor compares live traffic with.

    Attributes
    ----------
    columns : the model's inputs
    x : ``(n, d)`` float32, at most 10,000 rows, oldest first when ``ordered``
    scores : ``(n,)`` positive probability, class index, or value
    losses : ``(n,)`` loss of each row
    """

    columns: tuple[str, ...]
    x: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    ordered: bool

    def __post_init__(self) -> None:
        n = len(self.x)
        if self.x.shape != (n, len(self.columns)) or len(self.scores) != n or len(self.losses) != n:
            raise DataError(
                f"A reference of {self.x.shape} rows and columns, {len(self.columns)} names, {len(self.scores)} scores and "
                f"{len(self.losses)} losses does not fit together."
            )

    def categories(self, contract: DataContract) -> dict[int, int]:
        """:func:`categories_of` the contract; the score's column is the last."""
        return categories_of(contract)

    def profile(self, contract: DataContract) -> Profile:
        """The bins that live traffic is counted in, and these rows counted."""
        return Profile.learn(self.x, self.scores, self.columns, categories_of(contract))

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            columns=np.array(self.columns, dtype=np.str_),
            x=self.x.astype(np.float32),
            scores=np.asarray(self.scores, dtype=np.float64),
            losses=np.asarray(self.losses, dtype=np.float64),
            ordered=np.array(self.ordered),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Reference:
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            return cls(
                columns=tuple(str(name) for name in held["columns"]),
                x=held["x"],
                scores=held["scores"],
                losses=held["losses"],
                ordered=bool(held["ordered"]),
            )


def categories_of(contract: DataContract) -> dict[int, int]:
    """How many codes each column of categories has, by its index; a multiclass score, the class, which comes last, is one."""
    found = {i: len(column.categories) for i, column in enumerate(contract.columns) if column.kind == "category"}
    return found | ({len(contract.columns): len(contract.classes)} if contract.task == "multiclass" else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the package holds and how it is to be run.

    Attributes
    ----------
    files : SHA-256 of every file by name
    form : of the native model, ``"xgboost"`` (``model.json``), ``"pickle"`` (``model.pkl``) or ``"ensemble"`` (``ensemble.json`` and a
        file a member)
    runtime : what was faster for one row when the package was built
    onnx : why there is no ONNX form, or ``""`` when there is one
    latency_us : microseconds for one row, by runtime
    batch_us : microseconds for a batch, by runtime and number of rows; :meth:`runtime_for` reads it
    versions : of Python and the libraries that made the package
    digest : SHA-256 of the manifest's own bytes; not part of them
    """

    files: Mapping[str, str]
    form: Form
    runtime: Literal["onnx", "native"]
    onnx: str
    latency_us: Mapping[str, float]
    versions: Mapping[str, str]
    metadata: Mapping[str, Any]
    batch_us: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    digest: str = field(default="", compare=False)

    def runtime_for(self, rows: int) -> Literal["onnx", "native"]:
        """The faster runtime for a batch of ``rows``; between two measured sizes, by the line through their times."""
        native, onnx = self.batch_us.get("native", {}), self.batch_us.get("onnx", {})
        sizes = sorted(int(size) for size in native if size in onnx)
        if not sizes:
            return self.runtime
        ahead = [native[str(size)] - onnx[str(size)] for size in sizes]
        return "onnx" if np.interp(rows, sizes, ahead) > 0 else "native"

    def to_bytes(self) -> bytes:
        names = ("files", "form", "runtime", "onnx", "latency_us", "batch_us", "versions", "metadata")
        body = {"format": _FORMAT, **{name: getattr(self, name) for name in names}}
        return json.dumps(body, sort_keys=True, indent=1, default=str).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        body = json.loads(content)
        if body.pop("format") != _FORMAT:
            raise DigestMismatch(
                "The package has another format than this raymlops reads: use the release that wrote it."
            )
        return cls(**body, digest=sha256_of(content))


# --- building --------------------------------------------------------------------------------------


def build_package(
    folder: str | Path,
    estimator: Estimator,
    contract: DataContract,
    features: FeatureFunction | None,
    reference: Reference,
    metadata: Mapping[str, Any],
    raw: Sequence[Column] | None = None,
    *,
    decision: Decision | None = None,
    profile: Profile | None = None,
    extras: Callable[[Mapping[str, Any]], Mapping[str, bytes]] | None = None,
) -> Manifest:
    """Write a package into ``folder``, which is made or emptied.

    Parameters
    ----------
    reference : its scores are what a version says, so calibrated ones where ``decision`` calibrates
    raw : what ``features`` takes, where it is known
    decision : calibration and threshold that serving applies to what the model says; the model's own when left out
    profile : what traffic is counted in and compared with, of a whole held-out period; the reference's own when left out
    extras : more files by name, such as the model card, made when the package's own figures are known: ``form``,
        ``runtime``, ``onnx``, ``latency_us``, ``size_mb``

    The ONNX form is kept when it agrees with the native model within 1e-4 (of the spread, for a regression) on rows of the
    reference, also with values missing where the contract lets them be; the faster of the two for a batch's size, as
    measured here, will answer requests.
    """
    target = Path(folder)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    form = write_native(target, estimator)
    native = load_native(target, form, contract.task, len(contract.classes))
    onnx, reason = _onnx(estimator, native, contract, reference)
    runtimes: dict[str, Runtime] = {"native": native}
    if onnx is not None:
        (target / "model.onnx").write_bytes(onnx)
        runtimes["onnx"] = OnnxRuntime(onnx, contract.task)
    batches = {
        name: {str(rows): _batch_us(runtime, reference.x, rows) for rows in BATCH_SIZES}
        for name, runtime in runtimes.items()
    }
    latency = {name: times["1"] for name, times in batches.items()}
    (target / "contract.json").write_text(json.dumps(contract.to_dict(), sort_keys=True))
    if features is not None:
        (target / "features.pkl").write_bytes(dumps_by_value(features, [features]))
        if raw is not None:
            (target / "raw.json").write_text(json.dumps([column.to_dict() for column in raw], sort_keys=True))
    (target / "reference.npz").write_bytes(reference.to_bytes())
    (target / PROFILE).write_bytes((reference.profile(contract) if profile is None else profile).to_bytes())
    if decision is not None:
        (target / DECISION).write_text(json.dumps(decision.to_dict(), sort_keys=True))
    faster: Literal["onnx", "native"] = "onnx" if latency.get("onnx", np.inf) < latency["native"] else "native"
    if extras is not None:
        figures = {"form": form, "runtime": faster, "onnx": reason, "latency_us": latency, "size_mb": size_mb(target)}
        for name, content in extras(figures).items():
            (target / name).write_bytes(content)
    content = Manifest(
        files={path.name: sha256_of(path.read_bytes()) for path in sorted(target.iterdir())},
        form=form,
        runtime=faster,
        onnx=reason,
        latency_us=latency,
        batch_us=batches,
        versions={
            "python": platform.python_version(),
            **{name: version_of(name) for name in ("raymlops", "numpy", "scikit-learn", "xgboost", "onnxruntime")},
        },
        metadata=dict(metadata),
    ).to_bytes()
    (target / MANIFEST).write_bytes(content)
    return Manifest.from_bytes(content)


def size_mb(folder: str | Path) -> float:
    """Size of all files of a package, in megabytes (10**6 bytes)."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6


def _onnx(
    estimator: Estimator, native: Runtime, contract: DataContract, reference: Reference
) -> tuple[bytes | None, str]:
    """The ONNX form, or the reason why there is none."""
    try:
        content = to_onnx(estimator, len(contract.columns))
        sample = _parity_rows(contract, reference.x)
        expected = native.predict(sample)
        difference = float(np.max(np.abs(OnnxRuntime(content, contract.task).predict(sample) - expected)))
    except DataError as error:
        return None, error.message
    except Exception as error:
        return None, f"ONNX Runtime refused the model: {type(error).__name__}: {str(error)[:200]}"
    allowed = _PARITY
    if contract.task == "regression":
        # Values have no natural size: the difference is measured against their spread, and both sum in float32.
        allowed = _PARITY * float(np.std(expected)) + 1e-6 * float(np.max(np.abs(expected)))
    if not difference <= allowed:
        return None, f"ONNX and native differ by {difference:.2g}, more than {allowed:.2g}"
    return content, ""


def _parity_rows(contract: DataContract, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Reference rows spread over time, and once more with a tenth of the values missing that may be missing."""
    some = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), _PARITY_ROWS)).astype(int))]
    holes = some.copy()
    may_miss = np.array([column.nullable or column.kind == "category" for column in contract.columns])
    holes[(np.random.default_rng(0).random(holes.shape) < 0.1) & may_miss] = np.nan
    return np.concatenate([some, holes])


def _batch_us(runtime: Runtime, x: npt.NDArray[np.float32], rows: int, n: int = 30) -> float:
    """Microseconds of predicting ``rows`` rows of the reference, repeated where it has fewer: the first decile of some calls,
    for what else the machine does is not the runtime's doing."""
    batch = np.ascontiguousarray(np.resize(x, (rows, x.shape[1])))
    for _ in range(3):
        runtime.predict(batch)
    times = []
    for _ in range(n):
        began = time.perf_counter()
        runtime.predict(batch)
        times.append(time.perf_counter() - began)
    return round(float(np.quantile(times, 0.1)) * 1e6, 1)


# --- checking and moving ---------------------------------------------------------------------------


def verify(folder: str | Path, digest: str | None = None) -> Manifest:
    """Check every byte before any of them is parsed.

    Parameters
    ----------
    digest : SHA-256 of the manifest as the registry holds it; without it, only the files are checked against the manifest

    Raises
    ------
    DigestMismatch : names the file that was changed, is missing, or does not belong
    """
    root = Path(folder)
    if not (root / MANIFEST).is_file():
        raise DigestMismatch(f"{root} is no package: it has no {MANIFEST}. Fetch it again.")
    content = (root / MANIFEST).read_bytes()
    if digest is not None and sha256_of(content) != digest:
        raise _mismatch(MANIFEST, root, sha256_of(content), digest)
    try:
        manifest = Manifest.from_bytes(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DigestMismatch(
            f"{MANIFEST} in {root} cannot be read: it was changed. The package is not loaded."
        ) from error
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {MANIFEST}
    if lost := sorted(set(manifest.files) - there):
        raise DigestMismatch(
            f"{lost[0]} is missing from the package in {root}. The package is not loaded; fetch it again."
        )
    if alien := sorted(there - set(manifest.files)):
        raise DigestMismatch(f"{alien[0]} in {root} is not named by the manifest. The package is not loaded.")
    for name, expected in sorted(manifest.files.items()):
        found = sha256_of((root / name).read_bytes())
        if found != expected:
            raise _mismatch(name, root, found, expected)
    return manifest


def _mismatch(name: str, root: Path, found: str, expected: str) -> DigestMismatch:
    return DigestMismatch(
        f"{name} in {root} has SHA-256 {found[:16]}…, not {expected[:16]}…: its bytes were changed. The package is not "
        "loaded; fetch it again or restore it from a backup.",
        {"file": name, "found": found, "expected": expected},
    )


def upload(lake: Lake, key: str, folder: str | Path) -> str:
    """Verify a package, copy it to ``key`` in the lake, and return its digest. The manifest is written last."""
    digest = verify(folder).digest
    for path in sorted(Path(folder).iterdir(), key=lambda item: item.name == MANIFEST):
        lake.write(f"{key}/{path.name}", path.read_bytes())
    return digest


def download(lake: Lake, key: str, folder: str | Path, digest: str | None = None) -> Path:
    """Fetch a package into ``folder`` and verify it; what is there already and verifies is used as it is.

    Several processes may ask for one folder at once: each fetches into its own and the first to be done moves it there.

    Raises
    ------
    DigestMismatch : the bytes in the lake are not the ones ``digest`` names
    """
    target = Path(folder)
    if _verifies(target, digest):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".fetching-"))
    try:
        fetched = lake.fetch_folder(key, scratch / "package")
        verify(fetched, digest)
        if target.exists() and not _verifies(target, digest):
            # Out of the way in one step: nobody sees half a package.
            os.replace(target, scratch / "damaged")
        try:
            os.replace(fetched, target)
        except OSError:
            verify(target, digest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def read_file(lake: Lake, key: str, digest: str, name: str) -> bytes:
    """One file of a package in the lake, checked against the manifest, and that against the registry's ``digest``.

    Raises
    ------
    DigestMismatch : the manifest or the file was changed
    DataError : the package holds no such file
    """
    content = lake.read(f"{key}/{MANIFEST}")
    if sha256_of(content) != digest:
        raise _mismatch(MANIFEST, Path(key), sha256_of(content), digest)
    files = Manifest.from_bytes(content).files
    if name not in files:
        raise DataError(f"The package {key} holds no {name}: it was made by an older release.")
    found = lake.read(f"{key}/{name}")
    if sha256_of(found) != files[name]:
        raise _mismatch(name, Path(key), sha256_of(found), files[name])
    return found


def _verifies(folder: Path, digest: str | None) -> bool:
    if not folder.exists():
        return False
    try:
        verify(folder, digest)
    except DigestMismatch:
        return False
    return True
