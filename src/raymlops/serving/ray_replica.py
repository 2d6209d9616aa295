"""What runs inside Serve replicas: the gateway with its own listener, an isolated version, and the router.

All are plain classes; :mod:`raymlops.serving.ray_serve` makes deployments of them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from raymlops.errors import NotReady, Overloaded, RaymlopsError, UnknownEndpoint, UnknownVersion
from raymlops.lake import Lake
from raymlops.registry.package import download
from raymlops.serving.batching import Answer, as_answer, warm
from raymlops.serving.direct import Link, LinkLost, Links, answered, greets, serve_directly
from raymlops.serving.explaining import ExplainDesk
from raymlops.serving.gateway import Gateway
from raymlops.serving.http import (
    ClientGone,
    Deadline,
    Receive,
    Response,
    Scope,
    Send,
    error_response,
    json_response,
    read_body,
    respond,
    with_id,
)
from raymlops.serving.inference import describe_server
from raymlops.serving.listener import DRAIN_S, Listener, bind, make_server
from raymlops.serving.predictor import Predictor
from raymlops.serving.protocol import Row
from raymlops.serving.retry import retried
from raymlops.serving.routes import error_words
from raymlops.serving.scribe import scribe
from raymlops.serving.spec import NAMESPACE, Serving, steward_name
from raymlops.serving.traffic import TrafficSplit
from raymlops.settings import Settings
from raymlops.store import Store

log = logging.getLogger(__name__)

WAIT_S = 10.0
RETRY_S = 0.5
NOTICE_S = 0.5
MAX_UNREAD_BATCHES = 4
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
_SERVER = {"/v2": None, "/v2/health/live": {"live": True}, "/v2/health/ready": {"ready": True}}
_MODEL_PATH = re.compile(r"/v2/models/([a-z0-9][a-z0-9_-]{0,62})(?:/|$)")


def version_app(endpoint: str, version: int) -> str:
    """The Serve app of an isolated version; the dot keeps it apart from every endpoint's name."""
    return f"{endpoint}.v{version}"


def _as_function(application: Application) -> Application:
    """uvicorn takes a bound method for an application of the old kind; a function says what it is."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await application(scope, receive, send)

    return app


class StorePackages:
    """Loads versions by what the store says of them; packages are kept in the node's cache by digest."""

    def __init__(self, endpoint: str, settings: Settings, store: Store) -> None:
        self._endpoint, self._store, self._lake = endpoint, store, Lake(settings.lake)
        self._cache = Path(settings.home) / "cache" / "packages"

    def load(self, version: int) -> Predictor:
        """Fetch, verify, load.

        Raises
        ------
        UnknownVersion : the store does not know it
        DigestMismatch : the package is not the one that was registered
        """
        body = self._store.get("versions", f"{self._endpoint}/{version}")
        if body is None:
            raise UnknownVersion(f"The store knows no version {version} of {self._endpoint!r}.")
        folder = download(self._lake, body["package_key"], self._cache / body["digest"], body["digest"])
        return Predictor.load(folder, version, body["digest"])


class RayChallengers:
    """Isolated versions: over the socket of a replica on this node, else behind Serve handles."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._handles: dict[int, Any] = {}
        self._links = Links(self._find)

    def link(self, version: int) -> Link | None:
        return self._links.get(version)

    async def predict(self, version: int, rows: Sequence[Row], timeout_s: float) -> Answer:
        """One call for the whole batch; errors of the version come back as they were raised. When the replica dies under it,
        another replica of the same version is asked while time is left."""
        return await retried(lambda: self._ask(version, rows), _died, timeout_s)

    async def _ask(self, version: int, rows: Sequence[Row]) -> Answer:
        link = self._links.get(version)
        if link is not None:
            return await link.predict(rows)
        body = await self._call(version, "predict", rows)
        if isinstance(body, RaymlopsError):
            raise body
        return as_answer(body)

    async def explain(self, version: int, rows: Sequence[Row]) -> dict[str, Any]:
        """As :meth:`predict`, of the replica's thread for explanations."""
        body = await self._call(version, "explain", rows)
        if isinstance(body, RaymlopsError):
            raise body
        explained: dict[str, Any] = body
        return explained

    async def _find(self, version: int) -> str | None:
        place: tuple[str, str | None] = await self._call(version, "where")
        return place[1] if place[0] == ray.get_runtime_context().get_node_id() else None

    async def _call(self, version: int, method: str, *arguments: Any) -> Any:
        handle: Any = self._handles.get(version)
        if handle is None:
            handle = await asyncio.to_thread(serve.get_app_handle, version_app(self._endpoint, version))
            self._handles = {version: handle}
        try:
            return await getattr(handle, method).remote(*arguments)
        except Exception:
            self._handles.pop(version, None)  # a handle may outlive its app; the next call looks it up again
            raise


