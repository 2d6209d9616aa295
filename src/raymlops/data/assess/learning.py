"""Quick models ask: is the label predictable at all, would more rows help, and which columns have nothing to do with it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from raymlops.data.assess.curve import LearningCurve, fit_curve
from raymlops.data.assess.facts import Floats, Table
from raymlops.data.assess.leaks import Alone
from raymlops.data.assess.models import Matrix, Sample, fit, interval, predict, shown, skill
from raymlops.data.assess.result import CheckResult, Verdict, listed, result

_PERMUTED = 5
_ENOUGH_TEST = 500
_REPEATS = 4
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_SMALLEST = 60
_SHADOW_RUNS, _SHADOW_ROWS = 12, 6000
_ALPHA = 0.05
_ALONE_Z = 3.0


def predictive(table: Table, sample: Sample) -> Iterator[CheckResult]:
    """A quick model's skill on held-out rows, with its interval, against chance and against models of shuffled labels."""
    least, cut = table.spec.limit("predictive"), sample.cut
    x, y, truth = sample.x[:cut], sample.y[:cut], sample.y[cut:]
    prediction = predict(fit(x, y, sample, sample.seed), sample.x[cut:])
    value = skill(truth, prediction, sample.task)
    if value != value:
        yield result("predictive", "skipped", None, least, "The label does not vary in the held-out rows.")
        return
    low, high = interval(truth, prediction, sample, blocks=table.times is not None)
    rng = np.random.default_rng(sample.seed + 1)
    shuffled = [
        skill(truth, predict(fit(x, rng.permutation(y), sample, seed), sample.x[cut:]), sample.task)
        for seed in range(_PERMUTED)
    ]
    chance = max([0.0, *(one for one in shuffled if one == one)])
    sure = low > max(0.0, float(np.mean(shuffled)))
    hopeless = high < 2 * least if sample.task != "regression" else high < least
    verdict: Verdict = "pass" if sure else "fail" if hopeless and len(truth) >= _ENOUGH_TEST else "warn"
    said = f"{shown(value, sample.task)} [{_bare(low, sample)}, {_bare(high, sample)}] on {len(truth)} held-out rows"
    against = f"chance is {_bare(0.0, sample)}, shuffled labels reach {_bare(chance, sample)}"
    message = f"A quick model of {cut} rows reaches {said}; {against}."
    advice = (
        "The columns say nothing about the label: look at the join and at what is known before the outcome."
        if verdict == "fail"
        else "It cannot be told from chance with so few rows: collect more, or columns that say more."
    )
    yield result(
        "predictive",
        verdict,
        value,
        least,
        message,
        advice,
        low=low,
        high=high,
        shuffled=[round(one, 4) for one in shuffled],
        test_rows=len(truth),
    )


def _bare(value: float, sample: Sample) -> str:
    return shown(value, sample.task).split()[1]


def enough_rows(table: Table, sample: Sample) -> Iterator[CheckResult]:
    """A learning curve, extrapolated: what would twice the rows bring?"""
    curve = learning_curve(sample)
    if curve is None:
        return
    limit, rows = table.spec.limit("enough_rows"), 0.75 * table.rows
    twice, four = curve.gain(rows, 2 * rows), curve.gain(rows, 4 * rows)
    scale = 1.0 if sample.task == "regression" else 0.5
    word = "R²" if sample.task == "regression" else "AUC"
    verdict: Verdict = "warn" if twice[1] > limit and twice[0] > 0 else "pass"
    gains = [
        f"{factor} {word} {g[0] * scale:+.3f} [{g[1] * scale:.3f}, {g[2] * scale:.3f}]"
        for factor, g in (("twice the rows:", twice), ("four times:", four))
    ]
    message = f"From {curve.sizes[0]:,} to {curve.sizes[-1]:,} rows {word} rises from {_bare(1 - curve.errors[0], sample)} to {_bare(1 - curve.errors[-1], sample)}; {'; '.join(gains)}."
    advice = "More rows would surely help: collect them before tuning."
    yield result("enough_rows", verdict, twice[1], limit, message, advice, curve=curve.to_dict())


