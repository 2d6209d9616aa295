"""From which probability on the answer is yes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from raymlops import Costs, Search
from raymlops.errors import ConfigError
from raymlops.search.objective import f1
from raymlops.search.threshold import Threshold, choose_threshold, require_binary

RNG = np.random.default_rng(0)
scores = RNG.random(4000)
Y = (RNG.random(4000) < scores).astype(float)


def cost(costs: Costs, cut: float) -> float:
    wrong_yes, wrong_no = ((scores >= cut) & (Y == 0)).mean(), ((scores < cut) & (Y == 1)).mean()
    return float(costs.false_positive * wrong_yes + costs.false_negative * wrong_no)


def test_calibrated_probabilities_take_the_threshold_of_the_theory() -> None:
    costs = Costs(false_negative=4)
    found = choose_threshold(costs, Y, scores, ordered=False)
    assert found.value == costs.best == 0.2
    assert found.here == pytest.approx(cost(costs, 0.2))
    assert found.at_half == pytest.approx(cost(costs, 0.5))
    assert found.here < found.at_half
    assert found.note == "Elkan's threshold for these costs, 0.2."


def test_probabilities_that_are_plainly_off_take_the_cheapest_threshold_instead() -> None:
    found = choose_threshold(Costs(), Y, scores**3, ordered=False)
    assert found.value == pytest.approx(0.125, abs=0.06)
    assert "by more than three standard errors" in found.note


def test_the_best_f1_is_found_among_all_thresholds() -> None:
    rare = (np.random.default_rng(1).random(4000) < scores**4).astype(float)
    found = choose_threshold("f1", rare, scores, ordered=True)
    by_hand = max(f1(rare, (cut <= scores).astype(float)) for cut in np.linspace(0.01, 0.99, 99))
    assert found.here == pytest.approx(by_hand, abs=0.01)
    assert found.here == pytest.approx(f1(rare, (found.value <= scores).astype(float)))
    assert found.at_half == pytest.approx(f1(rare, scores))


def test_a_fixed_threshold_and_none() -> None:
    assert choose_threshold(0.3, Y, scores, ordered=False).value == 0.3
    assert choose_threshold(None, Y, scores, ordered=False) == Threshold(rows=4000)
    assert choose_threshold("f1", np.zeros(10), np.ones(10), ordered=False).value == 0.5


def test_it_comes_back_whole_from_json() -> None:
    for spec in (Costs(), "f1", 0.4, None):
        found = choose_threshold(spec, Y, scores, ordered=True)
        assert Threshold.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


@pytest.mark.parametrize("spec", [0.0, 1.0, 1.5, True, "cheap", float("nan")])
def test_what_is_no_threshold_is_refused_when_the_search_is_declared(spec: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Search(threshold=spec)
    assert str(caught.value) == (
        f"threshold={spec!r} is none: give a number between 0 and 1, Costs(false_positive=1, false_negative=5), 'f1', or "
        "None for 0.5."
    )


def test_what_is_no_cost_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Costs(false_negative=0)
    assert str(caught.value) == "false_negative=0 is no cost: give a number above 0."


def test_a_threshold_needs_two_classes() -> None:
    require_binary(None, "regression")
    require_binary(0.3, "binary")
    with pytest.raises(ConfigError) as caught:
        require_binary(0.3, "multiclass")
    assert str(caught.value) == (
        "threshold=0.3 needs a label of two classes, and this is a multiclass task: leave it out."
    )
