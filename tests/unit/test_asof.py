"""Point-in-time joins in pandas: what was known then, and what users get wrong."""

from __future__ import annotations

import pandas as pd
import pytest

from raymlops.data.ray_asof import as_of
from raymlops.errors import ConfigError, DataError

DAY = pd.Timestamp("2026-01-01")
LEFT = pd.DataFrame(
    {"who": ["a", "b", "a", None, "a"], "at": [DAY, DAY, DAY + pd.Timedelta("2d"), DAY, pd.NaT], "n": range(5)},
    index=[7, 3, 5, 1, 9],
)
RIGHT = pd.DataFrame(
    {
        "who": ["a", "a", "a", "b", None],
        "at": [DAY, DAY - pd.Timedelta("1d"), DAY + pd.Timedelta("3d"), DAY + pd.Timedelta("1s"), DAY],
        "score": [2.0, 1.0, 3.0, 9.0, 5.0],
    }
)


def test_the_latest_that_was_known() -> None:
    found = as_of(LEFT, RIGHT, by="who", time="at", matched="known_at")
    assert found.index.tolist() == [7, 3, 5, 1, 9]
    assert found["n"].tolist() == [0, 1, 2, 3, 4]
    assert found["score"].fillna(-1).tolist() == [2.0, -1, 2.0, -1, -1]
    assert found["known_at"].iloc[2] == DAY


def test_strictly_earlier_and_not_too_old() -> None:
    assert as_of(LEFT, RIGHT, by="who", time="at", strict=True)["score"].fillna(-1).tolist() == [1.0, -1, 2.0, -1, -1]
    assert as_of(LEFT, RIGHT, by="who", time="at", tolerance="1d")["score"].fillna(-1).tolist() == [2.0, -1, -1, -1, -1]


def test_numbers_are_times_too_and_the_greatest_of_equals_is_taken() -> None:
    left = pd.DataFrame({"k": [1, 1], "t": [5, 9]})
    right = pd.DataFrame({"k": [1, 1, 1], "u": [4.0, 4.0, 7.0], "v": ["y", "z", "x"]})
    assert as_of(left, right, by=["k"], time="t", right_time="u", prefix="r_")["r_v"].tolist() == ["z", "x"]
    assert as_of(left, right, by="k", time="t", right_time="u", tolerance=1)["v"].fillna("").tolist() == ["z", ""]


def test_what_cannot_be_joined() -> None:
    with pytest.raises(DataError, match=r"The right frame has no column 'when'\. Known: at, score, who"):
        as_of(LEFT, RIGHT, by="who", time="at", right_time="when")
    with pytest.raises(DataError, match="Columns 'n' would be there twice: give prefix="):
        as_of(LEFT, RIGHT.assign(n=1), by="who", time="at")
    with pytest.raises(DataError, match=r"'at' is of type datetime64\[ns\], the right one's 'score' of type float64"):
        as_of(LEFT, RIGHT.drop(columns="at"), by="who", time="at", right_time="score")
    with pytest.raises(DataError, match="as_of needs a key"):
        as_of(LEFT, RIGHT, by=[], time="at")
    with pytest.raises(ConfigError, match="tolerance='soon' is not a duration"):
        as_of(LEFT, RIGHT, by="who", time="at", tolerance="soon")
