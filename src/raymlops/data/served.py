"""What an endpoint served, joined with its labels: the rows a retraining learns from."""

from __future__ import annotations

import io
import json

import pandas as pd
import pyarrow.parquet as pq
import sqlalchemy as sa

from raymlops.lake import Lake
from raymlops.store import Store, labels

PREFIX = "served"
ARRIVED = "__arrived"
LOG_COLUMNS = ("request_id", "row_index", "version", "variant", "score", "served_at")


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
