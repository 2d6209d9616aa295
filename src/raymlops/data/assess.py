"""Is the data enough, clean and honest? A verdict before any training, so that a hopeless run stops early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from raymlops.errors import AssessmentFailed, DataError

if TYPE_CHECKING:  # the gate uses CheckResult and must stay light: pandas and scikit-learn are imported where they work
    import pandas as pd

    from raymlops.data.schema import DataContract, Task

Verdict = Literal["pass", "fail", "warn", "skipped"]

MIN_ROWS = 200
MIN_PER_CLASS = 20
MISSING_FAIL, MISSING_WARN = 0.95, 0.50
DUPLICATE_WARN = 0.05
LEAK = 0.999
_LEAK_ROWS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check: what was measured, where the limit lay, what to do; ``evidence`` holds more figures, JSON-serialisable."""

    name: str
    verdict: Verdict
    value: float | None
    limit: float | None
    message: str
    advice: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Warnings and skipped checks pass."""
        return self.verdict != "fail"

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CheckResult:
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Every check on one frame of ``rows`` rows."""

    checks: tuple[CheckResult, ...]
    rows: int

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "passed": self.passed, "checks": [check.to_dict() for check in self.checks]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Assessment:
        return cls(checks=tuple(CheckResult.from_dict(check) for check in data["checks"]), rows=data["rows"])


def require(assessment: Assessment) -> None:
    """Raise :class:`AssessmentFailed`, listing each failed check with its number and advice, unless all passed."""
    if not assessment.passed:
        reasons = " ".join(f"{check.message} {check.advice}".strip() for check in assessment.failures)
        raise AssessmentFailed(f"The data is not fit to train on. {reasons}", assessment.to_dict())


def assess(
    frame: pd.DataFrame, contract: DataContract | str, time: str | None = None, task: Task | None = None
) -> Assessment:
    """Check ``frame`` (inputs, label and time) before training.

    Parameters
    ----------
    contract : the learned contract, or the label's name; with a name every other column but ``time`` is an input
    task : taken from the contract, else inferred from the label

    Raises
    ------
    DataError : the label column is not there
    """
    from raymlops.data.schema import infer_task

    label = contract if isinstance(contract, str) else contract.label
    if label not in frame.columns:
        raise DataError(f"The data has no label column {label!r}.")
    if isinstance(contract, str):
        names = [str(name) for name in frame.columns if name not in (label, time)]
    else:
        task, names = contract.task, list(contract.names)
    task = task or infer_task(frame[label])
    checks = [_rows(frame), _label(frame[label], task), *_time(frame, time), *_missing(frame, names)]
    checks += [_constant(frame, names), _duplicate_rows(frame), _duplicate_columns(frame, names)]
    if all(check.passed for check in checks[:2]):
        checks += _leaks(frame, names, frame[label], task)
    else:
        checks.append(_result("leak", "skipped", None, None, "Not looked for: the rows or the label failed first."))
    return Assessment(checks=tuple(checks), rows=len(frame))


def _result(
    name: str, verdict: Verdict, value: float | None, limit: float | None, message: str, advice: str = ""
) -> CheckResult:
    """Advice is for those who need it: a check that passed gives none."""
    advice = "" if verdict == "pass" else advice
    return CheckResult(name=name, verdict=verdict, value=value, limit=limit, message=message, advice=advice)


def _rows(frame: pd.DataFrame) -> CheckResult:
    verdict: Verdict = "pass" if len(frame) >= MIN_ROWS else "fail"
    message = f"There are {len(frame)} rows; at least {MIN_ROWS} are needed."
    return _result("rows", verdict, len(frame), MIN_ROWS, message, "Collect more rows or widen the time range.")


