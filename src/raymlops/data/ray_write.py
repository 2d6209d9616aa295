"""How a Spark frame's partitions become files beside the executors: as they lie in Spark's rows, or as Arrow by its Python workers.

The first takes no Python worker and no look at a value; lists and what a features function makes take the second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymlops.data.handed import part_path, read_part
from raymlops.data.packed import Pack, unpacked
from raymlops.data.ray_pack import as_bytes_of_rows, pack
from raymlops.data.ray_read import Step
from raymlops.data.row_bytes import RowBytes
from raymlops.errors import DataError, SparkUnavailable

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"
_BATCH_BYTES = 4 << 20
_PLAIN_BYTES = 16
_OPEN_ENDED = ("string", "binary", "array", "map", "struct")
_ANSWER_S = 60.0
# Of Hadoop: a partition's file is moved to its place when its task ends, not when the job does; without checksums in files beside it.
_AT_ONCE = {
    "mapreduce.fileoutputcommitter.algorithm.version": "2",
    "mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
    "fs.file.impl": "org.apache.hadoop.fs.RawLocalFileSystem",
    "fs.file.impl.disable.cache": "true",
    "fs.permissions.umask-mode": "077",
    "io.file.buffer.size": str(1 << 17),
    "maxRecordsPerFile": "0",
    "compression": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One partition that was written and is not empty: its number, its file, and the Ray node whose disk it is on."""

    number: int
    node: str
    path: str


class Writer(Protocol):
    """Writes the partitions of one frame, each into a file that appears whole."""

    @property
    def frame(self) -> DataFrame: ...

    @property
    def read(self) -> Callable[[str], Iterable[pa.Table]]:
        """Makes tables of a file, on whichever node it is."""

    def write(self, folder: str, tag: str) -> list[Part]:
        """Run the job, which has this tag, and say what it left."""

    def find(self, folder: str, number: int) -> str | None:
        """The file of a partition, once it is there, on this machine."""


def writer_of(frame: DataFrame, alone: Sequence[str] = (), step: Step | None = None) -> Writer:
    """The writer that suits the frame's types.

    Parameters
    ----------
    alone : columns that are not packed with others
    step : what Spark's Python workers make of the rows before they are written

    Raises
    ------
    DataError : two columns of one name
    """
    names = list(frame.columns)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"More than one column is called {twice[0]!r}: select or rename what you want of them.")
    rows = None if step is not None else as_bytes_of_rows(frame, alone)
    return ArrowWriter(*pack(frame, alone), names, step) if rows is None else RowWriter(*rows)


class RowWriter:
    """Spark's own writer of text files writes rows as they are; see :mod:`raymlops.data.row_bytes`."""

    def __init__(self, frame: DataFrame, form: RowBytes) -> None:
        self.frame, self._form = frame, form
        self._found: dict[int, Part] = {}
        self._empty: set[int] = set()

    @property
    def read(self) -> Callable[[str], Iterable[pa.Table]]:
        return self._form.tables

    def write(self, folder: str, tag: str) -> list[Part]:
        self.frame.write.options(**_AT_ONCE, lineSep=self._form.ends_with).text(f"file://{folder}")
        self._look(folder)
        if self._lacks(tag):
            self._look_elsewhere(folder)
            if lost := self._lacks(tag):
                raise SparkUnavailable(f"Partition {lost[0]} was written and is nowhere: a node went with its files.")
        return [part for part in self._found.values() if part.number not in self._empty]

    def find(self, folder: str, number: int) -> str | None:
        if number not in self._found:
            self._look(folder)
        part = self._found.get(number)
        # The job's own thread may have found parts of other nodes meanwhile, which are brought over when it has ended.
        return None if part is None or part.node else part.path

    def _lacks(self, tag: str) -> list[int]:
        """Partitions that have rows and no file: Spark writes no file for an empty one, and nothing tells that from a lost one."""
        job = _Written(self.frame, tag)
        return [] if job.whole(len(self._found)) else sorted(job.with_rows() - self._found.keys())

    def _look(self, folder: str) -> None:
        self._take(listed(folder), folder, "")

    def _look_elsewhere(self, folder: str) -> None:
        for node in nodes_elsewhere():
            look: Any = on_node(node, 1)(listed)
            self._take(ray.get(look.remote(folder), timeout=_ANSWER_S), folder, node)

    def _take(self, files: Iterable[tuple[str, int]], folder: str, node: str) -> None:
        for name, size in files:
            number = int(name.split("-")[1])
            self._found.setdefault(number, Part(number=number, node=node, path=f"{folder}/{name}"))
            if not size:
                self._empty.add(number)


