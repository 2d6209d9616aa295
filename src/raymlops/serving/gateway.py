"""The gateway: one ASGI application an endpoint. It predicts with the champion in its own process and knows no Ray.

It serves with the last traffic table it was given, whatever has died around it. A challenger lives elsewhere, behind a
port; when it fails, is late or answers what is not finite, the champion answers and the failure is counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from raymlops.clock import Clock, SystemClock
from raymlops.errors import (
    ContractViolation,
    LabelConflict,
    MethodNotAllowed,
    Overloaded,
    RaymlopsError,
    UnknownPath,
    UnknownRequest,
)
from raymlops.serving.analysis import VariantStats
from raymlops.serving.batching import Answer
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
    rows_response,
    served_headers,
)
from raymlops.serving.lane import Lane
from raymlops.serving.logfile import Served
from raymlops.serving.protocol import (
    PredictRequest,
    check_media,
    describe_model,
    format_infer,
    parse_infer,
    parse_labels,
    parse_rows,
    request_id_of,
)
from raymlops.serving.recorder import FLUSH_S, LabelWriter, LogFiles, PredictionStore, Recorder, Sink
from raymlops.serving.spec import Serving
from raymlops.serving.traffic import TrafficSplit
from raymlops.serving.variants import CHALLENGER_TIMEOUT_S, Challengers, PackageSource, Variants
from raymlops.store import LabelRow

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 2048


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
        self._errors = 0
        self._started = self._clock.monotonic()
        self._routes = self._table()
        self.lane = Lane(endpoint, self._variants, self._recorder, self.limits, self._clock)

    def _table(self) -> dict[str, dict[str, Callable[[Request], Awaitable[Response]]]]:
        model = f"/v2/models/{self.endpoint}"
        return {
            "/predict": {"POST": self._predict},
            "/feedback": {"POST": self._feedback},
            "/status": {"GET": self._status},
            "/health/live": {"GET": self._live},
            "/health/ready": {"GET": self._ready},
            "/v2": {"GET": self._server},
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
            model: {"GET": self._describe},
            f"{model}/ready": {"GET": self._ready},
            f"{model}/infer": {"POST": self._infer},
        }

    # --- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to write the prediction log. Calling it again does nothing."""
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.ensure_future(self._recorder.run())

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

    async def answer_parsed(self, parsed: PredictRequest, request_id: str | None, challenger: int | None) -> Response:
        """Rows that :attr:`lane` left to the usual way, for the ``challenger`` it picked or for the champion."""
        self._in_flight += 1
        headers = {} if request_id is None else {b"x-request-id": request_id.encode()}
        try:
            response = await self._guarded(self._answer_rows(parsed, headers, challenger), f"rows for {challenger}")
        finally:
            self._in_flight -= 1
        self._errors += response.status >= 500
        return response

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
        return await self._guarded(self._handle(scope, receive), f"{scope['method']} {scope['path']}")

    async def _guarded(self, work: Awaitable[Response], what: str) -> Response:
        """The answer within the deadline, or the error's."""
        try:
            async with Deadline(self.limits.deadline):
                return await work
        except MethodNotAllowed as error:
            return error_response(error, ((b"allow", ", ".join(error.details["allow"]).encode()),))
        except RaymlopsError as error:
            return error_response(error)
        except ClientGone:
            raise
        except Exception:
            log.exception("%s: %s failed", self.endpoint, what)
            return error_response(RaymlopsError("The gateway failed on this request; its log says why."))

    async def _handle(self, scope: Scope, receive: Receive) -> Response:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        handler = self._find(scope["path"], scope["method"])
        if self._in_flight > MAX_IN_FLIGHT:
            raise Overloaded(f"{self.endpoint} is answering {MAX_IN_FLIGHT} requests already. Try again later.")
        body = b""
        if scope["method"] == "POST":
            check_media(headers)
            body = await read_body(headers, receive, self.limits.max_body_bytes)
        return await handler(Request(headers, body))

    def _find(self, path: str, method: str) -> Callable[[Request], Awaitable[Response]]:
        own = f"/{self.endpoint}/"
        route = self._routes.get(path[len(own) - 1 :] if path.startswith(own) else path)
        if route is None:
            raise UnknownPath(
                f"There is nothing at {path[:200]!r}. {self.endpoint!r} has: POST /{self.endpoint}/predict "
                f"and /{self.endpoint}/feedback, GET /{self.endpoint}/status, POST /v2/models/{self.endpoint}/infer."
            )
        handler = route.get(method)
        if handler is None:
            allow = sorted(route)
            raise MethodNotAllowed(f"{path[:200]} takes {' or '.join(allow)}, not {method[:20]}.", {"allow": allow})
        return handler

    # --- predictions --------------------------------------------------------------------------------

    async def _predict(self, request: Request) -> Response:
        parsed = parse_rows(request.body, self.limits.max_rows)
        return await self._answer_rows(parsed, request.headers, self._variants.pick(parsed))

    async def _answer_rows(
        self, parsed: PredictRequest, headers: Mapping[bytes, bytes], challenger: int | None
    ) -> Response:
        own, version, variant, answer = await self._serve(parsed, headers, challenger)
        return rows_response(own, version, variant, answer.predictions, answer.probabilities)

    async def _infer(self, request: Request) -> Response:
        columns = self._variants.require_champion().model.contract.names
        parsed = parse_infer(request.body, columns, self.limits.max_rows)
        own, version, variant, answer = await self._serve(parsed, request.headers, self._variants.pick(parsed))
        body = format_infer(self.endpoint, version, own, answer.predictions, answer.probabilities)
        return json_response(body, headers=served_headers(own, version, variant))

    async def _serve(
        self, request: PredictRequest, headers: Mapping[bytes, bytes], challenger: int | None
    ) -> tuple[str, int, str, Answer]:
        """Get the answer of the challenger that was picked, or the champion's, and remember it."""
        started = time.perf_counter()
        variants, recorder = self._variants, self._recorder
        variants.require_champion()
        version, variant, answer = await variants.answer(request, challenger)
        took_ms = (time.perf_counter() - started) * 1000.0
        given: int | str = request.request_id or request_id_of(headers.get(b"x-request-id")) or recorder.number()
        count = len(request.rows)
        rows = request.rows if answer.sent is None else ()
        recorder.served(Served((given,), (count,), rows, answer, version, variant, self._clock.now(), took_ms))
        return given if isinstance(given, str) else recorder.text(given), version, variant, answer

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
            "errors": self._errors + self.lane.errors,
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

    async def _ready(self, _request: Request) -> Response:
        champion = self._variants.require_champion()
        return json_response({"name": self.endpoint, "ready": True, "version": champion.version})

    async def _server(self, _request: Request) -> Response:
        return json_response({"name": "raymlops", "version": "2", "extensions": []})

    async def _describe(self, _request: Request) -> Response:
        champion = self._variants.require_champion()
        contract = champion.model.contract
        columns = [(column.name, column.kind) for column in contract.columns]
        return json_response(describe_model(self.endpoint, [champion.version], columns, contract.task))
