"""Families of models and their search spaces, in Optuna's own define-by-run words.

A stranger's family is any object with the attributes of :class:`Candidate`. Nothing here imports an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.errors import ConfigError

if TYPE_CHECKING:
    import optuna

    from raymlops.data.schema import Task
    from raymlops.search.estimators import Estimator

Space = Callable[["optuna.Trial"], dict[str, Any]]

_ALL: tuple[Task, ...] = ("binary", "multiclass", "regression")


class Candidate(Protocol):
    """A family of models.

    ``start`` holds the values that the family's first trial takes (a proven default; may be empty). ``space`` names and
    draws its parameters from an Optuna trial and returns them; ``build`` makes an unfitted estimator of them.
    ``build`` must also take a parameter ``rounds`` if its estimators set ``learned["rounds"]``.
    """

    @property
    def name(self) -> str: ...

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    @property
    def start(self) -> Mapping[str, Any]: ...

    def space(self, trial: optuna.Trial) -> dict[str, Any]: ...

    def build(
        self, params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
    ) -> Estimator: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A built-in family; ``space`` may be replaced by the user's own."""

    name: str
    kind: str
    draw: Space
    start: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[Task, ...] = _ALL

    def space(self, trial: optuna.Trial) -> dict[str, Any]:
        return self.draw(trial)

    def build(
        self, params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
    ) -> Estimator:
        from raymlops.search import estimators

        if self.kind == "xgboost":
            rest = {key: value for key, value in params.items() if key not in ("rounds", "stopping")}
            made = estimators.XGBoostEstimator(rest, task, n_classes, int(params.get("rounds", _ROUNDS)), seed)
            made.most = int(params.get("rounds", _MAX_ROUNDS))
            made.stopping = bool(params.get("stopping", True))
            return made
        build: Callable[..., Estimator] = getattr(estimators, self.kind)
        return build(params, task, n_classes, categorical, seed)


_ROUNDS, _MAX_ROUNDS = 300, 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A family with every parameter fixed: what is left to choose is how much of the past to learn from."""

    family: Candidate
    params: Mapping[str, Any]

    @property
    def start(self) -> Mapping[str, Any]:
        return self.params

    @property
    def name(self) -> str:
        return self.family.name

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.family.tasks

    def space(self, trial: optuna.Trial) -> dict[str, Any]:
        return dict(self.params)

    def build(
        self, params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
    ) -> Estimator:
        return self.family.build(params, task, n_classes, categorical, seed)


def settled(family: Candidate, params: Mapping[str, Any]) -> Settled:
    """A family as an earlier search left it, with the rounds that search found."""
    kept = {key: value for key, value in params.items() if key != "recent"}
    return Settled(family=family, params={**kept, "stopping": False} if "rounds" in kept else kept)


def xgboost(space: Space | None = None, *, name: str = "xgboost") -> Family:
    """XGBoost; rounds by early stopping, at most 2,000 (or ``rounds`` from ``space``)."""
    start = {
        "learning_rate": 0.1,
        "max_leaves": 32,
        "min_child_weight": 3.0,
        "subsample": 0.9,
        "colsample_bytree": 0.7,
        "lambda": 1.0,
        "alpha": 1e-3,
    }
    return _family(name, "xgboost", space, _xgboost_space, start)


def linear(space: Space | None = None, *, name: str = "linear") -> Family:
    """Logistic regression for classes, ridge regression for values."""
    return _family(name, "linear", space, _linear_space, {"C": 1.0})


def random_forest(space: Space | None = None, *, name: str = "random_forest") -> Family:
    """Random forest; leaves of at least two rows keep it from learning the training rows by heart."""
    start = {"n_estimators": 100, "min_samples_leaf": 5, "max_features": 0.5}
    return _family(name, "random_forest", space, _random_forest_space, start)


def hist_boosting(space: Space | None = None, *, name: str = "hist_boosting") -> Family:
    """scikit-learn's histogram boosting. It has no ONNX form today: such a package is served by scikit-learn."""
    start = {
        "learning_rate": 0.1,
        "max_iter": 100,
        "max_leaf_nodes": 31,
        "min_samples_leaf": 20,
        "l2_regularization": 1e-3,
    }
    return _family(name, "hist_boosting", space, _hist_boosting_space, start)


def defaults() -> tuple[Candidate, ...]:
    """The families a search tries when none are named."""
    return (xgboost(), linear(), random_forest(), hist_boosting())


def _family(name: str, kind: str, space: Space | None, default: Space, start: Mapping[str, Any]) -> Family:
    if not name or any(sign in name for sign in "/."):
        raise ConfigError(f"name={name!r} is not a family's name: it must not be empty or hold '/' or '.'.")
    if space is not None and not callable(space):
        raise ConfigError(
            f"{name}(space=...) takes a function of an Optuna trial that returns a dict, not {type(space).__name__}."
        )
    # A user's space names other parameters, so our proven start does not apply to it.
    return Family(name=name, kind=kind, draw=space or default, start={} if space else start)


def _xgboost_space(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.015, 0.3, log=True),
        "max_leaves": trial.suggest_int("max_leaves", 4, 256, log=True),
        "min_child_weight": trial.suggest_float("min_child_weight", 0.1, 100.0, log=True),
        "subsample": trial.suggest_float("subsample", 0.5, 1.0),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.3, 1.0),
        "lambda": trial.suggest_float("lambda", 0.01, 100.0, log=True),
        "alpha": trial.suggest_float("alpha", 1e-4, 10.0, log=True),
    }


def _linear_space(trial: optuna.Trial) -> dict[str, Any]:
    return {"C": trial.suggest_float("C", 1e-3, 100.0, log=True)}


def _random_forest_space(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "n_estimators": trial.suggest_int("n_estimators", 50, 150, step=25),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 2, 60, log=True),
        "max_features": trial.suggest_float("max_features", 0.2, 1.0),
    }


def _hist_boosting_space(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.3, log=True),
        "max_iter": trial.suggest_int("max_iter", 40, 160, step=20),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 6, 63, log=True),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 5, 100, log=True),
        "l2_regularization": trial.suggest_float("l2_regularization", 1e-4, 10.0, log=True),
    }
