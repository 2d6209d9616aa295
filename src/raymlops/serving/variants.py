"""The versions behind an endpoint: the champion in this process, a challenger elsewhere, and who answers what."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from raymlops.data.schema import Sent
from raymlops.errors import (
    ContractViolation,
    DataError,
    DeadlineExceeded,
    ModelFault,
    NotReady,
    RaymlopsError,
    UnknownVersion,
)
from raymlops.serving.batching import Answer, Model, TickBatcher, answer_rows, warm
from raymlops.serving.direct import Link
from raymlops.serving.http import Deadline
from raymlops.serving.patience import Patience
from raymlops.serving.protocol import PredictRequest, Row
from raymlops.serving.recorder import Recorder
from raymlops.serving.traffic import TrafficSplit, draw
from raymlops.sketch.histogram import Bins

log = logging.getLogger(__name__)

T = TypeVar("T")

INLINE_ROWS = 256  # larger batches are predicted in a thread, so that small ones need not wait for them
CHALLENGER_TIMEOUT_S = 3.0
MAX_SHADOWS = 64


class PackageSource(Protocol):
    """Where loaded versions come from. Called from a thread; raises when the version cannot be loaded."""

    def load(self, version: int) -> Model: ...


class Challengers(Protocol):
    """Versions that are served elsewhere."""

    async def predict(self, version: int, rows: Sequence[Row], timeout_s: float) -> Answer: ...

    def link(self, version: int) -> Link | None:
        """The short way to a version when there is one now; asking for it may start the search for one."""

    async def explain(self, version: int, rows: Sequence[Row]) -> dict[str, Any]: ...


@dataclass(slots=True)
class Loaded:
    """A version in this process."""

    version: int
    model: Model
    batcher: TickBatcher
    bins: Bins


@dataclass(slots=True)
class Isolated:
    """A version elsewhere."""

    version: int
    batcher: TickBatcher
    patience: Patience


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of asking a challenger.

    Attributes
    ----------
    answer : if it can be used
    nonfinite : it held a NaN or an infinity
    refused : the challenger did not take the rows
    """

    answer: Answer | None = None
    nonfinite: bool = False
    refused: bool = False

    @property
    def work_ms(self) -> float | None:
        return None if self.answer is None else self.answer.work_ms


