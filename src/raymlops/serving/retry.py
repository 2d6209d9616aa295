"""Asking again when a replica died under a request: predictions have no side effects, so asking twice does no harm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

RETRIES = 2
PAUSE_S = 0.05

T = TypeVar("T")


async def retried(
    ask: Callable[[], Awaitable[T]],
    died: Callable[[Exception], bool],
    timeout_s: float,
    monotonic: Callable[[], float] = time.monotonic,
) -> T:
    """What ``ask`` answers; asked again, at most :data:`RETRIES` times, when its replica died and time is left.

    Any other error is raised at once: a version that fails would fail again. The pause doubles, so that Serve can tell
    its routers of the death.

    Raises
    ------
    TimeoutError : no answer within ``timeout_s`` seconds, all attempts together
    whatever ``ask`` raised last
    """
    deadline, pause = monotonic() + timeout_s, PAUSE_S
    for left in range(RETRIES, -1, -1):
        try:
            return await asyncio.wait_for(ask(), max(0.0, deadline - monotonic()))
        except Exception as error:
            if not left or not died(error) or monotonic() + pause >= deadline:
                raise
        await asyncio.sleep(pause)
        pause *= 2
    raise AssertionError("the last attempt returns or raises")