def _label(label: pd.Series, task: Task) -> CheckResult:
    name = repr(label.name)
    missing = int(label.isna().sum())
    if missing:
        return _result(
            "label", "fail", missing, 0, f"The label {name} is missing in {missing} rows.", "Drop those rows."
        )
    counts = label.value_counts()
    if task == "regression":
        numbers = np.asarray(label, dtype=np.float64) if label.dtype.kind in "iuf" else np.array([np.nan])
        finite = bool(np.isfinite(numbers).all())
        what = f"has {len(counts)} distinct values" if finite else "holds values that are not finite numbers"
        advice = "A regression needs a finite number that varies."
        good = finite and len(counts) >= 2
        return _result("label", "pass" if good else "fail", len(counts), 2, f"The label {name} {what}.", advice)
    if len(counts) < 2:
        only = ", ".join(map(repr, counts.index.tolist())) or "none"
        message = f"The label {name} holds one class only: {only}."
        return _result("classes", "fail", len(counts), 2, message, "Train on rows of at least two classes.")
    rarest, smallest = counts.index[-1], int(counts.iloc[-1])
    message = f"Class {rarest!r} of {name} has {smallest} rows; at least {MIN_PER_CLASS} of each class are needed."
    verdict: Verdict = "pass" if smallest >= MIN_PER_CLASS else "fail"
    return _result("classes", verdict, smallest, MIN_PER_CLASS, message, "Collect more of it, or merge or drop it.")


def _time(frame: pd.DataFrame, time: str | None) -> list[CheckResult]:
    if time is None or time not in frame.columns:
        return []
    missing = int(frame[time].isna().sum())
    message = f"The time {time!r} is missing or unreadable in {missing} rows."
    return [_result("time", "fail" if missing else "pass", missing, 0, message, "Drop or repair those rows.")]


def _missing(frame: pd.DataFrame, names: list[str]) -> list[CheckResult]:
    """Empty columns are worth a warning each; only when there is nothing but them is a training hopeless."""
    shares = {name: float(frame[name].isna().mean()) if len(frame) else 0.0 for name in names}
    if shares and min(shares.values()) > MISSING_FAIL:
        message = f"Every column is missing in more than {MISSING_FAIL:.0%} of the rows."
        return [
            _result("missing", "fail", min(shares.values()), MISSING_FAIL, message, "Check the source and its joins.")
        ]
    checks = [
        _result(
            f"missing:{name}",
            "warn",
            share,
            MISSING_WARN,
            f"Column {name!r} is missing in {share:.1%} of the rows.",
            f"Drop it: drop=({name!r},).",
        )
        for name, share in shares.items()
        if share > MISSING_WARN
    ]
    worst = max(shares.values(), default=0.0)
    message = f"The emptiest column is missing in {worst:.1%} of the rows."
    return checks or [_result("missing", "pass", worst, MISSING_WARN, message)]


def _constant(frame: pd.DataFrame, names: list[str]) -> CheckResult:
    constant = [name for name in names if frame[name].nunique(dropna=False) <= 1]
    if not constant:
        return _result("constant", "pass", 0, 0, "Every column varies.")
    listed = ", ".join(map(repr, constant[:10]))
    if len(constant) == len(names):
        message = f"Every column is constant: {listed}."
        return _result("constant", "fail", len(constant), len(names), message, "There is nothing to learn from.")
    message = f"These columns are constant: {listed}."
    return _result("constant", "warn", len(constant), 0, message, "Drop them: they tell the model nothing.")


def _duplicate_rows(frame: pd.DataFrame) -> CheckResult:
    from pandas.util import hash_pandas_object

    share = float(hash_pandas_object(frame, index=False).duplicated().mean()) if len(frame) else 0.0
    verdict: Verdict = "warn" if share > DUPLICATE_WARN else "pass"
    advice = "Repeated rows that fall on both sides of a split flatter the score."
    return _result(
        "duplicate_rows", verdict, share, DUPLICATE_WARN, f"{share:.1%} of the rows repeat another row.", advice
    )


def _duplicate_columns(frame: pd.DataFrame, names: list[str]) -> CheckResult:
    from pandas.util import hash_pandas_object

    first: dict[tuple[str, bytes], str] = {}
    twins = []
    for name in names:
        key = (str(frame[name].dtype), hash_pandas_object(frame[name], index=False).to_numpy().tobytes())
        if key in first:
            twins.append((first[key], name))
        first.setdefault(key, name)
    if not twins:
        return _result("duplicate_columns", "pass", 0, 0, "No column repeats another.")
    message = "These columns hold the same values: " + ", ".join(f"{a!r} and {b!r}" for a, b in twins[:10]) + "."
    return _result("duplicate_columns", "warn", len(twins), 0, message, "Drop one of each.")


