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
from collections.abc import Sequence
from typing import Protocol

from raymlops.clock import Clock
from raymlops.data.rows import join_rows
from raymlops.errors import ContractViolation, DataError, ModelFault, NotReady, RaymlopsError
from raymlops.serving.batching import Answer, answer_rows
from raymlops.serving.http import Response, error_response, rows_response, version_headers
from raymlops.serving.logfile import Served
from raymlops.serving.protocol import PredictRequest, parse_rows
from raymlops.serving.recorder import Recorder
from raymlops.serving.spec import Serving
from raymlops.serving.variants import INLINE_ROWS, Loaded, Variants

log = logging.getLogger(__name__)

MAX_BATCH_ROWS = 1024  # a larger tick is predicted in several batches, so that the first answers leave earlier


class Call(Protocol):
    """A request and the way back to who sent it; ``request_id`` is the client's own, if its header holds one."""

    body: bytes
    request_id: str | None

    def answer(self, response: Response) -> None: ...

    def detour(self, parsed: PredictRequest, challenger: int | None) -> None:
        """Have it answered by the usual way: by this challenger, or because it is too large for the event loop."""


_Item = tuple[Call, PredictRequest]


class Lane:
    """Answers plain requests, a tick at a time. Everything runs on one event loop.

    Parameters
    ----------
    variants, recorder, limits, clock : of the gateway
    """

    def __init__(self, endpoint: str, variants: Variants, recorder: Recorder, limits: Serving, clock: Clock) -> None:
        self.endpoint, self.limits = endpoint, limits
        self._variants, self._recorder, self._clock = variants, recorder, clock
        self._waiting: list[Call] = []
        self._since = 0.0
        self.errors = 0

    def submit(self, call: Call) -> None:
        """Answer a request in this turn of the event loop."""
        if not self._waiting:
            self._since = time.perf_counter()
            asyncio.get_running_loop().call_soon(self._turn)
        self._waiting.append(call)

    def _turn(self) -> None:
        calls, self._waiting = self._waiting, []
        champion = self._variants.champion
        width = 0 if champion is None else len(champion.model.inputs)
        batch: list[_Item] = []
        rows = 0
        for call in calls:
            try:
                if champion is None:
                    raise NotReady(f"{self.endpoint} has no champion yet. Try again in a moment.")
                parsed = parse_rows(call.body, self.limits.max_rows, width)
                challenger = self._variants.pick(parsed)
            except RaymlopsError as error:
                call.answer(error_response(error))
                continue
            except Exception as error:
                self._failed([call], error)
                continue
            if challenger is not None or len(parsed.rows) > INLINE_ROWS:
                call.detour(parsed, challenger)
                continue
            batch.append((call, parsed))
            rows += len(parsed.rows)
            if rows >= MAX_BATCH_ROWS:
                self._predict(champion, batch)
                batch, rows = [], 0
        if batch and champion is not None:
            self._predict(champion, batch)

    def _predict(self, champion: Loaded, batch: Sequence[_Item]) -> None:
        try:
            self._answer(champion, batch)
        except Exception as error:
            self._failed([call for call, _ in batch], error)

    def _answer(self, champion: Loaded, batch: Sequence[_Item]) -> None:
        rows = join_rows([parsed.rows for _, parsed in batch])
        try:
            answer = answer_rows(champion.model, rows)
        except DataError as error:
            if len(batch) > 1:
                # Somebody's rows are bad: each request answers for its own.
                for item in batch:
                    self._predict(champion, [item])
                return
            refused = error if isinstance(error, ContractViolation) else ContractViolation(error.message, error.details)
            batch[0][0].answer(error_response(refused, version_headers(champion.version, "champion")))
            return
        except Exception:
            log.exception("%s: version %d failed", self.endpoint, champion.version)
            words = f"Version {champion.version} failed on this request; the gateway's log says why."
            for call, _ in batch:
                self._faulty(call, champion.version, words)
            return
        self._deliver(champion.version, batch, rows, answer)

    def _deliver(self, version: int, batch: Sequence[_Item], rows: Sequence[dict[str, object]], answer: Answer) -> None:
        if not answer.finite.all():
            if len(batch) == 1:
                words = f"Version {version} gave a prediction that is not a finite number."
                self._faulty(batch[0][0], version, words, nonfinite=True)
                return
            start = 0
            for item in batch:
                stop = start + len(item[1].rows)
                self._deliver(version, [item], rows[start:stop], answer.part(start, stop))
                start = stop
            return
        recorder = self._recorder
        predictions, probabilities = answer.predictions, answer.probabilities
        ids: list[int | str] = []
        counts: list[int] = []
        start = 0
        for call, parsed in batch:
            given: int | str = parsed.request_id or call.request_id or recorder.number()
            stop = start + len(parsed.rows)
            call.answer(
                rows_response(
                    given if isinstance(given, str) else recorder.text(given),
                    version,
                    "champion",
                    predictions[start:stop],
                    None if probabilities is None else probabilities[start:stop],
                )
            )
            ids.append(given)
            counts.append(stop - start)
            start = stop
        took_ms = (time.perf_counter() - self._since) * 1000.0
        recorder.answered(version, len(batch), took_ms)
        kept = rows if answer.sent is None else ()
        recorder.served(Served(ids, counts, kept, answer, version, "champion", self._clock.now(), took_ms))

    def _faulty(self, call: Call, version: int, words: str, *, nonfinite: bool = False) -> None:
        took_ms = (time.perf_counter() - self._since) * 1000.0
        self._recorder.request(version, took_ms, error=True, nonfinite=nonfinite)
        self.errors += 1
        call.answer(error_response(ModelFault(words), version_headers(version, "champion")))

    def _failed(self, calls: Sequence[Call], error: Exception) -> None:
        """The gateway's own failure: those who have no answer yet are told; answering twice does nothing."""
        log.error("%s: the gateway failed on %d requests", self.endpoint, len(calls), exc_info=error)
        for call in calls:
            self.errors += 1
            call.answer(error_response(RaymlopsError("The gateway failed on this request; its log says why.")))
