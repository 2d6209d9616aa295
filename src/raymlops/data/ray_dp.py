"""Spark on Ray: starts it, watches over its steps, stops it.

The file is not called ``raydp.py``: tools that put a module's folder on the path would shadow the package of that name.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import ray

from raymlops.data.ray_java import ensure_java, helper_resource, java_environment, java_home, java_node, kill_process
from raymlops.data.spark_size import Node, Shape, shape_for
from raymlops.errors import DataError, RaymlopsError, SparkUnavailable
from raymlops.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["SparkOnRay", "ensure_java", "java_environment", "java_home"]

Progress = Callable[[str], None]
OnPlan = Callable[[str, list[str]], None]
T = TypeVar("T")

_OPENED = (
    "java.lang java.lang.invoke java.lang.reflect java.io java.net java.nio java.math java.text java.util "
    "java.util.concurrent java.util.concurrent.atomic sun.nio.ch sun.nio.cs sun.security.action sun.util.calendar"
)
# Java 17 closes these packages; Ray's Java worker and Spark reach into them.
_JAVA_OPTIONS = " ".join(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED.split())
_SOME_CPU = 0.1
_STOP_S = 60.0
_ABANDON_S = 10.0
_LOOK_S = 1.0
_YOUNG_MB = 64
# Of some tens of columns Spark makes one method, and by itself a JVM only interprets methods of more than 8,000 bytes.
_COMPILED = "-XX:-DontCompileHugeMethods"
# What plans and computes nothing: rows pass it by, and compiling well takes more than it gives.
PLANS_ONLY = "-XX:+UseSerialGC -XX:MaxNewSize=64m -XX:TieredStopAtLevel=1"
_GRACE_S = 86400.0

_LOG4J = """\
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {path}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{yyyy-MM-dd HH:mm:ss}} %p %c{{1}}: %m%n%ex
"""


class SparkOnRay:
    """A Spark session whose executors are Ray actors, inside a ``with`` block.

    Ray must be running in this process. When its nodes have no Java, a helper node with the packaged JVM joins for the
    time of the block. Executors take a tenth of a CPU each, so that Spark fits beside what else the cluster does.

    Parameters
    ----------
    shape : how many executors, with how many task slots and how much heap each; from the cluster's nodes when not given
    data_bytes : what is read, where that is known: a small input does not want an executor on every node
    jars : local paths put on the class path of driver and executors, such as a JDBC driver
    progress : told what Spark is at while a step runs
    deadline_s : the longest one step (start, read, hand-over) may take; a lost RayDP master otherwise hangs for ever

    Raises
    ------
    NoJava : no JVM was found
    SparkUnavailable : Spark did not start or answer in time, or died; all that was started has been ended
    """

    IDLE_S = 60
    """Seconds after which an executor without tasks is released."""

    def __init__(
        self,
        settings: Settings,
        *,
        shape: Shape | None = None,
        deadline_s: float = 300.0,
        jars: Sequence[str] = (),
        progress: Progress | None = None,
        data_bytes: int | None = None,
    ) -> None:
        self._settings, self._data_bytes = settings, data_bytes
        self._given_shape, self._jars = shape, tuple(jars)
        self._deadline_s = deadline_s
        self._stages = StageWords(progress)
        self._logs = Path(settings.home) / "logs"
        self._name = f"raymlops-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._context: Any = None
        self._gateway: Any = None
        self._stack = ExitStack()
        self._abandoned = False

    def __enter__(self) -> SparkSession:
        if not ray.is_initialized():
            raise SparkUnavailable("Ray is not running in this process: call ray.init() before starting Spark on it.")
        self._refuse_second()
        ensure_java(self._settings)
        self._logs.mkdir(parents=True, exist_ok=True)
        _sweep(self._scratch.parent)
        try:
            helper = self._stack.enter_context(java_node(self._settings, self._logs, self._deadline_s))
            return self.step("starting Spark", lambda: self._start(helper is not None))
        except BaseException:
            if not self._abandoned:
                self._abandon()
            self._stack.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._abandoned:
                self.step("stopping Spark", self._stop, _STOP_S)
        except SparkUnavailable:
            logging.getLogger(__name__).warning("Spark did not stop in time; its processes were ended.")
        finally:
            self._stack.close()

    def step(self, what: str, work: Callable[[], T], deadline_s: float | None = None) -> T:
        """Run ``work`` in a thread; when it is not back in time, or Spark died under it, end everything.

        Raises
        ------
        SparkUnavailable : the deadline passed, or the JVM, the master or an executor is gone
        DataError : Spark understood, and refused what it was asked
        """
        limit = deadline_s or self._deadline_s
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run, name=f"spark: {what}", daemon=True)
        thread.start()
        with self._stages.told():
            lost = self._waited(thread, limit)
        if thread.is_alive():
            self._abandon()
            thread.join(_ABANDON_S)
            reason = (
                f"Spark did not finish {what} within {limit:g} s and was ended"
                if lost is None
                else f"Spark was lost while {what}: {lost}"
            )
            raise SparkUnavailable(f"{reason}. Logs: {self._logs}.", {"step": what})
        if failure:
            # The cause cannot print itself once its JVM is gone; its text is kept in the log instead.
            raise self._explained(what, failure[0]) from None
        return outcome[0]

    def _waited(self, thread: threading.Thread, limit: float) -> str | None:
        """Wait for a step, no longer than its limit, nor once Spark cannot finish it; why it cannot, then."""
        end = time.monotonic() + limit
        while thread.is_alive() and (left := end - time.monotonic()) > 0:
            thread.join(min(left, _LOOK_S))
            lost = None if self._context is None or self._abandoned else self._context.lost()
            if lost is not None:
                thread.join(_LOOK_S)  # a step that fails by itself says more
                return lost
        return None

    def folder(self) -> str:
        """A folder of its own for each hand-over, which the executors make; what is left of it goes with Spark."""
        return str(self._scratch / f"handed-{uuid.uuid4().hex[:8]}")

    # --- starting and stopping -------------------------------------------------------------------------

    @property
    def _scratch(self) -> Path:
        return self._logs.parent / "spark" / self._name

    @property
    def _shape(self) -> Shape:
        return self._given_shape or shape_for(
            [
                Node(cpus=_cpus_of(node), memory=node["Resources"].get("memory", 0.0))
                for node in ray.nodes()
                if node["Alive"]
            ],
            data_bytes=self._data_bytes,
        )

    def _start(self, on_helper: bool) -> SparkSession:
        from pyspark import SparkConf, SparkContext
        from pyspark.java_gateway import launch_gateway

        from raymlops.data.ray_cluster import QuietSparkContext

        configs = self._configs(on_helper)
        shape = self._shape
        self._context = QuietSparkContext(self._name, shape.executors, shape.cores, shape.memory, configs, on_helper)
        self._context.start_master()
        # The driver's JVM is launched here and not by pyspark, so that its output goes to a file.
        with open(self._logs / "spark-driver.log", "ab") as log:
            conf = SparkConf(loadDefaults=False).setAll(list(configs.items()))
            self._gateway = launch_gateway(conf, {"stdout": log, "stderr": subprocess.STDOUT})
        SparkContext._ensure_initialized(gateway=self._gateway)
        # Read by pyspark when the context is made; its default is whatever python3 the executor's node has on its PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        logging.getLogger("py4j").setLevel(logging.CRITICAL)
        session: SparkSession = self._context.get_or_create_session()
        session.sparkContext.setLogLevel("ERROR")
        self._stages.follow(session.sparkContext.statusTracker())
        return session

    def _configs(self, on_helper: bool) -> dict[str, str]:
        log4j = self._logs / "log4j2-spark.properties"
        log4j.write_text(_LOG4J.format(path=self._logs / "spark.log"))
        quiet = f"-Dlog4j2.configurationFile=file:{log4j}"
        shape = self._shape
        # Rows that pass through are garbage at once: a larger young generation only spreads them over more memory.
        garbage = f"{_COMPILED} -XX:+UseParallelGC -XX:MaxNewSize={_YOUNG_MB * min(shape.cores, 8)}m"
        configs = {
            "spark.driver.extraJavaOptions": f"{_JAVA_OPTIONS} {PLANS_ONLY}",
            "spark.executor.extraJavaOptions": f"{_JAVA_OPTIONS} {quiet} {garbage}",
            "spark.ray.raydp_app_master.extraJavaOptions": f"{_JAVA_OPTIONS} {PLANS_ONLY}",
            "spark.log4j.config.file.name": f"file:{log4j}",
            "spark.ray.raydp_spark_master.actor.resource.CPU": "0",
            "spark.ray.raydp_spark_executor.actor.resource.cpu": "0" if on_helper else str(_SOME_CPU),
            "spark.driver.memory": "1g",
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.ansi.enabled": "true",  # a cast that fails is an error, not a null
            "spark.sql.shuffle.partitions": str(max(2, shape.executors * shape.cores)),
            "spark.sql.execution.arrow.pyspark.enabled": "true",
            "spark.sql.files.ignoreCorruptFiles": "false",
            "spark.sql.files.maxPartitionBytes": "32m",  # the first are read while the last are computed
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.local.dir": str(self._scratch),
        }
        if shape.most is not None:
            configs |= {
                "spark.dynamicAllocation.enabled": "true",
                "spark.dynamicAllocation.shuffleTracking.enabled": "true",  # what holds a shuffle's rows stays
                "spark.dynamicAllocation.minExecutors": "1",
                "spark.dynamicAllocation.initialExecutors": str(shape.executors),
                "spark.dynamicAllocation.maxExecutors": str(shape.most),
                "spark.dynamicAllocation.executorIdleTimeout": f"{self.IDLE_S}s",
            }
        if self._jars:
            configs["spark.driver.extraClassPath"] = configs["spark.executor.extraClassPath"] = ":".join(self._jars)
        if on_helper:
            for actor in ("master", "executor"):
                configs[f"spark.ray.raydp_spark_{actor}.actor.resource.{helper_resource()}"] = "1"
        return configs

    def _stop(self) -> None:
        try:
            self._context.stop(cleanup_data=True)
        finally:
            self._forget()

    def _abandon(self) -> None:
        """End what hangs: the driver's JVM, then the master actor, with which its gateway and the executors go."""
        self._abandoned = True
        if self._gateway is not None:
            kill_process(self._gateway.proc.pid)
        if self._context is not None:
            self._context.kill_master()
        self._forget()

    def _forget(self) -> None:
        """Clear what pyspark keeps for the whole process, and end its JVM: the next session gets a new one."""
        self._stages.follow(None)
        shutil.rmtree(self._scratch, ignore_errors=True)
        from pyspark import SparkContext
        from pyspark.sql import SparkSession

        if self._gateway is not None:
            process = self._gateway.proc
            # Objects collected later would otherwise call the ended JVM and fill the console with tracebacks.
            self._gateway._gateway_client.is_connected = False
            kill_process(process.pid)
            process.wait(10)
            process.stdin.close()
        SparkContext._gateway = SparkContext._jvm = SparkContext._active_spark_context = None
        SparkSession._instantiatedSession = SparkSession._activeSession = None
        SparkSession.builder._options.clear()

    def _refuse_second(self) -> None:
        from pyspark import SparkContext

        if SparkContext._active_spark_context is not None:
            raise SparkUnavailable("A Spark session is active in this process already: stop it first (spark.stop()).")

    def _explained(self, what: str, error: BaseException) -> BaseException:
        """What the user can act on: their own mistake as a DataError, a dead Spark as SparkUnavailable."""
        from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError
        from pyspark.errors import PySparkException
        from pyspark.errors.exceptions.captured import CapturedException
        from ray.exceptions import RayError

        if isinstance(error, RaymlopsError) or not isinstance(error, Exception):
            return error
        with open(self._logs / "spark-errors.log", "a") as log:
            log.write(f"{what}: {type(error).__name__}: {error}\n")
        lost = "SparkContext was shut down" in str(error) or "has been shutdown" in str(error)
        if isinstance(error, (Py4JNetworkError, RayError, OSError)) or lost or not self._driver_runs():
            self._abandon()
            reason = f"Spark was lost while {what}: {_first_line(error)}. Logs: {self._logs}."
            return SparkUnavailable(reason, {"step": what})
        if isinstance(error, (CapturedException, PySparkException, Py4JJavaError, Py4JError)):
            return DataError(f"Spark refused {what}: {_reason(error)}")
        return DataError(f"{what} failed: {type(error).__name__}: {_first_line(error)}")

    def _driver_runs(self) -> bool:
        return self._gateway is not None and self._gateway.proc.poll() is None


