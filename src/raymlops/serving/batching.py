"""Predicting together what waits together: all requests of one event-loop tick in one batch."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from raymlops.data.rows import join_rows
from raymlops.data.schema import Column, DataContract, Sent
from raymlops.errors import DataError, ModelFault
from raymlops.serving.protocol import Row
from raymlops.sketch.histogram import Bins

log = logging.getLogger(__name__)


class Model(Protocol):
    """What serving needs of a loaded version; :class:`raymlops.serving.predictor.Predictor` is one."""

    @property
    def contract(self) -> DataContract: ...

    @property
    def inputs(self) -> tuple[Column, ...]: ...

    @property
    def bins(self) -> Bins: ...

    @property
    def layout(self) -> str | None:
        """What rows have to be, and what the contract's matrix makes of them: versions that share it make the same of a row.
        ``None`` when more than the contract is between rows and model."""

    def predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]: ...

    def predict_rows(self, rows: Sequence[Row]) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], Sent | None]: ...

    def score(self, prediction: npt.NDArray[Any]) -> npt.NDArray[np.float64]: ...

    def answer(self, prediction: npt.NDArray[Any]) -> tuple[list[Any], list[Any] | None]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a version says of n rows.

    Attributes
    ----------
    x : the rows as the model saw them, float32, (n, n_features)
    scores : one number a row, (n,)
    finite : rows whose whole prediction is finite, bool, (n,)
    predictions, probabilities : JSON-able, n each; no probabilities for regression
    sent : the rows as they were sent, where a matrix holds them; it stays in the process that made it
    work_ms : how long another process took for the batch, in milliseconds; ``None`` for an answer of this one
    """

    x: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float64]
    finite: npt.NDArray[np.bool_]
    predictions: list[Any]
    probabilities: list[Any] | None
    sent: Sent | None = None
    work_ms: float | None = None

    def part(self, start: int, stop: int) -> Answer:
        """Rows ``start`` to ``stop``, as views."""
        here = slice(start, stop)
        return Answer(
            self.x[here],
            self.scores[here],
            self.finite[here],
            self.predictions[here],
            None if self.probabilities is None else self.probabilities[here],
            None if self.sent is None else Sent(self.sent.columns, self.sent.values[here]),
            self.work_ms,
        )


def answer_rows(model: Model, rows: Sequence[Row]) -> Answer:
    """Encode, predict and phrase the answer.

    Raises
    ------
    DataError : rows that break the contract (:class:`ContractViolation`), or that the features function cannot take
    ModelFault : the prediction is not of the shape that the task asks for
    """
    return _phrased(model, *model.predict_rows(rows))


def answer_matrix(model: Model, x: npt.NDArray[np.float32]) -> Answer:
    """As :func:`answer_rows` for rows that are encoded already.

    Raises
    ------
    ModelFault : the prediction is not of the shape that the task asks for
    """
    return _phrased(model, x, model.predict(x), None)


def _phrased(model: Model, x: npt.NDArray[np.float32], prediction: npt.NDArray[Any], sent: Sent | None) -> Answer:
    contract = model.contract
    expected = (len(x), len(contract.classes)) if contract.task == "multiclass" else (len(x),)
    if np.shape(prediction) != expected:
        raise ModelFault(f"The model gave a prediction of shape {np.shape(prediction)} where {expected} was asked for.")
    finite = np.isfinite(prediction)
    if finite.ndim == 2:
        finite = finite.all(axis=1)
    predictions, probabilities = model.answer(prediction)
    return Answer(x, np.asarray(model.score(prediction), dtype=np.float64), finite, predictions, probabilities, sent)


def layout_of(contract: DataContract) -> str:
    """A digest of all that decides which rows a contract takes and what matrix it makes of them; ranges that were only seen
    are no part of it."""
    seen = {"minimum": None, "maximum": None}
    columns = [column.to_dict() | seen for column in contract.columns]
    content = json.dumps([columns, [rule.to_dict() for rule in contract.rules]], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


Run = Callable[[Sequence[Row]], "Answer | Awaitable[Answer]"]
_Waiting = tuple[Sequence[Row], "asyncio.Future[Answer]"]


class TickBatcher:
    """Gathers the rows of all requests that arrive in one turn of the event loop and runs them in one call.

    No request waits for others that are not there yet: at low load a batch is one request, under load it is all
    that came in while the last batch was computed.

    Parameters
    ----------
    run : rows to an answer, at once or as an awaitable
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, rows: Sequence[Row]) -> Answer:
        """The answer to these rows alone; raises what :attr:`run` raises for them."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._turn)
        self._waiting.append((rows, future))
        return await future

    def _turn(self) -> None:
        group, self._waiting = self._waiting, []
        self._start([item for item in group if not item[1].done()])

    def _start(self, group: Sequence[_Waiting]) -> None:
        if not group:
            return
        rows = join_rows([rows for rows, _ in group])
        try:
            result = self._run(rows)
        except Exception as error:
            self._fail(group, error)
            return
        if isinstance(result, Answer):
            self._deliver(group, result)
            return
        task = asyncio.ensure_future(self._finish(group, result))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, group: Sequence[_Waiting], result: Awaitable[Answer]) -> None:
        try:
            answer = await result
        except Exception as error:
            self._fail(group, error)
            return
        self._deliver(group, answer)

    def _deliver(self, group: Sequence[_Waiting], answer: Answer) -> None:
        if len(group) == 1:
            _resolve(group[0][1], answer)
            return
        start = 0
        for rows, future in group:
            _resolve(future, answer.part(start, start + len(rows)))
            start += len(rows)

    def _fail(self, group: Sequence[_Waiting], error: Exception) -> None:
        if len(group) > 1 and isinstance(error, DataError):
            # Somebody's rows are bad: each request answers for its own.
            for item in group:
                self._start([item])
            return
        for _, future in group:
            if not future.done():
                future.set_exception(error)


def _resolve(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def warm(model: Model, rounds: int = 3) -> None:
    """First predictions are slow (lazy allocation, code paths): make them before any request does."""
    x = np.zeros((1, len(model.contract.columns)), dtype=np.float32)
    for _ in range(rounds):
        model.predict(x)


def as_answer(body: Mapping[str, Any]) -> Answer:
    """An answer that came from another process as a plain dictionary."""
    return Answer(**body)


def as_dict(answer: Answer) -> dict[str, Any]:
    """The plain form of an answer: survives processes whose versions of this class differ."""
    return {name: getattr(answer, name) for name in Answer.__slots__ if name != "sent"}