class ArrowWriter:
    """Spark's Python workers write an Arrow stream a partition, after a step of theirs where there is one."""

    def __init__(self, frame: DataFrame, packs: Sequence[Pack], names: Sequence[str], step: Step | None) -> None:
        self.frame, self._packs, self._step = frame, tuple(packs), step
        self._names, self._asked = list(names), list(frame.columns)

    @property
    def read(self) -> Callable[[str], Iterable[pa.Table]]:
        return read_tables

    def write(self, folder: str, tag: str) -> list[Part]:
        frame, conf = self.frame, self.frame.sparkSession.conf
        if any("." in name for name in self._asked) or len({x.lower() for x in self._asked}) < len(self._asked):
            # mapInArrow looks its columns up by name, where a dot means a field and case nothing.
            frame = frame.toDF(*(f"c{index}" for index in range(len(self._asked))))
        before = str(conf.get(_BATCH))
        conf.set(_BATCH, str(self._batch_rows()))
        write = _in_python(folder, self._packs, self._asked, self._names, self._step)
        try:
            rows = frame.mapInArrow(write, "number int, rows long, node string").collect()
        finally:
            conf.set(_BATCH, before)
        return [Part(number=x.number, node=x.node, path=part_path(folder, x.number)) for x in rows if x.rows]

    def find(self, folder: str, number: int) -> str | None:
        path = part_path(folder, number)
        return path if os.path.exists(path) else None

    def _batch_rows(self) -> int:
        """Rows a batch, which each task holds twice: Spark's own 10,000 are few of a narrow table and too many of a wide one.
        Where texts may be of any length there are no more than those."""
        packed = {pack.name: np.dtype(pack.kind).itemsize * len(pack.columns) for pack in self._packs}
        wide = sum(packed.get(name, _PLAIN_BYTES) for name in self._asked)
        open_ended = any(name not in packed and kind.startswith(_OPEN_ENDED) for name, kind in self.frame.dtypes)
        return int(np.clip(_BATCH_BYTES // max(wide, 1), 512, 10_000 if open_ended else 65_536))


def _in_python(
    folder: str, packs: Sequence[Pack], asked: Sequence[str], names: Sequence[str], step: Step | None
) -> Step:
    """What Spark's Python workers run."""

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        from raymlops.data.handed import ray_node, values_of, write_part

        context = TaskContext.get()
        number = 0 if context is None else context.partitionId()
        named = (pa.RecordBatch.from_arrays(batch.columns, names=list(asked)) for batch in batches)
        if step is None:
            rows = write_part(folder, number, named, packs)
        else:
            # The step sees the frame's own columns.
            plain = (unpacked(values_of(batch, packs), names).to_batches() for batch in named)
            rows = write_part(folder, number, step(batch for some in plain for batch in some))
        told = {"number": [number], "rows": [rows], "node": [ray_node()]}
        yield pa.RecordBatch.from_pydict(told, pa.schema([("number", "i4"), ("rows", "i8"), ("node", "str")]))

    return write


def read_tables(path: str) -> Iterator[pa.Table]:
    """The rows of a file of Arrow, over its mapped memory."""
    yield read_part(path)


def listed(folder: str) -> list[tuple[str, int]]:
    """Names and bytes of the partitions' files that Spark has finished in a folder, if there is one."""
    found = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for item in entries:
            if item.name.startswith("part-"):
                with suppress(FileNotFoundError):  # it has been read meanwhile
                    found.append((item.name, item.stat().st_size))
    return found


class _Written:
    """What Spark says of the stage that wrote, once its job has ended."""

    def __init__(self, frame: DataFrame, tag: str) -> None:
        context: Any = frame.sparkSession.sparkContext
        scala = context._jsc.sc()
        scala.listenerBus().waitUntilEmpty()
        self._store = scala.statusStore()
        stages = self._store.job(max(scala.statusTracker().getJobIdsForTag(tag))).stageIds()
        self._stage = max(stages.apply(index) for index in range(stages.size()))
        self._last = self._store.lastStageAttempt(self._stage)

    def whole(self, files: int) -> bool:
        """Whether there is a file for each task: one a partition, unless the stage had to begin again with those that it lacked."""
        return bool(self._last.attemptId() == 0 and self._last.numTasks() == files)

    def with_rows(self) -> set[int]:
        """Numbers of the partitions that have rows."""
        found = set()
        for attempt in range(self._last.attemptId() + 1):
            tasks = self._store.taskList(self._stage, attempt, 2**31 - 1)
            for task in (tasks.apply(index) for index in range(tasks.size())):
                if task.status() == "SUCCESS" and task.taskMetrics().get().outputMetrics().recordsWritten():
                    found.add(int(task.partitionId()))
        return found


# --- other nodes ---------------------------------------------------------------------------------------------


def this_node() -> str:
    """This process's Ray node."""
    return str(ray.get_runtime_context().get_node_id())


def on_node(node: str, retries: int) -> Any:
    """Makes a function one that Ray runs there, without a CPU of its own."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": retries, "scheduling_strategy": there}
    return ray.remote(**options)


def nodes_elsewhere() -> list[str]:
    """A live Ray node of each other machine."""
    if not ray.is_initialized():
        return []
    alive = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    own = alive.get(this_node())
    return list({machine: node for node, machine in alive.items() if machine != own}.values())
