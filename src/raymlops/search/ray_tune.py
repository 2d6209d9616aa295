"""The search on Ray Tune: Optuna proposes, successive halving stops the hopeless, actors are used again."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from raymlops.errors import ConfigError, SearchFailed
from raymlops.search.candidates import Candidate
from raymlops.search.selection import (
    Leaderboard,
    Problem,
    Search,
    SearchResult,
    Trial,
    finish,
    recent_shares,
    refit,
    run_trial,
)

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract
    from raymlops.data.snapshot import Arrays
    from raymlops.settings import Settings

__all__ = ["refit", "search"]

_SHARES = (1 / 9, 1 / 3, 1.0)
_MIN_SHARE_ROWS = 2000
_START_S = 300.0
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C must end the run; Tune's own handler would end the search and let the run go on.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_THRESHOLD_S": "60",
}


def search(
    arrays: Arrays,
    contract: DataContract,
    spec: Search,
    *,
    ordered: bool,
    settings: Settings,
    max_gap: float | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """Try ``spec.trials`` configurations and fit the best one for the gate.

    Trials climb a ladder of shares of the train rows (1/9, 1/3, all; a rung of fewer than 2,000 rows is left out) and
    are stopped by asynchronous successive halving (Li et al. 2020) over what Optuna's TPE proposes (Bergstra et al. 2011).

    Parameters
    ----------
    ordered : rows are in time order, so the share of recent rows to learn from may be searched too
    max_gap : the gate's limit on over-fitting; trials beyond it are chosen last
    on_trial : called in this process with every trial as it ends

    Raises
    ------
    ConfigError : a metric or candidates that do not fit the task, a search space that fails
    SearchFailed : no trial gave a model, or no CPU became free for the first one within 300 s
    """
    problem = Problem.of(spec, contract, arrays)
    recent = recent_shares(len(arrays.y_train)) if ordered and spec.recency else (1.0,)
    shares = tuple(share for share in _SHARES if share == 1.0 or share * len(arrays.y_train) >= _MIN_SHARE_ROWS)
    watch = _Watch(on_trial)
    mode = problem.objective.mode
    folder = Path(settings.home) / "tune"
    name = f"search-{uuid.uuid4().hex[:12]}"
    trainable = tune.with_resources(
        tune.with_parameters(_Trainable, arrays=arrays, problem=problem, shares=shares), {"cpu": 1}
    )
    concurrent = max(1, min(spec.max_concurrent, int(ray.cluster_resources().get("CPU", 1))))
    with _quiet():
        space = _Space(problem.families, recent)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="score",
                mode=mode,
                search_alg=_Proposals(space, mode=mode, seed=spec.seed, floor=problem.baseline),
                scheduler=_Halving(max_t=len(shares), reduction_factor=3) if len(shares) > 1 else None,
                num_samples=spec.trials,
                max_concurrent_trials=concurrent,
                time_budget_s=None if spec.time_budget_s is None else float(spec.time_budget_s),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name=name, storage_path=str(folder), verbose=0, callbacks=[watch]),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(folder / name, ignore_errors=True)
    leaderboard = Leaderboard(metric=problem.objective.metric, mode=mode, trials=tuple(watch.ended), max_gap=max_gap)
    return finish(problem, arrays, leaderboard)


class _Trainable(tune.Trainable):
    """One trial: every step fits anew on a larger share of the rows. An actor serves many trials, one after another."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        self._arrays: Arrays = given["arrays"]
        self._problem: Problem = given["problem"]
        self._shares: tuple[float, ...] = given["shares"]
        self._rung = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._rung = 0
        return True

    def step(self) -> dict[str, Any]:
        share = self._shares[self._rung]
        self._rung += 1
        try:
            outcome = run_trial(self._problem, self._arrays, self.config["family"], self.config["params"], share)
        except Exception as error:
            # A failed configuration is a finding, not a fault: the actor lives on and the reason is counted.
            return {"score": float("nan"), "error": f"{type(error).__name__}: {error}"[:500], "done": True}
        return {
            "score": outcome.score,
            "train_score": outcome.train_score,
            "gap": outcome.gap,
            "fit_s": outcome.fit_s,
            "learned": outcome.learned,
            "full": outcome.full,
            "done": outcome.full,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        return None


class _Space:
    """Optuna's define-by-run function over all families; each family's parameters carry its name before them."""

    def __init__(self, families: Mapping[str, Candidate], recent: tuple[float, ...]) -> None:
        self._families = families
        self._recent = recent
        self._check()

    def __call__(self, trial: Any) -> dict[str, Any]:
        family = trial.suggest_categorical("family", list(self._families))
        prefixed: Any = _Prefixed(trial, family)
        params = self._families[family].space(prefixed)
        if len(self._recent) > 1:
            params = {**params, "recent": trial.suggest_categorical("recent", self._recent)}
        return {"number": trial.number, "family": family, "params": params}

    def starts(self) -> list[dict[str, Any]]:
        """What is tried first: every family's proven default, then the first family over the recent windows."""
        everything = {"recent": 1.0} if len(self._recent) > 1 else {}
        first = [
            {"family": name, **{f"{name}.{key}": value for key, value in candidate.start.items()}, **everything}
            for name, candidate in self._families.items()
        ]
        return first + [{**first[0], "recent": share} for share in self._recent if share != 1.0]

    def _check(self) -> None:
        """Draw once from every family here, where a space that fails can be named."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for name, candidate in self._families.items():
            try:
                drawn: Any = candidate.space(study.ask())
            except Exception as error:
                raise ConfigError(f"The search space of {name!r} failed: {type(error).__name__}: {error}") from error
            if not isinstance(drawn, dict) or not all(isinstance(key, str) for key in drawn):
                raise ConfigError(
                    f"The search space of {name!r} returned {drawn!r}: it must return a dict of parameters by name."
                )


class _Prefixed:
    """An Optuna trial that puts the family's name before each parameter: two families may both have ``max_depth``."""

    def __init__(self, trial: Any, family: str) -> None:
        self._trial, self._family = trial, family

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._trial, name)
        if not name.startswith("suggest_"):
            return found
        return lambda parameter, *args, **kwargs: found(f"{self._family}.{parameter}", *args, **kwargs)


