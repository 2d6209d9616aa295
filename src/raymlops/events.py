"""What happened and why: an append-only, hash-chained log in the store.

Row ``i`` carries ``hash_i = SHA256(hash_{i-1} || canonical JSON of row i)``, so a changed, removed or re-ordered row
breaks every hash behind it. A decision is appended before it is carried out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from raymlops.errors import HistoryTampered
from raymlops.store import Store
from raymlops.store_tables import events

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry. ``at`` is wall time in seconds since 1970; ``body`` is the evidence."""

    seq: int
    at: float
    endpoint: str
    kind: str
    body: dict[str, Any]
    previous: str
    hash: str


class EventLog:
    """The log of all endpoints in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(self, endpoint: str, kind: str, body: Mapping[str, Any] | None = None) -> Event:
        """Add an event behind the last one and return it; it is durable when this returns."""
        with self._store.transaction() as connection:
            return self.append_in(connection, endpoint, kind, body)

    def append_in(
        self, connection: sa.Connection, endpoint: str, kind: str, body: Mapping[str, Any] | None = None
    ) -> Event:
        """:meth:`append` as a part of a transaction."""
        text = json.dumps(body or {}, sort_keys=True, separators=(",", ":"), default=str)
        if self._store.engine.dialect.name == "postgresql":
            # One writer at a time: two appends must not read the same last row.
            connection.execute(sa.text("LOCK TABLE events IN EXCLUSIVE MODE"))
        last = connection.execute(sa.select(events.c.seq, events.c.hash).order_by(events.c.seq.desc()).limit(1)).first()
        seq, previous = (1, GENESIS) if last is None else (last.seq + 1, last.hash)
        at = self._store.clock.now()
        digest = _digest(previous, seq, at, endpoint, kind, text)
        row = {
            "seq": seq,
            "at": at,
            "endpoint": endpoint,
            "kind": kind,
            "body": text,
            "previous": previous,
            "hash": digest,
        }
        connection.execute(sa.insert(events).values(row))
        return Event(**{**row, "body": json.loads(text)})

    def read(self, endpoint: str | None = None, after_seq: int = 0, limit: int | None = None) -> list[Event]:
        """Events in order, of one endpoint or of all; with ``limit`` the newest that many."""
        query = sa.select(events).where(events.c.seq > after_seq)
        if endpoint is not None:
            query = query.where(events.c.endpoint == endpoint)
        query = query.order_by(events.c.seq.desc()).limit(limit) if limit is not None else query.order_by(events.c.seq)
        with self._store.transaction() as connection:
            rows = connection.execute(query).all()
        found = [Event(**{**row._mapping, "body": json.loads(row.body)}) for row in rows]
        return sorted(found, key=lambda event: event.seq)

    def verify(self) -> int:
        """Check the whole chain and return how many events it holds.

        Raises
        ------
        HistoryTampered : names the first row that does not fit
        """
        previous, expected = GENESIS, 1
        with self._store.transaction() as connection:
            for row in connection.execute(sa.select(events).order_by(events.c.seq)):
                digest = _digest(previous, row.seq, row.at, row.endpoint, row.kind, row.body)
                if row.seq != expected or row.previous != previous or row.hash != digest:
                    raise HistoryTampered(
                        f"The history does not verify: event {expected} was changed, removed or put in by another hand. "
                        "What stands before it is intact; restore the store from a backup.",
                        {"seq": expected},
                    )
                previous, expected = row.hash, expected + 1
        return expected - 1


def _digest(previous: str, seq: int, at: float, endpoint: str, kind: str, body: str) -> str:
    entry = json.dumps([seq, repr(at), endpoint, kind, body], separators=(",", ":"))
    return hashlib.sha256((previous + entry).encode()).hexdigest()
