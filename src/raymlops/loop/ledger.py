"""Ledger: an endpoint's life in the store, written by one steward at a time.

Each steward takes the endpoint's lease when it starts and gets a token greater than any before. Every write carries it
and is refused with :class:`StaleLease` once a newer steward has taken the lease, as after a partition of the network that
made a second one. A change of state and its events are one transaction: there is never the one without the other.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from raymlops.events import EventLog
from raymlops.loop.actions import Action, Record
from raymlops.loop.state import EndpointState
from raymlops.serving.traffic import TrafficSplit
from raymlops.store import Lease, Store

LEASE_S = 30.0


class Ledger:
    """Taking it fences off whoever held it before."""

    def __init__(self, store: Store, endpoint: str) -> None:
        self._store, self._events, self.endpoint = store, EventLog(store), endpoint
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        self.lease: Lease = store.take_over(f"the steward of {endpoint}", holder, LEASE_S)

    def load(self) -> EndpointState | None:
        """The state as it was last saved, by whomever."""
        body = self._store.get("loop", self.endpoint)
        return None if body is None else EndpointState.from_dict(body)

    def save(self, state: EndpointState, actions: tuple[Action, ...]) -> None:
        """The state with the records of what led to it.

        Raises
        ------
        StaleLease : a newer steward has taken over; nothing was written
        """
        with self._store.fenced(self.lease) as connection:
            for action in actions:
                if isinstance(action, Record):
                    self._events.append_in(connection, self.endpoint, action.kind, action.body)
            self._store.put_in(connection, "loop", self.endpoint, state.to_dict())

    def record(self, kind: str, body: dict[str, Any]) -> None:
        """An event that changes no state. Raises :class:`StaleLease`."""
        with self._store.fenced(self.lease) as connection:
            self._events.append_in(connection, self.endpoint, kind, body)

    def route(self, split: TrafficSplit) -> None:
        """The table a starting gateway begins with. Raises :class:`StaleLease`."""
        self._store.put("routing", self.endpoint, split.to_dict(), lease=self.lease)

    def renew(self) -> bool:
        """Keep the lease; ``False`` when a newer steward has it."""
        return self._store.renew(self.lease, LEASE_S)
