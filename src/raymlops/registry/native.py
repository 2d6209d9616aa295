"""A fitted model as files of a package, in the form of the library that made it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymlops.by_value import dumps_by_value
from raymlops.registry.runtime import ENSEMBLE
from raymlops.search.ensemble_model import EnsembleEstimator
from raymlops.search.estimators import XGBoostEstimator

if TYPE_CHECKING:
    from raymlops.search.estimators import Estimator

Form = Literal["xgboost", "pickle", "ensemble"]


def write_native(folder: Path, estimator: Estimator, name: str = "model") -> Form:
    """Write a model: XGBoost as its JSON, an ensemble as a file a member with their weights beside them, all others as a pickle."""
    if isinstance(estimator, EnsembleEstimator):
        names = [f"member-{i}" for i in range(len(estimator.members))]
        forms = [write_native(folder, member, at) for member, at in zip(estimator.members, names, strict=True)]
        held = {"names": names, "forms": forms, "weights": estimator.weights}
        (folder / ENSEMBLE).write_text(json.dumps(held, sort_keys=True))
        return "ensemble"
    if isinstance(estimator, XGBoostEstimator):
        estimator.save(folder / f"{name}.json")
        return "xgboost"
    (folder / f"{name}.pkl").write_bytes(dumps_by_value(estimator, defined_by(estimator)))
    return "pickle"


def defined_by(estimator: Estimator) -> Iterator[Any]:
    """The estimator, and the scikit-learn estimators that ours wrap, step by step: any may be of the user's own class."""
    yield estimator
    for member in getattr(estimator, "members", ()):
        yield from defined_by(member)
    wrapped = getattr(estimator, "pipeline", None)
    yield wrapped
    if wrapped is not None and hasattr(wrapped, "get_params"):
        yield from wrapped.get_params(deep=True).values()
