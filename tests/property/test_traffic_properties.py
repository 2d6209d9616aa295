from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.lake import Lake
from raymlops.serving.gateway import Gateway
from raymlops.serving.traffic import TrafficSplit, draw
from raymlops.store import Store
from raymlops.testing.serving import FakeChallengers, FakeModel, FakePackages, ListSink

weights = st.floats(0.0, 1.0)
# A request with a NUL in it, or with half a surrogate pair, is refused.
keys = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=40)
uniform = st.floats(0.0, 1.0, exclude_max=True)


@given(weights, uniform)
def test_shares_sum_to_one_and_every_request_goes_to_one_of_two(weight: float, u: float) -> None:
    split = TrafficSplit(number=1, champion=1, challenger=2, weight=weight)
    assert split.pick(u) == (2 if u < weight else 1)


@given(uniform)
def test_weight_0_is_nobody_and_weight_1_everybody(u: float) -> None:
    assert TrafficSplit(number=1, champion=1, challenger=2, weight=0.0).pick(u) == 1
    assert TrafficSplit(number=1, champion=1, challenger=2, weight=1.0).pick(u) == 2


@given(keys, keys)
def test_a_draw_is_a_share_and_depends_on_nothing_else(key: str, salt: str) -> None:
    assert 0.0 <= draw(key, salt) < 1.0
    assert draw(key, salt) == draw(key, salt)


@given(keys, st.lists(weights, min_size=2, max_size=6))
def test_a_key_never_goes_back_while_the_weight_rises(key: str, steps: list[float]) -> None:
    u = draw(key, "churn/2")
    picks = [TrafficSplit(number=1, champion=1, challenger=2, weight=weight).pick(u) for weight in sorted(steps)]
    assert picks == sorted(picks)


@given(st.floats(0.0, 1.0))
@settings(max_examples=25, deadline=None)
def test_the_share_of_keys_is_the_weight(weight: float) -> None:
    split = TrafficSplit(number=1, champion=1, challenger=2, weight=weight)
    share = sum(split.pick(draw(f"user-{i}", "churn/2")) == 2 for i in range(4000)) / 4000
    assert abs(share - weight) < 0.04  # five standard deviations


@given(st.booleans(), st.lists(keys, min_size=1, max_size=10))
@settings(max_examples=20, deadline=None)
def test_a_challenger_of_weight_0_gets_no_request_at_all(shadow: bool, asked: list[str]) -> None:
    challengers = FakeChallengers({2: FakeModel()})
    packages = FakePackages(v1=FakeModel())

    async def ask(folder: Path) -> None:
        store = Store("sqlite://")
        gateway = Gateway(
            "churn", packages=packages, challengers=challengers, store=store, files=Lake(str(folder)), sink=ListSink()
        )
        await gateway.apply(TrafficSplit(number=1, champion=1, challenger=2, weight=0.0, shadow=shadow))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://t") as client:
            for key in asked:
                body = {"rows": [{"a": 0.1, "b": 0.2, "c": "x"}], "key": key}
                answer = await client.post("/churn/predict", json=body)
                assert answer.json()["variant"] == "champion"

    asyncio.run(ask(Path("/nowhere")))  # the log is never flushed
    assert challengers.calls == []
