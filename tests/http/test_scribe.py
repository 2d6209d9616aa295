"""The process that writes the log beside a gateway: what it is given arrives, whatever ends."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from raymlops.data.schema import Column, DataContract
from raymlops.errors import NotReady, StoreError
from raymlops.serving.batching import answer_rows
from raymlops.serving.logfile import Served, packed, to_parquet
from raymlops.serving.recorder import LabelWriter, Recorder
from raymlops.serving.scribe import Scribe, scribe
from raymlops.serving.scribe_process import _Gateway
from raymlops.serving.sheets import sheets, unfolded
from raymlops.serving.writing import ThreadWriter, Writer
from raymlops.store import LabelRow, Store
from raymlops.testing.serving import FakeModel, ListSink, until

ROW = {"a": 0.5, "b": 0.25, "c": "x"}


class Desk:
    """A recorder whose writer is a process, and what that leaves behind."""

    def __init__(self, folder: Path, max_rows: int = 100_000) -> None:
        self.folder, self.sink, self.threads = folder, ListSink(), ThreadPoolExecutor(2)
        self.url, self.lake = f"sqlite:///{folder}/s.db", str(folder / "lake")
        self.store = Store(self.url)
        make = scribe("churn", self.url, self.lake, self.sink, self.threads)
        self.model = FakeModel()
        self.recorder = Recorder("churn", make, 0.05, max_rows)
        self.recorder.watch(1, self.model.bins)

    @property
    def writer(self) -> Scribe:
        writer = self.recorder._writer
        assert isinstance(writer, Scribe)
        return writer

    @property
    def pid(self) -> int:
        assert self.writer.pid is not None
        return self.writer.pid

    def serve(self, rows: int, requests: int = 1) -> list[int | str]:
        given: list[int | str] = []
        for _ in range(requests):
            number = self.recorder.number()
            answer = answer_rows(self.model, [ROW] * rows)
            self.recorder.request(1, 1.0)
            self.recorder.served(Served([number], [rows], [ROW] * rows, answer, 1, "champion", 5.0, 1.0))
            given.append(self.recorder.text(number))
        return given

    def logged(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in self.folder.glob("lake/**/*.parquet"))

    def told(self) -> int:
        return sum(batch["rows"] for batch in self.sink.batches)


def at(desk: Desk, scenario: Callable[[Desk], Awaitable[None]]) -> None:
    async def main() -> None:
        try:
            await scenario(desk)
        finally:
            await desk.writer.close()
            desk.store.close()

    asyncio.run(main())


def program(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Have scribes run these lines before they begin, with ``Store``, ``Lake`` and ``scribe_process`` at hand."""
    first = "from raymlops.serving import scribe_process\nfrom raymlops.serving.scribe_process import Lake, Store"
    text = "\n".join((first, *lines, "scribe_process.main()"))
    monkeypatch.setattr("raymlops.serving.scribe._PROGRAM", ("-c", text))


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_rows_are_stored_logged_and_told_by_another_process_which_ends_with_the_recorder(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        given = desk.serve(2, requests=700)  # more than one sheet
        assert desk.recorder.holds(given)
        await desk.recorder.flush(log=False)
        assert not desk.recorder.holds(given)
        labels = LabelWriter("churn", desk.store, desk.recorder, desk.threads)
        assert await labels.add([LabelRow(request_id=str(given[-1]), row_index=1, value=1)]) == ["stored"]
        pid = desk.pid
        assert pid != os.getpid()
        await desk.recorder.close()
        assert is_gone(pid)
        assert desk.logged() == desk.told() == 1400
        (first, *_) = desk.sink.batches
        assert first["observed"][1]["rows"] > 0
        assert sum(batch["stats"][1]["requests"] for batch in desk.sink.batches if 1 in batch["stats"]) == 700
        assert (desk.recorder.rows, desk.recorder.dropped) == (1400, 0)

    at(Desk(tmp_path), scenario)


def test_a_killed_scribe_is_replaced_and_what_it_had_is_counted_as_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymlops.serving.scribe.PAUSE_S", 3600.0)

    async def scenario(desk: Desk) -> None:
        desk.serve(3)
        await desk.recorder.flush()  # stored; the log's file is not due yet
        pid = desk.pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: desk.recorder.dropped == 3)
        desk.serve(2)
        with pytest.raises(NotReady, match="started again in a moment"):
            await desk.recorder.flush()
        desk.writer._not_before = 0.0
        await desk.recorder.flush(last=True)
        assert desk.pid != pid
        assert desk.logged() == 2
        assert sum(batch["stats"][1]["requests"] for batch in desk.sink.batches if 1 in batch["stats"]) == 2
        assert (desk.recorder.rows, desk.recorder.dropped) == (5, 3)

    with caplog.at_level(logging.ERROR):
        at(Desk(tmp_path), scenario)
    assert "3 rows are lost to the log" in caplog.text


