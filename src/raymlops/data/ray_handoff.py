"""From Spark to arrays and to Ray Data: each partition becomes an Arrow file where it was computed, in Spark's Python worker.

The driver maps the files of its own machine into memory while Spark still computes others; those of other nodes come as Ray
objects, one at a time.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymlops.data.arrays import TrainingArrays, training_arrays
from raymlops.data.columns import encode_table
from raymlops.data.handed import part_path, plain_texts, read_part
from raymlops.data.packed import Pack, unpacked
from raymlops.data.ray_pack import as_floats, pack
from raymlops.data.schema import DataContract
from raymlops.errors import ContractViolation, DataError, SparkUnavailable

if TYPE_CHECKING:
    import ray.data
    from pyspark.sql import DataFrame

_LOOK_S = 0.01
_STREAM_ROWS = 65_536
_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"
_BATCH_BYTES = 4 << 20
_PLAIN_BYTES = 16
_OPEN_ENDED = ("string", "binary", "array", "map", "struct")
_STOP_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One partition that was written: its number and rows, and the Ray node whose disk it is on."""

    number: int
    rows: int
    node: str


def hand_over(frame: DataFrame, folder: str) -> Iterator[pa.Table]:
    """The partitions of a Spark frame as tables over mapped memory, in order, each as soon as it is there.

    A partition's file goes when it is read; what still uses its table keeps its memory. Empty partitions may be left out.

    Parameters
    ----------
    folder : that does not exist yet; on each node the executors make their own

    Raises
    ------
    what Spark raises; ray.exceptions.RayError : a node went before its partitions were brought over
    """
    names = frame.columns
    for table in _tables(*pack(frame), folder):
        yield unpacked(table, names)


def _tables(frame: DataFrame, packs: Sequence[Pack], folder: str) -> Iterator[pa.Table]:
    with _Job(frame, packs, folder) as job:
        number = 0
        while not job.ended.wait(_LOOK_S):
            while os.path.exists(path := part_path(folder, number)):
                number += 1
                table = _taken(path)
                if table.num_rows:
                    yield table
                del table
        for part in job.result():
            if part.number >= number and part.rows:
                yield _brought(part, folder)


def spark_arrays(
    frame: DataFrame, folder: str, *, label: str | None = None, texts: Sequence[str] = ()
) -> TrainingArrays:
    """A Spark frame as the arrays a model is fitted on; see :func:`raymlops.data.arrays.training_arrays`.

    Numbers become float32 in Spark already, and travel as rows of the matrix.
    """
    names = frame.columns
    packed, packs = pack(as_floats(frame, {label, *texts}), texts)
    return training_arrays(_tables(packed, packs, folder), label=label, texts=texts, names=names)


@contextmanager
def spark_dataset(frame: DataFrame, folder: str, contract: DataContract | None = None) -> Iterator[ray.data.Dataset]:
    """A Spark frame as a Ray dataset that is read in a stream, so that it may be larger than memory, until the block ends.

    Spark may be stopped inside the block, when ``folder`` is not one of its own. With a contract the columns are those of its
    matrix, as float32, and the label as float64: what :func:`raymlops.search.ray_train.fit_distributed` takes.

    Raises
    ------
    DataError : no rows; and what Spark raises. What breaks the contract fails the dataset's own tasks
    """
    names = tuple(frame.columns)
    with _Job(*pack(frame), folder) as job:
        job.ended.wait()
        here, by_node = _here(), dict[str, list[int]]()
        for part in job.result():
            if part.rows:
                node = here if os.path.exists(part_path(folder, part.number)) else _node_of(part, folder)
                by_node.setdefault(node, []).append(part.number)
        if not by_node:
            raise DataError("No rows were handed over.")
        yield read_parts(by_node, folder, names, contract)


def read_parts(
    by_node: Mapping[str, Sequence[int]], folder: str, names: Sequence[str], contract: DataContract | None = None
) -> ray.data.Dataset:
    """Partitions that lie in a folder of these Ray nodes (``""``: this one's, whichever it is) as a dataset that is read in a stream."""
    import ray.data

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for number in batch["item"].tolist():
            table = read_part(part_path(folder, number))
            for start in range(0, table.num_rows, _STREAM_ROWS):
                rows = plain_texts(unpacked(table.slice(start, _STREAM_ROWS), names))
                yield rows if contract is None else encoded(rows, contract)

    sets, here = [], _here()
    for node, numbers in by_node.items():
        items = ray.data.from_items(list(numbers), override_num_blocks=len(numbers))
        where: dict[str, Any] = (
            {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)} if node else {}
        )
        # The driver's node may be one that has no CPUs to give.
        sets.append(items.map_batches(read, batch_size=1, num_cpus=0 if node == here else 0.5, **where))
    return sets[0].union(*sets[1:]) if len(sets) > 1 else sets[0]


def encoded(table: pa.Table, contract: DataContract) -> pa.Table:
    """Rows as a contract's matrix and label, a column each.

    Raises
    ------
    ContractViolation : a row breaks it
    """
    made = encode_table(contract, table)
    for row, reason in made.refused.items():
        raise ContractViolation(f"Row {row} of a block breaks the data contract: {reason}")
    columns = {name: pa.array(made.x[:, index]) for index, name in enumerate(contract.names)}
    labels = contract.encode_label(table.column(contract.label).to_pandas())
    return pa.table({**columns, contract.label: pa.array(labels)})


