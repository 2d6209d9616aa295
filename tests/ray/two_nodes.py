"""A search over two raylets, one CPU each; prints where its fits ran. Run by ``test_two_nodes.py`` in a process of its own."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from raymlops.data.schema import Column, DataContract
from raymlops.data.snapshot import Arrays
from raymlops.search import candidates
from raymlops.search.ray_tune import search
from raymlops.search.selection import Search
from raymlops.settings import Settings


class Where:
    """Linear models whose fits take a while and tell on which node they ran and whether their rows are shared memory."""

    name, tasks, start = "where", ("binary",), {"C": 1.0}

    def space(self, trial: Any) -> dict[str, Any]:
        return {"C": trial.suggest_float("C", 0.1, 10)}

    def build(self, params: Any, task: Any, n_classes: int, categorical: Any, seed: int) -> Any:
        made = candidates.linear().build({"C": params["C"]}, task, n_classes, categorical, seed)
        fit = made.fit

        def slow(x: Any, y: Any, *validation: Any) -> Any:
            time.sleep(1.0)
            made.learned = {"node": ray.get_runtime_context().get_node_id(), "shared": not x.flags.writeable}
            return fit(x, y)

        made.fit = slow
        return made


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(float)
    cut = {"train": slice(0, 1500), "validation": slice(1500, 2500), "test": slice(2500, 3000)}
    split = {f"{axis}_{name}": data[rows] for name, rows in cut.items() for axis, data in (("x", x), ("y", y))}
    columns = tuple(Column(name=name, kind="number", nullable=False, minimum=-9.0, maximum=9.0) for name in "abc")
    contract = DataContract(columns=columns, label="y", task="binary", classes=(0, 1))
    spec = Search(candidates=[Where()], trials=10, max_concurrent=2)
    settings = Settings.read({"RAYMLOPS_HOME": sys.argv[1]})
    board = search(Arrays(**split, time_test=None), contract, spec, ordered=False, settings=settings).leaderboard
    nodes = sorted(node["NodeID"] for node in ray.nodes())
    ran = sorted({trial.params["node"] for trial in board.trials})
    shared = all(trial.params["shared"] for trial in board.trials)
    sys.stdout.write(json.dumps({"nodes": nodes, "ran": ran, "shared": shared}) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
