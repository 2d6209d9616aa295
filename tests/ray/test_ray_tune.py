"""The search on Ray Tune: small data, real cluster."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from ray import tune

from raymlops.data.schema import Column, DataContract
from raymlops.data.snapshot import Arrays
from raymlops.errors import ConfigError, SearchFailed
from raymlops.lake import Lake
from raymlops.search import candidates, ray_tune
from raymlops.search.journal import Journal
from raymlops.search.ray_tune import refit, search
from raymlops.search.selection import Problem, Search, Trial
from raymlops.settings import Settings

CONTRACT = DataContract(
    columns=tuple(Column(name=name, kind="number", nullable=False, minimum=-9.0, maximum=9.0) for name in "abc"),
    label="y",
    task="binary",
    classes=(0, 1),
)


ZERO_ONE = np.arange(4) % 2.0
PLAIN = Arrays(
    **{f"x_{part}": np.zeros((4, 3), dtype=np.float32) for part in ("train", "validation", "test")},
    **{f"y_{part}": ZERO_ONE for part in ("train", "validation", "test")},
    time_test=None,
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
    latest = {trial.number: trial for trial in seen}
    assert latest == {trial.number: trial for trial in result.leaderboard.trials}
    assert sorted(latest) == list(range(12))
    assert result.leaderboard.ended == "all 12 trials ended"
    first = latest
    assert [first[number].family for number in range(5)] == [
        "xgboost",
        "linear",
        "hist_boosting",
        "random_forest",
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
    """A family whose fits end in one way; with ``only_odd`` only every other configuration does."""

    name = "broken"
    tasks = ("binary",)

    def __init__(self, how: Callable[[], Any], *, only_odd: bool = False) -> None:
        self.how, self.only_odd = how, only_odd
        self.start: dict[str, Any] = {}

    def space(self, trial: Any) -> dict[str, Any]:
        return {"odd": trial.suggest_int("odd", 0, 1)}

    def build(self, params: Any, task: Any, n_classes: int, categorical: Any, seed: int) -> Any:
        if not self.only_odd or params["odd"]:
            return Ends(self.how)
        family = candidates.linear()
        return family.build(dict(family.start), task, n_classes, categorical, seed)


class Ends:
    def __init__(self, how: Callable[[], Any]) -> None:
        self.how = how

    def fit(self, x: Any, y: Any, x_val: Any = None, y_val: Any = None) -> Any:
        self.filler = self.how()
        return self

    def predict(self, x: Any) -> Any:
        return np.full(len(x), self.filler)


def too_big() -> Any:
    raise MemoryError("the table is too big")


def never_ends() -> Any:
    while True:
        time.sleep(0.05)


def killed() -> Any:
    """As the kernel does to a process that takes all memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def beyond_its_memory() -> Any:
    """A real limit, met for real: the allocation is refused and the worker lives on."""
    kept = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 33, kept[1]))
    try:
        return float(np.ones(1 << 34)[0])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, kept)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (too_big, "MemoryError: the table is too big"),
        (beyond_its_memory, "Unable to allocate 128. GiB for an array"),
        (never_ends, "no result within 8 s (trial_timeout_s)"),
        (killed, "the worker died: ActorDiedError: "),
        (
            lambda: float("nan"),
            "ValueError: roc_auc is not defined on the validation rows: one class only, or NaN predicted",
        ),
    ],
    ids=["raises", "memory-limit", "hangs", "killed", "nan"],
)
def test_a_trial_that_ends_badly_costs_itself_only_and_is_shown_with_its_reason(
    ray_cluster: Settings, arrays: Arrays, how: Callable[[], Any], reason: str
) -> None:
    spec = Search(
        candidates=[candidates.linear(), Broken(how, only_odd=True)],
        trials=6,
        trial_timeout_s=8 if how is never_ends else None,
        seed=1,
    )
    result = search(arrays, CONTRACT, spec, ordered=False, settings=ray_cluster)
    board = result.leaderboard
    failed = [trial for trial in board.trials if trial.status == "failed"]
    assert sorted(trial.number for trial in board.trials) == list(range(6))
    assert all(reason in trial.error for trial in failed), failed
    odd = {trial.number for trial in board.trials if trial.params.get("odd") == 1}
    # A slow machine may take the limit of another fit too; what must not be is an odd one that did not fail.
    assert set() < odd <= {trial.number for trial in failed}
    assert sum(board.errors.values()) == len(failed)
    assert result.trial.status == "done"


def fits(lake: Lake) -> list[tuple[int, int]]:
    """Number and rung of every fit in the journal, in order."""
    items = [key for key in lake.keys("searches/churn/rows") if not key.endswith("end.json")]
    return [(item["proposal"]["number"], item["rung"]) for key in items for item in json.loads(lake.read(key))]


