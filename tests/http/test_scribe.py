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
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raymlops.data.schema import Column, DataContract
from raymlops.errors import NotReady
from raymlops.serving.batching import answer_rows
from raymlops.serving.logfile import Served, packed, to_parquet
from raymlops.serving.recorder import LabelWriter, Recorder
from raymlops.serving.scribe import Scribe, scribe
from raymlops.serving.sheets import sheets, unfolded
from raymlops.store import LabelRow, Store
from raymlops.testing.serving import FakeModel, ListSink

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


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


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
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(desk: Desk) -> None:
        desk.serve(3)
        await desk.recorder.flush()  # stored; the log's file is not due yet
        pid = desk.pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: desk.recorder.dropped == 3)
        desk.serve(2)
        with pytest.raises(NotReady, match="started again in a moment"):
            await desk.recorder.flush()
        await until(lambda: desk.writer.may_start)
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


def test_a_store_that_fails_keeps_rows_and_says_why(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        desk.serve(1)
        await desk.recorder.flush()
        desk.store.close()
        (tmp_path / "lake" / "served").rename(tmp_path / "kept") if (tmp_path / "lake" / "served").exists() else None
        (tmp_path / "lake").mkdir(exist_ok=True)
        (tmp_path / "lake" / "served").write_text("in the way")
        with pytest.raises(OSError, match="served"):
            await desk.recorder.flush(last=True)
        (tmp_path / "lake" / "served").unlink()
        await desk.recorder.flush(last=True)
        assert desk.logged() == 1
        assert desk.recorder.dropped == 0

    at(Desk(tmp_path), scenario)


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
