"""The serving engine: Serve applications for gateways and isolated versions. Serve is the control plane only.

An endpoint is the app named after it, on ``/{endpoint}``. An isolated version is the app ``{endpoint}.v{version}`` without
a route. One more app, ``raymlops.router`` on ``/``, serves ``/v2/models/{endpoint}`` for all endpoints, because a Serve app
has one route prefix, and answers for endpoints that are not there.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.serve.api import RunTarget
from ray.serve.config import AutoscalingConfig
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from raymlops.errors import ConfigError, ServingFailed, nearest
from raymlops.serving.ray_replica import GatewayReplica, RouterReplica, VersionReplica, version_app
from raymlops.serving.spec import Serving
from raymlops.settings import Settings
from raymlops.store import Store

log = logging.getLogger(__name__)

DEPLOY_S = 180.0
POLL_S = 0.05
ROUTER = "raymlops.router"
_QUIET = {"log_level": "WARNING", "enable_access_log": False}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an endpoint answers: on Serve's route, and on the gateways' own listener (faster)."""

    url: str
    direct_url: str
    port: int


@dataclass(slots=True)
class ServeEngine:
    """Deploys and deletes; holds nothing but its settings, so any process of the cluster may have one."""

    settings: Settings
    _http_port: int | None = field(default=None, init=False)

    def start(self) -> None:
        """Start Serve's controller and proxy, or join those that run.

        Raises
        ------
        ConfigError : somebody else listens on the HTTP port
        """
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if not _is_running():
            host, port = self.settings.http_host, self.settings.http_port
            if not _is_free(host, port):
                raise ConfigError(f"Port {port} of {host} is in use: set RAYMLOPS_HTTP_PORT to a free one.")
            if host not in _LOOPBACK:
                log.warning("Serve listens on %s: whoever reaches it can predict and send labels", host)
            serve.start(
                http_options={"host": host, "port": port, "keep_alive_timeout_s": 75},
                logging_config=_QUIET,
                # A dead proxy is replaced within seconds and not after half a minute.
                controller_options={"runtime_env": {"env_vars": {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1"}}},
            )
        client: Any = _get_global_client()
        self._http_port = int(client.http_config.port)

    def deploy_gateway(self, endpoint: str, serving: Serving | None = None) -> Place:
        """Serve an endpoint, or bring its gateways up to date: new ones answer before old ones stop.

        Raises
        ------
        ServingFailed : a gateway did not start; the reason is in the message. Gateways that served before still do
        """
        self.start()
        spec = serving or Serving()
        if spec.challenger_autoscaling is not None:
            _autoscaling("challenger_autoscaling", spec.challenger_autoscaling)  # now, and not in the next rollout
        place = self._place(endpoint, spec)
        options = self._options(spec)
        if spec.autoscaling is not None:
            options["autoscaling_config"] = _autoscaling("autoscaling", spec.autoscaling)
        else:
            options["num_replicas"] = spec.replicas
        gateway: Any = serve.deployment(serve.ingress()(GatewayReplica), name="gateway", **options)
        targets = [
            RunTarget(
                gateway.bind(endpoint, self.settings, spec, place.port),
                name=endpoint,
                route_prefix=f"/{endpoint}",
                logging_config=_QUIET,
            )
        ]
        if self.status().get(ROUTER) != "RUNNING":
            targets.append(self._router())
        _deploy(*targets)
        return place

    def deploy_version(self, endpoint: str, version: int) -> None:
        """Serve a version in isolation, without a route. Returns when it answers; at once when it does already.

        Raises
        ------
        ServingFailed : it does not start; nothing of it is left behind
        """
        self.start()
        name = version_app(endpoint, version)
        if self.status().get(name) == "RUNNING":
            return
        options = self._version_options(endpoint)
        deployment: Any = serve.deployment(VersionReplica, name="version", max_constructor_retry_count=1, **options)
        direct = "autoscaling_config" not in options
        try:
            _deploy(
                RunTarget(
                    deployment.bind(endpoint, version, self.settings, direct),
                    name=name,
                    route_prefix=None,
                    logging_config=_QUIET,
                )
            )
        except ServingFailed:
            _delete(name)
            raise

    def delete_version(self, endpoint: str, version: int) -> None:
        """Take an isolated version down; nothing happens when it is not there."""
        _delete(version_app(endpoint, version))

    def delete_endpoint(self, endpoint: str) -> None:
        """Take down everything that serves an endpoint."""
        for name in self.status():
            if name == endpoint or name.startswith(f"{endpoint}."):
                _delete(name)

    def status(self) -> dict[str, str]:
        """Serve's word on each app, such as ``RUNNING`` or ``DEPLOY_FAILED``."""
        return {name: str(app.status.value) for name, app in serve.status().applications.items()}

    def _router(self) -> RunTarget:
        """Endpoints hold their own limits; the router's are only there so that it does not read for ever."""
        options = {**self._options(Serving()), "num_replicas": 1}
        router: Any = serve.deployment(serve.ingress()(RouterReplica), name="router", **options)
        bound = router.bind(64 * 1024 * 1024, 60.0)
        return RunTarget(bound, name=ROUTER, route_prefix="/", logging_config=_QUIET)

    def _place(self, endpoint: str, spec: Serving) -> Place:
        """The endpoint's addresses; a port that was picked once is kept while nobody else has it."""
        host = self.settings.http_host
        store = Store(self.settings.store)
        kept = store.get("gateways", endpoint)
        port = spec.port or (kept["port"] if kept is not None else 0)
        if not port or (not spec.port and not _is_shareable(host, port)):
            port = _free_port(host)
        scaling = None if spec.challenger_autoscaling is None else dict(spec.challenger_autoscaling)
        store.put("gateways", endpoint, {"port": port, "challenger_autoscaling": scaling})
        store.close()
        reach = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return Place(
            url=f"http://{reach}:{self._http_port}/{endpoint}",
            direct_url=f"http://{reach}:{port}/{endpoint}",
            port=port,
        )

    def _version_options(self, endpoint: str) -> dict[str, Any]:
        """An isolated version scales as the endpoint's gateways were told; it always starts with a replica, or a version
        that cannot start would be found by its first request."""
        store = Store(self.settings.store)
        scaling = (store.get("gateways", endpoint) or {}).get("challenger_autoscaling")
        store.close()
        options = self._options(Serving())
        if scaling is None:
            return {**options, "num_replicas": 1}
        least = max(1, int(scaling.get("min_replicas", 1)))
        return {
            **options,
            "autoscaling_config": _autoscaling("challenger_autoscaling", {"initial_replicas": least, **scaling}),
        }

    def _options(self, spec: Serving) -> dict[str, Any]:
        environ = {**self.settings.environ(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return {
            "ray_actor_options": {"num_cpus": spec.num_cpus, "runtime_env": {"env_vars": environ}},
            "max_ongoing_requests": 2048,
            "max_surge_percent": 100,
            "graceful_shutdown_timeout_s": 15.0,
            "graceful_shutdown_wait_loop_s": 0.5,
            "health_check_period_s": 2.0,
            "health_check_timeout_s": 10.0,
        }


def _deploy(*targets: RunTarget) -> None:
    serve.run_many(list(targets), wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    waiting = {target.name for target in targets}
    deadline = time.monotonic() + DEPLOY_S
    while waiting:
        applications = serve.status().applications
        for name in sorted(waiting):
            app = applications.get(name)
            state = "" if app is None else str(app.status.value)
            if state == "RUNNING":
                waiting.discard(name)
            elif app is not None and state in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise ServingFailed(f"{name} does not start: {_reason(app)}")
        if waiting and time.monotonic() > deadline:
            raise ServingFailed(f"{', '.join(sorted(waiting))} did not start within {DEPLOY_S:.0f} s.")
        time.sleep(POLL_S)


def _reason(app: Any) -> str:
    """The last line of the trace that says something; the whole of it is in Serve's logs."""
    messages = [app.message, *(deployment.message for deployment in app.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "Exception" in line or line.startswith("raymlops.")]
    return str((errors or lines or ["no reason was given"])[-1])[:500]


def _autoscaling(name: str, given: Mapping[str, Any]) -> AutoscalingConfig:
    """Serve's own configuration, or its complaint as ours."""
    known = AutoscalingConfig.model_fields
    for key in given:
        if key not in known:
            raise ConfigError(f"{name} does not know {key!r}.{nearest(key, known)}")
    try:
        return AutoscalingConfig(**given)
    except ValueError as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"{name}={dict(given)!r} is refused by Ray Serve: {words[:300]}") from error


def _delete(name: str) -> None:
    if name in serve.status().applications:
        serve.delete(name)


def _is_running() -> bool:
    try:
        _get_global_client()
    except RayServeException:
        return False
    return True


def _is_free(host: str, port: int) -> bool:
    return _can_bind(host, port, share=False)


def _is_shareable(host: str, port: int) -> bool:
    return _can_bind(host, port, share=True)


def _can_bind(host: str, port: int, share: bool) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
