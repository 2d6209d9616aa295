"""What an endpoint served, joined with its labels: the rows a retraining learns from."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field

import pandas as pd
import pyarrow.parquet as pq
import sqlalchemy as sa

from raymlops.data.sources import check_names
from raymlops.errors import ConfigError, DataError
from raymlops.lake import Lake
from raymlops.store import Store
from raymlops.store_tables import labels

PREFIX = "served"
ARRIVED = "__arrived"
LOG_COLUMNS = ("request_id", "row_index", "version", "variant", "score", "served_at")
SERVED_AT = "served_at"


@dataclass(frozen=True, slots=True)
class ServedSource:
    """What an endpoint served and was told the label of: the features as they were sent, the label, and ``served_at``.

    Beside another source in a :class:`raymlops.CombinedSource`, it trains on the lake and on what was served since.

    Parameters
    ----------
    endpoint : its name; store and lake are those of the run's settings
    label : what to call the label, as the other sources do
    optional : give no rows, rather than an error, while nothing was served and labelled yet

    Raises
    ------
    ConfigError : no name
    """

    endpoint: str
    label: str = field(kw_only=True)
    time: str | None = field(default=SERVED_AT, kw_only=True)
    drop: tuple[str, ...] = field(default=(), kw_only=True)
    optional: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_names(self)
        if not isinstance(self.endpoint, str) or not self.endpoint:
            raise ConfigError(f"ServedSource(endpoint={self.endpoint!r}): give the name of an endpoint.")

    def describe(self) -> str:
        return f"served by {self.endpoint}"

    def read(self, lake: Lake, store: Store) -> pd.DataFrame:
        """Served and labelled rows in the order they were served, the time as a timestamp in UTC.

        Raises
        ------
        DataError : there are none, and the source is not optional
        """
        frame = read_labelled(lake, store, self.endpoint, self.label)
        if frame.empty and not self.optional:
            raise DataError(
                f"{self.endpoint!r} has served no row that a label came for: send feedback, or train elsewhere."
            )
        served = pd.to_datetime(frame.pop(ARRIVED), unit="s")
        return frame if self.time is None else frame.assign(**{self.time: served})


def read_served(lake: Lake, endpoint: str) -> pd.DataFrame:
    """The prediction log in the order it was served: :data:`LOG_COLUMNS` and the features as they were sent."""
    keys = list(lake.keys(f"{PREFIX}/{endpoint}")) if lake.exists(f"{PREFIX}/{endpoint}") else []
    parts = [pq.read_table(io.BytesIO(lake.read(key))).to_pandas() for key in keys]
    if not parts:
        return pd.DataFrame(columns=list(LOG_COLUMNS))
    frame = pd.concat(parts, ignore_index=True)
    return frame.sort_values(["served_at", "request_id", "row_index"], kind="stable", ignore_index=True)


def read_labelled(lake: Lake, store: Store, endpoint: str, label: str) -> pd.DataFrame:
    """Served rows whose label has arrived: ``ARRIVED`` (seconds since 1970), the features as they were sent, and ``label``."""
    served = read_served(lake, endpoint)
    query = sa.select(labels.c.request_id, labels.c.row_index, labels.c.value).where(labels.c.endpoint == endpoint)
    with store.transaction() as connection:
        known = pd.DataFrame(connection.execute(query).all(), columns=["request_id", "row_index", "value"])
    joined = served.merge(known, on=["request_id", "row_index"], how="inner", sort=False)
    joined = joined.sort_values(["served_at", "request_id", "row_index"], kind="stable", ignore_index=True)
    joined[label] = joined.pop("value").map(json.loads)
    joined = joined.drop(columns=[name for name in LOG_COLUMNS if name != "served_at"])
    joined = joined.rename(columns={"served_at": ARRIVED})
    # The log keeps a feature whose name it uses itself under another one.
    return joined.rename(columns={f"raw.{name}": name for name in LOG_COLUMNS})
