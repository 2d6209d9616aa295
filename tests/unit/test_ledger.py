"""One steward at a time writes an endpoint's life; SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymlops.errors import RunInProgress, StaleLease
from raymlops.events import EventLog
from raymlops.loop import controller
from raymlops.loop.actions import Record
from raymlops.loop.ledger import Ledger
from raymlops.loop.state import EndpointState, Preparing
from raymlops.serving.policies import Canary
from raymlops.serving.traffic import TrafficSplit
from raymlops.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/s.db")


def test_a_state_and_its_records_are_written_together_and_read_back(store: Store) -> None:
    ledger = Ledger(store, "e")
    assert ledger.load() is None
    state, actions = controller.adopt(EndpointState(name="e", phase=Preparing(since=0.0)), 1, now=1.0)
    ledger.save(state, actions)
    assert ledger.load() == state
    assert [event.kind for event in EventLog(store).read("e")] == ["deployed"]


def test_the_older_of_two_stewards_can_write_nothing(store: Store) -> None:
    older = Ledger(store, "e")
    state, actions = controller.adopt(EndpointState(name="e", phase=Preparing(since=0.0)), 1, now=1.0)
    older.save(state, actions)
    newer = Ledger(store, "e")
    assert newer.lease.token == older.lease.token + 1
    for write in (
        lambda: older.save(controller.begin_rollout(state, Canary(), 2, "x", 2.0)[0], (Record(kind="lost"),)),
        lambda: older.record("drift", {}),
        lambda: older.route(TrafficSplit(number=99, champion=9)),
        lambda: store.put("watch", "e", {"cursor": 9}, lease=older.lease),
    ):
        with pytest.raises(StaleLease, match=r"the steward of e is held by process .* with token 2, not by .* token 1"):
            write()
    assert not older.renew()
    assert newer.renew()
    assert newer.load() == state
    assert store.get("routing", "e") is None
    assert store.get("watch", "e") is None
    assert [event.kind for event in EventLog(store).read("e")] == ["deployed"]
    assert EventLog(store).verify() == 1


def test_a_transaction_that_fails_leaves_neither_state_nor_record(store: Store) -> None:
    ledger = Ledger(store, "e")
    state, actions = controller.adopt(EndpointState(name="e", phase=Preparing(since=0.0)), 1, now=1.0)
    bad = controller.begin_rollout(state, Canary(), 2, "x", 2.0)[0]
    object.__setattr__(bad, "name", {1, 2})  # a set is no JSON
    with pytest.raises(TypeError):
        ledger.save(bad, (*actions, Record(kind="rollout_started")))
    assert ledger.load() is None
    assert EventLog(store).read("e") == []


def test_other_endpoints_and_runs_are_not_fenced(store: Store) -> None:
    first, run = Ledger(store, "e"), store.acquire("the run of e", "me", 60)
    Ledger(store, "f")
    first.record("fine", {})
    with store.fenced(run) as connection:
        store.put_in(connection, "kind", "name", {})
    with pytest.raises(RunInProgress):
        store.acquire("the steward of e", "impatient", 60)


def test_a_lease_that_was_never_taken_is_stale(store: Store, tmp_path: Path) -> None:
    lease = Ledger(Store(f"sqlite:///{tmp_path}/other.db"), "e").lease
    with pytest.raises(StaleLease, match="is held by nobody"):
        store.put("loop", "e", {}, lease=lease)
