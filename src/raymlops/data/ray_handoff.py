"""From Spark to arrays and to Ray Data: each partition becomes a file where it was computed.

The driver reads the files of its own machine while Spark still computes others; those of other nodes come as Ray
objects, one at a time.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymlops.data.arrays import TrainingArrays, training_arrays
from raymlops.data.columns import encode_table
from raymlops.data.handed import plain_texts
from raymlops.data.packed import unpacked
from raymlops.data.ray_pack import as_floats
from raymlops.data.ray_read import Step
from raymlops.data.ray_write import Part, Writer, nodes_elsewhere, on_node, this_node, writer_of
from raymlops.data.schema import DataContract
from raymlops.errors import ContractViolation, DataError, SparkUnavailable

if TYPE_CHECKING:
    import ray.data
    from pyspark.sql import DataFrame

_LOOK_S = 0.01
_STREAM_ROWS = 65_536
_STOP_S = 10.0


def hand_over(frame: DataFrame, folder: str, step: Step | None = None) -> Iterator[pa.Table]:
    """The partitions of a Spark frame as tables, in order, each as soon as it is there.

    A partition's file goes when it is read; a table over its mapped memory keeps that. Empty partitions may be left out.

    Parameters
    ----------
    folder : that does not exist yet; on each node the executors make their own
    step : what Spark's Python workers make of the rows before they hand them over; the tables have its columns

    Raises
    ------
    what Spark raises; ray.exceptions.RayError, SparkUnavailable : a node went before its partitions were brought over
    """
    names = frame.columns
    for table in _tables(writer_of(frame, step=step), folder):
        yield table if step is not None else unpacked(table, names)


def _tables(writer: Writer, folder: str) -> Iterator[pa.Table]:
    with _Job(writer, folder) as job:
        number = 0
        while not job.ended.wait(_LOOK_S):
            while path := writer.find(folder, number):
                number += 1
                yield from _taken(path, writer.read)
        for part in job.result():
            if part.number >= number:
                yield from _brought(part, writer.read)


def spark_arrays(
    frame: DataFrame, folder: str, *, label: str | None = None, texts: Sequence[str] = ()
) -> TrainingArrays:
    """A Spark frame as the arrays a model is fitted on; see :func:`raymlops.data.arrays.training_arrays`.

    Numbers become float32 in Spark already, and travel as rows of the matrix.
    """
    names = frame.columns
    writer = writer_of(as_floats(frame, {label, *texts}), texts)
    return training_arrays(_tables(writer, folder), label=label, texts=texts, names=names)


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
    writer = writer_of(frame)
    with _Job(writer, folder) as job:
        job.ended.wait()
        here, by_node = this_node(), dict[str, list[str]]()
        for part in job.result():
            node = here if os.path.exists(part.path) else _node_of(part)
            by_node.setdefault(node, []).append(part.path)
        if not by_node:
            raise DataError("No rows were handed over.")
        yield read_parts(by_node, writer.read, names, contract)


def read_parts(
    by_node: Mapping[str, Sequence[str]],
    tables: Callable[[str], Iterable[pa.Table]],
    names: Sequence[str],
    contract: DataContract | None = None,
) -> ray.data.Dataset:
    """Files of these Ray nodes (``""``: this one's, whichever it is) as a dataset that is read in a stream, by ``tables``."""
    import ray.data

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for path in batch["item"].tolist():
            for table in tables(path):
                for start in range(0, table.num_rows, _STREAM_ROWS):
                    rows = plain_texts(unpacked(table.slice(start, _STREAM_ROWS), names))
                    yield rows if contract is None else encoded(rows, contract)

    sets, here = [], this_node()
    for node, paths in by_node.items():
        items = ray.data.from_items(list(paths), override_num_blocks=len(paths))
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
    """The Spark job that writes the partitions, in a thread of its own; the folder goes with it, on every node."""

    def __init__(self, writer: Writer, folder: str) -> None:
        self._writer, self._folder = writer, folder
        self._context: Any = writer.frame.sparkSession.sparkContext
        self._tag = f"handing over to {os.path.basename(folder)}"
        self._parts: list[Part] = []
        self._failure: BaseException | None = None
        self.ended = threading.Event()

    def __enter__(self) -> _Job:
        threading.Thread(target=self._run, name="spark hands over", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended.is_set():  # whoever took the rows has left: nobody reads what would still be written
            with suppress(Exception):  # a session that is dead has nothing to stop
                self._context.cancelJobsWithTag(self._tag)
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
            self._context.addJobTag(self._tag)
            self._parts = self._writer.write(self._folder, self._tag)
        except BaseException as error:
            self._failure = error
        finally:
            self.ended.set()


def _taken(path: str, read: Callable[[str], Iterable[pa.Table]]) -> Iterator[pa.Table]:
    for table in read(path):
        if table.num_rows:
            yield table
        del table
    os.unlink(path)


def _whole(path: str, read: Callable[[str], Iterable[pa.Table]]) -> pa.Table:
    return pa.concat_tables(_taken(path, read))


def _brought(part: Part, read: Callable[[str], Iterable[pa.Table]]) -> Iterator[pa.Table]:
    if os.path.exists(part.path):
        yield from _taken(part.path, read)
        return
    bring: Any = on_node(_node_of(part), 1)(_whole)
    yield ray.get(bring.remote(part.path, read))


def _node_of(part: Part) -> str:
    if not part.node:
        raise SparkUnavailable(f"Partition {part.number} was written on a machine that Ray does not know: {part.path}.")
    return part.node


def _remove_elsewhere(folder: str) -> None:
    """Take the folder from other machines; one that does not answer in time keeps it."""
    tasks = []
    for node in nodes_elsewhere():
        remove: Any = on_node(node, 0)(shutil.rmtree)
        tasks.append(remove.remote(folder, ignore_errors=True))
    if tasks:
        ray.wait(tasks, num_returns=len(tasks), timeout=_STOP_S)