def test_a_search_whose_driver_was_killed_goes_on_and_runs_no_finished_trial_again(
    ray_cluster: Settings, arrays: Arrays, tmp_path: Path
) -> None:
    """The driver is broken off after five results, as by Ctrl-C; the second one finds them in the journal."""
    lake = Lake(str(tmp_path))
    spec = Search(candidates=[candidates.linear(), candidates.xgboost()], trials=8, prefer="score")

    def broken_off(trial: Trial) -> None:
        before.append(trial)
        if len(before) == 5:
            raise KeyboardInterrupt

    before: list[Trial] = []
    with pytest.raises(KeyboardInterrupt):
        search(
            arrays,
            CONTRACT,
            spec,
            ordered=False,
            settings=ray_cluster,
            on_trial=broken_off,
            journal=Journal(lake, "churn", "rows", "e1"),
        )
    kept = fits(lake)
    assert len(kept) >= 5
    result = search(
        arrays,
        CONTRACT,
        spec,
        ordered=False,
        settings=ray_cluster,
        journal=Journal(lake, "churn", "rows", "e2"),
    )
    ran = fits(lake)
    assert ran[: len(kept)] == kept
    assert len(ran) == len(set(ran)) > len(kept)
    # What was in flight when it broke off comes again, under a number of its own.
    assert len({trial.number for trial in result.leaderboard.trials}) == 8


def test_time_ends_a_search_without_a_limit_of_trials(ray_cluster: Settings, arrays: Arrays) -> None:
    spec = Search(candidates=[candidates.linear()], trials=None, time_budget_s=4, stop_early=False)
    result = search(arrays, CONTRACT, spec, ordered=False, settings=ray_cluster)
    assert result.trial.family == "linear"
    assert result.leaderboard.ended == "the time budget is used"


def test_a_search_without_one_model_fails_with_the_reasons(ray_cluster: Settings, arrays: Arrays) -> None:
    with pytest.raises(SearchFailed) as caught:
        search(arrays, CONTRACT, Search(candidates=[Broken(too_big)], trials=3), ordered=False, settings=ray_cluster)
    assert str(caught.value) == "None of 3 trials gave a model: 3 x MemoryError: the table is too big."


def test_a_space_that_fails_is_named_before_any_trial(ray_cluster: Settings, arrays: Arrays) -> None:
    spec = Search(candidates=[candidates.linear(lambda trial: {"C": trial.suggest_float("C", 2.0, 1.0)})])
    with pytest.raises(ConfigError, match="The search space of 'linear' failed: ValueError"):
        search(arrays, CONTRACT, spec, ordered=False, settings=ray_cluster)
    spec = Search(candidates=[candidates.linear(lambda trial: None)])
    with pytest.raises(ConfigError, match="The search space of 'linear' returned None: it must return a dict"):
        search(arrays, CONTRACT, spec, ordered=False, settings=ray_cluster)


def test_spaces_of_ray_tune_are_drawn_from_and_endless_ones_refused() -> None:
    space = {
        "C": tune.loguniform(0.01, 1.0),
        "max_iter": tune.randint(100, 102),
        "leaves": tune.qrandint(10, 30, 10),
        "share": tune.quniform(0.2, 1.0, 0.2),
        "kind": tune.choice(["a", "b"]),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [candidates.linear(space).space(study.ask()) for _ in range(20)]
    assert all(0.01 <= one["C"] <= 1.0 for one in drawn)
    assert {one["max_iter"] for one in drawn} == {100, 101}
    assert {one["leaves"] for one in drawn} == {10, 20, 30}
    assert {round(one["share"], 6) for one in drawn} <= {0.2, 0.4, 0.6, 0.8, 1.0}
    with pytest.raises(ConfigError, match=r"'C' is .* which has no bounds to search between"):
        candidates.linear({"C": tune.randn(0, 1)})


def test_workers_ask_for_what_any_family_needs() -> None:
    families = {family.name: family for family in (candidates.xgboost(gpu=True), candidates.linear())}
    problem = replace(Problem.of(Search(), CONTRACT, PLAIN), families=families)
    assert ray_tune._resources(problem) == {"CPU": 1.0, "GPU": 1.0}
    assert ray_tune._resources(replace(problem, families={"linear": families["linear"]})) == {"CPU": 1.0}


def test_workers_that_cannot_start_end_a_search_with_the_reason() -> None:
    watch = ray_tune._Watch()
    watch.stillborn += ["the worker died: ModuleNotFoundError: No module named 'spaces'"] * 5
    watch.on_step_end(0, [])
    watch.stillborn.append(watch.stillborn[0])
    with pytest.raises(SearchFailed, match=r"No worker of the search can start \(.*No module named 'spaces'\)"):
        watch.on_step_end(0, [])
    # Once a worker has started, the loss of another is that worker's matter.
    watch.started.add("x")
    watch.on_step_end(0, [])
