"""A shop's orders, and a pipeline over them that needs no JVM: what the tests run where Spark is not what they are about.

raymlops run tests/e2e/orders.py:pipeline
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from raymlops import Canary, FrameSource, Gate, Monitor, Pipeline, RetrainPolicy, Search, candidates

WINDOW = 400


def orders(rows: int, seed: int, changed: bool = False) -> pd.DataFrame:
    """Orders that are sent back or not; a few have no age. In the changed world prices are higher, and high ones keep people
    from sending back."""
    rng = np.random.default_rng(seed)
    price, age, speed = (
        rng.gamma(3.0, 30.0 if changed else 20.0, rows),
        rng.normal(40, 12, rows),
        rng.normal(0.0, 1.0, rows),
    )
    slope = -0.06 if changed else 0.06
    logit = slope * (price - 60) - 0.05 * (age - 40)
    frame = pd.DataFrame({"price": price, "age": age, "speed": speed})
    frame.loc[rng.random(rows) < 0.004, "age"] = np.nan
    return frame.assign(returned=(rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int))


def pipeline_of(name: str) -> Pipeline:
    return Pipeline(
        name=name,
        source=FrameSource(orders(3000, 1), label="returned"),
        search=Search(candidates=[candidates.linear()], trials=2, max_concurrent=1),
        gate=Gate(max_gap=None),
        rollout=Canary(weights=(0.5, 1.0), hold_s=1, min_requests=60),
        monitor=Monitor(window_rows=WINDOW, second_opinion="off"),
        retrain=RetrainPolicy(cooldown=1.0, min_labels=300),
    )


pipeline = pipeline_of("orders")
