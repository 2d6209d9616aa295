"""Parity: what differs between a frame, a row alone and a request is found, shown and explained."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from raymlops.data.features_parity import compare, parity, same
from raymlops.errors import DataError

FRAME = pd.DataFrame(
    {
        "a": [3.0, 1.0, 2.0, np.nan],
        "n": [1, 2, 2, 4],
        "holes": [1.0, np.nan, 3.0, 4.0],
        "flag": [True, False, True, False],
        "word": ["u", None, "v", "u"],
    }
)
TIMED = FRAME.assign(t=pd.date_range("2026-01-01", periods=4, freq="h"))
Function = Callable[[pd.DataFrame], pd.DataFrame]


def finds(function: Function, frame: pd.DataFrame = FRAME, spark: pd.DataFrame | None = None) -> str:
    return compare(function, frame, spark).text()


def test_functions_that_work_row_by_row_pass_in_every_way() -> None:
    def fine(frame: pd.DataFrame) -> pd.DataFrame:
        t = pd.to_datetime(frame.t)
        return frame.assign(
            r=frame.a / frame.n,
            hour=t.dt.hour,
            big=frame.a > 1,
            full=frame.holes.fillna(0),
            none=None,
            up=frame.word.str.upper(),
        ).drop(columns="t")

    report = compare(fine, TIMED, fine(TIMED))
    assert report.text().endswith("all agree")
    assert report.ways == ("whole", "again", "alone", "request", "spark")
    assert report.agrees
    report.require()
    parity(fine, TIMED)
    parity(None, TIMED)
    parity(fine, TIMED.iloc[:0])


def test_a_difference_shows_values_rows_and_cause() -> None:
    report = compare(lambda f: f.assign(centred=f.n - f.n.mean()), FRAME)
    (difference,) = report.differences
    assert difference.column == "centred"
    assert difference.ways == ("alone", "request")
    assert difference.rows == 4
    assert len(difference.examples) == 3
    assert difference.examples[0].values == {"whole": "-1.25", "alone": "0.0", "request": "0.0"}
    assert "it uses the other rows (mean, rank, quantiles" in difference.cause
    with pytest.raises(
        DataError, match=r"does not give a row the same everywhere\. column 'centred' differs in 4 row"
    ) as caught:
        report.require()
    assert caught.value.details["parity"]["differences"][0]["column"] == "centred"


@pytest.mark.parametrize(
    "function",
    [
        lambda f: f.assign(x=f.n.shift().fillna(0)),
        lambda f: f.assign(x=f.n.cumsum()),
        lambda f: f.assign(x=f.a.ffill()),
        lambda f: f.assign(x=pd.factorize(f.n)[0]),
    ],
)
def test_what_depends_on_order_is_told(function: Function) -> None:
    assert "it depends on the order of the rows" in finds(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda f: f.assign(x=f.n.rank()),
        lambda f: f.assign(x=f.word.astype("category").cat.codes),
        lambda f: f.assign(x=len(f)),
        lambda f: f.assign(x=f.a.fillna(f.a.median())),
        lambda f: f.assign(x=f.groupby("flag").n.transform("sum")),
    ],
)
def test_what_uses_the_other_rows_is_told(function: Function) -> None:
    assert "it uses the other rows" in finds(function)


def test_what_is_not_the_same_twice_is_told() -> None:
    count = itertools.count()
    rng = np.random.default_rng(0)
    for function in (lambda f: f.assign(x=rng.random(len(f))), lambda f: f.assign(x=next(count))):
        assert "it is not the same twice" in finds(function)


def test_times_come_as_text_in_requests() -> None:
    text = finds(lambda f: f.assign(hour=f.t.dt.hour).drop(columns="t"), TIMED)
    assert "row 0 as a request over HTTP holds it: The features function failed: AttributeError" in text
    assert "t come as text in requests" in finds(lambda f: f, TIMED)
    text = finds(lambda f: f.assign(s=f.t.map(str)).drop(columns="t"), TIMED)
    assert "t come as text in requests: begin with pd.to_datetime" in text


def test_numbers_with_holes_are_the_same_in_requests() -> None:
    """The server makes the frame by the kinds of the training's columns: a null is NaN and 1 of a float column is 1.0."""
    for name in ("a", "holes", "n", "flag"):
        assert compare(lambda f, n=name: f[[n]].assign(s=f[n].astype(str)), FRAME).agrees
        assert compare(lambda f, n=name: f[[n]].assign(s=f[n] * 2 + 1), FRAME).agrees


def test_other_columns_and_failures_are_told_by_way() -> None:
    assert "as a frame of one row the function makes other columns than in the whole frame: only" in finds(
        lambda f: f[["n"]].assign(only=1) if len(f) > 1 else f[["n"]]
    )
    assert "row 0 as a frame of one row: The features function failed: IndexError" in finds(
        lambda f: f[["n"]].assign(x=f.n.iloc[1])
    )
    with pytest.raises(DataError, match="failed: AttributeError"):
        compare(lambda f: f.nope, FRAME)


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        (pd.Series(pd.date_range("2026-01-01", periods=4, freq="h") - pd.Timedelta("1h")), "times lose their zone"),
        (pd.Series(pd.date_range("2026-01-01", periods=4, freq="h", tz="UTC")), "times lose their zone"),
    ],
)
def test_times_that_lose_their_zone_in_spark(made: pd.Series, cause: str) -> None:
    def function(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[["n"]].assign(when=pd.to_datetime(frame.t))

    assert cause in finds(function, TIMED, function(TIMED).assign(when=made))


def test_numbers_that_spark_holds_otherwise() -> None:
    large = FRAME[["n"]].assign(n=[2**53 + 1, 2**53 + 3, 1, 2])
    text = finds(lambda f: f.assign(x=f.n + 0), large, large.assign(x=large.n.astype(float)))
    assert "whole numbers from 2**53 on do not survive as doubles" in text
    missing = FRAME[["n"]].assign(x=[1.0, np.nan, 3.0, 4.0])
    assert "a missing value is another thing in Spark" in finds(
        lambda f: f.assign(x=[1.0, 0.0, 3.0, 4.0][: len(f)]) if len(f) > 1 else f.assign(x=f.n.map({1: 1.0, 2: 0.0})),
        FRAME[["n"]].iloc[:2],
        missing.iloc[:2],
    )
    assert "Spark holds new columns as" in finds(
        lambda f: f.assign(x=f.n > 1), FRAME[["n"]], FRAME[["n"]].assign(x=[0.0, 1.0, 1.0, 1.0])
    )


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (1.0, 1.0 + 1e-12, True),
        (np.nan, None, True),
        (pd.NaT, np.nan, True),
        (True, 1, False),
        (np.bool_(True), True, True),
        ("1", 1, False),
        (np.inf, np.inf, True),
        (None, "", False),
    ],
)
def test_what_counts_as_the_same(left: object, right: object, equal: bool) -> None:
    assert same(left, right) is equal
