"""What the serving benchmarks share: the machine, servers in processes of their own, load, and checked answers.

Load comes from wrk when it is on the PATH, or when Debian's package can be fetched and unpacked beside the environments
(``apt-get download``, no root needed); else from a client in pure Python, which takes more of the machine from the server
and says so in the result (``client``).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
TOLERANCE = 1e-4


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def versions(*names: str) -> dict[str, str]:
    return {name: version(name) for name in names}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- servers ---------------------------------------------------------------------------------------------


@contextmanager
def process(command: Sequence[str], log: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, which is ended with it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # Some servers start others by name, which are beside their own Python.
    path = os.pathsep.join((str(Path(command[0]).parent), os.environ.get("PATH", "")))
    with log.open("wb") as out:
        server = subprocess.Popen(
            [str(part) for part in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **THREADS, "PATH": path, **environ},
            start_new_session=True,
            cwd=log.parent,
        )
    try:
        yield server
    finally:
        _signal(server, signal.SIGCONT)
        _signal(server, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            _signal(server, signal.SIGKILL)
            server.wait()


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(server.pid, number)
    except ProcessLookupError:
        return


def pause(server: subprocess.Popen[bytes], paused: bool) -> None:
    """Hold a server that is not measured just now, so that its idle work is not another's latency."""
    _signal(server, signal.SIGSTOP if paused else signal.SIGCONT)


