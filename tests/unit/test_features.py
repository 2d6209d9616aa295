"""The features function: what it sees, what it may return, and whether one row alone gets the same."""

from __future__ import annotations

import pandas as pd
import pytest

from raymlops.data.features import apply_features
from raymlops.errors import DataError

FRAME = pd.DataFrame({"a": [3.0, 1.0, 2.0], "b": [1.0, 2.0, 4.0], "y": [0, 1, 0], "t": [1, 2, 3]})


def test_label_and_time_are_kept_and_not_shown() -> None:
    seen: list[list[str]] = []

    def ratio(frame: pd.DataFrame) -> pd.DataFrame:
        seen.append(list(frame.columns))
        frame["a"] = 0.0  # the caller's frame must not change
        return frame.assign(r=frame.a / frame.b)

    made = apply_features(ratio, FRAME, ("y", "t"))
    assert seen == [["a", "b"]]
    assert list(made.columns) == ["a", "b", "r", "y", "t"]
    assert made["y"].tolist() == [0, 1, 0]
    assert FRAME["a"].tolist() == [3.0, 1.0, 2.0]
    assert apply_features(None, FRAME, ("y", None)) is FRAME


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda f: f.head(1), "turned 3 rows into 1"),
        (lambda f: f.sort_values("a"), "changed the order of the rows"),
        (lambda f: f["a"], "returned Series"),
        (lambda f: f.assign(z=f.nope), "failed: AttributeError"),
        (lambda f: f.assign(z=f["nope"]), "asked for column 'nope', which is not there\\.$"),
        (lambda f: f.assign(z=f["y"]), "column 'y', which is not there. It is not handed to features="),
        (lambda f: f.assign(y=1), "returned 'y', which is the label or the time"),
    ],
)
def test_refused(function: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        apply_features(function, FRAME, ("y", "t"))
