"""Which rows a probe looks at; no Ray is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from raymlops.data.schema import Column, DataContract
from raymlops.data.served import ARRIVED
from raymlops.loop import ray_probe
from raymlops.settings import Settings


def test_a_served_row_outside_todays_limits_is_no_error_of_the_probe(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ensure_home()
    column = Column(name="a", kind="number", nullable=False, minimum=0.0, maximum=1.0, low=0.0, high=1.0)
    contract = DataContract(columns=(column,), label="y", task="binary", classes=(0, 1))
    frame = pd.DataFrame({"a": [0.5, 7.0], "y": [0, 1], ARRIVED: [1.0, 2.0]})
    version = SimpleNamespace(digest="d", package_key="k", tags={}, data_end=None, params={})
    model = SimpleNamespace(contract=contract, predict=None, reference=None)
    monkeypatch.setattr(ray_probe, "load_pipeline", lambda *_: SimpleNamespace(search=None))
    monkeypatch.setattr(ray_probe, "served_frame", lambda *_: (frame, None, None))
    monkeypatch.setattr(ray_probe, "MlflowRegistry", lambda _: SimpleNamespace(get=lambda *_: version))
    monkeypatch.setattr(ray_probe, "download", lambda *_: None)
    monkeypatch.setattr(ray_probe, "Predictor", SimpleNamespace(load=lambda _: model))
    monkeypatch.setattr(ray_probe, "_refit", lambda *_: None)
    seen: list[Any] = []
    monkeypatch.setattr(ray_probe, "examine", lambda x, y, **_: seen.append((x.tolist(), y.tolist())))
    ray_probe.examine_champion("e", 1, None, settings)
    assert seen == [([[0.5], [7.0]], [0.0, 1.0])]
