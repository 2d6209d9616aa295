"""Families of models and their search spaces, in Optuna's own define-by-run words.

A stranger's family is any object with the attributes of :class:`Candidate`. Nothing here imports an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.errors import ConfigError
from raymlops.search.spaces import Space, as_space, check_plain

if TYPE_CHECKING:
    import optuna

    from raymlops.data.schema import Task
    from raymlops.search.estimators import Estimator

GivenSpace = Space | Mapping[str, Any] | None

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
    """A built-in family; ``space`` may be replaced by the user's own.

    Attributes
    ----------
    options : settings that are not searched, passed on to the estimator
    resources : what a worker needs beyond one CPU, such as ``{"GPU": 1}``
    can : what else the family can do: ``"quantile"`` and ``"monotone"``
    """

    name: str
    kind: str
    draw: Space
    start: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[Task, ...] = _ALL
    options: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    can: tuple[str, ...] = ()

    def space(self, trial: optuna.Trial) -> dict[str, Any]:
        return self.draw(trial)

    def build(
        self, params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
    ) -> Estimator:
        from raymlops.search import estimators

        params = {**params, **self.options}
        if self.kind == "xgboost":
            rest = {key: value for key, value in params.items() if key not in _OWN}
            made = estimators.XGBoostEstimator(rest, task, n_classes, int(params.get("rounds", _ROUNDS)), seed)
            made.most = int(params.get("rounds", _MAX_ROUNDS))
            made.stopping = bool(params.get("stopping", True))
            made.categorical = tuple(categorical) if params.get("native_categories") else ()
            return made
        build: Callable[..., Estimator] = getattr(estimators, self.kind)
        return build(params, task, n_classes, categorical, seed)


_ROUNDS, _MAX_ROUNDS = 300, 2000
_OWN = ("rounds", "stopping", "native_categories")


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

    @property
    def can(self) -> tuple[str, ...]:
        return tuple(getattr(self.family, "can", ()))

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


def xgboost(
    space: GivenSpace = None, *, name: str = "xgboost", native_categories: bool = False, gpu: bool = False
) -> Family:
    """XGBoost; rounds by early stopping, at most 2,000 (or ``rounds`` from ``space``).

    ``native_categories`` splits categories as sets by XGBoost's own way, which has no ONNX form; without it their codes are
    split as numbers. ``gpu`` fits on a GPU, and asks the cluster for one for every worker.
    """
    start = {
        "learning_rate": 0.1,
        "max_leaves": 32,
        "min_child_weight": 3.0,
        "subsample": 0.9,
        "colsample_bytree": 0.7,
        "lambda": 1.0,
        "alpha": 1e-3,
    }
    options = {**({"native_categories": True} if native_categories else {}), **({"device": "cuda"} if gpu else {})}
    family = _family(name, "xgboost", space, _xgboost_space, start, can=("quantile", "monotone"))
    return replace(family, options=options, resources={"GPU": 1.0} if gpu else {})


def linear(space: GivenSpace = None, *, name: str = "linear") -> Family:
    """Logistic regression for classes, ridge regression for values."""
    return _family(name, "linear", space, _linear_space, {"C": 1.0})


def random_forest(space: GivenSpace = None, *, name: str = "random_forest") -> Family:
    """Random forest; leaves of at least two rows keep it from learning the training rows by heart."""
    start = {"n_estimators": 100, "min_samples_leaf": 5, "max_features": 0.5}
    return _family(name, "random_forest", space, _random_forest_space, start)


def extra_trees(space: GivenSpace = None, *, name: str = "extra_trees") -> Family:
    """Extremely randomised trees (Geurts et al. 2006): thresholds are drawn, so a fit is cheaper than a forest's."""
    start = {"n_estimators": 100, "min_samples_leaf": 5, "max_features": 0.5}
    return _family(name, "extra_trees", space, _random_forest_space, start)


def sklearn(
    make: Callable[..., Any],
    space: GivenSpace = None,
    *,
    name: str,
    start: Mapping[str, Any] | None = None,
    tasks: Sequence[Task] = _ALL,
    one_hot: bool = True,
) -> Family:
    """Any estimator with scikit-learn's interface, behind the preprocessing of the linear models.

    Parameters
    ----------
    make : its class, or a function, called with the drawn parameters; for classes it needs ``predict_proba``
    space : what to search; ``None`` tries ``start`` only
    start : parameters of the first trial
    one_hot : one column a category value and scaled numbers; without it categories stay codes

    Raises
    ------
    ConfigError : ``make`` cannot be called, a task that there is not, a parameter of ``start`` that is an object, a space
        or name as for the built-in families
    """
    if not callable(make):
        raise ConfigError(
            f"sklearn({make!r}) is no estimator's class: give the class, or a function of its parameters."
        )
    if not tasks or not set(tasks) <= set(_ALL):
        raise ConfigError(f"tasks={tasks!r}: give some of {', '.join(_ALL)}.")
    fixed = dict(start or {})
    check_plain(fixed, f"sklearn({name!r}, start=...)")
    family = _family(name, "wrapped", space, _Fixed(fixed), {})
    return replace(family, start=fixed, tasks=tuple(tasks), options={"make": make, "one_hot": one_hot})


def hist_boosting(space: GivenSpace = None, *, name: str = "hist_boosting") -> Family:
    """scikit-learn's histogram boosting. It has no ONNX form today: such a package is served by scikit-learn."""
    start = {
        "learning_rate": 0.1,
        "max_iter": 100,
        "max_leaf_nodes": 31,
        "min_samples_leaf": 20,
        "l2_regularization": 1e-3,
    }
    return _family(name, "hist_boosting", space, _hist_boosting_space, start, can=("quantile", "monotone"))


def defaults() -> tuple[Candidate, ...]:
    """The families a search tries when none are named."""
    return (xgboost(), linear(), hist_boosting(), random_forest())


class _Fixed:
    """A space of one point."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = dict(params)

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        return dict(self._params)


def _family(
    name: str, kind: str, space: GivenSpace, default: Space, start: Mapping[str, Any], can: tuple[str, ...] = ()
) -> Family:
    if name == "ensemble":
        raise ConfigError("name='ensemble' is what Search(ensemble=) calls its own: give another name=.")
    if not name or any(sign in name for sign in "/."):
        raise ConfigError(f"name={name!r} is not a family's name: it must not be empty or hold '/' or '.'.")
    # A user's space names other parameters, so our proven start does not apply to it.
    own = as_space(space, name if kind == "wrapped" else kind)
    return Family(name=name, kind=kind, draw=own or default, start={} if own else start, can=can)


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
