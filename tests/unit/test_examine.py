"""What a probe looks at: the refit's gain on the newest labels, and where the rise of the loss comes from."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from raymlops.data.schema import Column, DataContract
from raymlops.errors import DataError
from raymlops.monitor.attribution import suspects
from raymlops.monitor.examine import Examination, examine
from raymlops.monitor.quality import row_losses
from raymlops.registry.package import Reference
from raymlops.search.candidates import hist_boosting
from raymlops.search.probe import compared_rows
from raymlops.search.selection import Search


def rows(n: int, seed: int, *, flipped: bool = False) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    odds = (-1 if flipped else 1) * 2 * x[:, 0] + x[:, 1]
    return x, (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(float)


def fit(x: Any, y: Any) -> Any:
    model = LogisticRegression().fit(x, y)
    return lambda some: model.predict_proba(some)[:, 1]


PAST = rows(4000, 1)
CHAMPION = fit(*PAST)


def reference() -> Reference:
    x, y = rows(2000, 2)
    scores = CHAMPION(x)
    return Reference(columns=("a", "b", "c"), x=x, scores=scores, losses=row_losses("binary", y, scores), ordered=True)


def look(new: tuple[Any, Any], **more: Any) -> Examination:
    x, y = (np.concatenate(pair) for pair in zip(PAST, new, strict=True))
    return examine(x, y, task="binary", champion=CHAMPION, refit=fit, labelled=len(new[1]), **more)


def test_after_a_change_of_the_concept_a_refit_gains_and_the_rise_is_the_concepts() -> None:
    # The refit must forget the past to learn the change, so it is given the window since then.
    new = rows(1500, 3, flipped=True)
    found = examine(
        *new,
        task="binary",
        champion=CHAMPION,
        refit=fit,
        labelled=1500,
        since_change=1500,
        reference=reference(),
    )
    assert found.probe.gains
    assert found.probe.sure
    assert found.probe.rows == 300
    assert found.parts is not None
    assert found.parts.concept > 0.8 * found.parts.rise > 0.1
    assert [item.column for item in found.suspects] == ["a"]
    assert found.suspects[0].share > 0.3
    assert Examination.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_while_nothing_changed_a_refit_gains_nothing_that_is_sure() -> None:
    found = look(rows(2000, 4))
    assert abs(found.probe.gain) < 3 * found.probe.standard_error + 1e-3
    assert found.parts is None


def test_inputs_that_moved_to_where_it_is_hard_are_the_inputs_part() -> None:
    new = rows(2000, 5)
    near = np.abs(2 * new[0][:, 0] + new[0][:, 1]) < 0.8
    found = look((new[0][near], new[1][near]), reference=reference(), since_change=int(near.sum()))
    assert found.parts is not None
    assert found.parts.covariate > 0.7 * found.parts.rise > 0.03


def test_too_few_rows_are_refused_with_both_numbers() -> None:
    x, y = rows(100, 6)
    with pytest.raises(DataError, match="100 labelled rows are too few to hold 30 back"):
        examine(x, y, task="binary", champion=CHAMPION, refit=fit, labelled=100, since_change=10)


@pytest.mark.parametrize(
    ("labelled", "since_change", "rows_"),
    [(0, None, 30), (500, None, 250), (1000, None, 250), (5000, None, 1000), (10**6, None, 2000), (10**6, 400, 200)],
)
def test_few_rows_are_held_back_but_enough(labelled: int, since_change: int | None, rows_: int) -> None:
    assert compared_rows(labelled, since_change) == rows_


def test_a_model_that_is_right_has_no_suspects_at_the_stated_rate() -> None:
    told = 0
    for seed in range(60):
        x, y = rows(800, 100 + seed)
        odds = 2 * x[:, 0] + x[:, 1]
        told += bool(suspects(x, y, 1 / (1 + np.exp(-odds)), ("a", "b", "c"), alpha=0.01))
    assert told <= 3


def test_suspects_may_be_categories_missing_values_or_errors_of_classes() -> None:
    rng = np.random.default_rng(0)
    codes, noise = rng.integers(0, 4, 1000).astype(float), rng.normal(size=1000)
    gone = np.where(rng.random(1000) < 0.3, np.nan, noise)
    x = np.column_stack((codes, gone, rng.normal(size=1000)))
    wrong = (codes == 2) * 1.0 + np.isnan(gone) * 0.5 + 0.1 * rng.normal(size=1000)
    assert [item.column for item in suspects(x, wrong, np.zeros(1000), ("kind", "gone", "idle"))] == ["kind", "gone"]
    truth = (codes == 2).astype(float)
    scores = np.column_stack((np.ones(1000), np.zeros(1000)))
    assert [item.column for item in suspects(x, truth, scores, ("kind", "gone", "idle"))] == ["kind"]
    assert suspects(x, np.ones(1000), np.ones(1000), ("kind", "gone", "idle")) == ()


def test_the_refit_of_a_probe_keeps_the_quantile_and_the_monotone_columns() -> None:
    from raymlops.loop.ray_probe import _refit

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2)).astype(np.float32)
    y = rng.normal(size=2000) - x[:, 0]
    columns = tuple(Column(name=name, kind="number", nullable=False, minimum=-9.0, maximum=9.0) for name in "ab")
    contract = DataContract(columns=columns, label="y", task="regression", classes=())
    search = Search(candidates=[hist_boosting()], quantile=0.9, monotone={"a": 1})
    champion: Any = SimpleNamespace(family="hist_boosting", params={"max_iter": 20}, version=1)
    predict = _refit(search, champion, contract)(x, y)
    assert np.mean(y <= predict(x)) == pytest.approx(0.9, abs=0.03)
    line = np.column_stack([np.linspace(-3, 3, 50), np.zeros(50)]).astype(np.float32)
    assert (np.diff(predict(line)) >= 0).all()
