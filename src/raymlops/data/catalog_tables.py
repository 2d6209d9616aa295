"""The catalog's tables in the store, and how an older catalog becomes a present one."""

from __future__ import annotations

import json

import sqlalchemy as sa

from raymlops.errors import StoreError
from raymlops.store import Store
from raymlops.store_tables import documents

tables = sa.MetaData()

datasets = sa.Table(
    "datasets",
    tables,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(200), nullable=False, default=""),
    sa.Column("description", sa.Text, nullable=False, default=""),
    sa.Column("keep_versions", sa.Integer),
    sa.Column("keep_days", sa.Float),
    sa.Column("created_at", sa.Float, nullable=False),
)

versions = sa.Table(
    "dataset_versions",
    tables,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("snapshot_key", sa.String(300), nullable=False, unique=True),
    sa.Column("content", sa.String(64), nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("event_id", sa.String(200), nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("removed_at", sa.Float),
)

columns = sa.Table(
    "dataset_columns",
    tables,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("column", sa.Text, nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
)

tags = sa.Table(
    "dataset_tags",
    tables,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tag", sa.String(64), primary_key=True),
)

uses = sa.Table(
    "dataset_uses",
    tables,
    sa.Column("endpoint", sa.String(64), primary_key=True),
    sa.Column("model_version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("snapshot_key", sa.String(300), nullable=False, index=True),
    sa.Column("event_id", sa.String(200), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

# What leads from version n + 1 to n + 2: statements that SQLite and PostgreSQL both take.
CHANGES: tuple[tuple[str, ...], ...] = ()


def bring_up(store: Store) -> None:
    """Make the tables, or bring them from the version they have to the present one, in one transaction.

    Raises
    ------
    StoreError : they were written by a later release
    """
    present = len(CHANGES) + 1
    with store.transaction() as connection:
        found = _version(connection)
        if found == present:
            return
        if store.engine.dialect.name == "postgresql":
            # Only for a change: the lock stops every writer of the store. Another may have made it while this one waited.
            connection.execute(sa.text("LOCK TABLE documents IN EXCLUSIVE MODE"))
            found = _version(connection)
        if found == present:
            return
        if found is None:
            tables.create_all(connection)
        elif found > present:
            raise StoreError(
                f"The catalog's tables have version {found}, this raymlops knows {present}: use the release that wrote "
                "them, or a later one."
            )
        else:
            for statements in CHANGES[found - 1 :]:
                for statement in statements:
                    connection.execute(sa.text(statement))
        store.put_in(connection, "schema", "catalog", {"version": present})


def _version(connection: sa.Connection) -> int | None:
    query = sa.select(documents.c.body).where(documents.c.kind == "schema", documents.c.name == "catalog")
    body = connection.execute(query).scalar_one_or_none()
    return None if body is None else int(json.loads(body)["version"])
