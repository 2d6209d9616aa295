from __future__ import annotations

import pytest

from raymlops.errors import ConfigError
from raymlops.serving.analysis import Comparison, VariantStats
from raymlops.serving.policies import Canary
from raymlops.serving.rollout import Advance, Hold, Promote, Rollback, Rollout, decide

CANARY = Canary(weights=(0.1, 0.5, 1.0), hold_s=30, min_requests=100, max_wait_s=600)


def rollout(step: int = 0) -> Rollout:
    return Rollout(champion=1, challenger=2, step=step, entered_at=1000.0, event_id="e")


def seen(requests: int, errors: int = 0) -> Comparison:
    return Comparison(champion=VariantStats(requests=1000), challenger=VariantStats(requests=requests, errors=errors))


@pytest.mark.parametrize(
    "weights",
    [(), (0.5,), (0.5, 0.5, 1.0), (0.5, 0.1, 1.0), (0.0, 1.0), (-0.1, 1.0), (0.1, 1.1), (0.1, float("nan"), 1.0)],
)
def test_weights_that_do_not_rise_to_one_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"do not rise strictly to 1\. Give shares that rise strictly to 1, such as"):
        Canary(weights=weights)


@pytest.mark.parametrize("weights", [None, 0.5, ("0.1", 1.0), (True,), ("a",)])
def test_weights_that_are_no_numbers_are_refused(weights: object) -> None:
    with pytest.raises(ConfigError, match="are not shares of the traffic"):
        Canary(weights=weights)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("min_requests", 0, "min_requests=0 cannot be"),
        ("hold_s", "x", "hold_s='x' is not a duration"),
        ("max_wait_s", 5, "max_wait_s=5.0 is shorter than hold_s=30.0"),
        ("approval", "maybe", "approval='maybe' is unknown: give 'auto' or 'manual'."),
    ],
)
def test_other_fields_are_checked(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Canary(**{field: value})
    assert sentence in caught.value.message


def test_lists_and_durations_are_taken() -> None:
    canary = Canary(weights=[0.2, 1], hold_s="1m")
    assert (canary.weights, canary.hold_s) == ((0.2, 1.0), 60.0)


def test_holds_until_the_time_is_up() -> None:
    assert decide(CANARY, rollout(), seen(500), 1010.0) == Hold(reason="at this weight for 10 of 30 s")


def test_holds_until_enough_was_seen() -> None:
    assert decide(CANARY, rollout(), seen(50), 1031.0) == Hold(reason="50 of 100 requests seen")


def test_advances_one_step_at_a_time() -> None:
    decision = decide(CANARY, rollout(), seen(100), 1030.0)
    assert isinstance(decision, Advance)
    assert (decision.step, decision.weight) == (1, 0.5)


def test_reaching_one_is_the_promotion() -> None:
    assert isinstance(decide(CANARY, rollout(step=1), seen(200), 1030.0), Promote)
    assert isinstance(decide(Canary(weights=(1.0,), hold_s=0), rollout(), seen(200), 1030.0), Promote)


def test_a_person_may_keep_the_last_word() -> None:
    canary = Canary(weights=(0.5, 1.0), hold_s=1, approval="manual")
    decision = decide(canary, rollout(), seen(200), 1030.0)
    assert isinstance(decision, Hold)
    assert decision.reason.endswith("waits for a person to approve it")


def test_a_broken_challenger_is_rolled_back_at_once() -> None:
    assert decide(CANARY, rollout(), seen(20, 5), 1000.1) == Rollback(reason="5 of its 20 requests failed")


def test_no_verdict_in_time_is_a_rollback() -> None:
    decision = decide(CANARY, rollout(), seen(5), 1600.0)
    assert decision == Rollback(reason="no verdict within 600 s: 5 of 100 requests seen")