# --- leaks ---------------------------------------------------------------------------------------------


def _leaks(frame: pd.DataFrame, names: list[str], label: pd.Series, task: Task) -> list[CheckResult]:
    """A column that alone predicts the label almost perfectly, on rows it was not fitted on, is the label itself."""
    rows = np.random.default_rng(0).permutation(len(frame))[:_LEAK_ROWS]
    sample = label.iloc[rows]
    y = np.asarray(sample if task == "regression" else sample.astype("category").cat.codes, dtype=np.float64)
    scores = {name: _alone(frame[name].iloc[rows], y, task) for name in names}
    checks = [
        _result(
            f"leak:{name}",
            "fail",
            score,
            LEAK,
            f"Column {name!r} alone predicts the label {label.name!r} (score {score:.4f}): it leaks the answer.",
            f"Drop it unless it is known before the outcome: drop=({name!r},).",
        )
        for name, score in scores.items()
        if score >= LEAK
    ]
    best = max(scores, key=lambda name: scores[name])
    message = f"No column alone predicts the label; the strongest is {best!r} with {scores[best]:.3f}."
    return checks or [_result("leak", "pass", scores[best], LEAK, message)]


def _alone(column: pd.Series, y: npt.NDArray[np.float64], task: Task) -> float:
    """Two-fold score of the column by itself: AUC (one against the rest, mean) for classes, R² for regression."""
    from sklearn.metrics import r2_score
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    half = len(y) // 2
    folds = (np.arange(half), np.arange(half, len(y)))
    scores = []
    for train, test in (folds, folds[::-1]):
        x = _as_number(column, y, train)
        if task != "regression":
            model = DecisionTreeClassifier(max_depth=4, random_state=0).fit(x[train, None], y[train])
            scores.append(_mean_auc(y[test], model.predict_proba(x[test, None]), model.classes_))
        elif np.ptp(y[test]) > 0:
            # Shallow trees cannot follow a line to R² 0.999; a straight fit finds copies of the label in other units.
            slope, intercept = _line(x[train], y[train])
            tree = DecisionTreeRegressor(max_depth=8, min_samples_leaf=5, random_state=0).fit(x[train, None], y[train])
            guesses = (slope * x[test] + intercept, tree.predict(x[test, None]))
            scores.append(max(float(r2_score(y[test], guess)) for guess in guesses))
    return float(np.mean(scores)) if scores else 0.0


def _line(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float]:
    spread = float(np.var(x))
    slope = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread > 0 else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())


def _as_number(column: pd.Series, y: npt.NDArray[np.float64], train: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Numbers as they are (missing far below); text by the mean label of its value in the training half."""
    if column.dtype.kind in "iufb":
        values = np.asarray(column, dtype=np.float64)
        usable = np.abs(values) < 1e30
        low = float(values[usable].min()) - 1.0 if usable.any() else 0.0
        return np.where(usable, values, low)
    codes = np.asarray(column.astype(object).where(column.notna(), None).map(repr).astype("category").cat.codes)
    total = np.bincount(codes[train], weights=y[train], minlength=codes.max() + 1)
    count = np.bincount(codes[train], minlength=codes.max() + 1)
    means = np.where(count > 0, total / np.maximum(count, 1), float(np.mean(y[train])))
    return np.asarray(means[codes], dtype=np.float64)


def _mean_auc(
    y: npt.NDArray[np.float64], probabilities: npt.NDArray[np.float64], classes: npt.NDArray[np.float64]
) -> float:
    from sklearn.metrics import roc_auc_score

    scores = [
        float(roc_auc_score(y == value, probabilities[:, index]))
        for index, value in enumerate(classes)
        if 0 < int((y == value).sum()) < len(y)
    ]
    return float(np.mean(scores)) if scores else 0.0
