"""A whole period counted: the same bits however it is shared out, borders that hold it, and what its columns remember."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from raymlops.data.schema import DataContract, learn_contract
from raymlops.data.snapshot import Arrays
from raymlops.errors import DataError
from raymlops.lake import Lake
from raymlops.loop.held_period import HeldOutModel, PeriodWork, count_here, count_period, period_work
from raymlops.loop.ray_period import count_in_spark
from raymlops.registry.package import categories_of
from raymlops.search.decision import Decision
from raymlops.settings import Settings
from raymlops.sketch.histogram import Sketch
from raymlops.sketch.period import CHUNK, PeriodPart, PeriodPlan, counted
from raymlops.sketch.profile import SCORE, Profile, with_score

ROWS = 3 * CHUNK + 5_001


def autoregressive(phi: float, rows: int, seed: int) -> NDArray[np.float64]:
    noise = np.random.default_rng(seed).normal(size=rows)
    return np.asarray(lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise))


def period(seed: int = 0) -> NDArray[np.float32]:
    """A number without memory, one with, one with a rhythm, a category, and a number that is often missing."""
    rng = np.random.default_rng(seed)
    day = np.sin(2 * np.pi * np.arange(ROWS) / 8_000)
    gone = np.where(rng.uniform(size=ROWS) < 0.2, np.nan, rng.normal(size=ROWS))
    gone[77] = np.inf
    columns = (rng.normal(size=ROWS), autoregressive(0.8, ROWS, seed), day + rng.normal(size=ROWS), day > 0.5, gone)
    return np.column_stack(columns).astype(np.float32)


def planned(x: NDArray[np.float32]) -> PeriodPlan:
    return PeriodPlan.learn(x[np.linspace(0, len(x) - 1, 10_000).astype(int)], tuple("abcde"), {3: 2})


def parts(plan: PeriodPlan, x: NDArray[np.float32]) -> list[PeriodPart]:
    return [plan.count(k, x[k * CHUNK : (k + 1) * CHUNK]) for k in range(-(-len(x) // CHUNK))]


def test_the_counts_are_those_of_all_rows_in_borders_that_hold_them() -> None:
    x = period()
    x[4_321, 0], x[4_322, 0] = -50.0, 60.0  # rows that the borders were not learned from
    plan = planned(x)
    profile = plan.profile(counted(parts(plan, x)), ordered=True)
    assert profile.sketch == Sketch.of(profile.bins, x)
    assert profile.sketch.rows == ROWS
    edges = profile.bins.edges[0]
    assert (edges[0], edges[-1]) == (-50.0, np.nextafter(60.0, np.inf))
    last = [len(edge) for edge in profile.bins.edges]
    assert profile.sketch.counts[:, 0].tolist() == [0] * 5
    assert [int(profile.sketch.counts[i, last[i]]) for i in range(5)] == [0] * 5
    assert profile.bins.edges[3].tolist() == plan.bins.edges[3].tolist()  # codes have the contract's cells


def test_memory_tells_a_rhythm_apart_by_how_many_rows_are_averaged() -> None:
    plan = planned(period())
    memory = plan.profile(counted(parts(plan, period())), ordered=True).memory
    assert memory is not None
    assert memory.lengths.tolist() == [64 << i for i in range(8)]  # 40 blocks up to 1,024 rows, and on to a quarter
    free, regressive, daily, category, gone = memory.longest
    assert free < 1.5
    assert 7.0 < regressive < 13.0  # (1 + phi) / (1 - phi) = 9
    assert memory.of_mean(64)[2] < 40 < memory.of_mean(1000)[2] < daily
    assert category > 100
    assert gone < 1.5
    assert memory.of_rate(1000).max() < 1.5
    assert memory.longest_joint >= 0.5 * daily


def test_the_combination_of_columns_that_remembers_longest() -> None:
    """A rhythm so weak in each of twenty columns that only their sum shows it; and none where there is none."""
    rng = np.random.default_rng(5)
    free = rng.normal(size=(8 * CHUNK, 20))
    weak = free + 0.1 * np.sin(2 * np.pi * np.arange(len(free)) / 24_000)[:, None]
    found = []
    for x in (free.astype(np.float32), weak.astype(np.float32)):
        plan = PeriodPlan.learn(x[::13], [f"c{i}" for i in range(20)], {})
        memory = plan.profile(counted(parts(plan, x)), ordered=True).memory
        assert memory is not None
        found.append((float(memory.longest.max()), memory.longest_joint))
    (free_time, free_joint), (weak_time, weak_joint) = found
    assert max(free_time, free_joint) < 2.5
    assert weak_joint > 4 * weak_time


def test_a_rhythm_longer_than_the_period_is_taken_to_go_on() -> None:
    rng = np.random.default_rng(6)
    x = np.column_stack((np.sin(np.arange(20_000) / 8_000) + rng.normal(size=20_000), rng.normal(size=20_000)))
    x = x.astype(np.float32)
    plan = PeriodPlan.learn(x[::2], ("a", "b"), {})
    memory = plan.profile(counted(parts(plan, x)), ordered=True).memory
    assert memory is not None
    assert memory.lengths[-1] == 4096
    rising, free = memory.times.T
    assert rising[-1] > 10 * rising[2]  # the blocks that could be counted had 256 rows at most
    assert free[-1] < 1.5


def test_rows_without_an_order_have_no_memory() -> None:
    plan = planned(period())
    assert plan.profile(counted(parts(plan, period())), ordered=False).memory is None
    assert plan.profile(plan.count(0, period()[:5_000]), ordered=True).memory is None  # nor have a few


def test_columns_that_hardly_vary_or_hold_nothing() -> None:
    x = np.column_stack((np.zeros(ROWS), np.full(ROWS, np.nan), np.zeros(ROWS))).astype(np.float32)
    x[1, 2], x[2, 1] = 4.0, 9.0
    plan = PeriodPlan.learn(x[::17], tuple("abc"), {})
    profile = plan.profile(counted(parts(plan, x)), ordered=True)
    assert profile.sketch == Sketch.of(profile.bins, x)
    assert profile.sketch.counts[2].tolist()[1:] == [ROWS - 1, 1, 0] + [0] * (profile.bins.width - 4)
    assert profile.memory is not None
    assert profile.memory.longest[:2].tolist() == [1.0, 1.0]
    assert profile.memory.longest_joint == 1.0


def test_parts_and_profiles_survive_their_bytes() -> None:
    plan = planned(period())
    made = parts(plan, period())
    again = counted(PeriodPart.from_bytes(part.to_bytes()) for part in made)
    profile = plan.profile(counted(made), ordered=True)
    assert plan.profile(again, ordered=True).to_bytes() == profile.to_bytes()
    assert Profile.from_bytes(profile.to_bytes()).to_bytes() == profile.to_bytes()


# --- read from the lake ---------------------------------------------------------------------------------


class Linear:
    """Sums that hang on the order they are taken in, as a linear model's do."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        weights = self.slope * np.linspace(0.1, 0.7, x.shape[1])
        return 1.0 / (1.0 + np.exp(-np.nan_to_num(x.astype(np.float64)) @ weights))


