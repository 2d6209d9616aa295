"""The short way of a request: plain requests for rows, read whole, answered by the champion all at once.

Most of what an ASGI server and application cost for a small request is not the prediction but the task, the scope and
the two messages of each one. The lane has none of these: it takes the body of every request that came in this turn of the
event loop, predicts once, and gives back bytes. It takes only what needs nothing else; all other requests, and those a
challenger shall answer, go the usual way through :class:`raymlops.serving.gateway.Gateway`. Both ways give the same answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from raymlops.clock import Clock
from raymlops.data.rows import join_rows
from raymlops.errors import ContractViolation, DataError, ModelFault, NotReady, RaymlopsError
from raymlops.serving.batching import Answer, answer_matrix, answer_rows
from raymlops.serving.http import (
    Response,
    error_response,
    json_response,
    rows_response,
    served_headers,
    version_headers,
)
from raymlops.serving.inference import InferRequest, format_infer, infer_error, parse_infer
from raymlops.serving.logfile import Served
from raymlops.serving.protocol import PredictRequest, Row, error_body, parse_rows
from raymlops.serving.recorder import Recorder
from raymlops.serving.spec import Serving
from raymlops.serving.variants import Loaded, Variants

log = logging.getLogger(__name__)

MAX_BATCH_ROWS = 1024  # a larger tick is predicted in several batches, so that the first answers leave earlier
ASK_EVERY_S = 0.01  # a question to another process costs more than its answer: under load they are gathered
SMALL_ROWS = 32  # requests with more rows are predicted in a thread while the event loop reads the next ones


class Call(Protocol):
    """A request and the way back to who sent it.

    Attributes
    ----------
    request_id : the client's own, if its header holds one
    infer : its body is of the Open Inference Protocol, else of rows
    """

    body: bytes
    request_id: str | None
    infer: bool

    def answer(self, response: Response) -> None: ...

    def detour(self, parsed: PredictRequest, challenger: int | None) -> None:
        """Have it answered by the usual way: by this challenger, or because it is too large for this one."""


_Item = tuple[Call, PredictRequest]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Requests that one version answers together; ``since`` is when their turn began."""

    version: int
    variant: str
    items: Sequence[_Item]
    since: float

    def rows(self) -> Sequence[Row]:
        return join_rows([parsed.rows for _, parsed in self.items])

    def one_by_one(self) -> list[_Batch]:
        return [_Batch(self.version, self.variant, [item], self.since) for item in self.items]

    def took_ms(self) -> float:
        return (time.perf_counter() - self.since) * 1000.0


