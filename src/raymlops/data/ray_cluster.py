"""RayDP's Spark cluster, with its master beside the driver and its output out of sight."""

from __future__ import annotations

import subprocess
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from raydp.spark.ray_cluster import SparkCluster
from raydp.spark.ray_cluster_master import RAYDP_SPARK_MASTER_SUFFIX, RayDPSparkMaster

_Master: Any = RayDPSparkMaster.__ray_metadata__.modified_class


class WatchedMaster(_Master):
    """RayDP's master, which can tell whether the JVM of its application master runs: without it Spark waits for ever."""

    def runs(self) -> bool:
        return self._gateway is not None and self._gateway.proc.poll() is None


class QuietSparkCluster(SparkCluster):
    """Starts RayDP's master actor where the driver is: the driver's JVM uses the sockets of the master's node.

    Its start is not waited for before somebody wants the master: the driver's JVM can start at the same time.
    """

    def __init__(
        self, name: str, executors: int, cores: int, memory: str, configs: dict[str, str], anywhere: bool
    ) -> None:
        self._anywhere = anywhere
        super().__init__(name, executors, cores, memory, False, configs)

    def _set_up_master(self, resources: dict[str, float], kwargs: Any) -> None:
        options: dict[str, Any] = {
            "name": self._app_name + RAYDP_SPARK_MASTER_SUFFIX,
            "num_cpus": resources.pop("CPU", 0),
            "resources": resources,
        }
        if not self._anywhere:
            node = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        watched: Any = ray.remote(WatchedMaster)
        self._spark_master_handle = watched.options(**options).remote(self._configs)
        # The gateway's own output would be printed by every driver that shows its workers' logs.
        silence = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._starting = self._spark_master_handle.start_up.remote(silence)

    def get_cluster_url(self) -> str:
        ray.get(self._starting)
        return str(super().get_cluster_url())


class QuietSparkContext:
    """What ``raydp.init_spark`` does, without its process-wide state and lock: a hanging start can be given up.

    The driver's JVM does not join Ray: only RayDP's own hand-over wants that.
    """

    def __init__(
        self, name: str, executors: int, cores: int, memory: str, configs: dict[str, str], on_helper: bool
    ) -> None:
        self._arguments = (name, executors, cores, memory, configs, on_helper)
        self._cluster: QuietSparkCluster | None = None
        self._session: Any = None
        self._asked: Any = None
        self._ended = False

    def start_master(self) -> None:
        """Begin to start the master actor; this also fills in the configuration of the driver's JVM."""
        self._cluster = QuietSparkCluster(*self._arguments)

    def get_or_create_session(self) -> Any:
        if self._cluster is None:
            self.start_master()
        assert self._cluster is not None
        self._session = self._cluster.get_spark_session()
        return self._session

    def lost(self) -> str | None:
        """What has died that Spark itself does not miss, in words; asks without waiting for the answer."""
        master = None if self._cluster is None or self._session is None else self._cluster._spark_master_handle
        if master is None or self._ended:
            return None
        if self._asked is None:
            self._asked = master.runs.remote()
        ready, _ = ray.wait([self._asked], timeout=0)
        if not ready:
            return None
        asked, self._asked = self._asked, None
        try:
            return None if ray.get(asked) else "its application master's JVM has ended"
        except ray.exceptions.RayActorError:
            return "its master has died"

    def stop(self, cleanup_data: bool) -> None:
        self._ended = True
        if self._cluster is not None:
            self._cluster.stop(cleanup_data)

    def kill_master(self) -> None:
        """End the master actor, by name: the thread that created it may hang before it has a handle."""
        try:
            ray.kill(ray.get_actor(self._arguments[0] + RAYDP_SPARK_MASTER_SUFFIX), no_restart=True)
        except ValueError:
            return