def held_work(tmp_path: Path, row_group: int) -> tuple[PeriodWork, Arrays, DataContract]:
    x = period(3)
    train, validation = 7_001, 20_000
    frame = pd.DataFrame(x[:, [0, 1, 2, 4]].astype(float), columns=list("abce"))
    frame["d"], frame["y"] = np.where(x[:, 3] > 0, "Oslo", "Bergen"), (np.arange(len(x)) % 3 == 0).astype(int)
    frame["e"] = frame["e"].replace(np.inf, np.nan)
    contract = learn_contract(frame, "y")
    encoded, y = contract.encode(frame), contract.encode_label(frame["y"])
    cuts = (slice(0, train), slice(train, train + validation), slice(train + validation, None))
    (a, b, c), (d, e, f) = ([side[cut] for cut in cuts] for side in (encoded, y))
    arrays = Arrays(x_train=a, x_validation=b, x_test=c, y_train=d, y_validation=e, y_test=f, time_test=None)
    lake, sink = Lake(str(tmp_path)), io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, row_group_size=row_group)
    lake.write("data.parquet", sink.getvalue())
    model = HeldOutModel(
        before=Linear(1.0), after=Linear(2.0), decision=Decision(), validation=validation, multiclass=False
    )
    held = np.concatenate((b, c))
    rows = np.column_stack((held, model.scores(0, held))).astype(np.float32)[::4]
    return (
        PeriodWork(
            lake=lake,
            key="data.parquet",
            contract=contract,
            first=train,
            rows=len(held),
            model=model,
            plan=PeriodPlan.learn(rows, (*contract.names, SCORE), categories_of(contract)),
        ),
        arrays,
        contract,
    )


