"""Thompson sampling over two versions, with rewards in [0, 1] that may come late.

A request goes to the challenger with the probability that the challenger is the better one, given all rewards so far:
that is Thompson sampling (Thompson 1933; Chapelle and Li 2011) with its draw made at the gateway, request by request,
and the posterior kept at the steward. Labels that are late only make the posterior older. The probability is computed,
not sampled: the same rewards always give the same share, and no reward of the challenger ever lowers it.
"""

from __future__ import annotations

import numpy as np

from raymlops.serving.analysis import VariantStats

_POINTS = 2048


def probability_better(champion: VariantStats, challenger: VariantStats) -> float:
    """P(challenger's mean reward > champion's), the rewards being 1 minus the losses.

    Each mean has a Beta(1 + sum of rewards, 1 + sum of losses) posterior. For rewards that are not 0 or 1 it is wider
    than it need be (Agrawal and Goyal 2012, §1), which explores more and never less. The integral is taken at the
    midpoints of 2,048 slices of equal probability of the challenger's posterior, exact to about 1/4096.
    """
    from scipy.special import betainc, betaincinv

    middles = (np.arange(_POINTS) + 0.5) / _POINTS
    won, lost = challenger.loss_n - challenger.loss_sum, challenger.loss_sum
    means = betaincinv(1.0 + max(0.0, won), 1.0 + lost, middles)
    won, lost = champion.loss_n - champion.loss_sum, champion.loss_sum
    return float(np.mean(betainc(1.0 + max(0.0, won), 1.0 + lost, means)))
