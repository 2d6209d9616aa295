"""Monitor, the declared watch over an endpoint, and Watcher, the plain class that keeps it. Neither knows an actor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymlops.clock import seconds
from raymlops.errors import ConfigError, DataError
from raymlops.monitor.drift import ColumnTests, Evidence
from raymlops.monitor.quality import LossBaseline, LossDetector
from raymlops.monitor.sketch import Sketch, pack_array, unpack_array
from raymlops.monitor.slo import ServiceLevel

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract
    from raymlops.monitor.alibi import AlibiDetector
    from raymlops.registry.package import Reference

SCORE = "(score)"
"""Name of the model's own output among the columns of a report."""
_MONTH_S = 30 * 86400.0
_ALPHA_RANGE = (1e-8, 0.05)
_MERGED_WINDOWS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """What is watched, and how many false alarms that may cost.

    Attributes
    ----------
    window_rows : rows of a window
    min_rows, max_age : a window older than ``max_age`` (seconds or ``"1h"``) closes early once it has ``min_rows``
    alpha : probability of a false alarm a window, half for columns and score, half for the loss
    false_alarms_per_month : the same budget by time instead; ``alpha`` is then ignored
    tolerance : rise of the loss over the reference that is accepted, relative
    min_distance : changes of a column smaller than this are reported but do not count as drift (see ``Evidence``)
    second_opinion : ``"auto"`` asks alibi-detect too when it is installed (first use imports it: 5 s), ``"off"`` never
    slo : latency and errors promised to callers; while their budget burns too fast, rollouts and retrainings wait

    Raises
    ------
    ConfigError : names the field, what was given and what would be accepted
    """

    window_rows: int = 1000
    min_rows: int = 300
    max_age: float | str = "1h"
    alpha: float = 1e-3
    false_alarms_per_month: float | None = None
    tolerance: float = 0.10
    min_distance: float = 0.10
    second_opinion: Literal["auto", "off"] = "auto"
    slo: ServiceLevel | None = None

    def __post_init__(self) -> None:
        _whole("window_rows", self.window_rows, 100)
        _whole("min_rows", self.min_rows, 100)
        if seconds(self.max_age, "max_age") <= 0:
            raise ConfigError(f"max_age={self.max_age!r} would close every window at once: give more than 0 seconds.")
        _between("alpha", self.alpha, 0.0, 0.1)
        if self.false_alarms_per_month is not None:
            _between("false_alarms_per_month", self.false_alarms_per_month, 0.0, 1000.0)
        _between("tolerance", self.tolerance, -1e-9, 10.0)
        _between("min_distance", self.min_distance, -1e-9, 1.0)
        if self.second_opinion not in ("auto", "off"):
            raise ConfigError(f"second_opinion={self.second_opinion!r} is not known: give 'auto' or 'off'.")
        if self.slo is not None and not isinstance(self.slo, ServiceLevel):
            raise ConfigError(f"slo={self.slo!r} is no service level: give ServiceLevel(latency_ms=..., target=...).")