class _Proposals(OptunaSearch):
    """Optuna behind Tune, told of starting points (Tune refuses them for define-by-run) and of failures.

    Optuna learns nothing from a trial that failed and proposes its like again, so a failure is told as no better than
    ``floor``, the trivial baseline.
    """

    def __init__(self, space: _Space, *, mode: str, seed: int, floor: float) -> None:
        self._floor = floor
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)
        super().__init__(space=space, metric="score", mode=mode, sampler=sampler)
        study: Any = self._ot_study
        for point in space.starts():
            study.enqueue_trial(point)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "error" not in result:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result is not None and "error" in result:
            result = {**result, "score": self._floor}
        super().on_trial_complete(trial_id, result, error)


class _Halving(AsyncHyperBandScheduler):
    """Successive halving that leaves failed trials out of its quantiles."""

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        if "error" not in result:
            super().on_trial_complete(tune_controller, trial, result)


class _Watch(tune.Callback):
    """Turns Tune's trials into ours as they end."""

    def __init__(self, on_trial: Callable[[Trial], None] | None) -> None:
        self.ended: list[Trial] = []
        self._on_trial = on_trial
        self._began = time.monotonic()
        self._started = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; whoever watches (a terminal, a lock) stays in this process."""
        return {**self.__dict__, "_on_trial": None}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._started = True

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if not self._started and time.monotonic() - self._began > _START_S:
            free = ray.available_resources().get("CPU", 0)
            raise SearchFailed(
                f"No trial could start within {_START_S:.0f} s: {free:g} of {ray.cluster_resources().get('CPU', 0):g} CPUs are "
                "free and a trial needs one. Wait for other jobs, or give the cluster more CPUs."
            )

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        result = trial.last_result
        if "error" in result:
            self._end(trial, status="failed", error=result["error"])
        elif "full" in result:
            self._end(
                trial,
                score=float(result["score"]),
                train_score=float(result["train_score"]),
                gap=float(result["gap"]),
                fit_s=float(result["fit_s"]),
                status="done" if result["full"] else "stopped",
                learned=result["learned"],
            )

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        error = trial.get_error()
        words = str(error).strip().splitlines() or ["no reason was given"]
        self._end(trial, status="failed", error=f"the worker died: {type(error).__name__}: {words[-1]}"[:500])

    def _end(self, trial: TuneTrial, *, learned: Mapping[str, Any] | None = None, **facts: Any) -> None:
        config = trial.config
        ended = Trial(
            number=config["number"], family=config["family"], params={**config["params"], **(learned or {})}, **facts
        )
        self.ended.append(ended)
        if self._on_trial is not None:
            self._on_trial(ended)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune and Optuna off the console while the search runs."""
    before = {name: os.environ.get(name) for name in _QUIET}
    logger = logging.getLogger("ray.tune")
    level, verbosity = logger.level, optuna.logging.get_verbosity()
    os.environ.update(_QUIET)
    logger.setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
