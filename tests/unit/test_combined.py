"""Several sources as one: what must agree, and what is said when it does not."""

from __future__ import annotations

import pandas as pd
import pytest

from raymlops.data.combined import CombinedSource, combine, parts_of
from raymlops.data.contract_text import parse
from raymlops.data.served import ServedSource
from raymlops.data.sources import FrameSource
from raymlops.errors import ConfigError, DataError
from raymlops.pipeline import Pipeline

LAKE = pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1], "ts": pd.to_datetime(["2026-01-01", "2026-01-02"])})
LATER = pd.DataFrame({"y": [1], "x": [3.0], "served_at": pd.to_datetime(["2026-01-03"])})


def both() -> CombinedSource:
    return CombinedSource(FrameSource(LAKE, label="y", time="ts"), ServedSource("churn", label="y"))


def test_rows_below_each_other_in_the_first_ones_columns() -> None:
    made = combine(both(), [LAKE, LATER])
    assert list(made.columns) == ["x", "y", "ts"]
    assert made["x"].tolist() == [1.0, 2.0, 3.0]
    assert both().label == "y"
    assert both().time == "ts"
    assert both().describe() == "a frame of 2 rows + served by churn"


def test_what_has_no_rows_has_no_say() -> None:
    pd.testing.assert_frame_equal(combine(both(), [LAKE, pd.DataFrame()]), LAKE)


def test_other_columns_are_refused_not_filled() -> None:
    with pytest.raises(
        DataError, match="served by churn lacks 'x' and has 'z' besides compared with a frame of 2 rows"
    ):
        combine(both(), [LAKE, LATER.rename(columns={"x": "z"})])
    with pytest.raises(DataError, match="The time of served by churn is int64, of a frame of 2 rows datetime64"):
        combine(both(), [LAKE, LATER.assign(served_at=5)])


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: CombinedSource(ServedSource("a", label="y")), "takes two or more sources"),
        (lambda: CombinedSource(ServedSource("a", label="y"), 3), "takes sources, got int"),
        (
            lambda: CombinedSource(ServedSource("a", label="y"), ServedSource("b", label="z")),
            "the label is called 'y', 'z': rename it",
        ),
        (
            lambda: CombinedSource(ServedSource("a", label="y"), ServedSource("b", label="y", time=None)),
            r"ServedSource \(served by b\) names no time= and others do",
        ),
        (lambda: ServedSource("", label="y"), "give the name of an endpoint"),
    ],
)
def test_what_cannot_be_combined_is_refused_when_built(build: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build()


def test_a_column_that_one_part_drops_is_still_there_for_the_contract() -> None:
    lake = FrameSource(LAKE.assign(id=[1, 2]), label="y", time="ts", drop=("id",))
    again = FrameSource(LAKE.assign(id=[3, 4]), label="y", time="ts", drop=("id",))
    pipeline = Pipeline(name="churn", source=CombinedSource(lake, again), contract=parse("unique: [id]"))
    assert pipeline.hidden == ("id",)
    nested = CombinedSource(CombinedSource(lake, again), ServedSource("churn", label="y"))
    assert [type(part) for part in parts_of(nested)] == [FrameSource, FrameSource, ServedSource]