@pytest.mark.parametrize("row_group", [1_000_000, 16_384, 9_999])
def test_what_is_read_from_the_lake_in_any_tasks_is_what_is_counted_here(tmp_path: Path, row_group: int) -> None:
    work, arrays, _ = held_work(tmp_path, row_group)
    here = work.plan.profile(count_here(work, arrays), ordered=True)
    tasks = work.tasks()
    assert [number for task in tasks for number in task] == list(work.chunks)
    assert len(tasks) == (1 if row_group == 1_000_000 else len(work.chunks))
    random.Random(row_group).shuffle(tasks)
    stored = [work.count_stored(task) for task in tasks]
    assert work.plan.profile(counted(stored), ordered=True).to_bytes() == here.to_bytes()
    assert here.sketch.rows == work.rows == ROWS - 7_001
    assert here.sketch.missing[work.contract.names.index("e")] > 5_000


def test_borders_come_from_rows_spread_over_the_period_and_few_rows_need_none(tmp_path: Path) -> None:
    given, arrays, contract = held_work(tmp_path, 50_000)
    split = SimpleNamespace(train=7_001, ordered=True)
    snapshot: Any = SimpleNamespace(key="snapshots/s", contract=contract, split=split)
    work = period_work(given.lake, snapshot, arrays, given.model)
    assert work is not None
    assert (work.key, work.first, work.rows) == ("snapshots/s/data.parquet", 7_001, ROWS - 7_001)
    held = np.concatenate((arrays.x_validation, arrays.x_test))
    spread = np.linspace(0, len(held) - 1, 10_000).astype(int)
    seen = with_score(held, given.model.scores(0, held))[spread]
    expected = PeriodPlan.learn(seen, (*contract.names, SCORE), categories_of(contract)).bins
    assert work.plan.bins.digest == expected.digest
    few = replace(
        arrays, x_test=arrays.x_test[:-1], y_test=arrays.y_test[:0], y_validation=arrays.y_validation[:10_000]
    )
    assert period_work(given.lake, snapshot, few, given.model) is None


def test_each_row_is_scored_by_the_fit_that_has_not_seen_it(tmp_path: Path) -> None:
    work, arrays, _ = held_work(tmp_path, 50_000)
    x = np.concatenate((arrays.x_validation, arrays.x_test))
    said = work.model.scores(0, x)
    np.testing.assert_array_equal(said[:20_000], Linear(1.0).predict(x[:20_000]))
    np.testing.assert_array_equal(said[20_000:], Linear(2.0).predict(x[20_000:]))
    assert work.model.scores(30_000, x[30_000:30_010]).tolist() == Linear(2.0).predict(x[30_000:30_010]).tolist()


def test_little_is_counted_here_and_so_is_what_could_not_be_counted_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, arrays, _ = held_work(tmp_path, 50_000)
    asked: list[PeriodWork] = []

    def fails(given: PeriodWork) -> PeriodPart | None:
        asked.append(given)
        return None

    here = count_period(work, arrays, ordered=True).to_bytes()
    assert count_period(work, arrays, True, fails).to_bytes() == here
    assert not asked
    monkeypatch.setattr("raymlops.loop.held_period.SPARK_VALUES", 1)
    assert count_period(work, arrays, True, fails).to_bytes() == here
    assert asked == [work]


def test_a_spark_that_cannot_start_is_told_and_is_no_reason_to_stop(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # whatever ran before in this process
    work, _, _ = held_work(tmp_path, 50_000)
    said: list[str] = []
    assert count_in_spark(work, settings, said.append) is None
    assert len(said) == 1
    assert said[0].startswith("Ray is not running in this process")
    assert said[0].endswith("Counting without Spark, which gives the same")


def test_a_lake_that_fails_on_the_way_to_spark_is_no_reason_to_stop(tmp_path: Path, settings: Settings) -> None:
    work, _, _ = held_work(tmp_path, 50_000)
    (tmp_path / "data.parquet").unlink()
    said: list[str] = []
    assert count_in_spark(work, settings, said.append) is None
    assert said[0].endswith("Counting without Spark, which gives the same")


def test_a_file_that_does_not_hold_what_the_contract_says_is_named(tmp_path: Path) -> None:
    work, _, _ = held_work(tmp_path, 50_000)
    table = pq.read_table(tmp_path / "data.parquet").to_pandas()
    table.loc[7_500, "a"] = np.nan
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink)
    work.lake.write("data.parquet", sink.getvalue())
    with pytest.raises(DataError, match=r"file data.parquet is damaged: in row 7500 column .a.: .*"):
        work.count_stored(range(1))