def test_a_scribe_that_does_not_read_holds_no_more_rows_than_allowed(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        desk.serve(1)
        await desk.recorder.flush(last=True)
        os.kill(desk.pid, signal.SIGSTOP)
        for _ in range(4):
            desk.serve(1000)
        assert (desk.recorder.rows, desk.recorder.dropped) == (4001, 1000)
        os.kill(desk.pid, signal.SIGCONT)
        await desk.recorder.flush(last=True)
        assert desk.logged() == 3001
        desk.serve(1000)
        assert desk.recorder.dropped == 1000

    at(Desk(tmp_path, max_rows=3000), scenario)


def test_a_gateway_that_is_gone_has_what_it_handed_over_written_and_leaves_nobody_behind(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        desk.serve(1)
        await desk.recorder.flush()
        pid = desk.pid
        desk.serve(1000)  # a whole sheet: handed over
        desk.serve(1)  # not yet
        process = desk.writer._process
        assert process is not None
        assert process.popen is not None
        assert process.frames.transport is not None
        process.closing = True  # as a killed gateway, which does nothing more about it
        await asyncio.sleep(0)
        process.frames.transport.close()
        await asyncio.to_thread(process.popen.wait, 30)
        assert is_gone(pid)
        assert desk.logged() == 1001
        assert desk.store.counts("churn")["predictions"] == 1001

    at(Desk(tmp_path), scenario)


def test_what_the_monitor_does_not_take_is_told_later_and_once(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        desk.sink.down = True
        desk.serve(2)
        await desk.recorder.flush(last=True)
        assert desk.told() == 0
        desk.sink.down = False
        desk.serve(1)
        await desk.recorder.flush(last=True)
        await desk.recorder.flush(last=True)
        assert desk.told() == 3
        assert sum(batch["stats"].get(1, {}).get("requests", 0) for batch in desk.sink.batches) == 2

    at(Desk(tmp_path), scenario)


def test_a_store_and_a_lake_that_fail_keep_rows_and_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(
        monkeypatch,
        "from urllib.error import HTTPError",  # it is pickled, but what comes of that cannot be read
        "from raymlops.errors import StoreError",
        "def failing_once(work, error):",
        "    errors = [error]",
        "    def either(*arguments):",
        "        if errors: raise errors.pop()",
        "        return work(*arguments)",
        "    return either",
        "Store.add_block = failing_once(Store.add_block, StoreError('The store is down.'))",
        "Lake.write = failing_once(Lake.write, HTTPError('http://lake', 503, 'Slow down', None, None))",
    )

    async def scenario(desk: Desk) -> None:
        given = desk.serve(1)
        labels = LabelWriter("churn", desk.store, desk.recorder, desk.threads)
        label = LabelRow(request_id=str(given[0]), row_index=0, value=1)
        with pytest.raises(StoreError, match=r"The store is down\."):
            await labels.add([label])
        assert desk.recorder.holds(given)
        pid = desk.pid
        assert await labels.add([label]) == ["stored"]
        with pytest.raises(OSError, match="HTTP Error 503: Slow down"):
            await desk.recorder.flush(last=True)
        await desk.recorder.flush(last=True)
        assert desk.pid == pid
        assert desk.logged() == 1
        assert desk.recorder.dropped == 0

    at(Desk(tmp_path), scenario)


def test_a_scribe_that_waits_for_its_store_is_waited_for_and_one_that_is_silent_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    program(
        monkeypatch,
        "import os, time",
        "add_block = Store.add_block",
        "def slow(*arguments):",
        f"    while not os.path.exists({str(gate)!r}): time.sleep(0.01)",
        "    return add_block(*arguments)",
        "Store.add_block = slow",
    )
    now = [1000.0]
    monkeypatch.setattr("raymlops.serving.scribe.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("raymlops.serving.scribe.SIGN_S", 0.01)

    async def scenario(desk: Desk) -> None:
        desk.serve(1)
        flushing = asyncio.ensure_future(desk.recorder.flush(log=False))
        await until(lambda: desk.writer._process is not None and bool(desk.writer._process.calls))
        process, pid = desk.writer._process, desk.pid
        assert process is not None
        for _ in range(3):
            now[0] += 100.0
            await until(lambda: process.heard == now[0])
        assert not flushing.done()
        gate.touch()
        await flushing
        assert desk.pid == pid
        assert desk.store.counts("churn")["predictions"] == 1

        os.kill(pid, signal.SIGSTOP)
        desk.serve(1)
        flushing = asyncio.ensure_future(desk.recorder.flush(log=False))
        while not flushing.done():
            now[0] += 130.0  # again if what it had said before was still to be read
            await asyncio.wait({flushing}, timeout=0.02)
        with pytest.raises(NotReady, match="says nothing for 120 s"):
            await flushing
        await until(lambda: desk.recorder.dropped == 2 and is_gone(pid))

    at(Desk(tmp_path), scenario)


def test_a_gateway_that_ends_just_after_its_scribe_still_has_all_written_and_then_nothing(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        desk.serve(3)
        await desk.recorder.flush()
        os.kill(desk.pid, signal.SIGKILL)
        await until(lambda: desk.recorder.dropped == 3)
        desk.serve(2)
        await desk.recorder.close()
        assert desk.logged() == 2
        assert (desk.recorder.rows, desk.recorder.dropped) == (5, 3)
        desk.serve(1)
        with pytest.raises(NotReady, match="The gateway has ended"):
            await desk.recorder.flush(log=False)
        assert desk.writer.pid is None

    at(Desk(tmp_path), scenario)


def test_a_gateway_whose_last_write_fails_leaves_no_scribe_and_counts_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(monkeypatch, "def full(*_): raise OSError('The disk is full.')", "Lake.write = full")

    async def scenario(desk: Desk) -> None:
        desk.serve(2)
        await desk.recorder.flush()
        pid = desk.pid
        with pytest.raises(OSError, match=r"The disk is full\."):
            await desk.recorder.close()
        assert is_gone(pid)
        assert (desk.recorder.rows, desk.recorder.dropped) == (2, 2)

    at(Desk(tmp_path), scenario)


def test_a_lake_that_hangs_does_not_keep_a_scribe_without_its_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        monkeypatch,
        "import threading",
        "Lake.write = lambda *_: threading.Event().wait()",
        "scribe_process.LAST_WORDS_S = 0.1",
    )
    monkeypatch.setattr("raymlops.serving.scribe.STOP_S", 30.0)

    async def scenario(desk: Desk) -> None:
        desk.serve(1)
        await desk.recorder.flush()
        process = desk.writer._process
        assert process is not None
        assert process.popen is not None
        await desk.writer.close()
        assert process.popen.returncode == 1  # by itself, and not by a signal
        assert desk.store.counts("churn")["predictions"] == 1
        assert desk.recorder.dropped == 1

    at(Desk(tmp_path), scenario)


def test_what_the_last_store_cannot_do_does_not_keep_the_last_log_from_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raymlops.serving.scribe_process.LAST_WORDS_S", 0.01)
    did: list[str] = []

    class Broken:
        async def store(self, stats: Any, shadows: Any, *, last: bool) -> None:
            did.append("store")
            raise StoreError("The store is down.")

        async def log(self, *, last: bool) -> None:
            did.append("log")

    async def main() -> None:
        gateway = _Gateway()
        gateway._writer = cast(ThreadWriter, Broken())
        assert not await gateway.finish()
        assert did == ["store", "log"]

        async def hang() -> None:
            await asyncio.Event().wait()

        hanging = asyncio.ensure_future(hang())
        gateway._tasks[hanging] = "store"  # another one beside it would store the same part twice
        assert not await gateway.finish()
        assert did == ["store", "log", "log"]
        hanging.cancel()

    asyncio.run(main())


class Refusing:
    """A writer that is not ready so many times."""

    def __init__(self, times: int) -> None:
        self.times, self.calls, self.did = times, 0, list[str]()

    async def store(self, stats: Any, shadows: Any, since: float = 0.0, *, last: bool = False) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise NotReady("It is started again in a moment.")
        self.did.append("store")

    async def log(self, *, last: bool = False) -> None:
        self.did.append("log")

    async def close(self) -> None:
        self.did.append("close")


def test_the_last_write_is_tried_once_more_and_the_writer_let_go_of_whatever_comes_of_it() -> None:
    async def main() -> None:
        writer = Refusing(1)
        await Recorder("churn", lambda *_: cast(Writer, writer)).close()
        assert writer.did == ["store", "log", "close"]
        writer = Refusing(2)
        with pytest.raises(NotReady):
            await Recorder("churn", lambda *_: cast(Writer, writer)).close()
        assert writer.did == ["close"]

    asyncio.run(main())


def test_a_writer_that_is_not_ready_is_spoken_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        writer = Refusing(1000)
        running = asyncio.ensure_future(Recorder("churn", lambda *_: cast(Writer, writer), 0.001).run())
        await until(lambda: writer.calls > 3)
        running.cancel()

    asyncio.run(main())
    assert caplog.text.count("Rows wait.") == 1


def test_sheets_hold_what_the_log_and_the_store_need(tmp_path: Path) -> None:
    columns = [Column(name=name, kind="number", nullable=True, minimum=None, maximum=None) for name in "ab"]
    other = DataContract(columns=tuple(columns), label="y", task="binary", classes=(0, 1))
    x, sent = other.encode_sent([{"a": 1.5, "b": None}, {"a": 2.5, "b": 3.5}])
    assert sent is not None

    def batch(ids: list[int | str], matrix: bool) -> Served:
        answer = answer_rows(FakeModel(), [ROW, ROW])
        answer = type(answer)(x, answer.scores, answer.finite, [0, 1], [0.5, 0.5], sent if matrix else None)
        rows: Any = () if matrix else [{"a": 1.5, "b": "text"}, {"a": 2, "b": None}]
        return Served(ids, [1, 1], rows, answer, 7, "champion", 1.0 + len(ids), 2.0)

    served = [batch([1, 2], True), batch(["own", 3], True), batch([4, 5], False), batch([6, "its"], True)]
    again = list(unfolded(sheets(served)))
    assert [pq.read_table(io.BytesIO(part)).to_pydict() for part in to_parquet(again, "0" * 16)] == [
        pq.read_table(io.BytesIO(part)).to_pydict() for part in to_parquet(served, "0" * 16)
    ]
    (block, single), (expected, single_expected) = packed("0" * 16, again), packed("0" * 16, served)
    assert single == single_expected
    assert block is not None
    assert expected is not None
    assert block.to_bytes() == expected.to_bytes()
    for mine, theirs in zip(again, served, strict=True):
        np.testing.assert_array_equal(mine.answer.x, theirs.answer.x)
