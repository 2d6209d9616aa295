"""The steward: one detached actor an endpoint. It watches, asks the controller, and does what the controller says.

Nothing is decided here. What must not be lost is in the store before it is acted on; after a crash the actor reads it
back and makes the world agree with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

import ray

from raymlops.clock import Clock, SystemClock
from raymlops.errors import ConfigError, RaymlopsError, RolloutError, StaleLease
from raymlops.lake import Lake
from raymlops.loop import controller
from raymlops.loop.controller import Action, Observation
from raymlops.loop.ledger import LEASE_S, Ledger
from raymlops.loop.pipelines import load_pipeline as load_pipeline
from raymlops.loop.pipelines import save_pipeline as save_pipeline
from raymlops.loop.ports import Aliases, Jobs, JobStatus, ProbeFailed, Serve
from raymlops.loop.ray_probe import RayProbes
from raymlops.loop.state import EndpointState, Preparing, RollingOut, Stage
from raymlops.loop.watch import Watch
from raymlops.monitor import alibi
from raymlops.monitor.examine import Examination
from raymlops.retrain_state import Probing
from raymlops.serving.spec import NAMESPACE, steward_name
from raymlops.serving.traffic import TrafficSplit
from raymlops.settings import Settings
from raymlops.store import Store, mask

TICK_S = 0.25
JOB_POLL_S = 2.0

log = logging.getLogger(__name__)


class Steward:
    """A plain class; :func:`launch` makes it an actor. Methods are called from many threads: one lock orders changes of the
    state, another one guards the watch. Nobody waits for the first with the second in hand, and the watch is never asked
    between a decision and its table: a window's report takes its time, a rollback must not.
    """

    def __init__(
        self, endpoint: str, settings: Settings, serve: Serve, jobs: Jobs, aliases: Aliases, clock: Clock | None = None
    ) -> None:
        self.endpoint = endpoint
        self._clock = clock or SystemClock()
        self._store, self._lake = Store(settings.store), Lake(settings.lake)
        self._ledger = Ledger(self._store, endpoint)
        self._serve, self._jobs, self._aliases = serve, jobs, aliases
        self._lock, self._watching = threading.RLock(), threading.RLock()
        self._routed = threading.Condition()
        self._problems: deque[str] = deque(maxlen=20)
        self._job_polled = 0.0
        self._probed: tuple[str, Examination | ProbeFailed] | None = None
        self._pipeline = load_pipeline(self._store, self._lake, endpoint)
        self._state = self._ledger.load() or EndpointState(name=endpoint, phase=Preparing(since=self._clock.now()))
        self._published: TrafficSplit | None = None
        self._renewed = self._clock.monotonic()
        self._watch = Watch(
            endpoint, self._pipeline.monitor, self._store, self._lake, settings.home, self._ledger.lease
        )
        self._watch.follow(self._state.champion)
        self._stopping = threading.Event()
        self._attempt(controller.restore(self._state))
        self._thread = threading.Thread(target=self._run, name=f"steward-{endpoint}", daemon=True)

    def start(self) -> None:
        """Begin to watch. Calling it again does nothing."""
        with self._lock:
            if not self._thread.is_alive():
                self._thread.start()

    # --- called by gateways -------------------------------------------------------------------------

    def wait_routing(self, known_number: int, timeout_s: float = 10.0) -> dict[str, Any] | None:
        """The traffic table as soon as its number exceeds ``known_number``; ``None`` when the time is up first."""
        deadline = time.monotonic() + min(timeout_s, 30.0)
        with self._routed:
            while True:
                split = self._published
                if split is not None and split.number > known_number:
                    return split.to_dict()
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._routed.wait(left)

    def observe(self, batch: dict[str, Any]) -> None:
        """Take what one gateway saw since its last call."""
        with self._watching:
            self._watch.observe(batch, self._clock.now())

    # --- called by runs and retrainings -------------------------------------------------------------

    def candidate(self, version: int, event_id: str) -> None:
        """A version passed the gate: serve it, at once when it is the first, else by the pipeline's rollout."""
        with self._lock:
            self._obey(
                controller.begin_rollout(self._state, self._pipeline.rollout, version, event_id, self._clock.now())
            )

    def refused(self, event_id: str, reason: str) -> None:
        """A retraining's candidate did not pass."""
        with self._lock:
            self._obey(controller.refused(self._state, event_id, reason, self._clock.now()))

    def stage(self, event_id: str, stage: Stage) -> None:
        """A retraining tells how far it is."""
        with self._lock:
            self._obey((controller.at_stage(self._state, event_id, stage), ()))

    def store_url(self) -> str:
        """Which store this endpoint's life is kept in."""
        return self._store.url

    def reload(self) -> None:
        """The pipeline was stored anew: use its specs from now on, the monitor's from the next champion on."""
        with self._lock:
            self._pipeline = pipeline = load_pipeline(self._store, self._lake, self.endpoint)
        with self._watching:
            self._watch.use(pipeline.monitor)

    # --- called by people ---------------------------------------------------------------------------

    def command(self, verb: str, reason: str) -> dict[str, Any]:
        """Do what a person asks: ``promote``, ``approve``, ``abort``, ``rollback``, ``pause``, ``resume``, ``retrain``."""
        verbs = {
            "promote": lambda now: controller.promote(self._state, self._pipeline.rollout, reason, now),
            "approve": lambda now: controller.approve(self._state, reason),
            "abort": lambda now: controller.abort(self._state, reason, now),
            "rollback": lambda now: controller.rollback(self._state, self._pipeline.rollout, reason, now),
            "pause": lambda now: controller.pause(self._state, True),
            "resume": lambda now: controller.resume(self._state, now),
            "retrain": lambda now: controller.start_retraining(self._state, reason, {"asked": "by hand"}, now),
        }
        with self._lock:
            self._obey(verbs[verb](self._clock.now()))
        return self.status()

    def status(self) -> dict[str, Any]:
        """The state and the last reports, JSON-able."""
        with self._lock:
            found = {**self._state.to_dict(), "problems": list(self._problems)}
        with self._watching:
            return {**found, "monitor": self._watch.summary()}

    # --- the turn -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            try:
                self.tick()
            except StaleLease as error:
                log.error("%s: another steward has taken over, this one ends: %s", self.endpoint, error)
                self._problems.append(error.message)
                self._stopping.set()
            except Exception as error:
                # A turn that fails must not end the watch; people see it in the status and the actor's log.
                log.exception("%s: a turn of the steward failed", self.endpoint)
                self._problems.append(f"{type(error).__name__}: {error}")

    def tick(self) -> None:
        """One turn: observe, decide, obey."""
        job, job_log = self._poll_job()
        probing = self._state.retrain.probing
        examination = self._poll_probe(probing)
        self._keep_lease()
        with self._watching:
            now, state = self._clock.now(), self._state
            # What is seen is the champion's of this state, also while a command is on its way to tell the watch.
            self._watch.follow(state.champion)
            rollout = state.phase.rollout if isinstance(state.phase, RollingOut) else None
            confirming = state.confirming
            self._watch.compare(rollout or confirming)
            report = self._watch.step(now)
            if report is not None and report.severity >= 2:
                self._ledger.record("drift", self._watch.describe(report))
            if state.retrain.probing != probing:
                examination = None  # of a champion that was
            if isinstance(examination, Examination):
                self._watch.examined(examination)
            seen = Observation(
                now=now,
                comparison=self._watch.comparison() if rollout else None,
                confirmation=self._watch.comparison() if confirming else None,
                report=self._watch.standing,
                labelled=self._watch.labelled,
                job=job,
                job_log=job_log,
                diagnosis=self._watch.insight.diagnosis,
                burning=self._watch.insight.burning(now),
                forecast=self._watch.insight.forecast,
                examination=examination,
            )
        with self._lock:
            if self._state is state:  # else it was seen for another state: look again in the next turn
                self._obey(controller.step(state, self._pipeline.rollout, self._pipeline.retrain, seen))

    def _poll_job(self) -> tuple[JobStatus | None, str]:
        """Outside the lock: the job's status is a call over HTTP."""
        job, now = self._state.retraining, self._clock.monotonic()
        if job is None or now - self._job_polled < JOB_POLL_S or isinstance(self._state.phase, RollingOut):
            return None, ""
        self._job_polled = now
        status = self._jobs.status(job.event_id)
        return status, self._jobs.logs(job.event_id) if status == "failed" else ""

    def _poll_probe(self, probing: Probing | None) -> Examination | ProbeFailed | None:
        if probing is None:
            return None
        if self._probed is not None and self._probed[0] == probing.id:
            return self._probed[1]  # the turn that got it was overtaken by another state
        try:
            found = self._jobs.probed(probing.id)
        except Exception as error:
            # Watching goes on without an answer; the policy knows what to do then.
            log.exception("%s: probe %s cannot be asked for", self.endpoint, probing.id)
            return ProbeFailed(reason=f"{type(error).__name__}: {error}"[:500])
        if found == "running":
            return None
        self._probed = (probing.id, found)
        return found

    def _keep_lease(self) -> None:
        now = self._clock.monotonic()
        if now - self._renewed >= LEASE_S / 3:
            self._renewed = now
            if not self._ledger.renew():
                raise StaleLease(f"Another steward of {self.endpoint!r} has taken over.")

    def _obey(self, result: tuple[EndpointState, tuple[Action, ...]]) -> None:
        state, actions = result
        before = self._state
        if state != before:
            self._ledger.save(state, actions)
        self._state = state
        self._attempt(actions)
        if self._state.champion != before.champion:
            with self._watching:
                self._watch.follow(self._state.champion)

    def _attempt(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            if isinstance(action, controller.SubmitRetraining):
                with self._watching:
                    self._watch.answered()
            try:
                self._act(action)
            except StaleLease:
                raise
            except Exception as error:
                log.exception("%s: %s failed", self.endpoint, action)
                self._problems.append(f"{type(action).__name__}: {error}")
                if isinstance(action, controller.DeployChallenger) and isinstance(self._state.phase, RollingOut):
                    # The challenger cannot even start: that is a verdict.
                    self._obey(
                        controller.abort(
                            self._state, f"version {action.version} does not start: {error}", self._clock.now()
                        )
                    )
                    return
                if isinstance(action, controller.SubmitRetraining) and self._state.retraining is not None:
                    self._obey(
                        controller.refused(
                            self._state, action.event_id, f"no job could be started: {error}", self._clock.now()
                        )
                    )
                    return

    def _act(self, action: Action) -> None:
        match action:
            case controller.Publish(split=split):
                self._publish(split)
            case controller.DeployChallenger(version=version):
                self._serve.deploy_version(self.endpoint, version)
            case controller.DropChallenger(version=version):
                self._serve.delete_version(self.endpoint, version)
            case controller.SetAlias(alias=alias, version=None):
                self._aliases.delete_alias(self.endpoint, alias)
            case controller.SetAlias(alias=alias, version=int(version)):
                self._aliases.set_alias(self.endpoint, alias, version)
            case controller.SubmitRetraining(event_id=event_id):
                self._jobs.submit(self.endpoint, event_id)
            case controller.SubmitProbe(probe_id=probe_id, version=version, change_at=change_at):
                self._jobs.probe(self.endpoint, probe_id, version, change_at)
            case controller.Record():
                return

    def _publish(self, split: TrafficSplit) -> None:
        # The state that holds this table is durable already; gateways need not wait for the copy that new ones begin with.
        with self._routed:
            self._published = split
            self._routed.notify_all()
        self._ledger.route(split)


class RayJobs(RayProbes):
    """Retrainings as Ray jobs: each with its own driver, logs and dashboard entry. Probes are tasks."""

    def submit(self, endpoint: str, event_id: str) -> None:
        import sys

        environ = {**self._settings.environ(), "RAYMLOPS_RAY_ADDRESS": _cluster()}
        client = self._client()
        if any(job.submission_id == event_id for job in client.list_jobs()):
            return
        client.submit_job(
            entrypoint=f"{sys.executable} -m raymlops retrain {endpoint} --event {event_id}",
            submission_id=event_id,
            runtime_env={"env_vars": environ},
            metadata={"raymlops": endpoint},
        )

    def status(self, event_id: str) -> JobStatus:
        from ray.job_submission import JobStatus as Status

        try:
            status = self._client().get_job_status(event_id)
        except RuntimeError as error:
            log.warning("job %s: %s", event_id, error)
            return "unknown" if "does not exist" not in str(error) else "missing"
        if status == Status.SUCCEEDED:
            return "succeeded"
        return "failed" if status in (Status.FAILED, Status.STOPPED) else "running"

    def logs(self, event_id: str) -> str:
        return str(self._client().get_job_logs(event_id))

    def _client(self) -> Any:
        from ray.dashboard.utils import ray_address_to_api_server_url
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(ray_address_to_api_server_url(_cluster()))


def _cluster() -> str:
    """The address of this process's own cluster; ``auto`` could name another one on the same machine."""
    return str(ray.get_runtime_context().gcs_address)


class _StewardActor(Steward):
    """The steward with its real engines; they are made here because none of them crosses a process."""

    def __init__(self, endpoint: str, settings: Settings) -> None:
        from raymlops.registry.mlflow import MlflowRegistry
        from raymlops.serving.ray_serve import ServeEngine

        super().__init__(endpoint, settings, ServeEngine(settings), RayJobs(settings), MlflowRegistry(settings.mlflow))
        self.start()
        if self._pipeline.monitor.second_opinion == "auto" and alibi.available():
            # Its import takes seconds; the first report must not wait for it.
            threading.Thread(target=alibi.preload, daemon=True).start()


def launch(endpoint: str, settings: Settings) -> Any:
    """The endpoint's steward: the running one, told to reload its pipeline, or a new one."""
    actor: Any = ray.remote(_StewardActor)
    handle = actor.options(
        name=steward_name(endpoint),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=3,
        max_concurrency=64,
        runtime_env={"env_vars": {**settings.environ(), "OMP_NUM_THREADS": "1"}},
    ).remote(endpoint, settings)
    serves = ray.get(handle.store_url.remote())
    if serves != settings.store:
        raise ConfigError(
            f"This cluster already serves an endpoint {endpoint!r} from another store ({mask(serves)}): set RAYMLOPS_HOME or "
            "RAYMLOPS_STORE to that one, or give the pipeline another name."
        )
    ray.get(handle.reload.remote())
    return handle


def find(endpoint: str) -> Any:
    """The running steward of an endpoint.

    Raises
    ------
    RolloutError : there is none on this cluster
    """
    try:
        return ray.get_actor(steward_name(endpoint), namespace=NAMESPACE)
    except ValueError as error:
        raise RolloutError(
            f"No steward of {endpoint!r} runs on this Ray cluster: run its pipeline, or join the right cluster with "
            "RAYMLOPS_RAY_ADDRESS."
        ) from error


def call(handle: Any, method: str, *arguments: Any, timeout_s: float = 120.0) -> Any:
    """Call the steward and unwrap its error, so that the caller sees a :class:`RaymlopsError` and no actor trace."""
    try:
        return ray.get(getattr(handle, method).remote(*arguments), timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        cause = error.as_instanceof_cause()
        if isinstance(error.cause, RaymlopsError):
            raise error.cause from None
        raise cause from None
