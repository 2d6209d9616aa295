"""The gateway's listener: uvicorn with the short way past ASGI, uvicorn alone, and granian's embedded server.

    python benchmarks/listeners.py [--quick] [--venvs FOLDER]

The same gateway and model behind each (``peers/listener_app.py``), one row a request over 64 connections and 100 rows over 16,
rounds interleaved, answers checked; `cpu_us` is the processor time of the server for a request, which other work on the machine disturbs
least. Then what a listener of ours must do besides: two processes on one port both answer
(``share``), a request that is half sent when SIGTERM comes is answered (``drain``, with what its sender got), a request head that
never ends is refused (``slow_head_s``, seconds until the connection is closed, asked for 10 s). granian is installed into an
environment of its own, which sees the packages of this one. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    Client,
    Load,
    check,
    free_port,
    machine,
    median,
    pause,
    post,
    process,
    until_ready,
    versions,
)
from monitor_overhead import build
from venvs import install

PEERS = Path(__file__).parent / "peers"
KINDS = ("lane", "uvicorn", "granian")
LOADS = {"1 row, 64 connections": (1, 64), "100 rows, 16 connections": (100, 16)}
GRANIAN = "granian==2.8.7"


def python_with_granian(root: Path) -> Path:
    """An interpreter that has granian and sees what this one sees."""
    made = install(root, "listeners", (GRANIAN,))
    (site,) = (made.parent.parent / "lib").glob("python*/site-packages")
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def cpu_s(server: subprocess.Popen[bytes]) -> float:
    """Seconds of processor time that a server has used, all its threads together."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask_slowly(port: int, body: bytes, wait_s: float, between: Any) -> str:
    """The first line of the answer to a request whose second half is sent ``wait_s`` after ``between()``."""
    head = b"POST /bench/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
            connection.sendall(head % len(body) + body[: len(body) // 2])
            time.sleep(0.3)
            between()
            time.sleep(wait_s)
            connection.sendall(body[len(body) // 2 :])
            return connection.recv(4096).split(b"\r\n")[0].decode() or "closed without an answer"
    except OSError as error:
        return f"{type(error).__name__}"


def slow_head(port: int) -> float | None:
    """Seconds until a connection that never ends its head is closed; ``None`` when it is not within 25 s."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=25) as connection:
        connection.sendall(b"POST /bench/predict HTTP/1.1\r\nhost: x\r\n")
        try:
            while connection.recv(4096):
                pass
        except TimeoutError:
            return None
    return round(time.monotonic() - began, 1)


def gateways(port: int, asked: int = 64) -> int:
    """How many processes answer on a port."""
    seen = set()
    for _ in range(asked):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /bench/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = b""
            while part := connection.recv(65536):
                answer += part
        seen.add(json.loads(answer.split(b"\r\n\r\n", 1)[1])["gateway"])
    return len(seen)


def duties(command: list[Any], port: int, folder: Path, body: bytes) -> dict[str, Any]:
    """What the listener does besides answering; two servers are started for it."""
    with ExitStack() as stack:
        servers = [stack.enter_context(process(command, folder / f"duty-{number}.txt")) for number in range(2)]
        for number, server in enumerate(servers):
            until_ready(
                lambda: post(f"http://127.0.0.1:{port}/bench/predict", body), server, folder / f"duty-{number}.txt", 60
            )
        time.sleep(3)
        found: dict[str, Any] = {"share": gateways(port) == 2, "slow_head_s": slow_head(port)}

        def end() -> None:
            for server in servers:
                os.kill(server.pid, signal.SIGTERM)

        began = time.monotonic()
        found["drain"] = ask_slowly(port, body, 0.7, end)
        for server in servers:
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                found["drain"] += ", still there after 15 s"
        found["drained_s"] = round(time.monotonic() - began, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 3 s in place of 5 of 8 s")
    home = Path(os.environ.get("RAYMLOPS_HOME") or "~/.raymlops").expanduser()
    parser.add_argument(
        "--venvs", type=Path, default=home / "benchmarks", help="where granian and the load client are kept"
    )
    arguments = parser.parse_args()
    rounds, seconds = (3, 3.0) if arguments.quick else (5, 8.0)
    python = python_with_granian(arguments.venvs.absolute())
    described = machine()
    client = Client(arguments.venvs.absolute() / "client")
    loads: dict[str, dict[str, list[Load]]] = {kind: {name: [] for name in LOADS} for kind in KINDS}
    used: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in LOADS} for kind in KINDS}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        predictor = build(folder / "package")
        x = np.random.default_rng(1).normal(size=(64, 100, 28))
        names = predictor.contract.names

        def body(rows: Any) -> bytes:
            return json.dumps({"rows": [dict(zip(names, row, strict=True)) for row in rows.tolist()]}).encode()

        bodies = {rows: [body(x[i, :rows]) for i in range(64)] for rows in (1, 100)}
        expected = predictor.predict(x[:, 0].astype(np.float32)).tolist()
        servers: dict[str, tuple[Any, str]] = {}
        for kind in KINDS:
            port = free_port()
            command = [python, PEERS / "listener_app.py", port, folder / "package", kind]
            server = stack.enter_context(process(command, folder / f"{kind}.txt"))
            url = f"http://127.0.0.1:{port}/bench/predict"

            def verify(url: str = url, kind: str = kind) -> None:
                check(kind, [post(url, one)["probabilities"][0] for one in bodies[1][:8]], expected[:8])

            until_ready(verify, server, folder / f"{kind}.txt", 60)
            client.run(url, bodies[1], 64, 1)
            pause(server, True)
            servers[kind] = (server, url)
        for number in range(rounds):
            for kind in KINDS if number % 2 else reversed(KINDS):
                server, url = servers[kind]
                pause(server, False)
                for name, (rows, connections) in LOADS.items():
                    before = cpu_s(server)
                    load = client.run(url, bodies[rows], connections, seconds)
                    loads[kind][name].append(load)
                    used[kind][name].append((cpu_s(server) - before) / max(1.0, load.rps * seconds) * 1e6)
                    print(
                        f"{kind:8} {name:26} {load.rps:8.0f}/s  p99 {load.p99_ms:6.2f} ms  errors {load.errors}",
                        flush=True,
                    )
                pause(server, True)
        besides = {}
        for kind in KINDS:
            port = free_port()
            command = [python, PEERS / "listener_app.py", port, folder / "package", kind]
            besides[kind] = duties(command, port, folder, bodies[1][0])
            print(f"{kind:8} {besides[kind]}", flush=True)
    result = {
        "benchmark": "listeners",
        **{
            kind: {
                name: {**median(loads[kind][name]), "cpu_us": round(statistics.median(used[kind][name]))}
                for name in LOADS
            }
            | besides[kind]
            for kind in KINDS
        },
        "client": client.name,
        "machine": described,
        "versions": versions("raymlops", "uvicorn", "uvloop", "httptools") | {"granian": GRANIAN.partition("==")[2]},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