class _Job:
    """The Spark job that writes the partitions, in a thread of its own; the folder goes with it, on every node.

    Raises
    ------
    DataError : two columns of one name
    """

    def __init__(self, frame: DataFrame, packs: Sequence[Pack], folder: str) -> None:
        self._frame, self._packs, self._folder = frame, tuple(packs), folder
        self._names, self._tag = list(frame.columns), f"handing over to {os.path.basename(folder)}"
        twice = sorted({name for name in self._names if self._names.count(name) > 1})
        if twice:
            raise DataError(f"More than one column is called {twice[0]!r}: select or rename what you want of them.")
        self._parts: list[Part] = []
        self._failure: BaseException | None = None
        self.ended = threading.Event()

    def __enter__(self) -> _Job:
        threading.Thread(target=self._run, name="spark hands over", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended.is_set():  # whoever took the rows has left: nobody reads what would still be written
            with suppress(Exception):  # a session that is dead has nothing to stop
                self._frame.sparkSession.sparkContext.cancelJobsWithTag(self._tag)
            self.ended.wait(_STOP_S)
        shutil.rmtree(self._folder, ignore_errors=True)
        _remove_elsewhere(self._folder)

    def result(self) -> list[Part]:
        """What was written, by number. Raises what the job raised."""
        if self._failure is not None:
            raise self._failure
        return sorted(self._parts, key=lambda part: part.number)

    def _run(self) -> None:
        try:
            session, frame = self._frame.sparkSession, self._frame
            conf = session.conf
            session.sparkContext.addJobTag(self._tag)
            if any("." in name for name in self._names) or len({name.lower() for name in self._names}) < len(
                self._names
            ):
                # mapInArrow looks its columns up by name, where a dot means a field and case nothing.
                frame = frame.toDF(*(f"c{index}" for index in range(len(self._names))))
            told = "number int, rows long, node string"
            before = str(conf.get(_BATCH))
            conf.set(_BATCH, str(self._batch_rows()))
            try:
                rows = frame.mapInArrow(_writer(self._folder, self._packs, self._names), told).collect()
            finally:
                conf.set(_BATCH, before)
            self._parts = [Part(number=row.number, rows=row.rows, node=row.node) for row in rows]
        except BaseException as error:
            self._failure = error
        finally:
            self.ended.set()

    def _batch_rows(self) -> int:
        """Rows a batch, which each task holds twice: Spark's own 10,000 are few of a narrow table and too many of a wide one.
        Where texts may be of any length there are no more than those."""
        packed = {pack.name: np.dtype(pack.kind).itemsize * len(pack.columns) for pack in self._packs}
        wide = sum(packed.get(name, _PLAIN_BYTES) for name in self._names)
        open_ended = any(name not in packed and kind.startswith(_OPEN_ENDED) for name, kind in self._frame.dtypes)
        return int(np.clip(_BATCH_BYTES // max(wide, 1), 512, 10_000 if open_ended else 65_536))


def _writer(folder: str, packs: Sequence[Pack], names: Sequence[str]) -> Any:
    """What Spark's Python workers run."""

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        from raymlops.data.handed import ray_node, write_part

        context = TaskContext.get()
        number = 0 if context is None else context.partitionId()
        named = (pa.RecordBatch.from_arrays(batch.columns, names=list(names)) for batch in batches)
        rows = write_part(folder, number, named, packs)
        told = {"number": [number], "rows": [rows], "node": [ray_node()]}
        yield pa.RecordBatch.from_pydict(told, pa.schema([("number", "i4"), ("rows", "i8"), ("node", "str")]))

    return write


def _taken(path: str) -> pa.Table:
    table = read_part(path)
    os.unlink(path)
    return table


def _brought(part: Part, folder: str) -> pa.Table:
    path = part_path(folder, part.number)
    if os.path.exists(path):
        return _taken(path)
    bring: Any = _on(_node_of(part, folder), 1)(_taken)
    table: pa.Table = ray.get(bring.remote(path))
    return table


def _on(node: str, retries: int) -> Any:
    """Makes a function one that Ray runs there, without a CPU of its own."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": retries, "scheduling_strategy": there}
    return ray.remote(**options)


def _node_of(part: Part, folder: str) -> str:
    if not part.node:
        path = part_path(folder, part.number)
        raise SparkUnavailable(f"Partition {part.number} was written on a machine that Ray does not know: {path}.")
    return part.node


def _here() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _remove_elsewhere(folder: str) -> None:
    """Take the folder from other machines; one that does not answer in time keeps it."""
    if not ray.is_initialized():
        return
    alive = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    own = alive.get(_here())
    others = {machine: node for node, machine in alive.items() if machine != own}
    tasks = []
    for node in others.values():
        remove: Any = _on(node, 0)(shutil.rmtree)
        tasks.append(remove.remote(folder, ignore_errors=True))
    if tasks:
        ray.wait(tasks, num_returns=len(tasks), timeout=_STOP_S)
