"""Durable state over SQLAlchemy: SQLite by default, PostgreSQL for a cluster.

The store holds small documents under a key, leases with fencing tokens, the predictions that wait for their
labels (in blocks, see :mod:`raymlops.blocks`, or one by one), the labels, and the event log (:mod:`raymlops.events`). Ray's memory is a cache; this is the truth.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from raymlops.blocks import Block, parse_request_id
from raymlops.clock import Clock, SystemClock
from raymlops.errors import RunInProgress, StaleLease, StoreError
from raymlops.store_tables import (
    LabelConflictRow,
    LabelOutcome,
    LabelRow,
    Lease,
    Outcome,
    PredictionRow,
    ShadowRow,
    blocks,
    conflicts,
    documents,
    labels,
    leases,
    metadata,
    predictions,
    shadows,
)

__all__ = [
    "LabelConflictRow",
    "LabelOutcome",
    "LabelRow",
    "Lease",
    "Outcome",
    "PredictionRow",
    "ShadowRow",
    "Store",
    "mask",
]

_KEPT_BLOCKS = 32  # labels of one time ask for the same few blocks


class Store:
    """One connection pool to the durable store. Create it where it is used; it does not cross processes.

    Raises
    ------
    StoreError : the database cannot be opened, read or written
    """

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self.url = url
        self.clock = clock or SystemClock()
        self._blocks: dict[tuple[str, str, int], Block] = {}
        parsed = sa.make_url(url)
        arguments: dict[str, Any] = {}
        if parsed.get_backend_name() == "sqlite":
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            arguments = {"connect_args": {"timeout": 30}}
        self.engine = sa.create_engine(url, **arguments)
        if parsed.get_backend_name() == "sqlite":
            sa.event.listen(self.engine, "connect", _sqlite_connect)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        with self._errors():
            metadata.create_all(self.engine)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """One write transaction; concurrent writers wait for it."""
        with self._errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise StoreError(f"The store {mask(self.url)} failed: {error.__class__.__name__}: {error}") from error

    # --- documents ----------------------------------------------------------------------------------

    def put(self, kind: str, name: str, body: Mapping[str, Any], *, lease: Lease | None = None) -> None:
        """Write one JSON document, replacing the one under the same key.

        Raises
        ------
        StaleLease : ``lease`` has passed to another holder; nothing was written
        """
        with self.transaction() if lease is None else self.fenced(lease) as connection:
            self.put_in(connection, kind, name, body)

    def put_in(self, connection: sa.Connection, kind: str, name: str, body: Mapping[str, Any]) -> None:
        """:meth:`put` as a part of a transaction."""
        row = {"kind": kind, "name": name, "body": json.dumps(body), "updated_at": self.clock.now()}
        changed = connection.execute(
            sa.update(documents).where(documents.c.kind == kind, documents.c.name == name).values(row)
        )
        if changed.rowcount == 0:
            connection.execute(sa.insert(documents).values(row))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """The document under a key, or ``None``."""
        query = sa.select(documents.c.body).where(documents.c.kind == kind, documents.c.name == name)
        with self.transaction() as connection:
            body = connection.execute(query).scalar_one_or_none()
        return None if body is None else dict(json.loads(body))

    def names(self, kind: str) -> list[str]:
        """Names of all documents of a kind, sorted."""
        query = sa.select(documents.c.name).where(documents.c.kind == kind).order_by(documents.c.name)
        with self.transaction() as connection:
            return list(connection.execute(query).scalars())

    # --- leases -------------------------------------------------------------------------------------

    def acquire(self, name: str, holder: str, ttl_s: float) -> Lease:
        """Take the lease ``name`` for ``ttl_s`` seconds, when it is free or has run out.

        Raises
        ------
        RunInProgress : somebody holds it; the message names them and says when it would run out
        """
        now = self.clock.now()
        with self.transaction() as connection:
            row = connection.execute(sa.select(leases).where(leases.c.name == name).with_for_update()).one_or_none()
            if row is not None and row.expires_at > now:
                raise RunInProgress(
                    f"{name} is held by {row.holder} since {now - row.since:.0f} s. Wait for it to end; a dead holder's "
                    f"lease runs out by itself in {row.expires_at - now:.0f} s.",
                    {"holder": row.holder},
                )
            return self._grant(connection, name, 0 if row is None else row.token, holder, ttl_s)

    def take_over(self, name: str, holder: str, ttl_s: float) -> Lease:
        """Take the lease ``name`` whoever holds it. The holder before is fenced off: its token is older from now on."""
        with self.transaction() as connection:
            query = sa.select(leases.c.token).where(leases.c.name == name).with_for_update()
            return self._grant(connection, name, connection.execute(query).scalar_one_or_none() or 0, holder, ttl_s)

    def _grant(self, connection: sa.Connection, name: str, last: int, holder: str, ttl_s: float) -> Lease:
        now = self.clock.now()
        lease = Lease(
            name=name,
            token=last + 1,
            holder=f"{holder} ({uuid.uuid4().hex[:8]})",
            since=now,
            expires_at=now + ttl_s,
        )
        values = {"token": lease.token, "holder": lease.holder, "since": now, "expires_at": lease.expires_at}
        if last == 0:
            connection.execute(sa.insert(leases).values(name=name, **values))
        else:
            connection.execute(sa.update(leases).where(leases.c.name == name).values(values))
        return lease

    @contextmanager
    def fenced(self, lease: Lease) -> Iterator[sa.Connection]:
        """One write transaction that only the present holder of the lease may make. A token does not run out: a holder
        that was slow may go on while nobody else has taken the lease.

        Raises
        ------
        StaleLease : somebody else has taken the lease since; nothing was written
        """
        with self.transaction() as connection:
            query = sa.select(leases.c.token, leases.c.holder).where(leases.c.name == lease.name).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None or row.token != lease.token:
                by = "nobody" if row is None else f"{row.holder} with token {row.token}"
                raise StaleLease(
                    f"{lease.name} is held by {by}, not by {lease.holder} with token {lease.token} any more: nothing was "
                    "written. Ask the present holder.",
                    {"token": lease.token, "present": None if row is None else row.token},
                )
            yield connection

    def renew(self, lease: Lease, ttl_s: float) -> bool:
        """Keep a lease for another ``ttl_s`` seconds; ``False`` when somebody else has taken it since."""
        mine = sa.and_(leases.c.name == lease.name, leases.c.token == lease.token)
        with self.transaction() as connection:
            done = connection.execute(sa.update(leases).where(mine).values(expires_at=self.clock.now() + ttl_s))
        return done.rowcount == 1

    def release(self, lease: Lease) -> None:
        """Give a lease back; nothing happens when it is no longer ours."""
        mine = sa.and_(leases.c.name == lease.name, leases.c.token == lease.token)
        with self.transaction() as connection:
            connection.execute(sa.update(leases).where(mine).values(expires_at=self.clock.now()))

    # --- predictions and their labels ---------------------------------------------------------------

    def add_predictions(self, endpoint: str, rows: Sequence[PredictionRow]) -> None:
        """Remember served rows, so that their labels can be joined. Rows already there are left as they are."""
        if not rows:
            return
        values = [
            {
                "endpoint": endpoint,
                "request_id": row.request_id,
                "row_index": row.row_index,
                "version": row.version,
                "variant": row.variant,
                "score": row.score,
                "served_at": row.served_at,
            }
            for row in rows
        ]
        with self.transaction() as connection:
            connection.execute(self._insert_new(predictions), values)

    def add_shadows(self, endpoint: str, rows: Sequence[ShadowRow]) -> None:
        """Remember what another version said of served rows. Rows already there are left as they are."""
        if not rows:
            return
        values = [
            {
                "endpoint": endpoint,
                "request_id": row.request_id,
                "row_index": row.row_index,
                "version": row.version,
                "score": row.score,
            }
            for row in rows
        ]
        with self.transaction() as connection:
            connection.execute(self._insert_new(shadows), values)

    def shadow_scores(self, endpoint: str, version: int, request_ids: Iterable[str]) -> dict[tuple[str, int], float]:
        """What a version said of rows it saw as copies, by request and row."""
        with self.transaction() as connection:
            return _rows_by_key(connection, shadows.c.score, endpoint, request_ids, shadows.c.version == version)

    def drop_shadows(self, endpoint: str) -> None:
        """Forget all copies of an endpoint; their comparison has ended."""
        with self.transaction() as connection:
            connection.execute(sa.delete(shadows).where(shadows.c.endpoint == endpoint))

    def add_block(self, endpoint: str, block: Block) -> None:
        """Remember a block of served rows. A block that is there already is left as it is."""
        first, last = int(block.numbers[0]), int(block.numbers[-1])
        row = {"endpoint": endpoint, "series": block.series, "first": first, "last": last}
        with self.transaction() as connection:
            connection.execute(self._insert_new(blocks), {**row, "rows": len(block.scores), "body": block.to_bytes()})

    def add_labels(self, endpoint: str, rows: Sequence[LabelRow]) -> list[LabelOutcome]:
        """Store labels in one transaction; they are durable when this returns.

        Returns
        -------
        one outcome per row: ``stored``; ``duplicate`` (the same label again); ``conflict`` (another label is
        already there and stays; the first one that disagrees is kept too, see :meth:`conflicts`); ``unknown`` (no such
        prediction was served)
        """
        now = self.clock.now()
        outcomes: list[LabelOutcome] = []
        with self.transaction() as connection:
            if connection.dialect.name == "postgresql":
                # Numbers are given before a commit: whoever reads by a cursor must never see the later of two first.
                turn = sa.func.pg_advisory_xact_lock(sa.func.hashtext(f"labels {endpoint}"))
                connection.execute(sa.select(turn))
            asked = {row.request_id for row in rows}
            served = _rows_by_key(connection, predictions.c.version, endpoint, asked)
            served |= self._unpack(connection, endpoint, asked - {request_id for request_id, _ in served})
            present = _rows_by_key(connection, labels.c.value, endpoint, asked)
            fresh, other = [], []
            for row in rows:
                key, value = (row.request_id, row.row_index), json.dumps(row.value)
                told = {
                    "endpoint": endpoint,
                    "request_id": row.request_id,
                    "row_index": row.row_index,
                    "value": value,
                    "received_at": now,
                }
                if key not in served:
                    outcomes.append("unknown")
                elif key not in present:
                    outcomes.append("stored")
                    present[key] = value
                    fresh.append(told)
                elif present[key] == value:
                    outcomes.append("duplicate")
                else:
                    outcomes.append("conflict")
                    other.append(told)
            for table, kept in ((labels, fresh), (conflicts, other)):
                if kept:
                    connection.execute(self._insert_new(table), kept)
        return outcomes

    def conflicts(self, endpoint: str, limit: int = 100) -> list[LabelConflictRow]:
        """Rows that were given a second, different label, the newest first: for a person to settle."""
        same = sa.and_(*(labels.c[name] == conflicts.c[name] for name in ("endpoint", "request_id", "row_index")))
        query = (
            sa.select(
                conflicts.c.request_id,
                conflicts.c.row_index,
                labels.c.value.label("kept"),
                conflicts.c.value.label("refused"),
                conflicts.c.received_at,
            )
            .join(labels, same)
            .where(conflicts.c.endpoint == endpoint)
            .order_by(conflicts.c.received_at.desc(), conflicts.c.request_id, conflicts.c.row_index)
            .limit(limit)
        )
        with self.transaction() as connection:
            rows = connection.execute(query).all()
        found = ({**row._mapping, "kept": json.loads(row.kept), "refused": json.loads(row.refused)} for row in rows)
        return [LabelConflictRow(**item) for item in found]

    def _unpack(
        self, connection: sa.Connection, endpoint: str, request_ids: Iterable[str]
    ) -> dict[tuple[str, int], Any]:
        """Make rows of their own of requests that are in blocks: from now on they are joined like any other."""
        found: list[dict[str, Any]] = []
        for request_id in sorted(request_ids):
            parsed = parse_request_id(request_id)
            if parsed is None:
                continue
            series, number = parsed
            mine = sa.and_(blocks.c.endpoint == endpoint, blocks.c.series == series)
            query = sa.select(blocks.c.first).where(mine, blocks.c.first <= number, blocks.c.last >= number)
            first = connection.execute(query.order_by(blocks.c.first.desc()).limit(1)).scalar_one_or_none()
            if first is None:
                continue
            here = sa.and_(mine, blocks.c.first == first)
            block = self._blocks.get((endpoint, series, first))
            if block is None:
                block = Block.from_bytes(connection.execute(sa.select(blocks.c.body).where(here)).scalar_one())
                while len(self._blocks) >= _KEPT_BLOCKS:
                    self._blocks.pop(next(iter(self._blocks)), None)
                self._blocks[endpoint, series, first] = block
            rows = [{"endpoint": endpoint, **row} for row in block.rows(number)]
            if rows:
                connection.execute(sa.update(blocks).where(here).values(rows=blocks.c.rows - len(rows)))
                found += rows
        if found:
            connection.execute(self._insert_new(predictions), found)
        return {(row["request_id"], row["row_index"]): row["version"] for row in found}

    def served(self, request_id: str) -> list[tuple[str, PredictionRow]]:
        """The rows of a request and the endpoint that served them, whichever it was; none for an unknown one."""
        parsed = parse_request_id(request_id)
        with self.transaction() as connection:
            query = sa.select(predictions).where(predictions.c.request_id == request_id)
            rows = [dict(row._mapping) for row in connection.execute(query.order_by(predictions.c.row_index))]
            if not rows and parsed is not None:
                series, number = parsed
                here = sa.and_(blocks.c.series == series, blocks.c.first <= number, blocks.c.last >= number)
                for row in connection.execute(sa.select(blocks.c.endpoint, blocks.c.body).where(here)):
                    rows += [{"endpoint": row.endpoint, **one} for one in Block.from_bytes(row.body).rows(number)]
        return [(row.pop("endpoint"), PredictionRow(**row)) for row in rows]

    def outcomes(self, endpoint: str, after_seq: int = 0, limit: int = 100_000) -> list[Outcome]:
        """Labelled predictions whose label arrived after ``after_seq``, in order of arrival."""
        same = sa.and_(
            labels.c.endpoint == predictions.c.endpoint,
            labels.c.request_id == predictions.c.request_id,
            labels.c.row_index == predictions.c.row_index,
        )
        query = (
            sa.select(
                labels.c.seq,
                labels.c.request_id,
                labels.c.row_index,
                predictions.c.version,
                predictions.c.variant,
                predictions.c.score,
                predictions.c.served_at,
                labels.c.value,
            )
            .join(predictions, same)
            .where(labels.c.endpoint == endpoint, labels.c.seq > after_seq)
            .order_by(labels.c.seq)
            .limit(limit)
        )
        with self.transaction() as connection:
            rows = connection.execute(query).all()
        return [Outcome(**{**row._mapping, "value": json.loads(row.value)}) for row in rows]

    def counts(self, endpoint: str) -> dict[str, int]:
        """How many predictions and labels the store holds for an endpoint."""
        with self.transaction() as connection:
            counts = {
                table.name: int(
                    connection.execute(
                        sa.select(sa.func.count()).select_from(table).where(table.c.endpoint == endpoint)
                    ).scalar_one()
                )
                for table in (predictions, labels)
            }
            packed = sa.select(sa.func.coalesce(sa.func.sum(blocks.c.rows), 0)).where(blocks.c.endpoint == endpoint)
            counts["predictions"] += int(connection.execute(packed).scalar_one())
        return counts

    def _insert_new(self, table: sa.Table) -> Any:
        """An insert that leaves rows with a known key alone, in the dialect at hand."""
        if self.engine.dialect.name == "sqlite":
            from sqlalchemy.dialects.sqlite import insert as sqlite_insert

            return sqlite_insert(table).on_conflict_do_nothing()
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        return postgresql_insert(table).on_conflict_do_nothing()


def mask(url: str) -> str:
    """A database URL for people: without its password."""
    return sa.make_url(url).render_as_string(hide_password=True)


def _rows_by_key(
    connection: sa.Connection, column: sa.Column[Any], endpoint: str, request_ids: Iterable[str], *also: Any
) -> dict[tuple[str, int], Any]:
    table, found, asked = column.table, {}, sorted(set(request_ids))
    for start in range(0, len(asked), 500):  # SQLite takes a bounded number of parameters
        query = sa.select(table.c.request_id, table.c.row_index, column).where(
            table.c.endpoint == endpoint, table.c.request_id.in_(asked[start : start + 500]), *also
        )
        found.update({(row[0], row[1]): row[2] for row in connection.execute(query)})
    return found


def _sqlite_connect(connection: Any, _record: Any) -> None:
    """Rollback journal, not WAL: SQLite before 3.51.3 can corrupt a WAL when two connections checkpoint at once."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=DELETE")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def _sqlite_begin(connection: sa.Connection) -> None:
    """Take the write lock at once: a read that later wants to write could otherwise deadlock with another one."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
