"""Point-in-time joins: Spark gives what pandas gives, on many random tables in one job."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from raymlops.data.ray_asof import as_of
from raymlops.data.ray_dp import SparkOnRay
from raymlops.errors import DataError

CASES = 300
START = pd.Timestamp("2026-03-28 22:00")


def tables(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Many small tables at once, told apart by ``case``: empty sides, ties, one key with nearly all rows, nulls."""
    rng = np.random.default_rng(seed)

    def side(most: int, column: str) -> pd.DataFrame:
        sizes = rng.integers(0, most, CASES)
        case = np.repeat(np.arange(CASES), sizes)
        rows = len(case)
        at = START + pd.to_timedelta(rng.integers(0, 40, rows) * 900, unit="s")
        key = np.where(rng.random(rows) < 0.8, "a", rng.choice(["b", "c"], rows))
        made = pd.DataFrame({"case": case, "key": key, "at": at, column: rng.integers(0, 5, rows)})
        made[f"{column}_text"] = rng.choice(["u", "v", "w"], rows)
        made["at"] = made["at"].where(rng.random(rows) > 0.03)
        made["key"] = made["key"].astype(object).where(rng.random(rows) > 0.03, None)
        return made

    left = side(12, "asked")
    return left.assign(row=np.arange(len(left))), side(20, "known")


@pytest.fixture
def spark(session: tuple[SparkOnRay, Any]) -> Any:
    return session[1]


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Of one type and order, whatever engine it comes from."""
    frame = frame.sort_values("row", ignore_index=True)
    return frame.assign(**{name: frame[name].astype(object).where(frame[name].notna(), None) for name in frame.columns})


@pytest.mark.parametrize(
    "options",
    [{}, {"strict": True}, {"tolerance": "2h"}, {"strict": True, "tolerance": 900, "prefix": "r_"}],
    ids=["plain", "strict", "tolerance", "both"],
)
def test_spark_gives_what_pandas_gives(spark: Any, options: dict[str, Any]) -> None:
    left, right = tables(len(options))
    given = {"by": ("case", "key"), "time": "at", "matched": "known_at", **options}
    expected = in_order(as_of(left, right, **given))
    found = as_of(spark.createDataFrame(left), spark.createDataFrame(right), **given).toPandas()
    assert list(found.columns) == list(expected.columns)
    assert len(left) > 1000
    pd.testing.assert_frame_equal(in_order(found), expected, check_dtype=False)
    assert 0.1 < expected["known_at"].notna().mean() < 0.9


def test_numbers_and_types(spark: Any) -> None:
    left = spark.createDataFrame([("a", 5.0), ("a", 1.0)], "k string, t double")
    right = spark.createDataFrame([("a", 4.0, "x")], "k string, u double, v string")
    found = as_of(left, right, by="k", time="t", right_time="u", tolerance=3)
    assert sorted((row.t, row.v) for row in found.collect()) == [(1.0, None), (5.0, "x")]
    with pytest.raises(DataError, match="'t' is of type double, the right one's 'v' of type string: cast one of them"):
        as_of(left, right, by="k", time="t", right_time="v")
