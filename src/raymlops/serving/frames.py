"""Messages between two processes of ours over a stream socket: four bytes of length, then a pickle.

Both ends run as the same user and one has started or invited the other, so what arrives is trusted as memory is.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable
from typing import Any, cast

_LENGTH = struct.Struct("<I")


def framed(message: Any) -> bytes:
    """The bytes of a message."""
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)) + body


class Frames(asyncio.Protocol):
    """One end of the stream.

    Parameters
    ----------
    got : called with each message
    lost : called once when the other end is gone, or when this one has closed
    """

    def __init__(self, got: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self._got, self._lost = got, lost
        self._buffer = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # what uvloop makes is one by its methods only

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()

    def data_received(self, data: bytes) -> None:
        buffer, at = self._buffer, 0
        if not buffer and len(data) >= 4 and _LENGTH.unpack_from(data)[0] == len(data) - 4:
            self._got(pickle.loads(memoryview(data)[4:]))  # most messages come by themselves and whole
            return
        buffer += data
        try:
            while len(buffer) - at >= 4:
                (length,) = _LENGTH.unpack_from(buffer, at)
                start, stop = at + 4, at + 4 + length
                if len(buffer) < stop:
                    break
                at = stop  # whatever becomes of this message, it has come once
                with memoryview(buffer) as view:
                    message = pickle.loads(view[start:stop])
                self._got(message)
        finally:
            if at:
                del buffer[:at]

    def send(self, message: Any) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(framed(message))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()
