"""Real packages, made in milliseconds: for tests that need versions and not a training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raymlops.data.schema import learn_contract
from raymlops.lake import Lake
from raymlops.registry.package import Reference, build_package, upload
from raymlops.search.estimators import Estimator, XGBoostEstimator
from raymlops.store import Store

if TYPE_CHECKING:
    from raymlops.data.features import FeatureFunction
    from raymlops.settings import Settings


def table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Two numbers ``a`` and ``b`` and the label ``y``, which says whether their sum is positive."""
    x = np.random.default_rng(seed).normal(size=(rows, 2))
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": (x.sum(axis=1) > 0).astype(int)})


def install_version(
    settings: Settings,
    store: Store,
    endpoint: str,
    version: int,
    *,
    rounds: int,
    features: FeatureFunction | None = None,
    flipped: bool = False,
    altered: Callable[[Estimator], Estimator] | None = None,
) -> tuple[str, str]:
    """A version of ``endpoint`` in the lake and the store; its key and digest.

    ``rounds`` of boosting give each version probabilities of its own; a ``flipped`` one has learnt the opposite; ``altered``
    makes another estimator of the one that has learnt. The store is told what a pipeline's run would tell it; no table
    routes to the version yet.
    """
    learnt = table(2000)
    contract = learn_contract(learnt, "y")
    x, y = contract.encode(learnt), contract.encode_label(learnt.y)
    learner = XGBoostEstimator({"max_depth": 3}, "binary", 2, rounds, 0)
    estimator: Estimator = learner.fit(x, 1 - y if flipped else y)
    if altered is not None:
        estimator = altered(estimator)
    scores = np.asarray(estimator.predict(x), dtype=float)
    reference = Reference(columns=contract.names, x=x, scores=scores, losses=(scores - y) ** 2, ordered=False)
    key = f"packages/{endpoint}/{version}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "package"
        build_package(folder, estimator, contract, features, reference, {})
        digest = upload(Lake(settings.lake), key, folder)
    store.put("versions", f"{endpoint}/{version}", {"package_key": key, "digest": digest})
    return key, digest


def register_small(
    settings: Settings,
    endpoint: str,
    version: int,
    *,
    rounds: int = 3,
    features: FeatureFunction | None = None,
    flipped: bool = False,
    altered: Callable[[Estimator], Estimator] | None = None,
) -> None:
    """As :func:`install_version`, with a store of its own."""
    store = Store(settings.store)
    install_version(
        settings, store, endpoint, version, rounds=rounds, features=features, flipped=flipped, altered=altered
    )
    store.close()
