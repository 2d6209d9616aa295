"""Search spaces as dictionaries: Ray Tune's domains or Optuna's distributions by parameter, as they come from those libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.errors import ConfigError

if TYPE_CHECKING:
    import optuna

Space = Callable[["optuna.Trial"], dict[str, Any]]


def check_plain(params: Mapping[str, Any], where: str) -> None:
    """Raises :class:`ConfigError` for a parameter that is an object: what was tried is kept as text, to go on from."""
    for name, value in params.items():
        if not _plain(value):
            raise ConfigError(
                f"{where}: {name!r} is an object ({type(value).__name__}). A parameter is a number, a text, true, false or None, "
                f"or a list of them: put the object inside make=, a function of the other parameters."
            )


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def as_space(given: Space | Mapping[str, Any] | None, where: str) -> Space | None:
    """A function of an Optuna trial, from one, or from a dict of domains, distributions and fixed values.

    Raises
    ------
    ConfigError : something else, or a domain that cannot be drawn from, with ``where`` it was given
    """
    if given is None or callable(given):
        return given
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(
            f"{where}(space=...) takes a function of an Optuna trial that returns a dict, or a dict of Ray Tune domains or "
            f"Optuna distributions by parameter, not {type(given).__name__}."
        )
    draws = {name: _draw(name, domain, where) for name, domain in given.items()}
    return _Drawn(draws)


class _Drawn:
    """Draws every parameter of a dict."""

    def __init__(self, draws: Mapping[str, Callable[[Any, str], Any]]) -> None:
        self._draws = draws

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        return {name: draw(trial, name) for name, draw in self._draws.items()}


def _draw(name: str, domain: Any, where: str) -> Callable[[Any, str], Any]:
    kind, module = type(domain).__name__, type(domain).__module__
    if module.startswith("optuna.distributions"):
        return _optuna(kind, domain)
    if module.startswith("ray.tune"):
        return _tune(name, kind, domain, where)
    return lambda trial, parameter: domain


def _optuna(kind: str, domain: Any) -> Callable[[Any, str], Any]:
    if kind == "CategoricalDistribution":
        return lambda trial, name: trial.suggest_categorical(name, domain.choices)
    number = "suggest_int" if kind == "IntDistribution" else "suggest_float"
    return lambda trial, name: getattr(trial, number)(name, domain.low, domain.high, step=domain.step, log=domain.log)


def _tune(name: str, kind: str, domain: Any, where: str) -> Callable[[Any, str], Any]:
    """Tune's own classes by name: this module must not import Ray. Tune's whole numbers end before ``upper``."""
    sampler = domain.get_sampler() if hasattr(domain, "get_sampler") else None
    step = getattr(sampler, "q", None)
    log = "Log" in type(getattr(sampler, "sampler", sampler)).__name__
    if kind == "Categorical":
        return lambda trial, parameter: trial.suggest_categorical(parameter, domain.categories)
    if kind == "Integer":
        last, by = domain.upper - (0 if step else 1), int(step or 1)
        return lambda trial, parameter: trial.suggest_int(parameter, domain.lower, last, step=by, log=log)
    bounded = kind == "Float" and abs(domain.lower) < float("inf") and abs(domain.upper) < float("inf")
    if not bounded:
        raise ConfigError(
            f"{where}(space=...): {name!r} is {domain!r}, which has no bounds to search between. Use tune.uniform, "
            "loguniform, quniform, randint, lograndint or choice, or a function of an Optuna trial."
        )
    return lambda trial, parameter: trial.suggest_float(parameter, domain.lower, domain.upper, step=step, log=log)
