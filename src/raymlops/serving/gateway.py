"""The gateway: one ASGI application an endpoint. It predicts with the champion in its own process and knows no Ray.

It serves with the last traffic table it was given, whatever has died around it. A challenger lives elsewhere, behind a
port; when it fails, is late or answers what is not finite, the champion answers and the failure is counted.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from raymlops.clock import Clock, SystemClock
from raymlops.errors import (
    ContractViolation,
    DeadlineExceeded,
    LabelConflict,
    MethodNotAllowed,
    ModelFault,
    NotReady,
    Overloaded,
    RaymlopsError,
    RequestTimeout,
    UnknownPath,
    UnknownRequest,
    UnknownVersion,
)
from raymlops.serving import arrow, invocations, openapi
from raymlops.serving.analysis import VariantStats
from raymlops.serving.http import (
    ClientGone,
    Deadline,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    error_response,
    json_response,
    read_body,
    respond,
)
from raymlops.serving.inference import describe_model, describe_server, format_infer, infer_error, parse_infer
from raymlops.serving.protocol import (
    PredictRequest,
    check_media,
    error_body,
    parse_labels,
    parse_rows,
    request_id_of,
)
from raymlops.serving.recorder import FLUSH_S, LabelWriter, LogFiles, PredictionStore, Recorder, Served, Sink
from raymlops.serving.spec import Serving
from raymlops.serving.traffic import TrafficSplit
from raymlops.serving.variants import CHALLENGER_TIMEOUT_S, Challengers, PackageSource, Variants
from raymlops.store import LabelRow

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 2048
_OTHER_MEDIA = {"/predict": arrow.MEDIA, "/invocations": b"text/csv"}
_VERSION = re.compile(r"/versions/([0-9]{1,18})(?=/|$)")


class Gateway:
    """The application and its state. Everything runs on one event loop.

    Parameters
    ----------
    packages, challengers, store, files, sink : what the gateway needs of the world
    limits : rows, bytes and seconds a request may take
    flush_s : seconds between two writes of the prediction log
    """

    def __init__(
        self,
        endpoint: str,
        *,
        packages: PackageSource,
        challengers: Challengers,
        store: PredictionStore,
        files: LogFiles,
        sink: Sink,
        limits: Serving | None = None,
        clock: Clock | None = None,
        flush_s: float = FLUSH_S,
    ) -> None:
        self.endpoint, self.limits, self._clock = endpoint, limits or Serving(), clock or SystemClock()
        self.id = uuid.uuid4().hex[:12]
        self._threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix=f"gateway-{endpoint}")
        self._recorder = Recorder(endpoint, store, files, sink, self._threads, flush_s)
        self._labels = LabelWriter(endpoint, store, self._recorder, self._threads)
        timeout_s = min(CHALLENGER_TIMEOUT_S, self.limits.deadline / 2)
        self._variants = Variants(endpoint, packages, challengers, self._recorder, timeout_s)
        self._flusher: asyncio.Task[None] | None = None
        self._in_flight = 0
        self._draining = False
        self._errors = 0
        self._started = self._clock.monotonic()
        self._routes = self._table()

    def _table(self) -> dict[str, dict[str, Callable[[Request], Awaitable[Response]]]]:
        model = f"/v2/models/{self.endpoint}"
        return {
            "/predict": {"POST": self._predict},
            "/feedback": {"POST": self._feedback},
            "/status": {"GET": self._status},
            "/health/live": {"GET": self._live},
            "/health/ready": {"GET": self._ready},
            "/openapi.json": {"GET": self._openapi},
            "/invocations": {"POST": self._invocations},
            "/ping": {"GET": self._ping},
            "/version": {"GET": self._mlflow_version},
            "/v2": {"GET": self._server},
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
            model: {"GET": self._describe},
            f"{model}/ready": {"GET": self._ready},
            f"{model}/infer": {"POST": self._infer},
            f"{model}/versions/V": {"GET": self._describe},
            f"{model}/versions/V/ready": {"GET": self._ready},
            f"{model}/versions/V/infer": {"POST": self._infer},
        }

    # --- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to write the prediction log. Calling it again does nothing."""
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.ensure_future(self._recorder.run())

    def drain(self) -> None:
        """Say from now on that this gateway is not ready, and end each connection with its next answer."""
        self._draining = True

    async def close(self) -> None:
        """Write what waits and stop. The application still answers afterwards, but nothing is logged any more."""
        if self._flusher is not None:
            self._flusher.cancel()
            with suppress(asyncio.CancelledError):
                await self._flusher
            self._flusher = None
        await self._recorder.flush()

    @property
    def split(self) -> TrafficSplit | None:
        """The traffic table in force."""
        return self._variants.split

    async def apply(self, split: TrafficSplit) -> bool:
        """Take a traffic table, see :meth:`raymlops.serving.variants.Variants.apply`."""
        return await self._variants.apply(split)

    # --- ASGI ---------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def handle(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Response:
        """A request that came another way than over HTTP to this process, answered as if it had."""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        return await self._counted({"method": method, "path": path, "headers": headers}, receive)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._counted(scope, receive)
        except ClientGone:
            return
        await respond(send, response)

    async def _counted(self, scope: Scope, receive: Receive) -> Response:
        self._in_flight += 1
        try:
            response = await self._respond(scope, receive)
        finally:
            self._in_flight -= 1
        self._errors += response.status >= 500
        return response

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path: str = scope["path"]
        response = await self._answered(path, scope["method"], headers, receive)
        if not response.headers or response.headers[0][0] != b"x-request-id":
            given = request_id_of(headers.get(b"x-request-id", b"").decode("latin-1"))
            response = replace(response, headers=((b"x-request-id", given.encode()), *response.headers))
        if self._draining:
            response = replace(response, headers=(*response.headers, (b"connection", b"close")))
        return response

    async def _answered(self, path: str, method: str, headers: dict[bytes, bytes], receive: Receive) -> Response:
        own = path[len(self.endpoint) + 1 :] if path.startswith(f"/{self.endpoint}/") else path
        reading = False
        extra: tuple[tuple[bytes, bytes], ...] = ()
        try:
            handler, version = self._find(own, path, method)
            if self._in_flight > MAX_IN_FLIGHT:
                raise Overloaded(f"{self.endpoint} is answering {MAX_IN_FLIGHT} requests already. Try again later.")
            async with Deadline(self.limits.deadline):
                body = media = b""
                if method == "POST":
                    media = check_media(headers, _OTHER_MEDIA.get(own, b""))
                    reading = True
                    body = await read_body(headers, receive, self.limits.max_body_bytes)
                    reading = False
                return await handler(Request(headers, body, media, version))
        except RaymlopsError as error:
            problem = error
        except ClientGone:
            raise
        except Exception:
            log.exception("%s: %s %s failed", self.endpoint, method, path)
            problem = RaymlopsError("The gateway failed on this request; its log says why.")
        if isinstance(problem, DeadlineExceeded) and reading:
            problem = RequestTimeout(f"The body was not complete within {self.limits.deadline:g} s: send it faster.")
        elif isinstance(problem, MethodNotAllowed):
            extra = ((b"allow", ", ".join(problem.details["allow"]).encode()),)
        elif isinstance(problem, (ContractViolation, ModelFault)) and self._variants.champion is not None:
            extra = _version_headers(self._variants.champion.version, "champion")
        return error_response(problem, extra, _error_body(own))

    def _find(self, own: str, path: str, method: str) -> tuple[Callable[[Request], Awaitable[Response]], int | None]:
        """The handler, and the version that the path names."""
        version = None
        if own not in self._routes and (named := _VERSION.search(own)):
            version = int(named[1])
            own = f"{own[: named.start()]}/versions/V{own[named.end() :]}"
        route = self._routes.get(own)
        if route is None or (version is None and own.find("/versions/V") >= 0):
            raise UnknownPath(
                f"There is nothing at {path[:200]!r}. {self.endpoint!r} has: POST /{self.endpoint}/predict, /feedback and "
                f"/invocations, GET /{self.endpoint}/status and /openapi.json, POST /v2/models/{self.endpoint}/infer."
            )
        handler = route.get(method)
        if handler is None:
            allow = sorted(route)
            raise MethodNotAllowed(f"{path[:200]} takes {' or '.join(allow)}, not {method[:20]}.", {"allow": allow})
        return handler, version

    # --- predictions --------------------------------------------------------------------------------

    async def _predict(self, request: Request) -> Response:
        width = len(self._variants.require_champion().model.inputs)
        if request.media == arrow.MEDIA:
            parsed = arrow.parse_table(request.body, self.limits.max_rows)
        else:
            parsed = parse_rows(request.body, self.limits.max_rows, width)
        served = await self._serve(parsed, request)
        answer = served.answer
        facts: Any = (served.request_id, served.version, served.variant, answer.predictions, answer.probabilities)
        if arrow.MEDIA in request.headers.get(b"accept", b""):
            return Response(200, arrow.format_table(self.endpoint, *facts), _served_headers(served), arrow.MEDIA)
        names = ("request_id", "version", "variant", "predictions", "probabilities")
        return json_response(dict(zip(names, facts, strict=True)), headers=_served_headers(served))

    async def _infer(self, request: Request) -> Response:
        columns = [column.name for column in self._variants.require_champion().model.inputs]
        parsed = parse_infer(request.body, columns, self.limits.max_rows)
        served = await self._serve(parsed, request)
        body = format_infer(
            self.endpoint,
            served.version,
            served.request_id,
            served.answer.predictions,
            served.answer.probabilities,
            parsed.outputs,
        )
        return json_response(body, headers=_served_headers(served))

    async def _invocations(self, request: Request) -> Response:
        columns = self._variants.require_champion().model.inputs
        if request.media == b"text/csv":
            parsed = invocations.parse_csv(request.body, columns, self.limits.max_rows)
        else:
            names = [column.name for column in columns]
            parsed = invocations.parse_invocations(request.body, names, self.limits.max_rows)
        served = await self._serve(parsed, request)
        return json_response(invocations.format_invocations(served.answer.predictions), headers=_served_headers(served))

    async def _serve(self, parsed: PredictRequest, request: Request) -> Served:
        """Choose the variant, get its answer or the champion's in its place, and remember it."""
        started = time.perf_counter()
        self._variants.require_champion()
        own = parsed.request_id or request_id_of(request.headers.get(b"x-request-id", b"").decode("latin-1"))
        if request.version is None:
            version, variant, answer = await self._variants.answer(parsed, own)
        else:
            version, variant, answer = await self._variants.answer_by(request.version, parsed.rows)
        now = time.perf_counter()
        served = Served(own, parsed.rows, answer, version, variant, self._clock.now(), (now - started) * 1000.0)
        self._recorder.served(served)
        return served

    # --- labels -------------------------------------------------------------------------------------

    async def _feedback(self, request: Request) -> Response:
        """Store labels; those that can be stored are, even when others of the same request cannot."""
        contract = self._variants.require_champion().model.contract
        rows = []
        for index, row in enumerate(parse_labels(request.body, self.limits.max_rows)):
            try:
                value = contract.check_label(row.value)
            except ContractViolation as error:
                raise ContractViolation(f"Label {index} ({row.request_id}): {error.message}", error.details) from error
            rows.append(LabelRow(request_id=row.request_id, row_index=row.row_index, value=value))
        outcomes = await self._labels.add(rows)
        counts = {"stored": outcomes.count("stored"), "duplicate": outcomes.count("duplicate")}
        for problem, kind, what in (
            ("conflict", LabelConflict, "already have another label, which stays"),
            ("unknown", UnknownRequest, "were never served by this endpoint"),
        ):
            found = [
                f"{row.request_id}[{row.row_index}]" for row, o in zip(rows, outcomes, strict=True) if o == problem
            ]
            if found:
                more = f" and {len(found) - 10} more" if len(found) > 10 else ""
                raise kind(
                    f"{len(found)} of {len(rows)} labels are for rows that {what}: {', '.join(found[:10])}{more}.",
                    {**counts, problem: len(found), "rows": found[:10]},
                )
        return json_response(counts)

    # --- what there is to know ------------------------------------------------------------------------

    async def _status(self, _request: Request) -> Response:
        return json_response(self.status())

    def status(self) -> dict[str, Any]:
        """The gateway of this process: table in force, counters since it started, latency of answered requests."""
        split, totals = self._variants.split, self._recorder.totals()
        every = sum(totals.values(), VariantStats())
        return {
            "endpoint": self.endpoint,
            "gateway": self.id,
            "ready": self._variants.champion is not None,
            "version": split.champion if split else None,
            "challenger": split.challenger if split else None,
            "weight": split.weight if split else 0.0,
            "shadow": split.shadow if split else False,
            "routing": split.number if split else 0,
            "loaded": self._variants.loaded,
            "rows": self._recorder.rows,
            "requests": every.requests,
            "errors": self._errors,
            "dropped": self._recorder.dropped,
            "labels": self._labels.stored,
            "uptime_s": self._clock.monotonic() - self._started,
            "p50_ms": every.latency_ms(0.5),
            "p99_ms": every.latency_ms(0.99),
            "versions": {
                str(version): {"requests": stats.requests, "errors": stats.errors, "nonfinite": stats.nonfinite}
                for version, stats in sorted(totals.items())
            },
        }

    async def _live(self, _request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        version = self._ready_version(request.version)
        return json_response({"name": self.endpoint, "ready": True, "version": version})

    async def _ping(self, _request: Request) -> Response:
        self._ready_version(None)
        return Response(200, b"\n", media=b"text/plain")

    async def _mlflow_version(self, _request: Request) -> Response:
        return Response(200, invocations.mlflow_version().encode(), media=b"text/plain")

    async def _server(self, _request: Request) -> Response:
        return json_response(describe_server())

    async def _describe(self, request: Request) -> Response:
        champion = self._variants.require_champion()
        self._check_version(request.version)
        model = champion.model
        return json_response(describe_model(self.endpoint, self._served_versions(), model.inputs, model.contract))

    async def _openapi(self, _request: Request) -> Response:
        champion = self._variants.require_champion()
        model = champion.model
        page = openapi.document(self.endpoint, champion.version, model.inputs, model.contract, self.limits)
        return json_response(page)

    def _ready_version(self, version: int | None) -> int:
        champion = self._variants.require_champion()
        if self._draining:
            raise NotReady(f"This gateway of {self.endpoint} is shutting down. Another one answers.")
        self._check_version(version)
        return champion.version if version is None else version

    def _check_version(self, version: int | None) -> None:
        if version is not None and version not in self._served_versions():
            known = ", ".join(map(str, self._served_versions()))
            raise UnknownVersion(f"{self.endpoint} does not serve version {version}; it serves {known}.")

    def _served_versions(self) -> list[int]:
        """Versions a path may name: the champion, and a challenger that answers requests."""
        split = self._variants.split
        if split is None:
            return []
        visible = split.challenger is not None and not split.shadow
        return [split.champion, *([split.challenger] if visible and split.challenger is not None else [])]


def _served_headers(served: Served) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"x-request-id", served.request_id.encode()), *_version_headers(served.version, served.variant))


def _version_headers(version: int, variant: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"x-raymlops-version", b"%d" % version), (b"x-raymlops-variant", variant.encode()))


def _error_body(own: str) -> Callable[[RaymlopsError], bytes]:
    """Each protocol words its errors in its own way."""
    if own == "/v2" or own.startswith("/v2/"):
        return infer_error
    return invocations.invocations_error if own in ("/invocations", "/ping", "/version") else error_body
