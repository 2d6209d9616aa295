"""Confidence sequences: intervals that hold at every look at once, so one may look all the time.

All are computed from counts and sums, so figures of many gateways merge. Rates use the beta-binomial mixture with
Jeffreys' prior (Robbins 1970; Howard, Ramdas, McAuliffe, Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic
confidence sequences", §3.2). Means of values in [0, 1] use the stitched empirical-Bernstein sequence (same paper,
theorem 4 with equation 10) around a constant, so that sums are enough; values in [-1, 1], such as differences of
paired losses, are mapped onto it. Waudby-Smith and Ramdas 2024 ("Estimating means of bounded random variables by
betting") is tighter but needs every value in order, which does not merge. Means of values without bounds use
the asymptotic sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024 ("Time-uniform central limit theory and
asymptotic confidence sequences", theorem 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

_LOSS_CENTRE = 0.2  # any constant is valid; the nearer the mean, the narrower the sequence
_TUNED_ROWS = 500  # the asymptotic sequence is narrowest there, and valid everywhere


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


def mean_radius(n: int, total: float, sumsq: float, alpha: float, centre: float = _LOSS_CENTRE) -> float:
    """One-sided radius of the stitched empirical-Bernstein sequence for a mean of ``n`` values in [0, 1], given their
    sum and sum of squares."""
    variance = sumsq - 2 * centre * total + n * centre**2
    v = max(1.0, variance)
    # eta = 2, s = 1.4, m = 1; 3.1055 is zeta(1.4).
    level = 1.4 * math.log(max(math.log(2 * v), 1e-9)) + math.log(3.1055 / (alpha * math.log(2) ** 1.4))
    k1, k2 = (2**0.25 + 2**-0.25) / math.sqrt(2), (math.sqrt(2) + 1) / 2
    return (math.sqrt(k1**2 * v * level + (k2 * level) ** 2) + k2 * level) / n


def paired_radius(n: int, sumsq: float, alpha: float) -> float:
    """One-sided radius for the mean of ``n`` differences in [-1, 1] around 0, given their sum of squares: the less the
    two disagree, the narrower, which is what pairs are for."""
    # (1 + d) / 2 lies in [0, 1]; around 1/2 its sum of squares is that of d, over 4.
    return 2.0 * mean_radius(n, n / 2, n / 4 + sumsq / 4, alpha, centre=0.5)


def asymptotic_radius(n: int, variance: float, alpha: float) -> float:
    """Two-sided radius for a mean of ``n`` values with this sample variance; its level holds in the limit of many."""
    lift = -2.0 * math.log(alpha)
    rho2 = (lift + math.log(lift) + 1.0) / _TUNED_ROWS
    spread = n * rho2 + 1.0
    return math.sqrt(max(0.0, variance) * 2.0 * spread / (n * n * rho2) * math.log(math.sqrt(spread) / alpha))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _edge(refuted: Callable[[float], bool], outside: float, inside: float) -> float:
    if not refuted(outside):
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        if refuted(middle):
            outside = middle
        else:
            inside = middle
    return outside
