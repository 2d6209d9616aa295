"""Columns that hold the answer: alone, in disguise, added up, or only in rows that are old enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raymlops.data.assess.facts import Facts, Floats, Table
from raymlops.data.assess.models import Rows, Sample, as_numbers, skill
from raymlops.data.assess.result import CheckResult, listed, result

_LEAK_ROWS = 5000
_SURE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """What one column tells of the label by itself, on rows it was not fitted on.

    Attributes
    ----------
    score : AUC for classes, R² for a regression
    z : standard errors from chance
    """

    score: float
    z: float


def alone(table: Table, sample: Sample) -> dict[str, Alone]:
    """Each column by itself, in two folds."""
    rows = np.sort(np.random.default_rng(sample.seed).permutation(len(sample.y))[:_LEAK_ROWS])
    even, odd = rows[::2], rows[1::2]
    found = {}
    for column in table.inputs:
        pairs = [_guess(column, sample, train, test) for train, test in ((even, odd), (odd, even))]
        skills = [skill(sample.y[test], guess, sample.task) for test, guess in zip((odd, even), pairs, strict=True)]
        known = [value for value in skills if value == value]
        value = float(np.mean(known)) if known else 0.0
        found[column.name] = Alone(score=_scored(value, sample), z=_sureness(value, sample.y[rows], sample))
    return found


def _scored(value: float, sample: Sample) -> float:
    return value if sample.task == "regression" else 0.5 + value / 2


def _sureness(value: float, y: Floats, sample: Sample) -> float:
    """Standard errors from no skill: of the AUC by its variance under chance (Hanley & McNeil 1982), of R² by that of the
    correlation."""
    if sample.task == "regression":
        return float(np.sqrt(max(value, 0.0) * len(y)))
    counts = np.bincount(y.astype(np.intp))
    ones = float(np.min(counts[counts > 0]))
    zeros = max(len(y) - ones, 1.0)
    return float(abs(value) / 2 / np.sqrt((len(y) + 1) / (12 * ones * zeros)))


def _guess(column: Facts, sample: Sample, train: Rows, test: Rows) -> Floats:
    """The label as one column tells it, in the form :func:`skill` takes."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    x, y = _encoded(column, sample, train), sample.y
    if sample.task != "regression":
        tree = DecisionTreeClassifier(max_depth=4, random_state=0).fit(x[train, None], y[train])
        probabilities = np.zeros((len(test), sample.classes))
        probabilities[:, tree.classes_.astype(np.intp)] = tree.predict_proba(x[test, None])
        return probabilities[:, 1] if sample.task == "binary" else probabilities
    # Shallow trees cannot follow a line to R² 0.999; a straight fit, also through ranks, finds copies in other units.
    forest = DecisionTreeRegressor(max_depth=8, min_samples_leaf=5, random_state=0).fit(x[train, None], y[train])
    guesses = [forest.predict(x[test, None]), _line(x[train], y[train], x[test]), _steps(x[train], y[train], x[test])]
    return max(guesses, key=lambda guess: skill(y[test], guess, "regression"))


def _line(x: Floats, y: Floats, at: Floats) -> Floats:
    spread = float(np.var(x))
    slope = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread > 0 else 0.0
    return slope * at + (float(y.mean()) - slope * float(x.mean()))


def _steps(x: Floats, y: Floats, at: Floats) -> Floats:
    """The label along the sorted column, between its neighbours: exact for any monotone function without noise."""
    order = np.argsort(x, kind="stable")
    kinds, first = np.unique(x[order], return_index=True)
    if len(kinds) < len(x) / 2:
        return np.full(len(at), float(y.mean()))
    return np.interp(at, kinds, y[order][first])


def _encoded(column: Facts, sample: Sample, train: Rows) -> Floats:
    """Numbers as they are (missing far below); texts by the mean label of their value in the training rows."""
    if column.codes is None:
        values = as_numbers(column, sample.rows).astype(np.float64)
        usable = ~np.isnan(values)
        low = float(values[usable].min()) - 1.0 - float(np.ptp(values[usable])) if usable.any() else 0.0
        return np.where(usable, values, low).astype(np.float32).astype(np.float64)
    codes = column.codes[sample.rows] + 1
    y = sample.y
    total = np.bincount(codes[train], weights=y[train], minlength=len(column.categories) + 1)
    count = np.bincount(codes[train], minlength=len(column.categories) + 1)
    means = np.where(count > 0, total / np.maximum(count, 1), float(np.mean(y[train])))
    return np.asarray(means[codes], dtype=np.float64)