def _died(error: Exception) -> bool:
    return isinstance(error, (ray.exceptions.RayActorError, LinkLost))


class StewardSink:
    """Tells the steward what was served. When it lags, nothing is taken until it has caught up."""

    def __init__(self) -> None:
        self.steward: Any = None
        self._unread = 0

    def observe(self, batch: dict[str, Any]) -> None:
        if self.steward is None:
            raise NotReady("The steward is not there; figures are kept until it is.")
        if self._unread >= MAX_UNREAD_BATCHES:
            raise Overloaded(f"The steward has {self._unread} batches to read; what is new is added to the next one.")
        self._unread += 1
        self.steward.observe.remote(batch).future().add_done_callback(self._read)

    def _read(self, future: Any) -> None:
        self._unread -= 1
        if not future.cancelled() and future.exception() is not None:
            log.warning("the steward did not take a batch: %s", future.exception())


class VersionReplica:
    """One version by itself: its own process, its own failures.

    Parameters
    ----------
    direct : answer gateways of this node at a socket too. Serve does not see what comes that way, so a version that
        scales by its requests has none
    """

    def __init__(self, endpoint: str, version: int, settings: Settings, direct: bool = False) -> None:
        store = Store(settings.store)
        self._model = StorePackages(endpoint, settings, store).load(version)
        store.close()
        warm(self._model)
        self._version, self._desk = version, ExplainDesk(endpoint)
        self._path: str | None = None
        if direct:
            try:
                self._path = serve_directly(self._model)
            except OSError as error:
                log.warning("version %d of %s has no socket and is asked through Serve: %s", version, endpoint, error)

    def where(self) -> tuple[str, str | None]:
        """The node, and the socket there."""
        return ray.get_runtime_context().get_node_id(), self._path

    async def check_health(self) -> None:
        """Called by Serve; a replica whose socket is not answered at is replaced."""
        if self._path is not None and not await greets(self._path):
            raise RuntimeError(f"version {self._version} does not answer at its socket {self._path}")

    async def explain(self, rows: Sequence[Row]) -> dict[str, Any] | RaymlopsError:
        """As the champion's gateway does, in a thread beside the predictions; errors as in :meth:`predict`."""
        try:
            return await self._desk.explain(self._model, self._version, rows)
        except RaymlopsError as error:
            return error

    async def predict(self, rows: Sequence[Row]) -> dict[str, Any] | RaymlopsError:
        """The answer as a dictionary, or the error to raise: so it arrives whole and without an actor's trace."""
        return answered(self._model, rows)