class Lane:
    """Answers plain requests, a tick at a time. Everything but large predictions runs on one event loop.

    Parameters
    ----------
    variants, recorder, limits, clock : of the gateway
    """

    def __init__(self, endpoint: str, variants: Variants, recorder: Recorder, limits: Serving, clock: Clock) -> None:
        self.endpoint, self.limits = endpoint, limits
        self._variants, self._recorder, self._clock = variants, recorder, clock
        self._waiting: list[Call] = []
        self._since = 0.0
        self._held: dict[int, tuple[float, list[_Item]]] = {}
        self._asked: dict[int, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.errors = 0

    def submit(self, call: Call) -> None:
        """Answer a request in this turn of the event loop, or begin to."""
        if not self._waiting:
            self._since = time.perf_counter()
            asyncio.get_running_loop().call_soon(self._turn)
        self._waiting.append(call)

    def _turn(self) -> None:
        calls, self._waiting = self._waiting, []
        since, champion = self._since, self._variants.champion
        small: list[_Item] = []
        large: list[_Item] = []
        apart: dict[int, list[_Item]] = {}
        rows = rows_large = 0
        for call in calls:
            try:
                parsed = self._parse(call, champion)
                challenger = self._variants.pick(parsed)
            except RaymlopsError as error:
                call.answer(error_response(error, body=_words(call)))
                continue
            except Exception as error:
                self._failed([call], error)
                continue
            count = len(parsed.rows)
            if count > MAX_BATCH_ROWS:
                call.detour(parsed, challenger)
            elif challenger is not None:
                apart.setdefault(challenger, []).append((call, parsed))
            elif count > SMALL_ROWS:
                large.append((call, parsed))
                rows_large += count
                if rows_large >= MAX_BATCH_ROWS:
                    self._start_large(champion, large, since)
                    large, rows_large = [], 0
            else:
                small.append((call, parsed))
                rows += count
                if rows >= MAX_BATCH_ROWS:
                    self._predict(champion, small, since)
                    small, rows = [], 0
        for challenger, items in apart.items():
            self._ask_soon(challenger, items, since)
        self._start_large(champion, large, since)
        self._predict(champion, small, since)

    def _parse(self, call: Call, champion: Loaded | None) -> PredictRequest:
        if champion is None:
            raise NotReady(f"{self.endpoint} has no champion yet. Try again in a moment.")
        columns = champion.model.inputs
        if call.infer:
            return parse_infer(call.body, [column.name for column in columns], self.limits.max_rows)
        return parse_rows(call.body, self.limits.max_rows, len(columns))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the champion ---------------------------------------------------------------------------------

    def _start_large(self, champion: Loaded | None, items: Sequence[_Item], since: float) -> None:
        if items and champion is not None:
            self._start(self._predict_large(champion, _Batch(champion.version, "champion", items, since)))

    async def _predict_large(self, champion: Loaded, batch: _Batch) -> None:
        """The prediction in a thread. Encoding holds the interpreter wherever it is done: here it is not taken from the loop
        piece by piece."""
        model, rows, loop = champion.model, batch.rows(), asyncio.get_running_loop()
        try:
            if model.layout is None:
                answer = await loop.run_in_executor(None, answer_rows, model, rows)
            else:
                x, sent = model.contract.encode_sent(rows)
                answer = await loop.run_in_executor(None, answer_matrix, model, x)
                answer = replace(answer, sent=sent)
        except Exception as error:
            self._shielded(batch, self._refuse, champion, batch, error)
        else:
            self._shielded(batch, self._deliver, batch, rows, answer)

    def _predict(self, champion: Loaded | None, items: Sequence[_Item], since: float) -> None:
        if items and champion is not None:
            batch = _Batch(champion.version, "champion", items, since)
            self._shielded(batch, self._predict_now, champion, batch)

    def _predict_now(self, champion: Loaded, batch: _Batch) -> None:
        rows = batch.rows()
        try:
            answer = answer_rows(champion.model, rows)
        except Exception as error:
            self._refuse(champion, batch, error)
        else:
            self._deliver(batch, rows, answer)

    def _refuse(self, champion: Loaded, batch: _Batch, error: Exception) -> None:
        """What the model raised: somebody's rows are bad, or the version is."""
        if isinstance(error, DataError):
            if len(batch.items) > 1:
                for one in batch.one_by_one():  # each request answers for its own
                    self._shielded(one, self._predict_now, champion, one)
                return
            refused = error if isinstance(error, ContractViolation) else ContractViolation(error.message, error.details)
            call = batch.items[0][0]
            call.answer(error_response(refused, version_headers(batch.version, batch.variant), _words(call)))
            return
        log.error("%s: version %d failed", self.endpoint, batch.version, exc_info=error)
        words = f"Version {batch.version} failed on this request; the gateway's log says why."
        for call, _ in batch.items:
            self._faulty(call, batch, words)

    # --- a challenger ---------------------------------------------------------------------------------

    def _ask_soon(self, challenger: int, items: list[_Item], since: float) -> None:
        """At once, unless the challenger was asked a moment ago: then with all who come until :data:`ASK_EVERY_S` is over."""
        held = self._held.get(challenger)
        if held is not None:
            held[1].extend(items)
            return
        now = time.perf_counter()
        due = self._asked.get(challenger, 0.0) + ASK_EVERY_S
        self._held[challenger] = (since, items)
        if now >= due:
            self._ask_held(challenger)
        else:
            asyncio.get_running_loop().call_later(due - now, self._ask_held, challenger)

    def _ask_held(self, challenger: int) -> None:
        since, items = self._held.pop(challenger)
        self._asked = {challenger: time.perf_counter()}
        while items:
            rows = stop = 0
            while stop < len(items) and rows < MAX_BATCH_ROWS:
                rows += len(items[stop][1].rows)
                stop += 1
            batch = _Batch(challenger, "challenger", items[:stop], since)
            self._shielded(batch, self._ask_now, batch)
            items = items[stop:]

    def _ask_now(self, batch: _Batch) -> None:
        rows = batch.rows()
        if not self._variants.ask_directly(batch.version, rows, len(batch.items), partial(self._got, batch, rows)):
            self._start(self._ask(batch, rows))

    async def _ask(self, batch: _Batch, rows: Sequence[Row]) -> None:
        try:
            answer = await self._variants.ask_together(batch.version, rows, len(batch.items))
        except Exception as error:
            self._failed([call for call, _ in batch.items], error)
            return
        self._got(batch, rows, answer)

    def _got(self, batch: _Batch, rows: Sequence[Row], answer: Answer | None) -> None:
        """One answer for all these requests. If anything about it is not as it should be, each request goes the usual way,
        which shields it and counts what is wrong."""
        if answer is not None:
            self._shielded(batch, self._deliver, batch, rows, answer)
            return
        for call, parsed in batch.items:
            call.detour(parsed, batch.version)

    # --- answers --------------------------------------------------------------------------------------

    def _shielded(self, batch: _Batch, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            self._failed([call for call, _ in batch.items], error)

    def _deliver(self, batch: _Batch, rows: Sequence[Row], answer: Answer) -> None:
        if not answer.finite.all():
            if len(batch.items) == 1:
                words = f"Version {batch.version} gave a prediction that is not a finite number."
                self._faulty(batch.items[0][0], batch, words, nonfinite=True)
                return
            start = 0
            for one in batch.one_by_one():
                stop = start + len(one.items[0][1].rows)
                self._deliver(one, rows[start:stop], answer.part(start, stop))
                start = stop
            return
        recorder = self._recorder
        ids: list[int | str] = []
        counts: list[int] = []
        start = 0
        for call, parsed in batch.items:
            given: int | str = parsed.request_id or call.request_id or recorder.number()
            stop = start + len(parsed.rows)
            call.answer(self._phrase(batch, parsed, given, answer, slice(start, stop)))
            ids.append(given)
            counts.append(stop - start)
            start = stop
        took_ms = batch.took_ms()
        if batch.variant == "champion":
            recorder.answered(batch.version, len(batch.items), took_ms)
        kept = rows if answer.sent is None else ()
        recorder.served(Served(ids, counts, kept, answer, batch.version, batch.variant, self._clock.now(), took_ms))

    def _phrase(self, batch: _Batch, parsed: PredictRequest, given: int | str, answer: Answer, here: slice) -> Response:
        own = given if isinstance(given, str) else self._recorder.text(given)
        predictions = answer.predictions[here]
        probabilities = None if answer.probabilities is None else answer.probabilities[here]
        if not isinstance(parsed, InferRequest):
            return rows_response(own, batch.version, batch.variant, predictions, probabilities)
        headers = served_headers(own, batch.version, batch.variant)
        try:
            body = format_infer(self.endpoint, batch.version, own, predictions, probabilities, parsed.outputs)
        except RaymlopsError as error:
            return error_response(error, body=infer_error)
        return json_response(body, headers=headers)

    def _faulty(self, call: Call, batch: _Batch, words: str, *, nonfinite: bool = False) -> None:
        self._recorder.request(batch.version, batch.took_ms(), error=True, nonfinite=nonfinite)
        self.errors += 1
        headers = version_headers(batch.version, batch.variant)
        call.answer(error_response(ModelFault(words), headers, _words(call)))

    def _failed(self, calls: Sequence[Call], error: Exception) -> None:
        """The gateway's own failure: those who have no answer yet are told; answering twice does nothing."""
        log.error("%s: the gateway failed on %d requests", self.endpoint, len(calls), exc_info=error)
        for call in calls:
            self.errors += 1
            problem = RaymlopsError("The gateway failed on this request; its log says why.")
            call.answer(error_response(problem, body=_words(call)))


def _words(call: Call) -> Callable[[RaymlopsError], bytes]:
    return infer_error if call.infer else error_body
