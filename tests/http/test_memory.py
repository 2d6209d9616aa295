"""Hostile bodies against a listener in a process of its own: its resident memory stays bounded, and nothing is a 5xx."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT = 2 * 2**20
MIB = 2**20

SERVER = """
import asyncio
from raymlops.serving.listener import bind, make_server
from raymlops.serving.spec import Serving
from raymlops.testing.serving import fake_gateway

async def main():
    gateway = await fake_gateway(limits=Serving(max_body_bytes=%d))
    listening = bind("127.0.0.1", 0)
    print(listening.getsockname()[1], flush=True)
    await make_server(gateway, "/churn/predict").serve(sockets=[listening])

asyncio.run(main())
"""


@pytest.fixture
def server() -> Iterator[tuple[int, int]]:
    """Port and process id."""
    with subprocess.Popen([sys.executable, "-c", SERVER % LIMIT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.kill()


def memory(pid: int, what: str) -> int:
    """Bytes resident now (``VmRSS``) or at most so far (``VmHWM``)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def filled(start: bytes, unit: bytes, end: bytes) -> bytes:
    """A body just within the limit on bytes."""
    return start + unit * ((LIMIT - len(start) - len(end) - 8) // len(unit)) + end


BODIES = {
    "many small objects": filled(b'{"rows":[', b"{},", b"{}]}"),
    "many small lists": filled(b'{"rows":[', b"[],", b"[]]}"),
    "many numbers": filled(b'{"rows":[{"a":[', b"1,", b"1]}]}"),
    "many columns": b'{"rows":[{' + b",".join(b'"%d":1' % i for i in range(180_000)) + b"}]}",
    "one text": filled(b'{"rows":[{"c":"', b"x", b'"}]}'),
    "deep": filled(b"", b"[", b""),
    "a tensor of many values": filled(
        b'{"inputs":[{"name":"a","shape":[1000000],"datatype":"FP64","data":[', b"1,", b"1]}]}"
    ),
    "many rows": filled(b'{"rows":[', b'{"a":0.5,"b":0.25,"c":"x"},', b'{"a":0.5,"b":0.25,"c":"x"}]}'),
    "over the limit": b"x" * (LIMIT + 1),
    "far over the limit": b"x" * (30 * MIB),
}


async def post(port: int, path: str, body: bytes, head: bytes = b"") -> int:
    """The status, or 0 when the connection was closed over the client's sending."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        length = b"" if head else b"content-length: %d\r\n" % len(body)
        writer.write(b"POST %s HTTP/1.1\r\nhost: h\r\n%s%s\r\n" % (path.encode(), length, head) + body)
        line = await asyncio.wait_for(reader.readline(), 30)
        return int(line.split()[1]) if line else 0
    except ConnectionError:
        return 0
    finally:
        writer.transport.abort()


def test_the_resident_memory_of_a_gateway_is_bounded(server: tuple[int, int]) -> None:
    port, pid = server
    good = b'{"rows":[{"a":0.5,"b":0.25,"c":"x"}]}'

    async def round_of_all(clients: int) -> set[int]:
        found = set()
        for name, body in BODIES.items():
            path = "/v2/models/churn/infer" if "tensor" in name else "/churn/predict"
            found |= set(await asyncio.gather(*(post(port, path, body) for _ in range(clients))))
            chunked = b"transfer-encoding: chunked\r\n"
            found.add(await post(port, path, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), chunked))
        return found

    async def main() -> None:
        assert await post(port, "/churn/predict", good) == 200
        before = memory(pid, "VmRSS")
        statuses = await round_of_all(1)
        assert statuses <= {0, 400, 413, 422}
        assert memory(pid, "VmHWM") - before < 12 * LIMIT + 16 * MIB
        # Eight at a time, four times over: what one body needs, each needs once, and nothing is kept.
        await round_of_all(8)
        after = memory(pid, "VmRSS")
        for _ in range(3):
            assert await round_of_all(8) <= {0, 400, 413, 422}
        assert memory(pid, "VmHWM") - before < 8 * 12 * LIMIT
        assert memory(pid, "VmRSS") - after < 4 * LIMIT + 8 * MIB
        assert await post(port, "/churn/predict", good) == 200

    asyncio.run(main())
