"""A pipeline that cannot work is refused when it is built; a stored one is checked; one run at a time."""

from __future__ import annotations

import hashlib
from typing import Any

import pandas as pd
import pytest

from raymlops.data.sources import FrameSource
from raymlops.errors import ConfigError, RunInProgress
from raymlops.loop.ports import Silent
from raymlops.loop.ray_loop import Turn
from raymlops.pipeline import Pipeline, loads
from raymlops.serving.rollout import Canary
from raymlops.settings import Settings

SOURCE = FrameSource(pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1]}), label="y")


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(twice=frame.x * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Churn!"}, "name='Churn!' cannot name an endpoint"),
        ({"name": ""}, "give 1 to 63 lower-case letters"),
        ({"name": "v2"}, "none of challenger, champion"),
        (
            {"source": "data.csv"},
            "source='data.csv' is a str: give a FileSource or FrameSource or SparkSource or SQLSource",
        ),
        ({"rollout": (0.1, 1.0)}, r"rollout=\(0.1, 1.0\) is a tuple: give a Canary"),
        ({"features": "double"}, "features='double' is not callable"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pipeline(**{"name": "churn", "source": SOURCE, **changes})


def test_fields_that_an_earlier_release_did_not_have_get_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Pipeline(name="churn", source=SOURCE)
    for spec, name in ((old.monitor, "reference"), (old.search, "ensemble"), (old.search, "candidates")):
        object.__delattr__(spec, name)
    monkeypatch.setattr("pickle.loads", lambda _: old)
    loaded = loads(b"", hashlib.sha256(b"").hexdigest())
    assert (loaded.monitor.reference, loaded.search.ensemble) == ("period", 0)
    object.__delattr__(old, "name")
    with pytest.raises(ConfigError, match=r"Pipeline has no 'name'.* Run the pipeline again"):
        loads(b"", hashlib.sha256(b"").hexdigest())


def test_the_least_pipeline_is_a_whole_loop() -> None:
    pipeline = Pipeline(name="churn", source=SOURCE)
    assert pipeline.rollout == Canary()
    assert pipeline.search.candidates


def test_a_stored_pipeline_comes_back_and_a_changed_one_does_not() -> None:
    content = Pipeline(name="churn", source=SOURCE, features=doubled).dumps()
    back = loads(content, hashlib.sha256(content).hexdigest())
    assert back.features is not None
    assert back.features(pd.DataFrame({"x": [3.0]})).twice.tolist() == [6.0]
    with pytest.raises(ConfigError, match=r"it was changed\. Run the pipeline again"):
        loads(content + b".", hashlib.sha256(content).hexdigest())


def test_a_second_run_while_one_is_under_way_is_refused(settings: Settings) -> None:
    pipeline = Pipeline(name="churn", source=SOURCE)
    turn = Turn.open(pipeline, settings, Silent())
    with (
        turn.lease(),
        pytest.raises(RunInProgress, match=r"the run of churn is held by process \d+ on .* Wait for it to end"),
    ):
        pipeline.run(settings=settings)
    with turn.lease() as lease:
        assert lease.token == 2
