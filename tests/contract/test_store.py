"""One behaviour, every database: documents, leases, labels and the event log."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import sqlalchemy as sa

from raymlops.blocks import Block
from raymlops.clock import ManualClock
from raymlops.errors import HistoryTampered, RunInProgress
from raymlops.events import EventLog
from raymlops.store import LabelRow, PredictionRow, Store
from raymlops.store_tables import events


def served(request_id: str, row_index: int = 0, score: float = 0.5) -> PredictionRow:
    return PredictionRow(
        request_id=request_id, row_index=row_index, version=1, variant="champion", score=score, served_at=1.0
    )


def label(request_id: str, value: int | str = 1, row_index: int = 0) -> LabelRow:
    return LabelRow(request_id=request_id, row_index=row_index, value=value)


def test_a_document_is_replaced_whole(store: Store) -> None:
    assert store.get("kind", "name") is None
    store.put("kind", "name", {"a": 1, "b": [1, 2]})
    store.put("kind", "name", {"a": 2})
    assert store.get("kind", "name") == {"a": 2}
    assert store.names("kind") == ["name"]


def test_a_lease_has_one_holder_and_says_who(store: Store, clock: ManualClock) -> None:
    first = store.acquire("run", "alice", 60)
    clock.advance(5)
    with pytest.raises(RunInProgress, match=r"run is held by alice \(\w+\) since 5 s.*runs out by itself in 55 s"):
        store.acquire("run", "bob", 60)
    assert store.renew(first, 60)
    store.release(first)
    assert store.acquire("run", "bob", 60).token == first.token + 1
    assert not store.renew(first, 60)


def test_a_dead_holders_lease_runs_out(store: Store, clock: ManualClock) -> None:
    store.acquire("run", "dead", 60)
    clock.advance(61)
    assert store.acquire("run", "next", 60).token == 2


def test_labels_are_stored_once_and_conflicts_are_kept_apart(store: Store) -> None:
    store.add_predictions("e", [served("a"), served("b"), served("b", 1)])
    store.add_predictions("e", [served("a", score=0.9)])
    assert store.add_labels("e", [label("a"), label("b", 0, 1), label("nobody")]) == ["stored", "stored", "unknown"]
    assert store.add_labels("e", [label("a"), label("a", 0)]) == ["duplicate", "conflict"]
    found = store.outcomes("e")
    assert [(item.request_id, item.row_index, item.value, item.score) for item in found] == [
        ("a", 0, 1, 0.5),
        ("b", 1, 0, 0.5),
    ]
    assert store.outcomes("e", after_seq=found[0].seq) == found[1:]
    assert store.counts("e") == {"predictions": 3, "labels": 2}
    assert store.outcomes("another") == []


def test_the_first_label_that_disagrees_is_kept_for_a_person(store: Store, clock: ManualClock) -> None:
    store.add_predictions("e", [served("a"), served("b")])
    assert store.add_labels("e", [label("a"), label("a", 0), label("a", 0), label("a")]) == [
        "stored",
        "conflict",
        "conflict",
        "duplicate",
    ]
    clock.advance(5)
    assert store.add_labels("e", [label("b", 0), label("a", 7), label("b", 3)]) == ["stored", "conflict", "conflict"]
    told = [(row.request_id, row.kept, row.refused, row.received_at) for row in store.conflicts("e")]
    assert told == [("b", 0, 3, 1005.0), ("a", 1, 0, 1000.0)]
    assert [row.request_id for row in store.conflicts("e", limit=1)] == ["b"]
    assert store.conflicts("another") == []


def block(first: int, scores: list[list[float]], series: str = "00000000000000aa") -> Block:
    """Requests numbered from ``first`` on, one for each list of scores."""
    n = len(scores)
    return Block(
        series=series,
        names=("champion", "challenger"),
        numbers=np.arange(first, first + n),
        counts=np.array([len(some) for some in scores], dtype=np.int32),
        versions=np.full(n, 3, dtype=np.int32),
        variants=np.arange(n, dtype=np.uint8) % 2,
        served_at=np.arange(n) + 0.5,
        scores=np.array([score for some in scores for score in some]),
    )


def test_labels_find_rows_in_blocks(store: Store) -> None:
    store.add_block("e", block(1, [[0.1], [0.2, 0.3], [float("nan")]]))
    store.add_block("e", block(1, [[0.9]]))  # the same once more: the first one stays
    store.add_block("e", block(4, [[0.4]]))
    store.add_block("e", block(2, [[0.7]], series="00000000000000bb"))
    assert store.counts("e")["predictions"] == 6
    mine = "00000000000000aa-"
    asked = [label(f"{mine}2", 0, 1), label(f"{mine}3"), label(f"{mine}4"), label("00000000000000bb-2")]
    assert store.add_labels("e", asked) == ["stored"] * 4
    strange = [f"{mine}5", f"{mine}02", f"{mine}0", "00000000000000cc-1", "00000000000000bb-1"]
    assert store.add_labels("e", [label(name) for name in strange]) == ["unknown"] * 5
    assert store.add_labels("e", [label(f"{mine}2", 0, 2), label(f"{mine}2", 1, 1)]) == ["unknown", "conflict"]
    assert store.add_labels("other", [label(f"{mine}2")]) == ["unknown"]
    found = [(o.request_id, o.row_index, o.score, o.variant, o.version) for o in store.outcomes("e")]
    assert found == [
        (f"{mine}2", 1, 0.3, "challenger", 3),
        (f"{mine}3", 0, None, "champion", 3),
        (f"{mine}4", 0, 0.4, "champion", 3),
        ("00000000000000bb-2", 0, 0.7, "champion", 3),
    ]
    assert store.counts("e") == {"predictions": 6, "labels": 4}


def test_labels_are_read_in_the_order_of_their_commits(store: Store) -> None:
    store.add_predictions("e", [served("a"), served("b")])
    slow = threading.Thread(target=store.add_labels, args=("e", [label("a")]))
    quick = threading.Thread(target=store.add_labels, args=("e", [label("b")]))
    committing, go = threading.Event(), threading.Event()

    def wait(_connection: sa.Connection) -> None:
        if threading.current_thread() is slow:
            committing.set()
            assert go.wait(20)

    sa.event.listen(store.engine, "commit", wait)
    try:
        slow.start()
        assert committing.wait(20)
        quick.start()
        quick.join(0.5)
        early = [] if quick.is_alive() else store.outcomes("e")
        go.set()
        slow.join(20)
        quick.join(20)
    finally:
        go.set()
        sa.event.remove(store.engine, "commit", wait)
    rest = store.outcomes("e", early[-1].seq if early else 0)
    assert sorted(item.request_id for item in [*early, *rest]) == ["a", "b"]


def test_the_event_log_is_a_chain(store: Store) -> None:
    log = EventLog(store)
    for number in range(5):
        log.append("e" if number % 2 else "f", "kind", {"number": number, "text": "ä"})
    assert log.verify() == 5
    assert [event.body["number"] for event in log.read("e")] == [1, 3]
    assert [event.seq for event in log.read(limit=2)] == [4, 5]


@pytest.mark.parametrize(
    "tamper",
    [
        sa.update(events).where(events.c.seq == 3).values(body='{"number":9}'),
        sa.update(events).where(events.c.seq == 3).values(at=0.5),
        sa.delete(events).where(events.c.seq == 3),
    ],
    ids=["changed", "redated", "removed"],
)
def test_a_touched_event_is_named(store: Store, tamper: sa.Executable) -> None:
    log = EventLog(store)
    for number in range(5):
        log.append("e", "kind", {"number": number})
    with store.transaction() as connection:
        connection.execute(tamper)
    with pytest.raises(HistoryTampered, match="event 3 was changed, removed or put in"):
        log.verify()


def test_writers_at_once_keep_one_chain(store: Store) -> None:
    def write() -> None:
        mine = Store(store.url)
        for number in range(10):
            EventLog(mine).append("e", "kind", {"number": number})
        mine.close()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert EventLog(store).verify() == 40
