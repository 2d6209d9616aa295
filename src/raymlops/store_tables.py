"""What the store keeps: its tables, and the rows that callers hand in and get back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

metadata = sa.MetaData()

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.String(200), nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

predictions = sa.Table(
    "predictions",
    metadata,
    sa.Column("endpoint", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("row_index", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("variant", sa.String(16), nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("served_at", sa.Float, nullable=False),
)

shadows = sa.Table(
    "shadows",
    metadata,
    sa.Column("endpoint", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("row_index", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("score", sa.Float, nullable=False),
)

blocks = sa.Table(
    "prediction_blocks",
    metadata,
    sa.Column("endpoint", sa.String(64), primary_key=True),
    sa.Column("series", sa.String(16), primary_key=True),
    sa.Column("first", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("last", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("row_index", sa.Integer, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.UniqueConstraint("endpoint", "request_id", "row_index"),
)

conflicts = sa.Table(
    "label_conflicts",
    metadata,
    sa.Column("endpoint", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("row_index", sa.Integer, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False, index=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)

LabelOutcome = Literal["stored", "duplicate", "conflict", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to change one endpoint; ``token`` grows with every holder, so a stale holder can be told apart."""

    name: str
    token: int
    holder: str
    since: float
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """One label for one row of one request; ``value`` is JSON-serialisable (number, string or boolean)."""

    request_id: str
    row_index: int
    value: float | int | str | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConflictRow:
    """A row that was given two labels: ``kept`` counts, ``refused`` is the first one that disagreed."""

    request_id: str
    row_index: int
    kept: float | int | str | bool
    refused: float | int | str | bool
    received_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRow:
    """One served row; ``score`` is the positive class's probability, the prediction, or ``None`` when not finite."""

    request_id: str
    row_index: int
    version: int
    variant: str
    score: float | None
    served_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRow:
    """What another version said of a served row; finite."""

    request_id: str
    row_index: int
    version: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A prediction joined with its label; ``seq`` orders outcomes by the arrival of the label."""

    seq: int
    request_id: str
    row_index: int
    version: int
    variant: str
    score: float | None
    served_at: float
    value: float | int | str | bool
