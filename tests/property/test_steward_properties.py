"""Two stewards of one endpoint, in any interleaving: the newer one's word is the only one that lands."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.errors import RolloutError, StaleLease
from raymlops.events import EventLog
from raymlops.loop import controller
from raymlops.loop.actions import Publish, Step
from raymlops.loop.ledger import Ledger
from raymlops.loop.state import EndpointState, Preparing, RollingOut
from raymlops.retrain import RetrainPolicy
from raymlops.serving.analysis import Comparison, VariantStats
from raymlops.serving.policies import Canary
from raymlops.store import Store

POLICY = Canary(weights=(0.2, 1.0), hold_s=0, min_requests=60)
WELL = Comparison(champion=VariantStats(requests=500), challenger=VariantStats(requests=200))
BROKEN = Comparison(champion=VariantStats(requests=500), challenger=VariantStats(requests=20, errors=20))


class Man:
    """A steward without engines: it decides by the controller and writes by the ledger, as the real one does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ledger = Ledger(store, "e")
        self.state = self.ledger.load() or EndpointState(name="e", phase=Preparing(since=0.0))

    def do(self, verb: str, now: float) -> bool:
        """Whether anything was written. Raises :class:`StaleLease`."""
        try:
            state, actions = self._decide(verb, now)
        except RolloutError:
            return False
        if state == self.state:
            return False
        self.ledger.save(state, actions)
        self.state = state
        for action in actions:
            if isinstance(action, Publish):
                self.ledger.route(action.split)
        return True

    def _decide(self, verb: str, now: float) -> Step:
        seen: dict[str, Any] = {"good": {"comparison": WELL}, "bad": {"comparison": BROKEN}, "idle": {}}
        match verb:
            case "candidate":
                newest = max(version for version in (self.state.champion or 0, self.state.previous or 0))
                busy = self.state.phase.rollout.challenger if isinstance(self.state.phase, RollingOut) else 0
                return controller.begin_rollout(self.state, POLICY, max(newest, busy) + 1, f"e{now}", now)
            case "promote":
                return controller.promote(self.state, POLICY, "by hand", now)
            case "rollback":
                return controller.rollback(self.state, POLICY, "by hand", now)
            case _:
                return controller.step(
                    self.state, POLICY, RetrainPolicy(on_drift=False), controller.Observation(now=now, **seen[verb])
                )


verbs = st.sampled_from(["candidate", "promote", "rollback", "good", "bad", "idle", "takeover"])


@given(st.lists(st.tuples(st.integers(0, 1), verbs), max_size=40))
@settings(max_examples=60, deadline=None)
def test_never_two_champions_and_no_older_word_after_a_newer_one(turns: list[tuple[int, str]]) -> None:
    store = Store("sqlite://")
    men = [Man(store)]
    men.append(Man(store))
    newest, number, written = 1, 0, 0
    for now, (who, verb) in enumerate(turns, start=1):
        if verb == "takeover":
            men[who], newest = Man(store), who
            continue
        before = store.get("loop", "e")
        try:
            landed = men[who].do(verb, float(now) * 1000)
        except StaleLease:
            assert who != newest
            assert store.get("loop", "e") == before
            continue
        assert who == newest or not landed
        written += landed
        # What is stored is one state with one champion, and the routing gateways start from says the same.
        ledger = men[newest].ledger
        state, routing = ledger.load(), store.get("routing", "e")
        if state is None:
            continue
        assert state == men[newest].state
        if routing is not None and state.split is not None:
            assert routing["number"] >= number
            number = routing["number"]
            if landed:
                assert (routing["number"], routing["champion"]) == (state.split.number, state.champion)
    # Every change of the champion is in the history, in order, as one chain.
    champion: int | None = None
    for event in EventLog(store).read("e"):
        if event.kind == "deployed":
            champion = event.body["version"]
        elif event.kind == "promoted":
            assert event.body["previous"] == champion
            champion = event.body["version"]
        elif event.kind == "rolled_back":
            champion = event.body["champion"]
    assert EventLog(store).verify() >= 0
    stored = men[newest].ledger.load()
    assert (None if stored is None else stored.champion) == champion
    assert store.names("loop") == (["e"] if written else [])
    store.close()
