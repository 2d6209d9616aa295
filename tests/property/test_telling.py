"""What a gateway tells is bounded whatever it serves, and nothing of it is lost while nobody listens."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.clock import ManualClock
from raymlops.serving.analysis import StatsRecorder, VariantStats
from raymlops.serving.batching import Answer
from raymlops.serving.logfile import Served
from raymlops.serving.telling import BURST, SAMPLE_ROWS, Teller, most_bytes, sample_rows
from raymlops.sketch.histogram import Sketch
from raymlops.sketch.observed import Observed
from raymlops.sketch.profile import Profile, with_score
from raymlops.testing.serving import ListSink, small_contract, small_profile

WIDE = Profile.learn(
    np.random.default_rng(0).normal(size=(300, 300)), np.zeros(300), [f"c{i}" for i in range(300)], {7: 500}
)


def served(rows: int, seed: int, version: int = 1, columns: int = 3) -> Served:
    """A batch of one request with a long id and one of the gateway's own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    x[rng.uniform(size=x.shape) < 0.05] = np.nan
    scores = rng.uniform(size=rows)
    answer = Answer(x, scores, np.isfinite(scores), scores.tolist(), None)
    return Served([f"{seed:064d}", 5], [rows // 2, rows - rows // 2], [], answer, version, "champion", float(seed), 1.0)


def figures(requests: int) -> VariantStats:
    stats = StatsRecorder()
    stats.answered(requests, 1.0)
    return stats.stats()


@given(
    turns=st.lists(
        st.tuples(st.integers(0, 3000), st.sampled_from([0.0, 0.1, 0.5, 2.0]), st.booleans()), min_size=1, max_size=25
    ),
    wide=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_bytes_a_second_are_bounded_and_every_row_is_told_in_the_end(
    turns: list[tuple[int, float, bool]], wide: bool
) -> None:
    profile = WIDE if wide else small_profile()
    columns = len(profile.bins.columns) - 1
    clock, sink = ManualClock(0.0), ListSink()
    teller = Teller("e", sink, "own-{}".format, 0.5, clock.monotonic)
    teller.watch(1, profile.bins)
    everything, told_at = [], list[float]()
    for turn, (rows, pause, down) in enumerate(turns):
        clock.advance(pause)
        sink.down = down
        before = len(sink.batches)
        item = served(rows, turn, columns=columns)
        everything.append(with_score(item.answer.x, item.answer.scores))
        teller.tell([item] if rows else [], {1: figures(3)})
        told_at += [clock.monotonic()] * (len(sink.batches) - before)
    sink.down = False
    for i, at in enumerate(told_at):
        within = [other for other in told_at[i:] if other < at + 1.0]
        assert len(within) <= BURST + 1 / 0.5
    teller.tell([], {}, last=True)
    assert not teller.waits
    for batch in sink.batches:
        assert len(pickle.dumps(batch)) <= most_bytes(profile.bins)
        assert all(len(body["sample"]["x"]) <= sample_rows(columns + 1) for body in batch["observed"].values())
    seen = [Observed.from_message(batch["observed"][1]) for batch in sink.batches if batch["observed"]]
    total = sum((one.sketch for one in seen), Sketch.empty(profile.bins))
    assert total == Sketch.of(profile.bins, np.concatenate(everything))
    assert sum(batch["rows"] for batch in sink.batches) == total.rows
    stats = sum((VariantStats.from_dict(b["stats"][1]) for b in sink.batches if b["stats"]), VariantStats())
    assert (stats.requests, stats.score_n) == (3 * len(turns), total.rows)


def test_a_champions_rows_are_counted_in_its_own_bins_and_others_are_not() -> None:
    sink = ListSink()
    teller = Teller("e", sink, "own-{}".format, 0.5)
    assert not teller.waits
    teller.tell([served(10, 0)], {})
    assert (sink.batches[0]["rows"], sink.batches[0]["observed"]) == (10, {})
    sink.down = True
    teller.watch(1, small_profile().bins)
    teller.tell([served(10, 1), served(7, 2, version=2)], {})
    other = Profile.learn(np.ones((100, 3)), np.zeros(100), small_contract().names)
    for version in (2, 3):
        teller.watch(version, other.bins)
        teller.tell([served(20, 3, version=version), served(4, 4, version=1)], {})
    sink.down = False
    teller.tell([], {}, last=True)
    batch: dict[str, Any] = sink.batches[-1]
    assert {version: body["rows"] for version, body in batch["observed"].items()} == {2: 20, 3: 20}
    assert {body["bins"] for body in batch["observed"].values()} == {other.bins.digest}
    # Not seven of a challenger, four and four of an old champion, and its ten when a third version came.
    assert batch["rows"] == 17 + 24 + 24
    assert VariantStats.from_dict(batch["stats"][1]).score_n == 18


def test_new_bins_of_a_version_take_over_and_rows_that_do_not_fit_are_only_counted() -> None:
    sink = ListSink()
    teller = Teller("e", sink, "own-{}".format, 0.5)
    sink.down = True
    teller.watch(1, small_profile().bins)
    teller.tell([served(10, 1)], {})
    other = Profile.learn(np.ones((100, 3)), np.zeros(100), small_contract().names)
    teller.watch(1, other.bins)
    teller.tell([served(5, 2), served(2, 3)], {})
    teller.watch(1, WIDE.bins)
    teller.tell([served(3, 4)], {})
    sink.down = False
    teller.tell([], {}, last=True)
    (batch,) = sink.batches
    assert (batch["rows"], batch["observed"][1]["rows"]) == (20, 7)


def test_requests_of_the_sample_are_named() -> None:
    sink = ListSink()
    teller = Teller("e", sink, "own-{}".format, 0.5)
    teller.watch(1, small_profile().bins)
    items = [served(2 * SAMPLE_ROWS, seed) for seed in (1, 2)]
    teller.tell(items, {})
    seen = Observed.from_message(sink.batches[0]["observed"][1])
    assert (seen.rows, len(seen.sample)) == (4 * SAMPLE_ROWS, SAMPLE_ROWS)
    x = np.concatenate([with_score(item.answer.x, item.answer.scores) for item in items])
    names = [name for seed in (1, 2) for name in [f"{seed:064d}"] * SAMPLE_ROWS + ["own-5"] * SAMPLE_ROWS]
    for row, name in zip(seen.sample.x, seen.sample.ids, strict=True):
        (at,) = np.flatnonzero((x[:, 3] == row[3]) & (np.array(names) == name))
        np.testing.assert_array_equal(x[at], row)
