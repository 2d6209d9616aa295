"""``POST /{endpoint}/explain``: how much each column moved the prediction of a row, worked out off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from raymlops.data.schema import DataContract
from raymlops.errors import DataError, ModelFault, NotReady, Overloaded, TooLarge, UnknownPath
from raymlops.explain.explanation import Explainer, Explanation
from raymlops.serving.protocol import Row

MAX_WAITING = 8


@runtime_checkable
class Explainable(Protocol):
    """A loaded version that can be explained; :class:`raymlops.serving.predictor.Predictor` is one."""

    @property
    def contract(self) -> DataContract: ...

    @property
    def explainer(self) -> Explainer: ...

    def encode(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]: ...

    def predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]: ...

    def answer(self, prediction: npt.NDArray[Any]) -> tuple[list[Any], list[Any] | None]: ...


class ExplainDesk:
    """Explains rows one request at a time, in a thread of its own: predictions never wait for explanations."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"explain-{endpoint}")
        self._waiting = 0
        self._closed = False

    async def explain(self, model: object, version: int, rows: Sequence[Row]) -> dict[str, Any]:
        """The body of an answer.

        Raises
        ------
        ContractViolation : rows that break the contract
        TooLarge : more rows than the model's way of explaining takes at once
        Overloaded : eight requests are waiting already
        NotReady : the gateway is shutting down
        ModelFault : the model failed, or said what is not finite
        UnknownPath : this version cannot be explained
        """
        if not isinstance(model, Explainable):
            raise UnknownPath(f"Version {version} of {self._endpoint} cannot be explained.")
        if self._closed:
            raise self._closing()
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{self._endpoint} has {MAX_WAITING} explanations to work out already. Try again later.")
        self._waiting += 1
        work = asyncio.get_running_loop().run_in_executor(self._thread, explain_rows, model, version, rows)
        # The thread goes on when the caller's deadline is over, and others wait for it until it is done.
        work.add_done_callback(self._done)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if work.cancelled():  # by :meth:`close`; a caller that left is another matter
                raise self._closing() from None
            raise

    def _closing(self) -> NotReady:
        return NotReady(f"This gateway of {self._endpoint} is shutting down. Another one explains.")

    def _done(self, work: asyncio.Future[dict[str, Any]]) -> None:
        self._waiting -= 1
        if not work.cancelled():
            work.exception()

    def close(self) -> None:
        """Start nothing new; who waits for a turn is told so."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)


def explain_rows(model: Explainable, version: int, rows: Sequence[Row]) -> dict[str, Any]:
    """Predictions and explanations of rows, JSON-serialisable; raises what :meth:`ExplainDesk.explain` raises."""
    x = model.encode(rows)
    explainer = model.explainer
    if len(x) > explainer.most_rows:
        raise TooLarge(
            f"The request holds {len(x)} rows; at most {explainer.most_rows} are explained at once for this model. Send fewer."
        )
    try:
        found, prediction = explainer.explain(x), model.predict(x)
    except DataError:
        raise
    except Exception as error:
        raise ModelFault(
            f"Version {version} cannot be explained: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if not (np.isfinite(found.contributions).all() and np.isfinite(found.output).all()):
        raise ModelFault(f"Version {version} gave an explanation that is not a finite number.")
    predictions, probabilities = model.answer(prediction)
    contract = model.contract
    return {
        "version": version,
        "method": found.method,
        "units": found.units,
        "classes": list(contract.classes) if found.contributions.ndim == 3 else None,
        "rows": [
            {
                "prediction": predictions[i],
                "probability": None if probabilities is None else probabilities[i],
                "base": found.base[i].tolist(),
                "output": found.output[i].tolist(),
                "contributions": _by_column(found, found.contributions[i]),
                "standard_errors": None if found.error is None else _by_column(found, found.error[i]),
            }
            for i in range(len(x))
        ],
    }


def _by_column(found: Explanation, values: npt.NDArray[Any]) -> dict[str, Any]:
    """A number for each column, or for more than two classes one for each class."""
    return {column: values[..., j].tolist() for j, column in enumerate(found.columns)}
