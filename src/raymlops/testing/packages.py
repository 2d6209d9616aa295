"""Real packages, made in a second: for tests and benchmarks of what serves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from raymlops.data.features import FeatureFunction
from raymlops.data.schema import learn_contract
from raymlops.lake import Lake
from raymlops.registry.package import Reference, build_package, upload
from raymlops.search.estimators import XGBoostEstimator
from raymlops.settings import Settings
from raymlops.store import Store

COLUMNS = ("a", "b")


def register_small(
    settings: Settings,
    name: str,
    version: int,
    folder: Path,
    *,
    rounds: int = 3,
    features: FeatureFunction | None = None,
    flipped: bool = False,
) -> None:
    """A binary XGBoost model of two numbers, packaged into ``folder / version``, put into the lake and told to the store.

    The label is whether ``a + b`` is positive; a ``flipped`` model has learnt the opposite. Versions with different
    ``rounds`` answer with different probabilities.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    y = (x.sum(axis=1) > 0).astype(float)
    contract = learn_contract(pd.DataFrame({**dict(zip(COLUMNS, x.T.astype(float), strict=True)), "y": y}), "y")
    estimator = XGBoostEstimator({"max_depth": 2}, "binary", 2, rounds, 0).fit(x, 1 - y if flipped else y)
    scores = np.asarray(estimator.predict(x), dtype=float)
    reference = Reference(columns=COLUMNS, x=x, scores=scores, losses=(scores - y) ** 2, ordered=False)
    build_package(folder / str(version), estimator, contract, features, reference, {})
    key = f"packages/{name}/{version}"
    digest = upload(Lake(settings.lake), key, folder / str(version))
    store = Store(settings.store)
    store.put("versions", f"{name}/{version}", {"package_key": key, "digest": digest})
    store.close()
