"""Is another trial expected to pay? Expected improvement under a model of the trials so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlops.search.leaderboard import Trial, standard_error
from raymlops.search.objective import Mode

_LEAST = 30
_EVERY = 10
_FRACTION = 0.1
_DRAWS = 400
_TREES = 60


class Patience:
    """Ends a search when the best of many fresh configurations is not expected to gain a tenth of a standard error.

    A random forest is fitted to the trials that saw all rows (Hutter et al. 2011, SMAC): the spread over its trees is its doubt. Over 400
    configurations drawn near those tried, the largest expected improvement (Jones et al. 1998) is compared with the standard error of the
    best score, as Makarova et al. 2022 compare a regret bound with it: what validation rows cannot show is not worth its time.
    """

    def __init__(self, mode: Mode, *, seed: int = 0) -> None:
        self._sign = 1.0 if mode == "max" else -1.0
        self._seed = seed
        self._asked_at = 0

    def __call__(self, trials: Sequence[Trial]) -> str | None:
        """A sentence for a person when the search should end; judged after 30 full trials and every ten from there."""
        full = [trial for trial in trials if trial.status == "done" and np.isfinite(trial.score)]
        if len(full) < _LEAST or len(full) < self._asked_at + _EVERY:
            return None
        self._asked_at = len(full)
        best = max(full, key=lambda trial: self._sign * trial.score)
        error = standard_error(best)
        if not np.isfinite(error) or error == 0.0:
            return None
        gain = self._expected_gain(full, self._sign * best.score)
        if gain >= _FRACTION * error:
            return None
        return (
            f"another trial is expected to gain at most {gain:.2g}, and the standard error of the best score is {error:.2g}: "
            "more time is not expected to help"
        )

    def _expected_gain(self, full: Sequence[Trial], best: float) -> float:
        from scipy.stats import norm
        from sklearn.ensemble import ExtraTreesRegressor

        x, y = _matrix(full), np.array([self._sign * trial.score for trial in full])
        # Spread wider than the trials: what lies between and around them, one family at a time.
        rng = np.random.default_rng(self._seed + len(full))
        parents = x[rng.integers(len(x), size=_DRAWS)]
        others = x[rng.integers(len(x), size=_DRAWS)]
        same = (parents[:, :1] == others[:, :1]).repeat(x.shape[1], axis=1)
        mixed = np.where((rng.random(parents.shape) < 0.5) & same, others, parents)
        fresh = mixed + rng.normal(0.0, 0.25, mixed.shape) * x.std(axis=0)
        fresh[:, 0] = parents[:, 0]
        forest = ExtraTreesRegressor(n_estimators=_TREES, bootstrap=True, min_samples_leaf=2, random_state=self._seed)
        forest.fit(x, y)
        said = np.stack([tree.predict(fresh) for tree in forest.estimators_])
        mean, doubt = said.mean(axis=0), said.std(axis=0) + 1e-12
        z = (mean - best) / doubt
        return float(np.max((mean - best) * norm.cdf(z) + doubt * norm.pdf(z)))


def _matrix(trials: Sequence[Trial]) -> NDArray[np.float64]:
    """Family, then each family's numeric parameters in columns of their own, on a log scale where positive."""
    families = sorted({trial.family for trial in trials})
    names = sorted(
        {(trial.family, key) for trial in trials for key, value in trial.params.items() if _is_number(value)}
    )
    x = np.zeros((len(trials), 1 + len(names)))
    for row, trial in enumerate(trials):
        x[row, 0] = families.index(trial.family)
        for column, (family, key) in enumerate(names, start=1):
            value: Any = trial.params.get(key)
            if trial.family == family and _is_number(value):
                x[row, column] = np.log(value) if value > 0 else value
    return x


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
