"""One gateway without Ray, on its own listener: PORT PACKAGE FOLDER on|told|off.

``on``: a table that gives 5 % of the requests to a challenger in a process of its own, at its socket; the prediction log written to SQLite and
Parquet by the gateway's scribe, as in truth; counts and figures sent to a monitor in another process. ``told``: the same, but that process only takes what
it is sent; SIGUSR1 stops the counting and sampling of rows, and nothing else, SIGUSR2 takes it up again. ``off``: the champion answers everything and
nothing is remembered.
"""

import asyncio
import gc
import multiprocessing
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from raymlops.lake import Lake
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.serving.batching import Answer
from raymlops.serving.direct import Link, LinkLost, Links, serve_directly
from raymlops.serving.gateway import Gateway
from raymlops.serving.listener import make_server
from raymlops.serving.predictor import Predictor
from raymlops.serving.scribe import scribe
from raymlops.serving.traffic import TrafficSplit
from raymlops.sketch.observed import Observed
from raymlops.store import Store


def watch(package: str, batches: Connection, judge: bool) -> None:
    """The monitor's process, as the steward does it; or one that only takes what it is sent."""
    predictor = Predictor.load(package)
    watcher = Watcher(Monitor(), predictor.reference, predictor.contract)
    while True:
        try:
            batch = batches.recv()
        except EOFError:
            return
        if not judge:
            continue
        for seen in batch["observed"].values():
            watcher.take(Observed.from_message(seen))
        watcher.step(time.time())


class PipeSink:
    def __init__(self, batches: Connection) -> None:
        self._batches = batches

    def observe(self, batch: dict[str, Any]) -> None:
        self._batches.send(batch)


class Packages:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def load(self, version: int) -> Predictor:
        return Predictor.load(self._folder, version)


def challenge(package: str, said: Connection) -> None:
    """The challenger's process: a version's socket, and who waits beside it."""
    said.send(serve_directly(Predictor.load(package)))
    threading.Event().wait()


class Elsewhere:
    """Challengers at their socket, as a gateway finds them on its node."""

    def __init__(self, path: str) -> None:
        async def find(version: int) -> str:
            return path

        self._links = Links(find)

    def link(self, version: int) -> Link | None:
        return self._links.get(version)

    async def predict(self, version: int, rows: Any, timeout_s: float) -> Answer:
        link = self.link(version)
        if link is None:
            raise LinkLost("The challenger is not there.")
        return await link.predict(rows)

    async def explain(self, version: int, rows: Any) -> dict[str, Any]:
        raise LinkLost("A socket takes no questions for explanations.")


async def main() -> None:
    port, package, folder, mode = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    spawn = multiprocessing.get_context("spawn")
    receiving, sending = spawn.Pipe(duplex=False)
    hearing, said = spawn.Pipe(duplex=False)
    path = ""
    if mode != "off":
        spawn.Process(target=watch, args=(package, receiving, mode == "on"), daemon=True).start()
        spawn.Process(target=challenge, args=(package, said), daemon=True).start()
        path = hearing.recv()
    sink, store, lake = PipeSink(sending), f"sqlite:///{folder}/store.db", str(folder / "lake")
    gateway = Gateway(
        "bench",
        packages=Packages(package),
        challengers=Elsewhere(path),
        store=Store(store),
        files=Lake(lake),
        sink=sink,
        writing=scribe("bench", store, lake, sink, ThreadPoolExecutor(1)),
    )
    challenger: dict[str, Any] = {"challenger": 2, "weight": 0.05} if mode != "off" else {}
    recorder: Any = gateway._recorder
    if mode != "off":
        await gateway.start()
    await gateway.apply(TrafficSplit(number=1, champion=1, **challenger))
    if mode != "off":
        bins, loop = Predictor.load(package).bins, asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: recorder.watch(0, bins))
        loop.add_signal_handler(signal.SIGUSR2, lambda: recorder.watch(1, bins))
    else:
        recorder.served = recorder.request = recorder.answered = lambda *_, **__: None
    listener = socket.socket()
    listener.bind(("127.0.0.1", port))
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)  # as a gateway's replica sets it
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn sends it once more when it has shut down
    await make_server(gateway, "/bench/predict").serve(sockets=[listener])
    await gateway.close()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
