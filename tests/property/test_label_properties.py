"""Labels in any order, twice, late: one state."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.clock import ManualClock
from raymlops.monitor.ledger import LossLedger
from raymlops.store import LabelRow, PredictionRow, Store

ROWS = [
    PredictionRow(
        request_id=f"r{i}", row_index=0, version=1 + i // 12, variant="champion", score=i / 29, served_at=100.0 * i
    )
    for i in range(24)
]


def state_after(batches: Sequence[Sequence[int]], pauses: Sequence[float]) -> tuple[str, list[object]]:
    """The ledger and the store's outcomes after labels came in these batches; taken in by a cursor as the loop does."""
    store, ledger, cursor = Store("sqlite://", ManualClock()), LossLedger(500.0), 0
    store.add_predictions("e", ROWS)
    for batch, pause in zip(batches, pauses, strict=False):
        store.add_labels("e", [LabelRow(request_id=f"r{i}", row_index=0, value=i % 2) for i in batch])
        if pause < 0.5:  # the steward may look at any time, or not
            cursor = take(store, ledger, cursor)
    take(store, ledger, cursor)
    outcomes = sorted((o.request_id, o.version, o.value, o.served_at) for o in store.outcomes("e"))
    store.close()
    return json.dumps(ledger.to_dict(), sort_keys=True), list(outcomes)


def take(store: Store, ledger: LossLedger, cursor: int) -> int:
    outcomes = store.outcomes("e", cursor)
    for outcome in outcomes:
        assert isinstance(outcome.score, float)
        loss = (outcome.score - float(outcome.value)) ** 2
        ledger.add(outcome.version, [loss], [outcome.served_at])
    return outcomes[-1].seq if outcomes else cursor


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_order_duplication_and_delay_of_labels_gives_the_same_state(data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(24)))
    again = data.draw(st.lists(st.integers(0, 23), max_size=20))
    arrivals = [*order, *again]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arrivals)), max_size=5)))
    batches = [arrivals[a:b] for a, b in zip([0, *cuts], [*cuts, len(arrivals)], strict=True)]
    pauses = data.draw(st.lists(st.floats(0, 1), min_size=len(batches), max_size=len(batches)))
    assert state_after(batches, pauses) == state_after([range(24)], [0.0])
