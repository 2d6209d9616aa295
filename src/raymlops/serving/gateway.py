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
    UnknownRequest,
)
from raymlops.serving import arrow, invocations, openapi
from raymlops.serving.analysis import VariantStats
from raymlops.serving.batching import Answer
from raymlops.serving.explaining import ExplainDesk
from raymlops.serving.http import (
    CLOSE,
    ClientGone,
    Deadline,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    check_head,
    error_response,
    json_response,
    read_body,
    respond,
    rows_response,
    served_headers,
    version_headers,
    with_id,
)
from raymlops.serving.inference import InferRequest, describe_model, describe_server, format_infer, parse_infer
from raymlops.serving.lane import Lane
from raymlops.serving.logfile import Served
from raymlops.serving.protocol import (
    PredictRequest,
    check_media,
    parse_labels,
    parse_rows,
    request_id_of,
)
from raymlops.serving.recorder import FLUSH_S, LabelWriter, MakeWriter, Recorder
from raymlops.serving.routes import OTHER_MEDIA, Route, Routes, error_words
from raymlops.serving.spec import Serving
from raymlops.serving.telling import Sink
from raymlops.serving.traffic import TrafficSplit
from raymlops.serving.variants import CHALLENGER_TIMEOUT_S, Challengers, PackageSource, Variants
from raymlops.serving.writing import LogFiles, PredictionStore, thread_writer
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
    writing : what writes it, beside this process; threads of this one when not given
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
        writing: MakeWriter | None = None,
    ) -> None:
        self.endpoint, self.limits, self._clock = endpoint, limits or Serving(), clock or SystemClock()
        self.id = uuid.uuid4().hex[:12]
        self._threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix=f"gateway-{endpoint}")
        write = writing or thread_writer(endpoint, store, files, sink, self._threads)
        self._recorder = Recorder(endpoint, write, flush_s, now=self._clock.now)
        self._labels = LabelWriter(endpoint, store, self._recorder, self._threads)
        timeout_s = min(CHALLENGER_TIMEOUT_S, self.limits.deadline / 2)
        self._variants = Variants(endpoint, packages, challengers, self._recorder, timeout_s)
        self._flusher: asyncio.Task[None] | None = None
        self._in_flight = 0
        self._errors = 0
        self._started = self._clock.monotonic()
        self._routes = Routes(endpoint)
        self._desk = ExplainDesk(endpoint)
        self.draining = False
        self.lane = Lane(endpoint, self._variants, self._recorder, self.limits, self._clock)

    # --- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to write the prediction log. Calling it again does nothing."""
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.ensure_future(self._recorder.run())

    def drain(self) -> None:
        """Say from now on that this gateway is not ready, and end each connection with its next answer."""
        self.draining = True

    async def close(self) -> None:
        """Write what waits and stop. The application still answers afterwards, but nothing is logged any more."""
        if self._flusher is not None:
            self._flusher.cancel()
            with suppress(asyncio.CancelledError):
                await self._flusher
            self._flusher = None
        self._desk.close()
        await self._variants.settle()
        await self._recorder.close()

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
        infer = isinstance(parsed, InferRequest)
        answering = self._answer_infer if infer else self._answer_rows
        try:
            response = await self._guarded(
                answering(parsed, headers, challenger),
                f"rows for {challenger}",
                headers,
                "/v2" if infer else "/predict",
            )
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
        headers: dict[bytes, bytes] = dict(scope["headers"])
        method, path = scope["method"], scope["path"]
        route: Route | None = None
        reading = False

        async def handle() -> Response:
            nonlocal route, reading
            check_head(scope)
            route = self._routes.find(path, method)
            if self._in_flight > MAX_IN_FLIGHT:
                raise Overloaded(f"{self.endpoint} is answering {MAX_IN_FLIGHT} requests already. Try again later.")
            body = media = b""
            if method == "POST":
                media = check_media(headers, OTHER_MEDIA.get(route.path, b""))
                reading = True
                body = await read_body(headers, receive, self.limits.max_body_bytes)
                reading = False
            answered: Response = await getattr(self, f"_{route.handler}")(Request(headers, body, media, route.version))
            return answered

        return await self._guarded(handle(), f"{method} {path}", headers, self._routes.own(path), lambda: reading)

    async def _guarded(
        self,
        work: Awaitable[Response],
        what: str,
        headers: Mapping[bytes, bytes],
        own: str = "/predict",
        reading: Callable[[], bool] = bool,
    ) -> Response:
        """The answer within the deadline, or the error's in the words of the path; with an id and, to end, with a farewell.

        Parameters
        ----------
        what : for the log
        own : the path without the endpoint's name in front
        reading : whether the request's body is still being waited for
        """
        try:
            async with Deadline(self.limits.deadline):
                response = await work
        except ClientGone:
            raise
        except RaymlopsError as error:
            response = self._refusal(error, own, reading())
        except Exception:
            log.exception("%s: %s failed", self.endpoint, what)
            problem = RaymlopsError("The gateway failed on this request; its log says why.")
            response = error_response(problem, body=error_words(own))
        response = with_id(response, request_id_of(headers.get(b"x-request-id")))
        return response if not self.draining else replace(response, headers=(*response.headers, CLOSE))

    def _refusal(self, error: RaymlopsError, own: str, reading: bool) -> Response:
        more: tuple[tuple[bytes, bytes], ...] = ()
        if reading and isinstance(error, DeadlineExceeded):
            error = RequestTimeout(f"The body was not complete within {self.limits.deadline:g} s: send it faster.")
        elif isinstance(error, MethodNotAllowed):
            more = ((b"allow", ", ".join(error.details["allow"]).encode()),)
        elif isinstance(error, (ContractViolation, ModelFault)) and self._variants.champion is not None:
            more = version_headers(self._variants.champion.version, "champion")
        return error_response(error, more, error_words(own))

    # --- predictions --------------------------------------------------------------------------------

    async def _predict(self, request: Request) -> Response:
        width = len(self._variants.require_champion().model.inputs)
        if request.media == arrow.MEDIA:
            parsed = arrow.parse_table(request.body, self.limits.max_rows)
        else:
            parsed = parse_rows(request.body, self.limits.max_rows, width)
        challenger = self._variants.pick(parsed)
        if arrow.MEDIA not in request.headers.get(b"accept", b""):
            return await self._answer_rows(parsed, request.headers, challenger)
        own, version, variant, answer = await self._serve(parsed, request.headers, challenger)
        table = arrow.format_table(self.endpoint, own, version, variant, answer.predictions, answer.probabilities)
        return Response(200, table, served_headers(own, version, variant), arrow.MEDIA)

    async def _answer_rows(
        self, parsed: PredictRequest, headers: Mapping[bytes, bytes], challenger: int | None
    ) -> Response:
        own, version, variant, answer = await self._serve(parsed, headers, challenger)
        return rows_response(own, version, variant, answer.predictions, answer.probabilities)

    async def _infer(self, request: Request) -> Response:
        columns = [column.name for column in self._variants.require_champion().model.inputs]
        parsed = parse_infer(request.body, columns, self.limits.max_rows)
        named = request.version
        challenger = self._variants.pick(parsed) if named is None else self._variants.named(named)
        return await self._answer_infer(parsed, request.headers, challenger)

    async def _answer_infer(
        self, parsed: PredictRequest, headers: Mapping[bytes, bytes], challenger: int | None
    ) -> Response:
        own, version, variant, answer = await self._serve(parsed, headers, challenger)
        wanted = parsed.outputs if isinstance(parsed, InferRequest) else None
        body = format_infer(self.endpoint, version, own, answer.predictions, answer.probabilities, wanted)
        return json_response(body, headers=served_headers(own, version, variant))

    async def _invocations(self, request: Request) -> Response:
        columns = self._variants.require_champion().model.inputs
        if request.media == b"text/csv":
            parsed = invocations.parse_csv(request.body, columns, self.limits.max_rows)
        else:
            names = [column.name for column in columns]
            parsed = invocations.parse_invocations(request.body, names, self.limits.max_rows)
        own, version, variant, answer = await self._serve(parsed, request.headers, self._variants.pick(parsed))
        body = invocations.format_invocations(answer.predictions)
        return json_response(body, headers=served_headers(own, version, variant))

    async def _explain(self, request: Request) -> Response:
        width = len(self._variants.require_champion().model.inputs)
        parsed = parse_rows(request.body, self.limits.max_rows, width)
        own = parsed.request_id or request_id_of(request.headers.get(b"x-request-id")) or uuid.uuid4().hex
        version, variant, model = self._variants.explains(request.version)
        if model is None:
            body = await self._variants.explain_elsewhere(version, parsed.rows)
        else:
            body = await self._desk.explain(model, version, parsed.rows)
        return json_response({"request_id": own, **body}, headers=served_headers(own, version, variant))

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
        own = given if isinstance(given, str) else recorder.text(given)
        count = len(request.rows)
        rows = request.rows if answer.sent is None else ()
        recorder.served(Served((given,), (count,), rows, answer, version, variant, self._clock.now(), took_ms))
        if challenger is not None and variant == "champion":
            variants.copy(challenger, request.rows, own, answer)
        return own, version, variant, answer

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
        model = self._variants.require_champion().model
        if request.version is not None:
            self._variants.named(request.version)
        return json_response(describe_model(self.endpoint, self._variants.visible, model.inputs, model.contract))

    async def _openapi(self, _request: Request) -> Response:
        champion = self._variants.require_champion()
        model = champion.model
        return json_response(
            openapi.document(self.endpoint, champion.version, model.inputs, model.contract, self.limits)
        )

    def _ready_version(self, version: int | None) -> int:
        champion = self._variants.require_champion()
        if self.draining:
            raise NotReady(f"This gateway of {self.endpoint} is shutting down. Another one answers.")
        return champion.version if version is None else (self._variants.named(version) or champion.version)