class StageWords:
    """Spark's stages in a few words, told when they change; its own progress bar would fill the console."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._tracker: Any = None
        self._said = ""

    def follow(self, tracker: Any) -> None:
        self._tracker = tracker

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell them until the block ends, from a thread of their own: a JVM that hangs must not hold up a deadline."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(_LOOK_S):
                self.tell()

        if self._progress is not None:
            threading.Thread(target=run, name="spark stages", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def tell(self) -> None:
        """Say how far the running stages are, when there is somebody to say it to and something new to say."""
        if self._progress is None or self._tracker is None:
            return
        try:
            stages = [self._tracker.getStageInfo(number) for number in self._tracker.getActiveStageIds()]
        except Exception as error:
            # The JVM may be dying under the step; the step itself finds out and says so.
            logging.getLogger(__name__).debug("Spark does not tell its stages: %s", type(error).__name__)
            self._tracker = None
            return
        told = ", ".join(
            f"stage {stage.stageId}: {stage.numCompletedTasks} of {stage.numTasks} tasks" for stage in stages if stage
        )
        if told and told != self._said:
            self._said = told
            self._progress(f"Spark {told}")


def _cpus_of(node: dict[str, Any]) -> float:
    """What Ray may use of a node, and of this machine no more than it has: its books may hold more."""
    cpus = float(node["Resources"].get("CPU", 0.0))
    return min(cpus, os.cpu_count() or 1) if node["NodeID"] == ray.get_runtime_context().get_node_id() else cpus


def _sweep(folder: Path) -> None:
    """Remove what sessions left whose process was killed. A day's grace: the folder may be shared with other machines."""
    for left in folder.glob("raymlops-*-*"):
        pid = left.name.split("-")[1]
        with suppress(OSError):
            if pid.isdigit() and not psutil.pid_exists(int(pid)) and time.time() - left.stat().st_mtime > _GRACE_S:
                shutil.rmtree(left, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _reason(error: BaseException) -> str:
    """The line of a long Spark message that says why: the Python exception inside it, else the first cause, else its first line."""
    from py4j.protocol import Py4JJavaError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    java = ("at ", "org.", "java.", "Caused")
    python = [x for x in lines if x.split(":")[0].endswith(("Error", "Exception")) and not x.startswith(java)]
    if python:
        return python[-1]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    if causes:
        name, _, said = causes[-1].partition(": ")
        return said if said and " " not in name else causes[-1]
    if isinstance(error, Py4JJavaError):
        return str(error.java_exception.getMessage()).strip().splitlines()[0]
    return lines[0] if lines else type(error).__name__
