"""One gateway without Ray behind one of three listeners: PORT PACKAGE KIND.

``lane``: the gateway's own, uvicorn with the short way past ASGI. ``uvicorn``: the same without the short way. ``granian``: its
embedded server on the same event loop. Nothing is logged or told; a SIGTERM drains.
"""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from raymlops.serving.gateway import Gateway
from raymlops.serving.listener import DRAIN_S, KEEP_ALIVE_S, bind, make_server
from raymlops.serving.predictor import Predictor
from raymlops.serving.traffic import TrafficSplit
from raymlops.testing.serving import FakeChallengers, ListSink, Nowhere


class Packages:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def load(self, version: int) -> Predictor:
        return Predictor.load(self._folder, version)


async def by_uvicorn(gateway: Gateway, port: int, kind: str) -> None:
    server: uvicorn.Server = make_server(gateway, "/bench/predict")
    if kind == "uvicorn":

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await gateway(scope, receive, send)

        server = uvicorn.Server(
            uvicorn.Config(
                application,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=DRAIN_S,
                backlog=2048,
            )
        )
    await server.serve(sockets=[bind("127.0.0.1", port)])


async def by_granian(gateway: Gateway, port: int) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await gateway(scope, receive, send)

    server = Server(
        application,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=10_000),
        websockets=False,
        backlog=2048,
        backpressure=2048,
        log_enabled=False,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.serve()


async def main() -> None:
    port, package, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    nowhere = Nowhere()
    gateway = Gateway(
        "bench",
        packages=Packages(package),
        challengers=FakeChallengers({}),
        store=nowhere,
        files=nowhere,
        sink=ListSink(),
    )
    await gateway.apply(TrafficSplit(number=1, champion=1))
    recorder: Any = gateway._recorder
    recorder.served = recorder.request = recorder.answered = lambda *_, **__: None
    sys.setswitchinterval(0.0005)  # as a gateway's replica sets it
    if kind == "granian":
        await by_granian(gateway, port)
    else:
        await by_uvicorn(gateway, port, kind)


if __name__ == "__main__":
    assert Path(sys.argv[2]).is_dir()
    uvloop.install()
    asyncio.run(main())