def _stat(pid: int | str) -> list[str]:
    """What the kernel tells of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, all its threads, without its children."""
    return (int(_stat(pid)[11]) + int(_stat(pid)[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and int(_stat(entry.name)[1]) == pid:
                found.append(int(entry.name))
    return found


# --- load ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One round: answered requests a second, latency in milliseconds, requests without a good answer."""

    rps: float
    p50_ms: float
    p99_ms: float
    errors: int


def find_wrk(root: Path) -> list[str] | None:
    """How to call wrk, or ``None``."""
    if shutil.which("wrk"):
        return ["wrk"]
    folder = root / "wrk"
    binary = folder / "usr" / "bin" / "wrk"
    if not binary.exists() and shutil.which("apt-get") and shutil.which("dpkg"):
        folder.mkdir(parents=True, exist_ok=True)
        packages = ["wrk", "libluajit-5.1-2", "libluajit-5.1-common"]
        subprocess.run(["apt-get", "download", *packages], cwd=folder, capture_output=True, check=False)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, capture_output=True, check=False)
    if not binary.exists():
        return None
    libraries = next(iter(folder.glob("usr/lib/*/libluajit*")), folder).parent
    call = ["env", f"LD_LIBRARY_PATH={libraries}", str(binary)]
    return call if subprocess.run([*call, "-v"], capture_output=True, check=False).stdout.startswith(b"wrk") else None


class Client:
    """Sends some bodies in turn, again and again, over keep-alive connections."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self._wrk = find_wrk(root)
        self.name = "wrk" if self._wrk else "python"

    def run(self, url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
        return (
            self._run_wrk(url, bodies, connections, seconds)
            if self._wrk
            else _run_python(url, bodies, connections, seconds)
        )

    def _run_wrk(self, url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
        script, content = self._root / "load.lua", self._root / "load.json"
        content.write_bytes(b"\n".join(bodies))
        script.write_text(
            'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
            "local requests, at = {}, 0\ninit = function(_)\n"
            f'  for line in io.lines("{content}") do requests[#requests + 1] = wrk.format(nil, nil, nil, line) end\nend\n'
            "request = function() at = at % #requests + 1; return requests[at] end\n"
            "done = function(summary, latency, _)\n  local e = summary.errors\n"
            '  io.write(string.format("figures %d %d %d %d %d\\n", summary.requests, summary.duration,\n'
            "    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))\n"
            "end\n"
        )
        assert self._wrk is not None
        done = subprocess.run(
            [*self._wrk, "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "--timeout=10s", f"-s{script}", url],
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.search(r"figures (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
        if found is None:
            raise RuntimeError(f"wrk said nothing: {done.stdout[-300:]} {done.stderr[-300:]}")
        requests, micros, p50, p99, errors = (int(part) for part in found.groups())
        return Load(rps=(requests - errors) / (micros / 1e6), p50_ms=p50 / 1e3, p99_ms=p99 / 1e3, errors=errors)


class _Connection(asyncio.Protocol):
    """One keep-alive connection that sends its next request when the last is answered."""

    def __init__(self, requests: Iterator[bytes], until: float, took: list[float]) -> None:
        self._requests, self._until, self._took = requests, until, took
        self.errors, self.ended = 0, asyncio.get_running_loop().create_future()
        self._held = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._held = held = self._held + data if self._held else data
        end = held.find(b"\r\n\r\n")
        if end < 0:
            return
        found = re.search(rb"(?i)content-length: *(\d+)", held[: end + 2])
        if found is None or len(held) < end + 4 + int(found[1]):
            if found is None:
                raise RuntimeError("an answer without content-length: this client reads no other")
            return
        now = time.perf_counter()
        if held[9:12] == b"200":
            self._took.append(now - self._began)
        else:
            self.errors += 1
        self._held = b""
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.errors += time.perf_counter() < self._until
        self.ended.set_result(None)


def _python_client(host: str, port: int, requests: list[bytes], connections: int, seconds: float, out: Any) -> None:
    async def main() -> None:
        took: list[float] = []
        turn = itertools.cycle(requests)
        until = time.perf_counter() + seconds
        loop = asyncio.get_running_loop()
        made = [
            (await loop.create_connection(lambda: _Connection(turn, until, took), host, port))[1]
            for _ in range(connections)
        ]
        await asyncio.wait([item.ended for item in made], timeout=seconds + 10)
        out.put((took, sum(item.errors for item in made)))

    asyncio.run(main())


def _run_python(url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
    parts = urllib.parse.urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.hostname}\r\ncontent-type: application/json\r\n"
    requests = [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    context = multiprocessing.get_context("spawn")
    out: Any = context.Queue()
    workers = min(2, connections)
    shares = [connections // workers + (i < connections % workers) for i in range(workers)]
    started = [
        context.Process(target=_python_client, args=(parts.hostname, parts.port, requests, share, seconds, out))
        for share in shares
    ]
    for worker in started:
        worker.start()
    found = [out.get(timeout=seconds + 60) for _ in started]
    for worker in started:
        worker.join()
    took = sorted(value for times, _ in found for value in times)
    if not took:
        return Load(rps=0.0, p50_ms=math.nan, p99_ms=math.nan, errors=sum(errors for _, errors in found))
    return Load(
        rps=len(took) / seconds,
        p50_ms=took[len(took) // 2] * 1e3,
        p99_ms=took[int(len(took) * 0.99)] * 1e3,
        errors=sum(errors for _, errors in found),
    )


def median(loads: Sequence[Load]) -> dict[str, float]:
    """Medians over rounds; errors add up."""
    figures = {name: statistics.median(getattr(load, name) for load in loads) for name in ("rps", "p50_ms", "p99_ms")}
    return {name: round(value, 3) for name, value in figures.items()} | {"errors": sum(load.errors for load in loads)}


# --- answers ---------------------------------------------------------------------------------------------


def post(url: str, body: bytes, timeout_s: float = 30.0) -> Any:
    """The JSON answer to a POST. Raises ``OSError`` for anything but 2xx."""
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout_s) as answer:
        return json.loads(answer.read())


def until_ready(ask: Callable[[], Any], server: subprocess.Popen[bytes] | None, log: Path, seconds: float) -> None:
    """Ask until there is an answer.

    Raises
    ------
    RuntimeError : the server ended, or the time did; with the last words of its log
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            ask()
        except (OSError, ValueError, KeyError, TypeError) as error:
            gone = server is not None and server.poll() is not None
            if gone or time.monotonic() > deadline:
                words = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
                raise RuntimeError(f"no answer ({error}): {' | '.join(words)[-500:]}") from error
            time.sleep(0.2)
        else:
            return


def check(name: str, got: Sequence[float], expected: Sequence[float]) -> None:
    """Probabilities are those of the model.

    Raises
    ------
    RuntimeError : they are not; such a system is not measured
    """
    worst = max(abs(a - b) for a, b in zip(got, expected, strict=True))
    if not worst <= TOLERANCE:
        raise RuntimeError(f"{name} answers wrongly: a probability is off by {worst:.2g}")
