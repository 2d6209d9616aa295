"""The second opinion and the estimate: formed when the last one is ten seconds old, carried along until then, also by a restart."""

from __future__ import annotations

import json

import numpy as np

from raymlops.data.schema import learn_contract
from raymlops.monitor.opinions import EVERY_S, Opinions
from raymlops.registry.package import Reference
from raymlops.sketch.profile import with_score
from raymlops.testing.packages import table

FRAME = table(2000)
CONTRACT = learn_contract(FRAME, "y")
X, Y = CONTRACT.encode(FRAME), CONTRACT.encode_label(FRAME.y)
SCORES = 1 / (1 + np.exp(-2 * X.sum(axis=1).astype(np.float64)))
REFERENCE = Reference(columns=CONTRACT.names, x=X, scores=SCORES, losses=(SCORES - Y) ** 2, ordered=True)
ROWS = with_score(X, SCORES)


def opinions(ask: bool = True) -> Opinions:
    return Opinions(REFERENCE, CONTRACT, ROWS, (*CONTRACT.names, "(score)"), {}, ask=ask)


def moved(by: float) -> np.ndarray:
    return with_score(X[:500] + np.float32(by), SCORES[:500])


def test_a_second_opinion_is_carried_until_it_is_old() -> None:
    one = opinions()
    first = one.second(moved(0.0), 1e-3, 1, 100.0)
    assert first is not None
    assert (first["window"], first["drifted"]) == (1, False)
    assert one.second(moved(1.0), 1e-3, 2, 100.0 + EVERY_S / 2) == first
    other = opinions()
    other.load_state(json.loads(json.dumps(one.state_dict())))
    assert other.second(moved(1.0), 1e-3, 2, 100.0 + EVERY_S / 2) == first
    for each in (one, other):
        later = each.second(moved(1.0), 1e-3, 3, 100.0 + EVERY_S)
        assert later is not None
        assert (later["window"], later["drifted"], later["columns"][:2]) == (3, True, ["a", "b"])
    # A clock that was set back does not keep an old one alive.
    earlier = one.second(moved(0.0), 1e-3, 4, 50.0)
    assert earlier is not None
    assert (earlier["window"], earlier["drifted"]) == (4, False)


def test_an_estimate_says_whether_it_is_the_windows_own() -> None:
    one = opinions()
    first, own = one.estimate(moved(0.0), 100.0)
    assert first is not None
    assert own
    assert one.estimate(moved(1.0), 109.0) == (first, False)
    other = opinions()
    other.load_state(json.loads(json.dumps(one.state_dict())))
    assert other.estimate(moved(1.0), 109.0) == (first, False)
    later, own = other.estimate(moved(1.0), 110.0)
    assert own
    assert later != first
    assert opinions().estimate(moved(0.0)[:100], 0.0) == (None, False)


def test_who_is_not_asked_says_nothing() -> None:
    assert opinions(ask=False).second(moved(1.0), 1e-3, 1, 0.0) is None
