"""Champion against challenger, by confidence sequences: they hold at every look, so one may look all the time.

Rates (errors, slow answers) use the beta-binomial mixture sequence with Jeffreys' prior (Robbins 1970; Howard, Ramdas,
McAuliffe, Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences", §3.2). Mean losses in [0, 1]
use the stitched empirical-Bernstein sequence (same paper, theorem 4 with equation 10) around a constant, so that sums
are enough to compute it. Waudby-Smith and Ramdas 2024 ("Estimating means of bounded random variables by betting") is
tighter but needs every loss in order, which does not merge over gateways.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

# Upper edges of the latency histogram: eight a decade from 0.1 ms to 100 s, then one open bucket.
LATENCY_EDGES_MS: tuple[float, ...] = tuple(round(0.1 * 10 ** (i / 8), 6) for i in range(49))
_BUCKETS = len(LATENCY_EDGES_MS) + 1

ALPHA = 0.05  # chance of ever calling a harmless challenger harmful, over all tests of one rollout
SLOW_MS = 1000.0  # an edge of the histogram
RATE_MARGIN = 0.10  # a PASS has shown that the challenger's error rate is not higher than the champion's by more
RATE_TOLERANCE = 0.01  # and has not been seen to be higher by more than this
LOSS_TOLERANCE = 0.02
_LOSS_CENTRE = 0.2  # any constant is valid; the nearer the mean loss, the narrower the sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantStats:
    """What one version did; two of them add up, over time and over gateways.

    Attributes
    ----------
    requests : requests given to the version, answered or not
    errors : of those, the ones it did not answer (with a usable answer); bad input does not count
    nonfinite : of the errors, those with a NaN or infinite prediction
    latency : counts in the buckets of :data:`LATENCY_EDGES_MS` and one open bucket
    score_* : over rows: number, sum and sum of squares of the finite scores
    loss_* : over labelled rows: the same of losses in [0, 1]
    """

    requests: int = 0
    errors: int = 0
    nonfinite: int = 0
    latency: tuple[int, ...] = (0,) * _BUCKETS
    score_n: int = 0
    score_sum: float = 0.0
    score_sumsq: float = 0.0
    loss_n: int = 0
    loss_sum: float = 0.0
    loss_sumsq: float = 0.0

    def __add__(self, other: VariantStats) -> VariantStats:
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "latency"}
        return VariantStats(**added, latency=tuple(a + b for a, b in zip(self.latency, other.latency, strict=True)))

    def with_losses(self, losses: Sequence[float]) -> VariantStats:
        """These figures and more labelled rows; losses are clipped to [0, 1]."""
        clipped = [min(1.0, max(0.0, float(loss))) for loss in losses if math.isfinite(loss)]
        return self + VariantStats(
            loss_n=len(clipped), loss_sum=math.fsum(clipped), loss_sumsq=math.fsum(loss * loss for loss in clipped)
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
    def mean_loss(self) -> float:
        """``nan`` without labels."""
        return self.loss_sum / self.loss_n if self.loss_n else math.nan

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"latency": list(self.latency)}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> VariantStats:
        return cls(**{**body, "latency": tuple(body["latency"])})


class StatsRecorder:
    """A :class:`VariantStats` that is written to on the hot path."""

    __slots__ = ("_latency", "errors", "nonfinite", "requests")

    def __init__(self) -> None:
        self.requests = self.errors = self.nonfinite = 0
        self._latency = [0] * _BUCKETS

    def request(self, latency_ms: float, *, error: bool = False, nonfinite: bool = False) -> None:
        """One request and how long its version took, in milliseconds."""
        self.requests += 1
        self.errors += error
        self.nonfinite += nonfinite
        self._latency[bisect.bisect_left(LATENCY_EDGES_MS, latency_ms)] += 1

    def answered(self, requests: int, latency_ms: float) -> None:
        """Requests that were answered together, each after ``latency_ms``."""
        self.requests += requests
        self._latency[bisect.bisect_left(LATENCY_EDGES_MS, latency_ms)] += requests

    def stats(self) -> VariantStats:
        return VariantStats(
            requests=self.requests, errors=self.errors, nonfinite=self.nonfinite, latency=tuple(self._latency)
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

    def verdict(self, min_requests: int, alpha: float = ALPHA) -> Verdict:
        """Is the challenger worse? May be asked as often as one likes.

        Three properties are compared: error rate, share of answers slower than :data:`SLOW_MS`, and mean loss where
        labels have arrived. ``alpha`` bounds the chance that one of these tests ever fails a challenger that is no
        worse. Outside of them, a challenger that is plainly broken fails at once: at least five errors that are a
        quarter of its requests, or three predictions that are not finite, while the champion is well.
        """
        old, new = self.champion, self.challenger
        evidence = {"requests": new.requests, "errors": new.errors, "champion_errors": old.errors, "slow": new.slow}
        broken = self._broken()
        if broken:
            return Verdict(outcome="FAIL", reason=broken, evidence=evidence)
        tests = [
            self._rates("error rate", old.errors, new.errors, alpha / 6, evidence, RATE_TOLERANCE),
            self._rates(f"share slower than {SLOW_MS:.0f} ms", old.slow, new.slow, alpha / 6, evidence, 0.05),
            self._losses(alpha / 6, evidence),
        ]
        failed = [reason for reason in tests if reason]
        if failed:
            return Verdict(outcome="FAIL", reason="; ".join(failed), evidence=evidence)
        if new.requests < min_requests:
            reason = f"{new.requests} of {min_requests} requests seen"
            return Verdict(outcome="INCONCLUSIVE", reason=reason, evidence=evidence)
        return self._proof(alpha, evidence)

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

    def _losses(self, alpha: float, evidence: dict[str, Any]) -> str:
        old, new = self.champion, self.challenger
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


def rate_interval(bad: int, n: int, alpha: float) -> tuple[float, float]:
    """The beta-binomial mixture confidence sequence for a rate, at one look: all ``p`` whose mixture likelihood ratio
    stays below ``1/alpha``. Without observations it is (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    good = n - bad
    mixture = _log_beta(bad + 0.5, good + 0.5) - _log_beta(0.5, 0.5)
    limit = -math.log(alpha)

    def refuted(p: float) -> bool:
        return mixture - (bad * math.log(p) if bad else 0.0) - (good * math.log1p(-p) if good else 0.0) >= limit

    centre = min(1 - 1e-12, max(1e-12, bad / n))
    low = 0.0 if bad == 0 else _edge(refuted, 1e-15, centre)
    high = 1.0 if good == 0 else _edge(refuted, 1 - 1e-15, centre)
    return low, high


def loss_radius(stats: VariantStats, alpha: float) -> float:
    """One-sided radius of the stitched empirical-Bernstein sequence for a mean of values in [0, 1]."""
    n = stats.loss_n
    variance = stats.loss_sumsq - 2 * _LOSS_CENTRE * stats.loss_sum + n * _LOSS_CENTRE**2
    v = max(1.0, variance)
    # eta = 2, s = 1.4, m = 1; 3.1055 is zeta(1.4).
    level = 1.4 * math.log(max(math.log(2 * v), 1e-9)) + math.log(3.1055 / (alpha * math.log(2) ** 1.4))
    k1, k2 = (2**0.25 + 2**-0.25) / math.sqrt(2), (math.sqrt(2) + 1) / 2
    return (math.sqrt(k1**2 * v * level + (k2 * level) ** 2) + k2 * level) / n


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _edge(refuted: Any, outside: float, inside: float) -> float:
    if not refuted(outside):
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        if refuted(middle):
            outside = middle
        else:
            inside = middle
    return outside