def _whole(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{field}={value!r} cannot be used: give a whole number of at least {least}.")


def _between(field: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low < value <= high:
        raise ConfigError(f"{field}={value!r} cannot be used: give a number above {max(low, 0.0):g} up to {high:g}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """What one look found.

    Attributes
    ----------
    window : number of the window, from 1; kind ``outcomes`` tells of harm that began between two windows
    severity : 0 nothing; 1 sure but small; 2 columns moved, the score did not; 3 the score moved; 4 measured harm
    confirmed : windows in a row, this one included, with severity 3 or more
    alpha : budget that was spent on columns and score in this window
    loss, loss_rows : mean of the newest outcomes (at most a window's worth) and how many were ever seen
    reference_loss, loss_limit, loss_evidence : what was promised, what is accepted, capital of the bets (alarm at 1)
    harm : the loss detector has alarmed and the newest outcomes are above the limit (see ``LossDetector``)
    columns : that moved by ``min_distance`` or more, most first
    may_retrain : severity 4, or severity 3 twice in a row while there are too few labels to measure the loss
    iid_assumed : the reference has no time order, so autocorrelation could not be counted
    """

    window: int
    kind: Literal["window", "outcomes"] = "window"
    version: int | None = None
    rows: int
    from_at: float
    to_at: float
    severity: int
    confirmed: int = 0
    alpha: float = 0.0
    evidence: tuple[Evidence, ...] = ()
    columns: tuple[str, ...] = ()
    loss: float | None = None
    loss_rows: int = 0
    reference_loss: float
    loss_limit: float
    loss_evidence: float = 0.0
    harm: bool = False
    may_retrain: bool = False
    iid_assumed: bool = False
    second_opinion: dict[str, Any] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> DriftReport:
        evidence = tuple(Evidence(**item) for item in body["evidence"])
        return cls(**{**body, "evidence": evidence, "columns": tuple(body["columns"])})


class Watcher:
    """Watches one version: observations and late outcomes in, reports out. Not thread-safe; one owner.

    Parameters
    ----------
    spec : the declared watch
    reference : held-out rows, scores and losses of this version, in time order when ``reference.ordered``
    contract : names the category columns and the task
    version : the version watched, copied into reports

    Raises
    ------
    DataError : the reference is too small (100 rows, 30 losses) or does not fit
    """

    def __init__(self, spec: Monitor, reference: Reference, contract: DataContract, version: int | None = None) -> None:
        self.spec, self.version, self.ordered = spec, version, bool(reference.ordered)
        sizes = {column.name: len(column.categories) for column in contract.columns if column.kind == "category"}
        self._categories = {i: sizes[name] for i, name in enumerate(reference.columns) if name in sizes}
        if contract.task == "multiclass":  # its score is a class index
            self._categories[len(reference.columns)] = len(contract.classes)
        self._columns = (*reference.columns, SCORE)
        self._reference_x = _matrix(reference.x, reference.scores)
        self.tests = ColumnTests(self._reference_x, self._columns, categories=self._categories, ordered=self.ordered)
        self.baseline = LossBaseline.learn(
            reference.losses,
            task=contract.task,
            ordered=self.ordered,
            tolerance=spec.tolerance,
            window_rows=spec.window_rows,
        )
        self.losses = LossDetector(self.baseline, window_rows=spec.window_rows)
        self.rows, self.windows, self._confirmed = 0, 0, 0
        self._x = np.zeros((0, len(self._columns)), dtype=np.float32)
        self._at = np.zeros(0)
        self._closed: list[Sketch] = []
        self._harm_to_report = False
        self._outcome_at: float | None = None
        self._alibi: AlibiDetector | None = None

    def observe(self, x: NDArray[np.floating[Any]], scores: ArrayLike, served_at: ArrayLike) -> None:
        """Take rows ``x`` ``(n, d)`` of this version's traffic, its scores ``(n,)`` and when they were served.

        ``served_at`` is wall time in seconds, one number or ``(n,)``.

        Raises
        ------
        DataError : another number of columns than the reference, or lengths that differ
        """
        rows = _matrix(x, scores)
        if rows.shape[1] != len(self._columns):
            raise DataError(
                f"Rows with {rows.shape[1] - 1} columns do not fit a reference of {len(self._columns) - 1}."
            )
        self._x = np.concatenate((self._x, rows))
        self._at = np.concatenate((self._at, np.broadcast_to(np.asarray(served_at, dtype=np.float64), len(rows))))
        self.rows += len(rows)

    def add_outcomes(self, losses: ArrayLike, at: ArrayLike) -> None:
        """Take the losses ``(n,)`` of rows whose labels came (see ``row_losses``), and when those rows were served.

        Sorted by ``at`` within the call; calls are taken in the order they come. A loss that is NaN counts as worst.
        """
        values = np.asarray(losses, dtype=np.float64)
        times = np.broadcast_to(np.asarray(at, dtype=np.float64), values.shape)
        if values.size == 0:
            return
        order = np.argsort(times, kind="stable")
        span = float(times.max()) - (self._outcome_at if self._outcome_at is not None else float(times.min()))
        self._outcome_at = max(float(times.max()), self._outcome_at or float("-inf"))
        spend = self._budget(span, values.size) / 2 / values.size
        known = self.losses.harm_row
        self.losses.update(values[order], spend)
        self._harm_to_report = self.losses.harm and (self._harm_to_report or self.losses.harm_row != known)

    def step(self, now: float) -> list[DriftReport]:
        """Judge every window that is full, or old enough; and report harm that has just begun without waiting for one.

        ``now`` is wall time in seconds. Nothing to say is an empty list: short windows wait, they are never "fine".
        """
        reports = []
        while len(self._x) >= self.spec.window_rows:
            reports.append(self._close(self.spec.window_rows))
        if len(self._x) >= self.spec.min_rows and now - float(self._at.min()) >= seconds(self.spec.max_age, "max_age"):
            reports.append(self._close(len(self._x)))
        if self._harm_to_report:
            at = now if self._outcome_at is None else self._outcome_at
            reports.append(self._report("outcomes", 0, at, at, (), 0.0, None))
        return reports

    def _close(self, size: int) -> DriftReport:
        x, at = self._x[:size], self._at[:size]
        self._x, self._at = self._x[size:].copy(), self._at[size:].copy()
        self.windows += 1
        alpha = self._budget(float(at.max() - at.min()), size) / 2
        evidence = self.tests.detect(x, alpha, earlier=self._closed)
        opinion = self._second_opinion(x, alpha)
        self._closed = [*self._closed, Sketch.of(self.tests.bins, x)][-(_MERGED_WINDOWS - 1) :]
        return self._report("window", size, float(at.min()), float(at.max()), evidence, alpha, opinion)

    def _report(
        self,
        kind: Literal["window", "outcomes"],
        rows: int,
        from_at: float,
        to_at: float,
        evidence: tuple[Evidence, ...],
        alpha: float,
        opinion: dict[str, Any] | None,
    ) -> DriftReport:
        sure = [item for item in evidence if item.drifted]
        moved = sorted((e for e in sure if e.distance >= self.spec.min_distance), key=lambda e: (-e.distance, e.column))
        columns = tuple(dict.fromkeys(item.column for item in moved))
        harm = self.losses.harm
        severity = 4 if harm else 3 if SCORE in columns else 2 if columns else 1 if sure else 0
        if kind == "window":
            self._confirmed = self._confirmed + 1 if severity >= 3 else 0
        self._harm_to_report = False
        # Where the loss is measured, a moved score only explains; without labels it stands in for the loss.
        measured = self.losses.rows >= self.spec.window_rows
        return DriftReport(
            window=self.windows,
            kind=kind,
            version=self.version,
            rows=rows,
            from_at=from_at,
            to_at=to_at,
            severity=severity,
            confirmed=self._confirmed,
            alpha=alpha,
            evidence=evidence,
            columns=columns,
            loss=self.losses.recent_loss,
            loss_rows=self.losses.rows,
            reference_loss=self.baseline.mean,
            loss_limit=self.baseline.limit,
            loss_evidence=self.losses.evidence,
            harm=harm,
            may_retrain=severity == 4 or (severity == 3 and self._confirmed >= 2 and not measured),
            iid_assumed=not self.ordered,
            second_opinion=opinion,
            note=_note(severity, moved, self.losses, evidence),
        )

    def _budget(self, span_s: float, rows: int) -> float:
        """False-alarm probability that ``rows`` rows over ``span_s`` seconds may spend."""
        if self.spec.false_alarms_per_month is None:
            return self.spec.alpha * rows / self.spec.window_rows
        low, high = _ALPHA_RANGE
        return min(max(self.spec.false_alarms_per_month * max(span_s, 0.0) / _MONTH_S, low), high)

    def _second_opinion(self, x: NDArray[np.float32], alpha: float) -> dict[str, Any] | None:
        if self.spec.second_opinion == "off":
            return None
        from raymlops.monitor import alibi

        if not alibi.available():
            return None
        if self._alibi is None:
            self._alibi = alibi.AlibiDetector(self._reference_x, self._columns, categories=self._categories)
        found = self._alibi.detect(x, alpha)
        drifted = [item for item in found if item.drifted]
        return {
            "detector": self._alibi.name,
            "drifted": bool(drifted),
            "columns": [item.column for item in sorted(drifted, key=lambda e: (e.p_value, e.column))],
            "p_value": min((item.p_value for item in found), default=1.0),
            "limit": found[0].limit if found else alpha,
            "note": "assumes independent rows: on an ordered stream it flags windows in which nothing changed",
        }

    def state_dict(self) -> dict[str, Any]:
        """All a restart needs, JSON; the same reports follow, bit for bit. The reference comes from the package."""
        return {
            "version": self.version,
            "bins": self.tests.bins.digest,
            "rows": self.rows,
            "windows": self.windows,
            "confirmed": self._confirmed,
            "harm_to_report": self._harm_to_report,
            "outcome_at": self._outcome_at,
            "x": pack_array(self._x),
            "at": pack_array(self._at),
            "closed": [sketch.to_dict() for sketch in self._closed],
            "losses": self.losses.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises
        ------
        DataError : the state was kept for another reference
        """
        if state["bins"] != self.tests.bins.digest:
            raise DataError(
                f"The stored state belongs to version {state['version']}, not {self.version}: start a new watch for it."
            )
        self.rows, self.windows, self._confirmed = state["rows"], state["windows"], state["confirmed"]
        self._harm_to_report, self._outcome_at = state["harm_to_report"], state["outcome_at"]
        self._x, self._at = unpack_array(state["x"]), unpack_array(state["at"])
        self._closed = [Sketch.from_dict(item) for item in state["closed"]]
        self.losses.load_state(state["losses"])


def _matrix(x: NDArray[np.floating[Any]], scores: ArrayLike) -> NDArray[np.float32]:
    values, score = np.asarray(x, dtype=np.float32), np.asarray(scores, dtype=np.float32)
    if values.ndim != 2 or score.shape != (len(values),):
        raise DataError(f"Rows of shape {values.shape} do not fit scores of shape {score.shape}: give (n, d) and (n,).")
    return np.column_stack((values, score))


def _note(severity: int, moved: list[Evidence], losses: LossDetector, evidence: tuple[Evidence, ...]) -> str:
    """One sentence for a person: what kind of trouble, where, how large."""
    parts = []
    if severity == 4:
        parts.append(
            f"Measured harm: mean loss {losses.recent_loss:.4f} of the newest outcomes, "
            f"accepted up to {losses.baseline.limit:.4f} (reference {losses.baseline.mean:.4f})."
        )
    gone = [item for item in moved if item.name == "missing"]
    if gone:
        parts.append(
            "Missing values changed in " + ", ".join(f"{e.column} ({e.statistic:+.0%})" for e in gone[:5]) + "."
        )
    values = [item for item in moved if item.name != "missing"]
    if values:
        parts.append("Moved: " + ", ".join(f"{e.column} ({e.distance:.2f})" for e in values[:5]) + ".")
    short = [item.column for item in evidence if item.name == "insufficient"]
    if short:
        parts.append(f"Too few independent rows to judge: {', '.join(dict.fromkeys(short[:5]))}.")
    return " ".join(parts) or ("Sure but small changes." if severity == 1 else "")