def learning_curve(sample: Sample) -> LearningCurve | None:
    """Errors (one less the skill) of quick models on growing shares of the rows, several at each; ``None`` for too few."""
    cut, rng = sample.cut, np.random.default_rng(sample.seed + 2)
    sizes = sorted({round(share * cut) for share in _SHARES if share * cut >= _SMALLEST})
    if len(sizes) < 3:
        return None
    errors = np.full((len(sizes), _REPEATS), np.nan)
    truth = sample.y[cut:]
    for at, size in enumerate(sizes):
        # All of the rows are one sample only: its other repeats leave out some, as the smaller ones do.
        for repeat in range(_REPEATS):
            take = size if size < cut else round(0.9 * size)
            rows = rng.permutation(cut)[:take]
            if sample.task != "regression" and len(np.unique(sample.y[rows])) < 2:
                continue
            model = fit(sample.x[rows], sample.y[rows], sample, repeat)
            errors[at, repeat] = 1.0 - skill(truth, predict(model, sample.x[cut:]), sample.task)
    used = [size if size < cut else round(0.9 * size) for size in sizes]
    known = ~np.isnan(errors).any(axis=1)
    if known.sum() < 3:
        return None
    return fit_curve(np.array(used)[known], errors[known], seed=sample.seed)


def unrelated(table: Table, sample: Sample, single: Mapping[str, Alone]) -> Iterator[CheckResult]:
    """Columns that never matter more than shuffled copies of columns do (Boruta; Kursa & Rudnicki 2010).

    Importance is what is lost on held-out rows when a column's Shapley contributions are taken out. A column is unrelated
    when it beats the best shuffled copy in surely fewer than half of the runs (binomial, false discovery rate over columns;
    Benjamini & Hochberg 1995) *and* says nothing alone either: a column that another one repeats is redundant, not unrelated.
    """
    from scipy.stats import binom, false_discovery_control

    hits = shadow_hits(sample)
    limit, names = table.spec.limit("unrelated"), sample.names
    p = false_discovery_control(binom.cdf(hits, _SHADOW_RUNS, 0.5))
    idle = [name for name, one in zip(names, p, strict=True) if one < _ALPHA and single[name].z < _ALONE_Z]
    share = len(idle) / max(len(names), 1)
    verdict: Verdict = "warn" if share > limit else "pass"
    message = (
        f"{len(idle)} of {len(names)} columns matter no more than shuffled copies"
        + (f": {listed(idle)}" if idle else "")
        + "."
    )
    advice = "Drop them: they cost memory and time and tempt the search."
    counted = dict(zip(names, (int(hit) for hit in hits), strict=True))
    yield result("unrelated", verdict, share, limit, message, advice, columns=idle, hits=counted, runs=_SHADOW_RUNS)


def shadow_hits(sample: Sample) -> Floats:
    """In how many of the runs each column matters more than the best shuffled copy, ``(n_features,)``."""
    n, m = sample.x.shape
    hits = np.zeros(m)
    for run in range(_SHADOW_RUNS):
        rng = np.random.default_rng((sample.seed, 3, run))
        rows = rng.permutation(n)[:_SHADOW_ROWS]
        x = sample.x[rows]
        shadows = np.column_stack([x[rng.permutation(len(x)), j] for j in range(m)])
        both = np.hstack([x, shadows])
        cut = len(rows) * 2 // 3
        matters = importance(both, sample.y[rows], cut, sample, run)
        hits += matters[:m] > max(float(matters[m:].max()), 0.0)
    return hits


def importance(x: Matrix, y: Floats, cut: int, sample: Sample, seed: int) -> Floats:
    """Held-out loss without a column's Shapley contributions, less the loss with them, ``(n_columns,)``."""
    import xgboost

    model = fit(x[:cut], y[:cut], sample, seed, rounds=25)
    parts = np.asarray(model.predict(xgboost.DMatrix(x[cut:], nthread=1), pred_contribs=True), dtype=np.float64)
    truth = y[cut:]
    if parts.ndim == 2:
        parts = parts[:, None, :]
    margin = parts.sum(axis=2)
    with_all = _loss(margin, truth, sample)
    return np.array([_loss(margin - parts[:, :, j], truth, sample) - with_all for j in range(x.shape[1])])


def _loss(margin: Floats, y: Floats, sample: Sample) -> float:
    """Mean log-loss of raw scores ``(n, 1 or n_classes)``, or mean squared error."""
    if sample.task == "regression":
        return float(np.mean((margin[:, 0] - y) ** 2))
    if sample.task == "binary":
        return float(np.mean(np.logaddexp(0.0, np.where(y == 1, -margin[:, 0], margin[:, 0]))))
    top = margin.max(axis=1)
    total = top + np.log(np.exp(margin - top[:, None]).sum(axis=1))
    return float(np.mean(total - margin[np.arange(len(y)), y.astype(np.intp)]))
