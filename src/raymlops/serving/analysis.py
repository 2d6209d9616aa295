"""Champion against challenger, by confidence sequences (:mod:`raymlops.serving.sequences`): they hold at every look."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from raymlops.serving.sequences import asymptotic_radius, mean_radius, paired_radius, rate_interval

# Upper edges of the latency histogram: eight a decade from 0.1 ms to 100 s, then one open bucket.
LATENCY_EDGES_MS: tuple[float, ...] = tuple(round(0.1 * 10 ** (i / 8), 6) for i in range(49))
_BUCKETS = len(LATENCY_EDGES_MS) + 1
_COUNTS = ("latency", "work")

ALPHA = 0.05  # chance of ever calling a harmless challenger harmful, over all tests of one rollout
SLOW_MS = 1000.0  # an edge of the histogram
SLOWDOWN = 3.0  # how many times the champion's median time a challenger may take for an answer
QUICK_MS = 10.0  # a median below it is never too slow
RATE_MARGIN = 0.10  # a PASS has shown that the challenger's error rate is not higher than the champion's by more
RATE_TOLERANCE = 0.01  # and has not been seen to be higher by more than this
LOSS_TOLERANCE = 0.02
SCORE_ROWS = 100  # rows of each variant before their scores are compared
SCORE_SHIFT = 3.0  # scores that differ by more, in their own standard deviations, are not of the same thing
SCORE_SCALE = 100.0  # nor are scores that spread so many times more or less
_TESTS = 12  # one-sided intervals: errors 2, slow 2, medians 2, losses 2, paired losses 1, scores 2, paired scores 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantStats:
    """What one version did; two of them add up, over time and over gateways.

    Attributes
    ----------
    requests : requests given to the version, answered or not
    errors : of those, the ones it did not answer (with a usable answer); bad input does not count
    nonfinite : of the errors, those with a NaN or infinite prediction
    latency : counts in the buckets of :data:`LATENCY_EDGES_MS` and one open bucket
    work : the same of the time the version's own process took, where that is another one and says so
    score_* : over rows: number, sum and sum of squares of the finite scores
    loss_* : over labelled rows: the same of losses in [0, 1]
    pair_* : over rows that another version answered as well (shadow): the same of its score minus the other's
    gap_* : over labelled ones of those: the same of its loss minus the other's, in [-1, 1]
    """

    requests: int = 0
    errors: int = 0
    nonfinite: int = 0
    latency: tuple[int, ...] = (0,) * _BUCKETS
    work: tuple[int, ...] = (0,) * _BUCKETS
    score_n: int = 0
    score_sum: float = 0.0
    score_sumsq: float = 0.0
    loss_n: int = 0
    loss_sum: float = 0.0
    loss_sumsq: float = 0.0
    pair_n: int = 0
    pair_sum: float = 0.0
    pair_sumsq: float = 0.0
    gap_n: int = 0
    gap_sum: float = 0.0
    gap_sumsq: float = 0.0

    def __add__(self, other: VariantStats) -> VariantStats:
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name not in _COUNTS}
        for name in _COUNTS:
            added[name] = tuple(a + b for a, b in zip(getattr(self, name), getattr(other, name), strict=True))
        return VariantStats(**added)

    def with_losses(self, losses: Sequence[float]) -> VariantStats:
        """These figures and more labelled rows; losses are clipped to [0, 1]."""
        clipped = [min(1.0, max(0.0, float(loss))) for loss in losses if math.isfinite(loss)]
        return self + VariantStats(
            loss_n=len(clipped), loss_sum=math.fsum(clipped), loss_sumsq=math.fsum(loss * loss for loss in clipped)
        )

    def with_gaps(self, gaps: Sequence[float]) -> VariantStats:
        """These figures and more labelled pairs; differences are clipped to [-1, 1]."""
        clipped = [min(1.0, max(-1.0, float(gap))) for gap in gaps if math.isfinite(gap)]
        return self + VariantStats(
            gap_n=len(clipped), gap_sum=math.fsum(clipped), gap_sumsq=math.fsum(gap * gap for gap in clipped)
        )

    def latency_ms(self, quantile: float) -> float:
        """The upper edge of the bucket that holds the quantile, in milliseconds; ``nan`` without requests."""
        total = sum(self.latency)
        if total == 0:
            return math.nan
        seen = 0
        for count, edge in zip(self.latency, LATENCY_EDGES_MS, strict=False):
            seen += count
            if seen >= quantile * total:
                return edge
        return math.inf

    @property
    def slow(self) -> int:
        """Requests that took longer than :data:`SLOW_MS`."""
        return sum(self.latency[bisect.bisect_left(LATENCY_EDGES_MS, SLOW_MS) + 1 :])

    @property
    def model_time(self) -> tuple[int, ...]:
        """How long the model took, in the buckets of ``latency``: without the way to an isolated version and back."""
        return self.work if any(self.work) else self.latency

    @property
    def mean_loss(self) -> float:
        """``nan`` without labels."""
        return self.loss_sum / self.loss_n if self.loss_n else math.nan

    def to_dict(self) -> dict[str, Any]:
        counts = {name: list(getattr(self, name)) for name in _COUNTS}
        return {f.name: getattr(self, f.name) for f in fields(self)} | counts

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> VariantStats:
        return cls(**{**body, **{name: tuple(body[name]) for name in _COUNTS if name in body}})


class StatsRecorder:
    """A :class:`VariantStats` that is written to on the hot path."""

    __slots__ = ("_latency", "_work", "errors", "nonfinite", "requests")

    def __init__(self) -> None:
        self.requests = self.errors = self.nonfinite = 0
        self._latency = [0] * _BUCKETS
        self._work = [0] * _BUCKETS

    def request(
        self, latency_ms: float, *, error: bool = False, nonfinite: bool = False, work_ms: float | None = None
    ) -> None:
        """One request and how long its version took, in milliseconds: as seen from here, and by its own clock."""
        self.requests += 1
        self.errors += error
        self.nonfinite += nonfinite
        self._latency[bisect.bisect_left(LATENCY_EDGES_MS, latency_ms)] += 1
        if work_ms is not None:
            self._work[bisect.bisect_left(LATENCY_EDGES_MS, work_ms)] += 1

    def answered(self, requests: int, latency_ms: float, work_ms: float | None = None) -> None:
        """Requests that were answered together, each after ``latency_ms``."""
        self.requests += requests
        self._latency[bisect.bisect_left(LATENCY_EDGES_MS, latency_ms)] += requests
        if work_ms is not None:
            self._work[bisect.bisect_left(LATENCY_EDGES_MS, work_ms)] += requests

    def stats(self) -> VariantStats:
        return VariantStats(
            requests=self.requests,
            errors=self.errors,
            nonfinite=self.nonfinite,
            latency=tuple(self._latency),
            work=tuple(self._work),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``PASS``: no worse, as far as was asked. ``FAIL``: worse, beyond chance. Otherwise more traffic is needed."""

    outcome: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    reason: str
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both variants since the rollout began."""

    champion: VariantStats
    challenger: VariantStats

    def verdict(self, min_requests: int, alpha: float = ALPHA, max_slowdown: float = SLOWDOWN) -> Verdict:
        """Is the challenger worse? May be asked as often as one likes.

        Compared are error rate, share of answers slower than :data:`SLOW_MS`, the model's median time for an answer (more
        than ``max_slowdown`` times the champion's, and than :data:`QUICK_MS`, is worse), mean loss where labels have arrived (pair
        by pair where both answered the same rows), and whether the scores are of the same kind at all. ``alpha`` bounds
        the chance that one of these tests ever fails a challenger that is no worse; the one of the scores is asymptotic.
        Before ``min_requests`` there is no verdict, but for a challenger that is plainly broken: at least five errors
        that are a quarter of its requests, or three predictions that are not finite, while the champion is well.
        """
        old, new = self.champion, self.challenger
        evidence = {"requests": new.requests, "errors": new.errors, "champion_errors": old.errors, "slow": new.slow}
        broken = self._broken()
        if broken:
            return Verdict(outcome="FAIL", reason=broken, evidence=evidence)
        if new.requests < min_requests:
            reason = f"{new.requests} of {min_requests} requests seen"
            return Verdict(outcome="INCONCLUSIVE", reason=reason, evidence=evidence)
        part = alpha / _TESTS
        tests = [
            self._rates("error rate", old.errors, new.errors, part, evidence, RATE_TOLERANCE),
            self._rates(f"share slower than {SLOW_MS:.0f} ms", old.slow, new.slow, part, evidence, 0.05),
            self._medians(max_slowdown, part, evidence),
            self._losses(part, evidence),
            self._scores(part, evidence),
        ]
        failed = [reason for reason in tests if reason]
        if failed:
            return Verdict(outcome="FAIL", reason="; ".join(failed), evidence=evidence)
        return self._proof(alpha, evidence)

    def better(self, min_labels: int, alpha: float = ALPHA) -> Verdict:
        """Is the challenger's mean loss lower (``PASS``) or higher (``FAIL``), beyond chance? For an A/B test."""
        old, new = self.champion, self.challenger
        evidence: dict[str, Any] = {"labels": new.loss_n, "champion_labels": old.loss_n}
        if min(old.loss_n, new.loss_n) < min_labels:
            reason = f"{new.loss_n} and {old.loss_n} of {min_labels} labels came"
            return Verdict(outcome="INCONCLUSIVE", reason=reason, evidence=evidence)
        r_old, r_new = loss_radius(old, alpha / 4), loss_radius(new, alpha / 4)
        evidence |= {"mean loss": [new.mean_loss, r_new], "champion_mean loss": [old.mean_loss, r_old]}
        reason = f"mean loss {new.mean_loss:.3f} ± {r_new:.3f}, the champion's {old.mean_loss:.3f} ± {r_old:.3f}"
        apart = abs(new.mean_loss - old.mean_loss) > r_old + r_new
        if not apart:
            return Verdict(outcome="INCONCLUSIVE", reason=f"{reason}: not yet told from chance", evidence=evidence)
        outcome: Literal["PASS", "FAIL"] = "PASS" if new.mean_loss < old.mean_loss else "FAIL"
        return Verdict(outcome=outcome, reason=reason, evidence=evidence)

    def pairs(self, min_labels: int, alpha: float = ALPHA) -> Verdict:
        """The challenger's loss minus the champion's on the same labelled rows: ``FAIL`` when it is above 0 beyond
        chance, ``PASS`` when it is beyond chance below :data:`LOSS_TOLERANCE` on ``min_labels`` rows or more."""
        new = self.challenger
        evidence: dict[str, Any] = {"pairs": new.gap_n}
        if new.gap_n == 0:
            return Verdict(outcome="INCONCLUSIVE", reason=f"0 of {min_labels} labelled pairs came", evidence=evidence)
        gap, radius = new.gap_sum / new.gap_n, paired_radius(new.gap_n, new.gap_sumsq, alpha / 2)
        evidence |= {"loss difference": [gap, radius]}
        reason = f"loss {gap:+.3f} ± {radius:.3f} against the other version on the same {new.gap_n} rows"
        if gap - radius > 0.0:
            return Verdict(outcome="FAIL", reason=reason, evidence=evidence)
        if new.gap_n >= min_labels and gap + radius <= LOSS_TOLERANCE:
            return Verdict(outcome="PASS", reason=reason, evidence=evidence)
        return Verdict(outcome="INCONCLUSIVE", reason=reason, evidence=evidence)

    def _broken(self) -> str:
        old, new = self.champion, self.challenger
        well = old.errors <= 0.05 * old.requests
        if well and new.nonfinite >= 3 and old.nonfinite == 0:
            return f"{new.nonfinite} of {new.requests} requests got a prediction that is not finite"
        if well and new.errors >= 5 and new.errors >= 0.25 * new.requests:
            return f"{new.errors} of its {new.requests} requests failed"
        return ""

    def _rates(
        self, name: str, bad_old: int, bad_new: int, alpha: float, evidence: dict[str, Any], slack: float
    ) -> str:
        """The reason when the challenger's rate is higher beyond chance and ``slack``, else nothing."""
        low, high = rate_interval(bad_new, self.challenger.requests, alpha)
        low_old, high_old = rate_interval(bad_old, self.champion.requests, alpha)
        evidence[name] = {"challenger": [low, high], "champion": [low_old, high_old]}
        if low <= high_old + slack:
            return ""
        return f"{name}: at least {low:.1%}, the champion's at most {high_old:.1%}"

    def _medians(self, limit: float, alpha: float, evidence: dict[str, Any]) -> str:
        """The reason when the challenger's model takes too many times as long, beyond chance, else nothing."""
        low, high = median_ms(self.challenger.model_time, alpha)
        low_old, high_old = median_ms(self.champion.model_time, alpha)
        evidence["median ms"] = {"challenger": [low, high], "champion": [low_old, high_old]}
        if low <= max(QUICK_MS, limit * high_old):
            return ""
        return f"half of its answers take more than {low:.3g} ms, the champion's at most {high_old:.3g} ms"

    def _losses(self, alpha: float, evidence: dict[str, Any]) -> str:
        old, new = self.champion, self.challenger
        if new.gap_n:  # identical rows tell more than two samples, and do not mind if the world changes in between
            gap, radius = new.gap_sum / new.gap_n, paired_radius(new.gap_n, new.gap_sumsq, alpha)
            evidence["paired loss"] = [gap, radius, new.gap_n]
            if gap - radius <= LOSS_TOLERANCE:
                return ""
            return f"loss {gap:+.3f} ± {radius:.3f} against the champion on the same {new.gap_n} rows"
        if not old.loss_n or not new.loss_n:
            return ""
        r_old, r_new = loss_radius(old, alpha), loss_radius(new, alpha)
        evidence["mean loss"] = {
            "challenger": [new.mean_loss, r_new, new.loss_n],
            "champion": [old.mean_loss, r_old, old.loss_n],
        }
        if new.mean_loss - r_new <= old.mean_loss + r_old + LOSS_TOLERANCE:
            return ""
        return f"mean loss {new.mean_loss:.3f} ± {r_new:.3f}, the champion's {old.mean_loss:.3f} ± {r_old:.3f}"

    def _scores(self, alpha: float, evidence: dict[str, Any]) -> str:
        """The reason when the scores cannot be of the same thing: another unit, a constant, another target. A good
        challenger may well differ, so only what no retraining explains is refused."""
        old, new = self.champion, self.challenger
        if min(old.score_n, new.score_n) < SCORE_ROWS:
            return ""
        (mean_old, var_old), (mean_new, var_new) = (
            _moments(stats.score_n, stats.score_sum, stats.score_sumsq) for stats in (old, new)
        )
        if new.pair_n >= SCORE_ROWS:
            shift, variance = _moments(new.pair_n, new.pair_sum, new.pair_sumsq)
            radius = asymptotic_radius(new.pair_n, variance, alpha)
        else:
            shift = mean_new - mean_old
            radius = asymptotic_radius(old.score_n, var_old, alpha) + asymptotic_radius(new.score_n, var_new, alpha)
        spread_old, spread_new = math.sqrt(var_old), math.sqrt(var_new)
        evidence["score"] = {"challenger": [mean_new, spread_new], "champion": [mean_old, spread_old], "shift": shift}
        if spread_old <= 1e-6 * abs(mean_old):  # one row asked again and again, or a constant: nothing to go by
            return ""
        if abs(shift) - radius > SCORE_SHIFT * max(spread_old, spread_new):
            return f"scores {mean_new:.3g} ± {spread_new:.2g}, the champion's {mean_old:.3g} ± {spread_old:.2g}"
        narrow, wide = sorted((spread_old, spread_new))
        if wide > SCORE_SCALE * narrow:
            return f"scores spread by {spread_new:.2g}, the champion's by {spread_old:.2g}"
        return ""

    def _proof(self, alpha: float, evidence: dict[str, Any]) -> Verdict:
        """No harm was shown; has enough been seen to say that there is none to speak of?"""
        old, new = self.champion, self.challenger
        rate, rate_old = new.errors / max(1, new.requests), old.errors / max(1, old.requests)
        high = rate_interval(new.errors, new.requests, alpha)[1]
        evidence["error excess at most"] = high - rate_old
        if rate - rate_old > RATE_TOLERANCE:
            reason = f"error rate {rate:.1%} against {rate_old:.1%}: not yet told from chance"
            return Verdict(outcome="INCONCLUSIVE", reason=reason, evidence=evidence)
        if high - rate_old > RATE_MARGIN:
            reason = f"after {new.requests} requests the error rate may still be {high:.1%}"
            return Verdict(outcome="INCONCLUSIVE", reason=reason, evidence=evidence)
        reason = f"{new.errors} errors in {new.requests} requests, no worse than the champion"
        return Verdict(outcome="PASS", reason=reason, evidence=evidence)


def median_ms(counts: Sequence[int], alpha: float) -> tuple[float, float]:
    """A confidence sequence for the median of what is counted in the latency histogram's buckets, at one look.

    The share of values up to an edge is a rate; the median lies above each edge whose rate is surely below a half. That
    needs no correction for the number of edges, because shares only grow from edge to edge (Howard and Ramdas 2022,
    "Sequential estimation of quantiles", §2). Without values it is (0, infinity).
    """
    total, below, low = sum(counts), 0, 0.0
    share = rate_interval(0, total, alpha)
    for count, edge in zip(counts, LATENCY_EDGES_MS, strict=False):
        if count:
            below += count
            share = rate_interval(below, total, alpha)
        if share[0] > 0.5:
            return low, edge
        if share[1] < 0.5:
            low = edge
    return low, math.inf


def loss_radius(stats: VariantStats, alpha: float) -> float:
    """One-sided radius of the sequence for the mean loss."""
    return mean_radius(stats.loss_n, stats.loss_sum, stats.loss_sumsq, alpha)


def _moments(n: int, total: float, sumsq: float) -> tuple[float, float]:
    """Mean and variance."""
    mean = total / n
    return mean, max(0.0, sumsq / n - mean * mean)
