"""Open-loop load in a process of its own: ``python load.py URL RATE FILE`` until SIGTERM, one JSON line a request.

A request is sent when its time has come, whether or not earlier ones were answered, and never sent again. Lines hold ``start``
and ``end`` (wall time), ``status`` (0 when no answer came, then ``error`` says why) and ``version``.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from typing import Any, TextIO

import aiohttp


async def ask(session: aiohttp.ClientSession, url: str, out: TextIO) -> None:
    row = {"a": random.gauss(0, 1), "b": random.gauss(0, 1)}
    line: dict[str, Any] = {"start": time.time(), "status": 0}
    try:
        async with session.post(url, json={"rows": [row]}) as answer:
            await answer.read()
            line |= {"status": answer.status, "version": answer.headers.get("x-raymlops-version")}
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        line["error"] = f"{type(error).__name__}: {error}"
    line["end"] = time.time()
    out.write(json.dumps(line) + "\n")


async def run(url: str, rate: float, path: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    limits = aiohttp.ClientTimeout(total=10)
    with open(path, "w", buffering=1) as out:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
            tasks: set[asyncio.Task[None]] = set()
            began, sent = time.monotonic(), 0
            while not stop.is_set():
                task = asyncio.ensure_future(ask(session, url, out))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
                await asyncio.sleep(max(0.0, began + sent / rate - time.monotonic()))
            await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], float(sys.argv[2]), sys.argv[3]))