def leaks(table: Table, found: dict[str, Alone]) -> Iterator[CheckResult]:
    """A column that alone predicts the label almost perfectly is the label itself, or was written after it."""
    limit, look = table.spec.limit("leak"), table.spec.limit("suspicious")
    suspects = 0
    scores: dict[str, float] = {name: round(one.score, 4) for name, one in found.items()}
    for name, one in found.items():
        if one.score >= limit:
            suspects += 1
            message = f"Column {name!r} alone predicts the label {table.label!r} (score {one.score:.4f}): it leaks the answer."
            advice = f"Drop it unless it is known before the outcome: drop=({name!r},)."
            yield result(f"leak:{name}", "fail", one.score, limit, message, advice, scores=scores)
        elif one.score >= look:
            suspects += 1
            message = (
                f"Column {name!r} alone predicts the label {table.label!r} suspiciously well (score {one.score:.4f})."
            )
            advice = "Make sure that it is known before the outcome."
            yield result(f"suspicious:{name}", "warn", one.score, look, message, advice, scores=scores)
    if not suspects and found:
        best = max(found, key=lambda name: found[name].score)
        message = f"No column alone predicts the label; the strongest is {best!r} with {found[best].score:.3f}."
        yield result("leak", "pass", found[best].score, limit, message, scores=scores)


def disguise(table: Table, sample: Sample, found: dict[str, Alone]) -> Iterator[CheckResult]:
    """A regression label that is a weighted sum of columns, none of which is it alone."""
    limit = table.spec.limit("disguise")
    if sample.task != "regression" or any(one.score >= table.spec.limit("leak") for one in found.values()):
        return
    usable = [
        index
        for index, column in enumerate(table.inputs)
        if column.kind in ("number", "boolean") and not column.constant and not np.isnan(sample.x[:, index]).any()
    ]
    y = table.y[sample.rows]
    if len(usable) < 2 or len(y) < 4 * len(usable):
        return
    raw = np.column_stack([_plain(table.inputs[index], sample) for index in usable])
    x = (raw - raw.mean(axis=0)) / np.maximum(raw.std(axis=0), 1e-12)
    x = np.column_stack([x, np.ones(len(y))])
    half = len(y) // 2
    weights, *_ = np.linalg.lstsq(x[:half], y[:half], rcond=None)
    guess = x[half:] @ weights
    value = skill(y[half:], guess, "regression")
    if not value >= limit:
        yield result("disguise", "pass", value, limit, f"No sum of columns is the label (R² {value:.4f}).")
        return
    parts = [table.names[usable[i]] for i in np.flatnonzero(np.abs(weights[:-1]) > 1e-3 * y.std())]
    message = f"The label {table.label!r} is a sum of {listed(parts)} (R² {value:.6f})."
    advice = "They are its parts: drop them unless they are known before the outcome, or compute it without a model."
    yield result("disguise", "warn", value, limit, message, advice, columns=parts)


def _plain(column: Facts, sample: Sample) -> Floats:
    assert column.values is not None
    return column.values[sample.rows].astype(np.float64)


def collapse(table: Table, sample: Sample) -> Iterator[CheckResult]:
    """A column that tells the label in older rows and no longer in the newest is filled in after the outcome.

    Fitted on every second row of the older three quarters, tested on the others of these and on the newest quarter.
    """
    if table.times is None or len(sample.y) < 400:
        return
    limit, found = table.spec.limit("collapse"), False
    older = np.arange(sample.cut)[-3 * _LEAK_ROWS :]
    train, before, after = older[::2], older[1::2], np.arange(sample.cut, len(sample.y))
    for column in table.inputs:
        if column.constant:
            continue
        scores = [skill(sample.y[test], _guess(column, sample, train, test), sample.task) for test in (before, after)]
        if not all(score == score for score in scores):
            continue
        lost = scores[0] - max(scores[1], 0.0)
        error = 1.5 / np.sqrt(min(len(before), len(after)))
        # Its skill must be gone, not only smaller: that is how drift looks.
        if lost > 2 * limit and lost > _SURE * error and scores[1] < 0.35 * scores[0]:
            found = True
            old, new = (_scored(score, sample) for score in scores)
            message = (
                f"Column {column.name!r} tells the label in older rows (score {old:.3f}) and not in the newest quarter "
                f"({new:.3f})."
            )
            advice = "It may be filled in after the outcome: make sure it is known when a prediction is asked for."
            yield result(f"collapse:{column.name}", "warn", lost, limit, message, advice)
    if not found:
        yield result("collapse", "pass", 0, limit, "No column stops telling the label in the newest rows.")
