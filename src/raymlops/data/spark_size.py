"""How large a Spark to start on a cluster: from its nodes' free resources, leaving room for what else it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_MEMORY_MB = 1024
MAX_MEMORY_MB = 8192
_SHARE = 0.15
_BYTES_EACH = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A live node of the cluster: its CPUs and memory in bytes."""

    cpus: float
    memory: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """``executors`` of ``cores`` task slots and ``memory`` heap (Spark's notation) each, to begin with.

    Where ``most`` is given, more are added up to it while tasks wait, and those that are idle are released, but for one.
    """

    executors: int
    cores: int
    memory: str
    most: int | None = None


def shape_for(nodes: Sequence[Node], most: int = 16, data_bytes: int | None = None) -> Shape:
    """One executor a node that has a CPU, or fewer to begin with, as many task slots as the smallest of them has CPUs, a seventh of its memory.

    Executors take a tenth of a CPU from Ray's books each (they compute in bursts, beside actors that wait), so all CPUs
    of a node are theirs while it prepares data.

    Parameters
    ----------
    most : executors at the most; a large cluster prepares no faster than its input has files
    data_bytes : what is read, where that is known: one executor a GiB is enough to begin with, which takes a core seconds
    """
    workers = [node for node in nodes if node.cpus >= 1] or [Node(cpus=1, memory=4 * MIN_MEMORY_MB * 2**20)]
    cores = int(min(node.cpus for node in workers))
    heap = int(min(node.memory for node in workers) / 2**20 * _SHARE)
    memory = min(max(heap, MIN_MEMORY_MB), MAX_MEMORY_MB)
    wanted = most if data_bytes is None else max(1, -(-data_bytes // _BYTES_EACH))
    most = min(len(workers), most)
    return Shape(executors=min(most, wanted), cores=max(1, cores), memory=f"{memory}m", most=most if most > 1 else None)
