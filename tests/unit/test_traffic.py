from __future__ import annotations

import pytest

from raymlops.errors import ConfigError
from raymlops.serving.spec import Serving
from raymlops.serving.traffic import TrafficSplit, draw


def test_requests_below_the_weight_go_to_the_challenger() -> None:
    split = TrafficSplit(number=1, champion=1, challenger=2, weight=0.25)
    assert [split.pick(u) for u in (0.0, 0.2499, 0.25, 0.99)] == [2, 2, 1, 1]


def test_without_a_challenger_everything_goes_to_the_champion() -> None:
    assert TrafficSplit(number=1, champion=7).pick(0.0) == 7


def test_tables_survive_json() -> None:
    split = TrafficSplit(number=4, champion=1, challenger=2, weight=0.5, shadow=True)
    assert TrafficSplit.from_dict(split.to_dict()) == split


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), True])
def test_weights_that_are_no_share_are_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="is not a share of the traffic: give a number from 0 to 1"):
        TrafficSplit(number=1, champion=1, challenger=2, weight=weight)


def test_a_weight_needs_a_challenger_and_nobody_challenges_himself() -> None:
    with pytest.raises(ConfigError, match=r"weight=0\.5 needs a challenger"):
        TrafficSplit(number=1, champion=1, weight=0.5)
    with pytest.raises(ConfigError, match="Version 1 cannot be champion and challenger at once"):
        TrafficSplit(number=1, champion=1, challenger=1)


def test_draws_are_the_same_for_a_key_and_differ_between_salts() -> None:
    assert draw("user-1", "churn/2") == draw("user-1", "churn/2")
    assert draw("user-1", "churn/2") != draw("user-1", "churn/3")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("replicas", 0, "replicas=0 cannot be: give a whole number from 1."),
        ("replicas", True, "replicas=True cannot be"),
        ("port", 70_000, "port=70000 is not a port"),
        ("max_rows", 0, "max_rows=0 cannot be"),
        ("deadline_s", 0, "deadline_s=0 leaves no time to answer"),
        ("deadline_s", "soon", "deadline_s='soon' is not a duration"),
        ("autoscaling", 3, "autoscaling=3 is not a mapping"),
        ("challenger_autoscaling", "up", "challenger_autoscaling='up' is not a mapping"),
        ("num_cpus", -1, "num_cpus=-1 cannot be reserved"),
    ],
)
def test_serving_refuses_what_cannot_work(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Serving(**{field: value})
    assert sentence in caught.value.message


def test_serving_reads_durations() -> None:
    assert Serving(deadline_s="250ms").deadline == 0.25
