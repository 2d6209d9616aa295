"""Stand-ins for what a gateway needs, with faults that can be switched on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raymlops.blocks import Block
from raymlops.data.schema import Column, DataContract, Sent
from raymlops.data.tables import TableRows, encode_table_rows
from raymlops.serving.batching import Answer, answer_rows, layout_of
from raymlops.serving.direct import Link
from raymlops.serving.explaining import explain_rows
from raymlops.serving.gateway import Gateway
from raymlops.serving.protocol import Row
from raymlops.serving.spec import Serving
from raymlops.serving.traffic import TrafficSplit
from raymlops.sketch.profile import Profile
from raymlops.store import LabelOutcome, LabelRow, PredictionRow, ShadowRow


def small_contract() -> DataContract:
    """Two numbers, the second one may be missing, and a category; a binary label 0 or 1."""
    return DataContract(
        columns=(
            Column(name="a", kind="number", nullable=False, minimum=-1.0, maximum=1.0),
            Column(name="b", kind="number", nullable=True, minimum=-1.0, maximum=1.0),
            Column(name="c", kind="category", nullable=False, minimum=None, maximum=None, categories=("x", "y")),
        ),
        label="target",
        task="binary",
        classes=(0, 1),
    )


def small_profile() -> Profile:
    """The reference of a model of :func:`small_contract`: 200 rows over its whole range, scores from 0 to 1."""
    span = np.linspace(-1.0, 1.0, 200)
    x = np.column_stack((span, span[::-1], np.arange(200) % 2))
    return Profile.learn(x, np.linspace(0.0, 1.0, 200), small_contract().names, {2: 2})


class FakeModel:
    """Answers ``probability`` for every row.

    Attributes
    ----------
    fault : ``""``, ``"raise"``, ``"nan"`` or ``"slow"`` (a second for each batch)
    batches : number of rows of each batch it was asked for
    """

    def __init__(self, probability: float = 0.75, fault: str = "") -> None:
        self.contract = small_contract()
        self.probability, self.fault = probability, fault
        self.batches: list[int] = []
        self.bins = small_profile().bins

    @property
    def layout(self) -> str:
        return layout_of(self.contract)

    @property
    def inputs(self) -> tuple[Column, ...]:
        return self.contract.columns

    def predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        return np.full(len(x), self.probability)

    def predict_rows(self, rows: Sequence[Row]) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], Sent | None]:
        sent = None
        if isinstance(rows, TableRows):
            x = encode_table_rows(self.contract, rows.table)
        else:
            x, sent = self.contract.encode_sent(rows)
        self.batches.append(len(rows))
        if self.fault == "raise":
            raise RuntimeError("the model is broken")
        if self.fault == "slow":
            time.sleep(1.0)
        return x, np.full(len(x), np.nan) if self.fault == "nan" else self.predict(x), sent

    def score(self, prediction: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.asarray(prediction, dtype=np.float64)

    def answer(self, prediction: npt.NDArray[Any]) -> tuple[list[Any], list[Any] | None]:
        return [int(value >= 0.5) for value in prediction.tolist()], prediction.tolist()


class FakePackages:
    """Versions to load, by number; ``loads`` keeps the order they were asked for in."""

    def __init__(self, **models: FakeModel) -> None:
        self.models = {int(name.removeprefix("v")): model for name, model in models.items()}
        self.loads: list[int] = []

    def load(self, version: int) -> FakeModel:
        self.loads.append(version)
        if version not in self.models:
            raise LookupError(f"no version {version}")
        return self.models[version]


class FakeChallengers:
    """Isolated versions that live next door; ``delay_s`` is how late they answer."""

    def __init__(self, models: dict[int, FakeModel], delay_s: float = 0.0) -> None:
        self.models, self.delay_s = models, delay_s
        self.calls: list[tuple[int, int]] = []

    async def predict(self, version: int, rows: Sequence[Row], timeout_s: float) -> Answer:
        self.calls.append((version, len(rows)))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return answer_rows(self.models[version], rows)

    def link(self, version: int) -> Link | None:
        """None: there is no other process."""
        return None

    async def explain(self, version: int, rows: Sequence[Row]) -> dict[str, Any]:
        self.calls.append((version, len(rows)))
        model: Any = self.models[version]
        return explain_rows(model, version, rows)


class ListSink:
    """Keeps what it was told; refuses while ``down``."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.down = False

    def observe(self, batch: dict[str, Any]) -> None:
        if self.down:
            raise ConnectionError("nobody is there")
        self.batches.append(batch)


class Nowhere:
    """A store and a lake that keep nothing and know no prediction."""

    def add_predictions(self, endpoint: str, rows: Sequence[PredictionRow]) -> None:
        return None

    def add_block(self, endpoint: str, block: Block) -> None:
        return None

    def add_shadows(self, endpoint: str, rows: Sequence[ShadowRow]) -> None:
        return None

    def add_labels(self, endpoint: str, rows: Sequence[LabelRow]) -> list[LabelOutcome]:
        return ["unknown" for _ in rows]

    def write(self, key: str, content: bytes) -> None:
        return None


async def fake_gateway(model: FakeModel | None = None, limits: Serving | None = None) -> Gateway:
    """The gateway of an endpoint ``churn`` whose version 1 is the champion; it logs to nowhere."""
    nowhere = Nowhere()
    gateway = Gateway(
        "churn",
        packages=FakePackages(v1=model or FakeModel()),
        challengers=FakeChallengers({}),
        store=nowhere,
        files=nowhere,
        sink=ListSink(),
        limits=limits,
        flush_s=0.01,
    )
    await gateway.apply(TrafficSplit(number=1, champion=1))
    return gateway


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Give way to the event loop until something is so.

    Raises
    ------
    asyncio.TimeoutError : it is not so after that many seconds
    """

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), seconds)
