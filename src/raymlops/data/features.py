"""One pandas function makes the features: Spark runs it to train, the server to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from raymlops.errors import DataError

FeatureFunction = Callable[[pd.DataFrame], pd.DataFrame]


def apply_features(
    function: FeatureFunction | None, frame: pd.DataFrame, keep: Sequence[str | None] = ()
) -> pd.DataFrame:
    """The features of ``frame``, row for row, followed by the ``keep`` columns (label, time) as they were.

    The function does not see the ``keep`` columns: requests do not carry them, and a feature made
    from the label leaks it.

    Raises
    ------
    DataError : the function failed, did not return a frame, changed the number or order of rows, or
        returned a kept column
    """
    if function is None:
        return frame
    kept = [name for name in keep if name is not None and name in frame.columns]
    given = frame.drop(columns=kept).reset_index(drop=True)
    try:
        made = function(given.copy())
    except KeyError as error:
        missing = error.args[0] if error.args else ""
        why = " It is not handed to features=, because requests do not carry it." if missing in kept else ""
        raise DataError(f"The features function asked for column {missing!r}, which is not there.{why}") from error
    except Exception as error:
        raise DataError(f"The features function failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, pd.DataFrame):
        raise DataError(f"The features function returned {type(made).__name__}: it must return a pandas DataFrame.")
    if len(made) != len(given):
        raise DataError(
            f"The features function turned {len(given)} rows into {len(made)}: it must return one row for each."
        )
    if not made.index.equals(given.index):
        raise DataError("The features function changed the order of the rows: it must leave the index as it was.")
    returned = [name for name in kept if name in made.columns]
    if returned:
        raise DataError(
            f"The features function returned {', '.join(map(repr, returned))}, which is the label or the time."
        )
    return pd.concat([made, frame[kept].reset_index(drop=True)], axis=1)
