"""The least an ASGI application can do around raymlops' own predictor: no routing, checks, monitor or log.

Requests of one turn of the event loop are predicted together. PACKAGE names the package's folder.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import orjson

from raymlops.serving.predictor import Predictor

model = Predictor.load(os.environ["PACKAGE"])
columns = model.contract.names
waiting: list[tuple[list[dict[str, float]], "asyncio.Future[list[float]]"]] = []


def turn() -> None:
    group = waiting[:]
    waiting.clear()
    x = np.array([[row[name] for name in columns] for rows, _ in group for row in rows], dtype=np.float32)
    answers = model.predict(x).tolist()
    start = 0
    for rows, future in group:
        future.set_result(answers[start : start + len(rows)])
        start += len(rows)


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[float]] = loop.create_future()
    if not waiting:
        loop.call_soon(turn)
    waiting.append((orjson.loads(body)["rows"], future))
    content = orjson.dumps({"probabilities": await future})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
