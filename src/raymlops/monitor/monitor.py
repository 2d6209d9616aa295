"""Monitor, the declared watch over an endpoint, and Watcher, the plain class that keeps it. Neither knows an actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymlops.clock import seconds
from raymlops.errors import ConfigError, DataError
from raymlops.monitor.budget import SHARES, Budget
from raymlops.monitor.drift import ColumnTests
from raymlops.monitor.estimate import PerformanceEstimate
from raymlops.monitor.evidence import JOINT, Detector, Evidence, Window
from raymlops.monitor.joint import JointBets
from raymlops.monitor.opinions import Opinions
from raymlops.monitor.persistent import PersistentBets
from raymlops.monitor.quality import LossBaseline, LossDetector
from raymlops.monitor.report import SCORE, DriftReport
from raymlops.monitor.slo import ServiceLevel
from raymlops.monitor.wild import WildRow, WildRows
from raymlops.sketch.observed import Observed, keys_of
from raymlops.sketch.profile import Profile, with_score

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract
    from raymlops.registry.package import Reference
    from raymlops.sketch.histogram import Bins

__all__ = ["SCORE", "DriftReport", "Monitor", "Watcher"]

_SAID = {
    "missing": "Missing values",
    "infinite": "Infinite values",
    "range": "Values outside the reference's range",
    "unseen": "Unseen categories",
}
_SAMPLE_CELLS = 150_000
"""Values of a window's sample that are kept while the window is open: the state stays below 1 MB up to 100 columns."""
_WAITING_WINDOWS = 8
FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """What is watched, and how many false alarms that may cost.

    Attributes
    ----------
    window_rows : rows of a window, at least: what a gateway tells at once is not parted when it is more than its sample
    min_rows, max_age : a window older than ``max_age`` (seconds or ``"1h"``) closes early once it has ``min_rows``
    alpha : probability of a false alarm a window, over all detectors (``budget.Shares`` splits it)
    false_alarms_per_month : the same budget by time instead; ``alpha`` is then ignored
    tolerance : rise of the loss over the reference that is accepted, relative
    min_distance : changes of a column smaller than this are reported but do not count as drift (see ``Evidence``)
    second_opinion : ``"auto"`` asks alibi-detect too when it is installed (first use imports it: 5 s), ``"off"`` never
    slo : latency and errors promised to callers; while their budget burns too fast, rollouts and retrainings wait
    reference : what columns are compared with: ``"period"`` all held-out rows, as counts with their own autocorrelation times,
        ``"recent"`` the newest 10,000 of them. They differ where a version held out more rows than those

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
    reference: Literal["period", "recent"] = "period"

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
        if self.reference not in ("period", "recent"):
            raise ConfigError(f"reference={self.reference!r} is not known: give 'period' or 'recent'.")
        if self.slo is not None and not isinstance(self.slo, ServiceLevel):
            raise ConfigError(f"slo={self.slo!r} is no service level: give ServiceLevel(latency_ms=..., target=...).")


def _whole(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{field}={value!r} cannot be used: give a whole number of at least {least}.")


def _between(field: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low < value <= high:
        raise ConfigError(f"{field}={value!r} cannot be used: give a number above {max(low, 0.0):g} up to {high:g}.")


class Watcher:
    """Watches one version: observations and late outcomes in, reports out. Not thread-safe; one owner.

    Parameters
    ----------
    spec : the declared watch
    reference : held-out rows, scores and losses of this version, in time order when ``reference.ordered``
    contract : names the category columns and the task
    version : the version watched, copied into reports
    profile : bins and counts frozen with the version, of its whole held-out period where that is longer than the reference;
        learned from the reference without it

    Attributes
    ----------
    judged : ``(k, d + 1)`` rows of the newest window that were seen one by one, the score last. Nothing that is decided here
        rests on them, so they are no part of :meth:`state_dict`; who shows :attr:`newest` to others keeps them

    Raises
    ------
    DataError : the reference is too small (100 rows, 30 losses) or does not fit
    """

    def __init__(
        self,
        spec: Monitor,
        reference: Reference,
        contract: DataContract,
        version: int | None = None,
        profile: Profile | None = None,
    ) -> None:
        self.spec, self.version, self.ordered = spec, version, bool(reference.ordered)
        self._categories = reference.categories(contract)
        self._columns = (*reference.columns, SCORE)
        self._reference_x = with_score(reference.x, reference.scores)
        if spec.reference == "recent" and profile is not None and profile.sketch.rows != len(self._reference_x):
            profile = profile.of_rows(self._reference_x)
        self.tests = ColumnTests(
            self._reference_x,
            self._columns,
            categories=self._categories,
            ordered=self.ordered,
            share=SHARES.columns,
            profile=profile,
        )
        bins, known, times = self.tests.bins, self.tests.reference, self.tests.times
        self.detectors: tuple[Detector, ...] = (
            self.tests,
            PersistentBets(bins, known, times, share=SHARES.persistent, categories=frozenset(self._categories)),
            JointBets(
                bins,
                known,
                bins.locate(self._reference_x),
                times,
                share=SHARES.joint,
                time=self.tests.memory.longest_joint,
            ),
        )
        self.wild = WildRows(self._reference_x, self._columns, categories=self._categories)
        self._opinions = Opinions(
            reference,
            contract,
            self._reference_x,
            self._columns,
            self._categories,
            ask=spec.second_opinion == "auto",
        )
        self.budget = Budget(alpha=spec.alpha, per_month=spec.false_alarms_per_month, window_rows=spec.window_rows)
        self.baseline = LossBaseline.learn(
            reference.losses,
            task=contract.task,
            ordered=self.ordered,
            tolerance=spec.tolerance,
            window_rows=spec.window_rows,
        )
        self.losses = LossDetector(self.baseline, window_rows=spec.window_rows)
        self.rows, self.windows, self._confirmed = 0, 0, 0
        self._open = Observed.empty(bins)
        self.judged = np.zeros((0, len(self._columns)), dtype=np.float32)
        self._harm_to_report = False
        self._outcome_at: float | None = None

    def observe(
        self, x: NDArray[np.floating[Any]], scores: ArrayLike, served_at: ArrayLike, ids: Sequence[str] = ()
    ) -> None:
        """Take rows ``x`` ``(n, d)`` of this version's traffic, its scores ``(n,)`` and when they were served.

        ``served_at`` is wall time in seconds, one number or ``(n,)``; ``ids`` the request of each row, or none. All of
        them are kept until the next :meth:`step`.

        Raises
        ------
        DataError : another number of columns than the reference, or lengths that differ
        """
        rows = with_score(x, scores)
        if rows.shape[1] != len(self._columns):
            raise DataError(
                f"Rows with {rows.shape[1] - 1} columns do not fit a reference of {len(self._columns) - 1}."
            )
        if len(ids) not in (0, len(rows)):
            raise DataError(f"{len(ids)} request ids do not fit {len(rows)} rows: give one a row, or none.")
        self._open += Observed.of(self.bins, rows, served_at, keys_of(self.rows, len(rows)), ids)
        self.rows += len(rows)

    def take(self, observed: Observed) -> None:
        """Take what a gateway or a partition counted, and its sample. Such observations may come in any order.

        While every row is in the samples, windows and reports are those of :meth:`observe`. Else what waits is one window.

        Raises
        ------
        DataError : it was counted in other bins than this version's
        """
        self._open = (self._open + observed).limit(_WAITING_WINDOWS * self._most)
        self.rows += observed.rows

    @property
    def bins(self) -> Bins:
        """What traffic of this version is counted in."""
        return self.tests.bins

    @property
    def newest(self) -> NDArray[np.float32]:
        """The newest rows ``(k, d)`` that were seen one by one, at most a window's, oldest first: some may be judged already."""
        both = np.concatenate((self.judged, self._open.sample.x))
        return both[-self.spec.window_rows :, :-1]

    @property
    def _most(self) -> int:
        """Rows of a window's sample that may wait for it to fill."""
        return min(self.spec.window_rows, max(_SAMPLE_CELLS // len(self._columns), self.spec.min_rows))

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
        spend = self.budget.of(span, values.size) * SHARES.outcomes / values.size
        known = self.losses.harm_row
        self.losses.update(values[order], spend, times[order])
        self._harm_to_report = self.losses.harm and (self._harm_to_report or self.losses.harm_row != known)

    def step(self, now: float) -> list[DriftReport]:
        """Judge every window that is full, or old enough; and report harm that has just begun without waiting for one.

        ``now`` is wall time in seconds. Nothing to say is an empty list: short windows wait, they are never "fine".
        """
        reports = []
        while self._open.rows >= self.spec.window_rows:
            reports.append(self._close(self.spec.window_rows))
        if self._open.rows >= self.spec.min_rows and now - self._open.from_at >= seconds(self.spec.max_age, "max_age"):
            reports.append(self._close(self._open.rows))
        self._open = self._open.limit(self._most)
        if self._harm_to_report:
            at = now if self._outcome_at is None else self._outcome_at
            reports.append(self._report("outcomes", 0, at, at))
        return reports

    def _close(self, size: int) -> DriftReport:
        """Judge the next ``size`` rows; all that wait, where it is not known which of them those are."""
        first_row, seen = self.rows - self._open.rows, self._open
        if seen.whole and size < seen.rows:
            seen, self._open = seen.split(self.bins, size)
        else:
            self._open = Observed.empty(self.bins)
        self.windows += 1
        span = seen.to_at - seen.from_at
        # A window that holds more rows than asked for is still one window: it spends no more.
        counted = min(seen.rows, self.spec.window_rows)
        budget = self.budget.of(span, counted)
        x = seen.sample.x
        self.judged = x[-self._most :]
        window = Window.of(self.bins, x, budget, seen.sketch)
        evidence = tuple(item for detector in self.detectors for item in detector.update(window))
        alpha = budget * (1.0 - SHARES.outcomes)
        looked_at = seen.sample if seen.whole else seen.sample + seen.far.without(seen.sample)
        estimate, fresh = None, True
        if not self._measured and any(item.drifted for item in evidence):
            estimate, fresh = self._opinions.estimate(x, seen.to_at)
        wild, wild_rows = self.wild.flag(looked_at.x, first_row=first_row if seen.whole else None, ids=looked_at.ids)
        return self._report(
            "window",
            seen.rows,
            seen.from_at,
            seen.to_at,
            sampled_rows=len(x),
            evidence=evidence,
            alpha=alpha,
            alarms_per_month=self.budget.alarms_per_month(span, counted),
            second_opinion=self._opinions.second(x, alpha, self.windows, seen.to_at),
            estimate=estimate,
            fresh=fresh,
            wild=wild,
            wild_rows=wild_rows,
        )

    @property
    def _measured(self) -> bool:
        """Enough labels came to measure the loss, so that nothing stands in for it."""
        return self.losses.rows >= self.spec.window_rows

    def _report(
        self,
        kind: Literal["window", "outcomes"],
        rows: int,
        from_at: float,
        to_at: float,
        *,
        sampled_rows: int = 0,
        evidence: tuple[Evidence, ...] = (),
        alpha: float = 0.0,
        alarms_per_month: float | None = None,
        second_opinion: dict[str, Any] | None = None,
        estimate: PerformanceEstimate | None = None,
        fresh: bool = True,
        wild: tuple[WildRow, ...] = (),
        wild_rows: int = 0,
    ) -> DriftReport:
        sure = [item for item in evidence if item.drifted]
        moved = sorted((e for e in sure if e.distance >= self.spec.min_distance), key=lambda e: (-e.distance, e.column))
        columns = tuple(dict.fromkeys(item.column for item in moved))
        harm = self.losses.harm
        estimated_harm = estimate is not None and estimate.metrics["brier"].low > self.baseline.limit
        severity = 4 if harm else 3 if SCORE in columns or estimated_harm else 2 if columns else 1 if sure else 0
        if kind == "window":
            # An estimate that is carried along confirms nothing.
            own = fresh or harm or SCORE in columns
            self._confirmed = self._confirmed + own if severity >= 3 else 0
        self._harm_to_report = False
        # Where the loss is measured, a moved score only explains; without labels it stands in for the loss.
        return DriftReport(
            window=self.windows,
            kind=kind,
            version=self.version,
            rows=rows,
            sampled_rows=sampled_rows,
            from_at=from_at,
            to_at=to_at,
            severity=severity,
            confirmed=self._confirmed,
            alpha=alpha,
            alarms_per_month=alarms_per_month,
            evidence=evidence,
            columns=columns,
            loss=self.losses.recent_loss,
            loss_rows=self.losses.rows,
            reference_loss=self.baseline.mean,
            loss_limit=self.baseline.limit,
            loss_evidence=self.losses.evidence,
            harm=harm,
            change_at=self.losses.change_at if harm else None,
            may_retrain=severity == 4 or (severity == 3 and self._confirmed >= 2 and not self._measured),
            reference_rows=self.tests.reference.rows,
            iid_assumed=not self.ordered,
            second_opinion=second_opinion,
            estimate=estimate,
            estimated_harm=estimated_harm,
            wild=wild,
            wild_rows=wild_rows,
            note=_note(severity, moved, self.losses, evidence, estimate),
        )

    def state_dict(self) -> dict[str, Any]:
        """All a restart needs, JSON; the same reports follow, bit for bit. The reference comes from the package."""
        return {
            "format": FORMAT,
            "version": self.version,
            "bins": self.bins.digest,
            "rows": self.rows,
            "windows": self.windows,
            "confirmed": self._confirmed,
            "harm_to_report": self._harm_to_report,
            "outcome_at": self._outcome_at,
            "open": self._open.to_dict(),
            "reference_rows": self.tests.reference.rows,
            "detectors": {detector.name: detector.state_dict() for detector in self.detectors},
            "losses": self.losses.state_dict(),
            "opinions": self._opinions.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; :data:`FORMAT` tells whether this release wrote it.

        Raises
        ------
        DataError : the state was kept for another reference
        """
        if state["bins"] != self.bins.digest:
            raise DataError(
                f"The stored state belongs to version {state['version']}, not {self.version}: start a new watch for it."
            )
        self.rows, self.windows, self._confirmed = state["rows"], state["windows"], state["confirmed"]
        self._harm_to_report, self._outcome_at = state["harm_to_report"], state["outcome_at"]
        self._open = Observed.from_dict(state["open"])
        # What detectors learned in comparison with other rows, as by another spec before the restart, says nothing here.
        same = state.get("reference_rows", self.tests.reference.rows) == self.tests.reference.rows
        for detector in self.detectors if same else ():
            if detector.name in state.get("detectors", {}):
                detector.load_state(state["detectors"][detector.name])
        self.losses.load_state(state["losses"])
        if "opinions" in state:  # an earlier release kept none
            self._opinions.load_state(state["opinions"])


def _note(
    severity: int,
    moved: list[Evidence],
    losses: LossDetector,
    evidence: tuple[Evidence, ...],
    estimate: PerformanceEstimate | None,
) -> str:
    """One sentence for a person: what kind of trouble, where, how large."""
    parts = []
    if severity == 4:
        parts.append(
            f"Measured harm: mean loss {losses.recent_loss:.4f} of the newest outcomes, "
            f"accepted up to {losses.baseline.limit:.4f} (reference {losses.baseline.mean:.4f})."
        )
    if estimate is not None:
        loss = estimate.metrics["brier"]
        parts.append(
            f"Estimated loss {loss.value:.4f} ({loss.low:.4f} to {loss.high:.4f}) against {loss.reference:.4f}, assuming "
            f"{estimate.assumes}; unweighted {loss.check:.4f}."
        )
    for name, said in _SAID.items():
        rates = [f"{e.column} ({e.statistic:+.0%})" for e in moved if e.name == name]
        if rates:
            parts.append(f"{said} changed in {', '.join(rates[:5])}.")
    told = {e.column for e in moved if e.name in _SAID}  # the bets on a histogram see those changes too
    others = [e for e in reversed(moved) if e.name not in _SAID and e.column != JOINT]
    values = {e.column: e.distance for e in others if e.name != "persistent" or e.column not in told}
    if values:
        largest = sorted(values.items(), key=lambda item: -item[1])[:5]
        parts.append("Moved: " + ", ".join(f"{column} ({distance:.2f})" for column, distance in largest) + ".")
    for item in moved:
        if item.column == JOINT:
            parts.append(f"Columns hang together otherwise (AUC {item.statistic:.2f}): {', '.join(item.detail)}.")
    short = dict.fromkeys(
        item.column for item in evidence if item.status == "insufficient" and item.name in ("ks", "chi2")
    )
    if short:
        parts.append(f"Too few independent rows to judge: {', '.join(list(short)[:5])}.")
    return " ".join(parts) or ("Sure but small changes." if severity == 1 else "")