class Variants:
    """Holds the traffic table and obeys it. Everything runs on one event loop.

    Parameters
    ----------
    recorder : where requests are counted for each version
    challenger_timeout_s : how long a challenger may take before the champion answers in its place
    """

    def __init__(
        self,
        endpoint: str,
        packages: PackageSource,
        challengers: Challengers,
        recorder: Recorder,
        challenger_timeout_s: float = CHALLENGER_TIMEOUT_S,
    ) -> None:
        self.endpoint = endpoint
        self._packages, self._challengers, self._recorder = packages, challengers, recorder
        self._timeout_s = challenger_timeout_s
        self._split: TrafficSplit | None = None
        self._champion: Loaded | None = None
        self._loaded: dict[int, Loaded] = {}
        self._loading: dict[int, asyncio.Task[Loaded]] = {}
        self._isolated: dict[int, Isolated] = {}
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def split(self) -> TrafficSplit | None:
        """The traffic table in force."""
        return self._split

    @property
    def champion(self) -> Loaded | None:
        """The version that answers, ``None`` before the first table."""
        return self._champion

    @property
    def loaded(self) -> list[int]:
        """Versions in this process: the champion and those the table keeps warm."""
        return sorted(self._loaded)

    def require_champion(self) -> Loaded:
        """The champion. Raises :class:`NotReady` before the first table."""
        if self._champion is None:
            raise NotReady(f"{self.endpoint} has no champion yet. Try again in a moment.")
        return self._champion

    async def apply(self, split: TrafficSplit) -> bool:
        """Take a traffic table; ``False`` when it is not newer than the one in force.

        A new champion is loaded beside the old one and warmed before the first request goes to it. Versions that the
        table keeps warm stay loaded, so that going back is a pointer swap; others are let go. Raises what loading
        raises; the old table then stays in force.
        """
        if self._split is not None and split.number <= self._split.number:
            return False
        champion = self._loaded.get(split.champion) or await self._load(split.champion)
        # Nothing may come between this check and the swap: no await below.
        if self._split is not None and split.number <= self._split.number:
            return False
        kept = {version: self._loaded[version] for version in split.warm if version in self._loaded}
        self._loaded = kept | {champion.version: champion}
        self._champion, self._split = champion, split
        self._recorder.watch(champion.version, champion.bins)
        asked = self._isolated.get(split.challenger) if split.challenger is not None else None
        self._isolated = {}
        if split.challenger is not None:
            self._isolated[split.challenger] = asked or self._isolate(split.challenger)
        for version in split.warm:
            if version not in self._loaded:
                self._warm_up(version)
        log.info("%s: table %d, champion %d", self.endpoint, split.number, split.champion)
        return True

    def _warm_up(self, version: int) -> None:
        """Load a version in the background, as after a restart of this process; without it a rollback loads it."""

        async def work() -> None:
            try:
                loaded = await self._load(version)
            except Exception as error:
                log.warning("%s: version %d cannot be kept warm: %s", self.endpoint, version, error)
                return
            if self._split is not None and version in self._split.warm:
                self._loaded.setdefault(version, loaded)

        self._in_background(work())

    async def _load(self, version: int) -> Loaded:
        """One load a version at a time, however many tables ask for it."""
        task = self._loading.get(version)
        if task is None:
            task = self._loading[version] = asyncio.ensure_future(self._load_now(version))
            task.add_done_callback(lambda _: self._loading.pop(version, None))
        return await asyncio.shield(task)

    async def _load_now(self, version: int) -> Loaded:
        def work() -> tuple[Model, Bins]:
            model = self._packages.load(version)
            warm(model)
            return model, model.bins

        model, bins = await asyncio.get_running_loop().run_in_executor(None, work)
        return Loaded(version, model, TickBatcher(self._computer(model)), bins)

    def _computer(self, model: Model) -> Callable[[Sequence[Row]], Answer | Awaitable[Answer]]:
        def compute(rows: Sequence[Row]) -> Answer | Awaitable[Answer]:
            if len(rows) <= INLINE_ROWS:
                return answer_rows(model, rows)
            return asyncio.get_running_loop().run_in_executor(None, answer_rows, model, rows)

        return compute

    def _isolate(self, version: int) -> Isolated:
        return Isolated(version, TickBatcher(self._asker(version)), Patience(self._timeout_s))

    def _asker(self, version: int) -> Callable[[Sequence[Row]], Awaitable[Answer]]:
        def ask(rows: Sequence[Row]) -> Awaitable[Answer]:
            return asyncio.wait_for(self._challengers.predict(version, rows, self._timeout_s), self._timeout_s)

        return ask

    def pick(self, request: PredictRequest) -> int | None:
        """The challenger when the table in force draws it for this request (or for a copy of it), else ``None``."""
        split = self._split
        if split is None or split.challenger is None or split.weight == 0.0:
            return None
        u = random.random() if request.key is None else draw(request.key, f"{self.endpoint}/{split.challenger}")
        return split.challenger if split.pick(u) == split.challenger else None

    @property
    def visible(self) -> list[int]:
        """Versions a caller may name: the champion, and a challenger that answers requests."""
        split = self._split
        if split is None:
            return []
        return [split.champion] if split.challenger is None or split.shadow else [split.champion, split.challenger]

    def named(self, version: int) -> int | None:
        """What :meth:`pick` would say to have ``version`` answer: ``None`` for the champion.

        Raises
        ------
        UnknownVersion : no version that answers requests
        """
        if version not in self.visible:
            raise self._unknown(version, self.visible)
        return None if version == self.visible[0] else version

    def _unknown(self, version: int, known: Sequence[int]) -> UnknownVersion:
        served = ", ".join(map(str, known))
        return UnknownVersion(f"{self.endpoint} does not serve version {version}; it serves {served}.")

    def explains(self, version: int | None) -> tuple[int, str, Model | None]:
        """The version that is to explain rows (``None``: the champion), as what it serves, and its model where it is in this process.
        A shadow's answers are seen by nobody, and may be explained all the same.

        Raises
        ------
        NotReady : no table was given yet
        UnknownVersion : neither the champion nor the challenger
        """
        champion, split = self.require_champion(), self._split
        if version is None or version == champion.version:
            return champion.version, "champion", champion.model
        if split is None or version != split.challenger:
            raise self._unknown(version, [champion.version, *self._isolated])
        # As in :meth:`copy`: a former champion's isolated deployment is gone.
        here = self._loaded.get(version) if version in split.warm else None
        return version, "challenger", None if here is None else here.model

    async def explain_elsewhere(self, version: int, rows: Sequence[Row]) -> dict[str, Any]:
        """An isolated version's explanation of rows; it counts as no request of its.

        Raises
        ------
        NotReady : it did not answer
        RaymlopsError : what it raised itself
        """
        try:
            return await self._challengers.explain(version, rows)
        except RaymlopsError:
            raise
        except Exception as error:
            log.warning(
                "%s: challenger %d does not explain: %s: %s", self.endpoint, version, type(error).__name__, error
            )
            raise NotReady(f"Version {version} of {self.endpoint} did not answer. Try again in a moment.") from error

    # --- who answers ---------------------------------------------------------------------------------

    async def answer(self, request: PredictRequest, challenger: int | None) -> tuple[int, str, Answer]:
        """Version, variant and answer for a request; ``challenger`` is what :meth:`pick` said for it.

        Raises
        ------
        NotReady : no table was given yet
        ContractViolation : the rows break the contract, or the features function cannot take them
        ModelFault : the champion failed, or its prediction is not finite
        """
        if challenger is None or self._split is None or self._split.shadow:
            return await self._ask_champion(request.rows)
        return await self._ask_challenger(challenger, request.rows)

    def copy(self, version: int, rows: Sequence[Row], request_id: str, served: Answer) -> None:
        """Let another version see what was answered, when the table says so; what it says only counts.

        A copy goes out when the champion has answered, so that the answer never waits for it; both are remembered under
        ``request_id``.
        """
        if self._split is None or not self._split.shadow or len(self._background) >= MAX_SHADOWS:
            return
        # A former champion that is kept warm is asked in this process: its isolated deployment is gone.
        here = self._loaded.get(version)
        batcher = here.batcher if here is not None else None
        if version not in self._split.warm and version in self._isolated:
            batcher = self._isolated[version].batcher
        if batcher is not None:
            self._in_background(self._shadow_now(version, batcher, rows, request_id, served))

    async def _ask_champion(self, rows: Sequence[Row]) -> tuple[int, str, Answer]:
        """The champion's answer; failures of the model are counted, rows it cannot take are not."""
        champion = self.require_champion()
        started = time.perf_counter()
        try:
            answer = await champion.batcher.submit(rows)
        except ContractViolation:
            raise
        except DataError as error:
            raise ContractViolation(error.message, error.details) from error
        except Exception as error:
            self._count(champion.version, started, error=True)
            log.exception("%s: version %d failed", self.endpoint, champion.version)
            raise ModelFault(
                f"Version {champion.version} failed on this request; the gateway's log says why."
            ) from error
        if not answer.finite.all():
            self._count(champion.version, started, error=True, nonfinite=True)
            raise ModelFault(f"Version {champion.version} gave a prediction that is not a finite number.")
        self._count(champion.version, started)
        return champion.version, "champion", answer

    async def _ask_challenger(self, version: int, rows: Sequence[Row]) -> tuple[int, str, Answer]:
        """The challenger's answer; the champion's when that one is no good, or is late by what is usual for it.

        A late challenger is waited for in the background, up to its time limit: its figures are those of what it did, and
        only the caller does not wait for it.
        """
        isolated = self._isolated.get(version)
        if isolated is None:  # the table changed while this request was on its way
            return await self._ask_champion(rows)
        started = time.perf_counter()
        trial = self._in_background(self._try_challenger(version, isolated.batcher, rows))
        done, _ = await asyncio.wait({trial}, timeout=isolated.patience.limit_s(len(rows)))
        took_s = time.perf_counter() - started
        tried = trial.result() if done else None
        if tried is None:
            isolated.patience.silent()
        elif tried.answer is not None:
            isolated.patience.answered(_own_s(tried.answer, took_s))
            self._count_tried(version, tried, took_s)
            return version, "challenger", tried.answer
        bad_rows = False
        try:
            return await self._ask_champion(rows)
        except ContractViolation:
            bad_rows = True
            raise
        finally:
            if tried is None:
                self._in_background(self._settle_later(isolated, trial, started, bad_rows))
            else:
                self._count_tried(version, tried, took_s, bad_rows)

    async def ask_together(self, version: int, rows: Sequence[Row], requests: int) -> Answer | None:
        """The challenger's answer to the rows of some requests at once, counted for each of them.

        ``None``, and nothing counted, when it is late or not all of it can be used: then each request has to be asked for by
        itself.
        """
        isolated = self._isolated.get(version)
        if isolated is None or self._split is None or self._split.shadow:
            return None
        started = time.perf_counter()
        try:
            async with Deadline(isolated.patience.limit_s(len(rows))):
                answer = await self._challengers.predict(version, rows, self._timeout_s)
        except DeadlineExceeded:
            isolated.patience.silent()
            return None
        except Exception as error:
            if not isinstance(error, DataError):
                log.warning("%s: challenger %d failed: %s: %s", self.endpoint, version, type(error).__name__, error)
            return None
        if len(answer.predictions) != len(rows) or not answer.finite.all():
            return None
        took_s = time.perf_counter() - started
        isolated.patience.answered(_own_s(answer, took_s))
        self._recorder.answered(version, requests, took_s * 1000.0, answer.work_ms)
        return answer

    def ask_directly(
        self, version: int, rows: Sequence[Row], requests: int, got: Callable[[Answer | None], None]
    ) -> bool:
        """As :meth:`ask_together`, over the version's own socket and without a task: ``got`` is called with what that
        returns. ``False``, and nothing done, when there is no such way now."""
        isolated, champion = self._isolated.get(version), self._champion
        if isolated is None or champion is None or self._split is None or self._split.shadow:
            return False
        link = self._challengers.link(version)
        if link is None:
            return False
        x: NDArray[np.float32] | None = None
        sent: Sent | None = None
        if link.layout is not None and link.layout == champion.model.layout:
            try:
                x, sent = champion.model.contract.encode_sent(rows)
            except DataError:
                got(None)
                return True
        started = time.perf_counter()
        loop = asyncio.get_running_loop()

        def answered(answer: Answer | Exception) -> None:
            timer.cancel()
            if isinstance(answer, Exception):
                if not isinstance(answer, DataError):
                    log.warning("%s: challenger %d failed: %s", self.endpoint, version, answer)
                got(None)
                return
            if len(answer.predictions) != len(rows) or not answer.finite.all():
                got(None)
                return
            took_s = time.perf_counter() - started
            isolated.patience.answered(_own_s(answer, took_s))
            self._recorder.answered(version, requests, took_s * 1000.0, answer.work_ms)
            got(answer)

        def late() -> None:
            link.forget(number)
            isolated.patience.silent()
            got(None)

        number = link.ask(rows if x is None else x, answered, sent)  # what it calls, it calls in a later turn
        timer = loop.call_later(isolated.patience.limit_s(len(rows)), late)
        return True

    async def settle(self) -> None:
        """Let challengers that are still asked answer, within their time limit, so that their figures are whole."""
        if self._background:
            await asyncio.wait(self._background, timeout=self._timeout_s)

    async def _settle_later(
        self, isolated: Isolated, trial: asyncio.Task[Tried], started: float, bad_rows: bool
    ) -> None:
        tried = await trial
        took_s = time.perf_counter() - started
        if tried.answer is not None:
            isolated.patience.answered(_own_s(tried.answer, took_s))
        self._count_tried(isolated.version, tried, took_s, bad_rows)

    def _count_tried(self, version: int, tried: Tried, took_s: float, bad_rows: bool = False) -> None:
        if bad_rows and tried.refused:  # both refuse: the rows are bad, not the challenger
            return
        self._recorder.request(
            version, took_s * 1000.0, error=tried.answer is None, nonfinite=tried.nonfinite, work_ms=tried.work_ms
        )

    async def _try_challenger(self, version: int, batcher: TickBatcher, rows: Sequence[Row]) -> Tried:
        try:
            answer = await batcher.submit(rows)
        except DataError:
            return Tried(refused=True)
        except Exception as error:
            log.warning("%s: challenger %d failed: %s: %s", self.endpoint, version, type(error).__name__, error)
            return Tried()
        if len(answer.predictions) != len(rows):
            return Tried()
        return Tried(answer) if answer.finite.all() else Tried(nonfinite=True)

    async def _shadow_now(
        self, version: int, batcher: TickBatcher, rows: Sequence[Row], request_id: str, served: Answer
    ) -> None:
        started = time.perf_counter()
        tried = await self._try_challenger(version, batcher, rows)
        if not tried.refused:
            self._count_tried(version, tried, time.perf_counter() - started)
        if tried.answer is not None:
            self._recorder.shadowed(request_id, version, tried.answer, served)

    def _in_background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _count(self, version: int, started: float, *, error: bool = False, nonfinite: bool = False) -> None:
        self._recorder.request(version, (time.perf_counter() - started) * 1000.0, error=error, nonfinite=nonfinite)


def _own_s(answer: Answer, took_s: float) -> float:
    """What a version took by its own clock, in seconds, where it says so: waiting for a replica is not its way of working."""
    return took_s if answer.work_ms is None else answer.work_ms / 1000.0
