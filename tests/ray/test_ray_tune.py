"""The search on Ray Tune: small data, real cluster."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from raymlops.data.schema import Column, DataContract
from raymlops.data.snapshot import Arrays
from raymlops.errors import ConfigError, SearchFailed
from raymlops.search import candidates
from raymlops.search.ray_tune import refit, search
from raymlops.search.selection import Search, Trial
from raymlops.settings import Settings

CONTRACT = DataContract(
    columns=tuple(Column(name=name, kind="number", nullable=False, minimum=-9.0, maximum=9.0) for name in "abc"),
    label="y",
    task="binary",
    classes=(0, 1),
)


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """Enough train rows for two rungs; the rule turns over in the first 60 % of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9000, 3)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=9000) * 0.3 > 0).astype(float)
    y[:4000] = 1 - y[:4000]
    cut = {"train": slice(0, 7000), "validation": slice(7000, 8000), "test": slice(8000, 9000)}
    split = {f"{axis}_{name}": data[rows] for name, rows in cut.items() for axis, data in (("x", x), ("y", y))}
    return Arrays(**split, time_test=np.arange(1000.0))


def test_a_search_tries_every_family_and_finds_the_recent_window(ray_cluster: Settings, arrays: Arrays) -> None:
    seen: list[Trial] = []
    result = search(
        arrays, CONTRACT, Search(trials=12), ordered=True, settings=ray_cluster, max_gap=0.3, on_trial=seen.append
    )
    assert len(result.leaderboard.trials) == 12
    assert tuple(seen) == result.leaderboard.trials
    assert sorted(trial.number for trial in seen) == list(range(12))
    first = {trial.number: trial for trial in seen}
    assert [first[number].family for number in range(5)] == [
        "xgboost",
        "linear",
        "random_forest",
        "hist_boosting",
        "xgboost",
    ]
    start = dict(candidates.xgboost().start)
    assert {key: first[0].params[key] for key in start} == pytest.approx(start)
    assert [first[number].params["recent"] for number in (0, 4, 5, 6)] == [1.0, 0.5, 0.25, 0.1]
    assert result.leaderboard.errors == {}
    assert result.trial.status == "done"
    assert result.trial.params["recent"] < 1.0
    objective = Search().objective("binary")
    assert objective.score(arrays.y_test, result.estimator.predict(arrays.x_test)) > 0.9
    again = refit(
        result, np.concatenate([arrays.x_train, arrays.x_test]), np.concatenate([arrays.y_train, arrays.y_test])
    )
    assert objective.score(arrays.y_validation, again.predict(arrays.x_validation)) > 0.9
    assert os.listdir(f"{ray_cluster.home}/tune") == []


def test_without_order_every_trial_learns_from_all_rows(ray_cluster: Settings, arrays: Arrays) -> None:
    spec = Search(candidates=[candidates.linear()], trials=2, metric="log_loss")
    result = search(arrays, CONTRACT, spec, ordered=False, settings=ray_cluster)
    assert all("recent" not in trial.params for trial in result.leaderboard.trials)
    assert result.leaderboard.mode == "min"


class Broken:
    """A family that fails in every fit, or only for some parameters."""

    name = "broken"
    tasks = ("binary",)

    def __init__(self, always: bool) -> None:
        self.always = always
        self.start: dict[str, Any] = {}

    def space(self, trial: Any) -> dict[str, Any]:
        return {"odd": trial.suggest_int("odd", 0, 1)}

    def build(self, params: Any, task: Any, n_classes: int, categorical: Any, seed: int) -> Any:
        if self.always or params["odd"]:
            raise MemoryError("the table is too big")
        family = candidates.linear()
        return family.build(dict(family.start), task, n_classes, categorical, seed)


def test_failed_trials_are_counted_with_their_reason_and_the_rest_goes_on(
    ray_cluster: Settings, arrays: Arrays
) -> None:
    spec = Search(candidates=[Broken(always=True), candidates.linear()], trials=6)
    result = search(arrays, CONTRACT, spec, ordered=False, settings=ray_cluster)
    assert result.trial.family == "linear"
    assert set(result.leaderboard.errors) == {"MemoryError: the table is too big"}
    assert len(result.leaderboard.trials) == 6


def test_a_search_without_one_model_fails_with_the_reasons(ray_cluster: Settings, arrays: Arrays) -> None:
    with pytest.raises(SearchFailed) as caught:
        search(
            arrays, CONTRACT, Search(candidates=[Broken(always=True)], trials=3), ordered=False, settings=ray_cluster
        )
    assert str(caught.value) == "None of 3 trials gave a model: 3 x MemoryError: the table is too big."


def test_a_space_that_fails_is_named_before_any_trial(ray_cluster: Settings, arrays: Arrays) -> None:
    spec = Search(candidates=[candidates.linear(lambda trial: {"C": trial.suggest_float("C", 2.0, 1.0)})])
    with pytest.raises(ConfigError, match="The search space of 'linear' failed: ValueError"):
        search(arrays, CONTRACT, spec, ordered=False, settings=ray_cluster)
    spec = Search(candidates=[candidates.linear(lambda trial: None)])
    with pytest.raises(ConfigError, match="The search space of 'linear' returned None: it must return a dict"):
        search(arrays, CONTRACT, spec, ordered=False, settings=ray_cluster)
