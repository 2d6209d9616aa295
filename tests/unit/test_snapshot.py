"""Snapshots: order, split, fingerprint, and reading back what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raymlops.data.assess import assess
from raymlops.data.schema import learn_contract
from raymlops.data.snapshot import (
    DatasetSnapshot,
    load_arrays,
    load_snapshot,
    order_by_time,
    read_frame,
    write_snapshot,
)
from raymlops.data.split import SplitBy
from raymlops.errors import ContractViolation, DataError
from raymlops.lake import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = 400
    times = pd.Series(pd.date_range("2026-01-01", periods=rows, freq="h")).sample(frac=1, random_state=0)
    return pd.DataFrame(
        {
            "t": times.to_numpy(),
            "a": rng.normal(size=rows),
            "c": rng.choice(["u", "v", None], rows),
            "ok": rng.random(rows) > 0.5,
            "y": (rng.random(rows) > 0.8).astype(int),
            "extra": 1,
        }
    )


def write(lake: Lake, frame: pd.DataFrame, time: str | None = "t", **more: int) -> DatasetSnapshot:
    contract = learn_contract(frame, "y", drop=("extra", "t"))
    return write_snapshot(lake, "churn", frame, contract, time, "test", assess(frame, contract, time), 5.0, **more)


def test_time_order_is_kept_and_parts_follow_each_other(lake: Lake, frame: pd.DataFrame) -> None:
    snapshot = write(lake, frame)
    stored = read_frame(lake, snapshot)
    assert stored["t"].is_monotonic_increasing
    assert list(stored.columns) == ["a", "c", "ok", "y", "t"]
    assert (snapshot.split.train, snapshot.split.validation, snapshot.split.test) == (280, 60, 60)
    assert snapshot.split.ordered
    arrays = load_arrays(lake, snapshot)
    assert arrays.x_train.shape == (280, 3)
    assert arrays.time_test is not None
    assert arrays.time_test[-1] == frame["t"].max().timestamp()
    np.testing.assert_array_equal(np.r_[arrays.y_train, arrays.y_validation, arrays.y_test], stored["y"])


def test_the_same_rows_give_the_same_snapshot_written_once(lake: Lake, frame: pd.DataFrame) -> None:
    first = write(lake, frame)
    before = {key: lake.read(key) for key in lake.keys("snapshots")}
    assert write(lake, frame.sample(frac=1, random_state=3)) == first
    assert {key: lake.read(key) for key in lake.keys("snapshots")} == before
    assert load_snapshot(lake, first.key) == first


@pytest.mark.parametrize("change", ["value", "type", "missing", "split"])
def test_any_change_changes_the_fingerprint(lake: Lake, frame: pd.DataFrame, change: str) -> None:
    first = write(lake, frame)
    other = {
        "value": lambda: write(lake, frame.assign(a=frame.a.where(frame.index != 7, 0.5))),
        "type": lambda: write(lake, frame.assign(ok=frame.ok.astype(int))),
        "missing": lambda: write(lake, frame.assign(a=frame.a.where(frame.index != 7))),
        "split": lambda: write(lake, frame, holdout_rows=10),
    }[change]()
    assert other.fingerprint != first.fingerprint


def test_holdout_rows_keep_most_rows_for_training(lake: Lake, frame: pd.DataFrame) -> None:
    split = write(lake, frame, holdout_rows=10).split
    assert (split.train, split.validation, split.test) == (380, 10, 10)


def test_without_time_each_part_has_its_share_of_each_class(lake: Lake, frame: pd.DataFrame) -> None:
    snapshot = write(lake, frame, time=None)
    arrays = load_arrays(lake, snapshot)
    assert not snapshot.split.ordered
    assert arrays.time_test is None
    for part in (arrays.y_train, arrays.y_validation, arrays.y_test):
        assert part.mean() == pytest.approx(frame.y.mean(), abs=0.02)
    assert write(lake, frame, time=None, seed=1).fingerprint != snapshot.fingerprint


def test_groups_stay_together_in_time_and_are_not_stored(lake: Lake, frame: pd.DataFrame) -> None:
    """Forty customers; each row tells whose it is, so that the stored parts can be asked."""
    frame = frame.assign(who=[f"customer {n}" for n in np.arange(len(frame)) % 40], a=np.arange(len(frame)) % 40.0)
    contract = learn_contract(frame, "y", drop=("extra", "t", "who"))
    assessment = assess(frame, contract, "t")
    snapshot = write_snapshot(
        lake, "churn", frame, contract, "t", "test", assessment, 5.0, by=SplitBy(group="who", embargo="2h")
    )
    stored = read_frame(lake, snapshot)
    split = snapshot.split
    assert list(stored.columns) == ["a", "c", "ok", "y", "t"]
    assert len(stored) == snapshot.rows == split.train + split.validation + split.test
    assert split.unused == 400 - len(stored) > 0
    parts = np.split(stored, [split.train, split.train + split.validation])
    owners = [set(part["a"]) for part in parts]
    assert not owners[0] & owners[1]
    assert not owners[2] & (owners[0] | owners[1])
    assert parts[0]["t"].max() < parts[1]["t"].min() - pd.Timedelta("2h")
    assert parts[1]["t"].max() < parts[2]["t"].min() - pd.Timedelta("2h")
    assert load_snapshot(lake, snapshot.key) == snapshot
    arrays = load_arrays(lake, snapshot)
    assert len(arrays.y_test) == split.test


def test_columns_that_a_split_names_must_be_there(lake: Lake, frame: pd.DataFrame) -> None:
    contract = learn_contract(frame, "y", drop=("extra", "t"))
    for by, role in ((SplitBy(group="who"), "group"), (SplitBy(stratify="who"), "stratify")):
        with pytest.raises(DataError, match=rf"The data has no {role} column 'who', which SplitBy\({role}=\) names"):
            write_snapshot(lake, "churn", frame, contract, None, "test", assess(frame, contract), 5.0, by=by)
    filled = frame.assign(c=frame.c.fillna("none"))
    known = learn_contract(filled, "y", drop=("extra", "t"))
    snapshot = write_snapshot(
        lake, "churn", filled, known, None, "test", assess(filled, known), 5.0, by=SplitBy(stratify="c")
    )
    test = read_frame(lake, snapshot).tail(snapshot.split.test)
    for value, rows in filled["c"].value_counts().items():
        assert abs((test["c"] == value).sum() - 0.15 * rows) <= 1.5


def test_order_is_stable_and_reads_text() -> None:
    frame = pd.DataFrame({"t": ["2026-01-02", "2026-01-01", "2026-01-01"], "n": [0, 1, 2]})
    assert order_by_time(frame, "t")["n"].tolist() == [1, 2, 0]
    with pytest.raises(DataError, match="The time column 't' cannot be read as times"):
        order_by_time(frame.assign(t="soon"), "t")
    with pytest.raises(DataError, match="The time column 't' is missing in 1 of 3 rows"):
        order_by_time(frame.assign(t=[1.0, None, 3.0]), "t")
    zoned = frame.assign(t=pd.to_datetime(frame.t).dt.tz_localize("Europe/Oslo"))
    assert order_by_time(zoned, "t")["t"].iloc[0] == pd.Timestamp("2025-12-31 23:00")


def test_rows_that_break_the_contract_are_not_written(lake: Lake, frame: pd.DataFrame) -> None:
    contract = learn_contract(frame, "y", drop=("extra", "t"))
    broken = frame.assign(a=frame.a.where(frame.index > 3))
    with pytest.raises(ContractViolation, match="column 'a': expected number, got nan"):
        write_snapshot(lake, "churn", broken, contract, "t", "test", assess(frame, contract), 5.0)
    assert list(lake.keys("snapshots")) == []


def test_without_time_neither_order_nor_partitions_decide_the_split(tmp_path: Path, frame: pd.DataFrame) -> None:
    lakes = [Lake(str(tmp_path / name)) for name in ("one", "two")]
    shuffled = frame.sample(frac=1, random_state=7)
    first, second = write(lakes[0], frame, time=None), write(lakes[1], shuffled, time=None)
    assert (first.key, first.split, first.profile) == (second.key, second.split, second.profile)
    pd.testing.assert_frame_equal(read_frame(lakes[0], first), read_frame(lakes[1], second))


def test_rows_and_columns_are_read_in_part(lake: Lake) -> None:
    frame = pd.DataFrame({"a": np.arange(40.0), "t": np.arange(40.0), "y": [0, 1] * 20})
    contract = learn_contract(frame, "y", drop=("t",))
    snapshot = write_snapshot(lake, "part", frame, contract, "t", "test", assess(frame, "y", "t"), 0.0)
    whole = read_frame(lake, snapshot)
    tail = read_frame(lake, snapshot, start=30)
    pd.testing.assert_frame_equal(tail, whole.iloc[30:].reset_index(drop=True))
    pd.testing.assert_frame_equal(read_frame(lake, snapshot, columns=["t"]), whole[["t"]])