class GatewayReplica:
    """A gateway on Serve's route and, with a port, on its own listener, which all replicas of a node share.

    It follows the steward by a long poll and keeps its last table when the steward is gone.
    """

    def __init__(self, endpoint: str, settings: Settings, serving: Serving, port: int | None) -> None:
        self._endpoint, self._port, self._host, self._limits = endpoint, port, settings.http_host, serving
        self._store = Store(settings.store)
        self._sink = StewardSink()
        threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix=f"telling-{endpoint}")
        self._gateway = Gateway(
            endpoint,
            packages=StorePackages(endpoint, settings, self._store),
            challengers=RayChallengers(endpoint),
            store=self._store,
            files=Lake(settings.lake),
            sink=self._sink,
            limits=serving,
            writing=scribe(endpoint, settings.store, settings.lake, self._sink, threads),
        )
        self._listener: Listener | None = None
        self._following: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once, on the loop that will serve; requests come when it has returned."""
        await self._gateway.start()  # what writes the log starts while the champion is loaded
        known = await asyncio.to_thread(self._store.get, "routing", self._endpoint)
        if known is not None:
            # A replica that cannot load the champion must not replace one that serves it: this raises.
            await self._gateway.apply(TrafficSplit.from_dict(known))
        _settle()
        self._following = asyncio.ensure_future(self._follow())
        if self._port is not None:
            self._listen(self._port)

        # uvicorn tells ASGI 3 from ASGI 2 by looking at functions only; a bound method passes for the old kind.
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            await self._application(scope, receive, send)

        return application

    async def forward(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, bytes, tuple[tuple[bytes, bytes], ...], bytes]:
        """A request the router took for this endpoint; the answer as status, body, headers and media type."""
        response = await self._gateway.handle(method, path, headers, body)
        return response.status, response.body, response.headers, response.media

    def check_health(self) -> None:
        """Called by Serve; a replica whose listener or long poll has ended is replaced."""
        for task in (self._following, self._listening):
            if task is not None and task.done():
                raise RuntimeError(f"a task of the gateway of {self._endpoint} has ended: {task}")

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._gateway(scope, receive, send)
            return
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _close(self) -> None:
        """Say so to load balancers, stop accepting, answer what is in flight, close what is idle, write what waits."""
        self._gateway.drain()
        if self._following is not None:
            self._following.cancel()
        if self._listener is not None and self._listening is not None:
            await asyncio.sleep(NOTICE_S)
            self._listener.should_exit = True
            await asyncio.wait({self._listening}, timeout=DRAIN_S + 1)
        try:
            await self._gateway.close()
        except Exception:
            log.exception("%s: what was served last may not be in its log", self._endpoint)
        finally:
            self._store.close()

    def _listen(self, port: int) -> None:
        listening = bind(self._host, port)
        self._listener = make_server(self._gateway, f"/{self._endpoint}/predict")
        self._listening = asyncio.ensure_future(self._listener.serve(sockets=[listening]))

    async def _follow(self) -> None:
        """Take each new traffic table as soon as the steward has it."""
        complained = False
        while True:
            try:
                if self._sink.steward is None:
                    self._sink.steward = await asyncio.to_thread(
                        ray.get_actor, steward_name(self._endpoint), namespace=NAMESPACE
                    )
                split = self._gateway.split
                call = self._sink.steward.wait_routing.remote(0 if split is None else split.number, WAIT_S)
                body = await asyncio.wait_for(call, WAIT_S * 3)
                if body is not None:
                    await self._gateway.apply(TrafficSplit.from_dict(body))
                complained = False
            except Exception as error:
                if not complained:
                    log.warning("%s keeps its last table: %s: %s", self._endpoint, type(error).__name__, error)
                complained = True
                self._sink.steward = None
                await asyncio.sleep(RETRY_S)


def _settle() -> None:
    """Make this process fit for short answers: what was loaded is never looked at by the collector again, and threads
    (large predictions, labels, what the steward is told) give the interpreter back sooner than after Python's 5 ms."""
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)


class RouterReplica:
    """Everything on Serve's port that is no endpoint's own route: ``/v2/…``, which it forwards by the model's name, and
    paths of endpoints that are not there. On the gateways' own listener nothing passes through here."""

    def __init__(self, max_body_bytes: int, deadline_s: float) -> None:
        self._max_body_bytes, self._deadline_s = max_body_bytes, deadline_s
        self._handles: dict[str, Any] = {}

    def __serve_build_asgi_app__(self) -> Any:
        return _as_function(self._application)

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{word}.complete"})
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
        else:
            try:
                response = await self._respond(scope, receive)
            except ClientGone:
                return
            except RaymlopsError as error:
                response = error_response(error, body=error_words(scope["path"]))
            await respond(send, with_id(response, None))

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        path = scope["path"]
        if path in _SERVER:
            return json_response(_SERVER[path] or describe_server())
        match = _MODEL_PATH.match(path)
        if match is None:
            first = path.strip("/").split("/")[0]
            raise UnknownEndpoint(f"There is no endpoint {first[:63]!r} here.")
        async with Deadline(self._deadline_s):
            headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
            body = await read_body(dict(headers), receive, self._max_body_bytes)
            return await self._forward(match[1], scope["method"], path, headers, body)

    async def _forward(
        self, endpoint: str, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> Response:
        try:
            if endpoint not in self._handles:
                self._handles[endpoint] = await asyncio.to_thread(serve.get_app_handle, endpoint)
            answer = await self._handles[endpoint].forward.remote(method, path, headers, body)
        except RayServeException as error:
            self._handles.pop(endpoint, None)
            raise UnknownEndpoint(f"There is no endpoint {endpoint!r} here.") from error
        except Exception as error:
            self._handles.pop(endpoint, None)
            log.exception("the gateway of %s did not answer", endpoint)
            raise NotReady(f"The gateway of {endpoint!r} did not answer. Try again in a moment.") from error
        return Response(*answer)
