"""How a challenger is given traffic, declared: canary, blue-green, shadow, A/B test, bandit.

All five run on the same machinery: stages of a share of the traffic (or of copies of it), one analysis of champion
against challenger, one decision at a time (:mod:`raymlops.serving.rollout`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from raymlops.clock import seconds
from raymlops.errors import ConfigError

Approval = Literal["auto", "manual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A share of the requests that goes to the challenger; as copies that answer nobody when ``shadow``."""

    weight: float
    shadow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules(ABC):
    """What every policy has.

    Attributes
    ----------
    hold_s : least time at each stage, in seconds or as ``"30s"``
    min_requests : least requests to the challenger, over the whole rollout, before any verdict but "it is broken". A
        proof that its error rate is not more than 10 points higher takes about 55 clean requests
    max_slowdown : times the champion's median time for an answer that the challenger's may take, without the way to
        it, before it is rolled back as too slow; a median below 10 ms never is
    max_wait_s : longest time at one stage (of a test or bandit: in all); without a verdict by then it is rolled back
    approval : ``"manual"`` holds each step, the promotion included, until a person approves it
    keep_warm_s : how long the champion of before stays loaded after a promotion, so that going back is a pointer swap
    confirm_labels : 0 makes a promotion final. Otherwise it is provisional: the champion of before goes on answering
        copies, and once this many labelled rows compare the two the promotion is confirmed, or revoked when it is worse
    confirm_wait_s : after this long without enough labels a provisional promotion stands

    Raises
    ------
    ConfigError : names the field, what was given, and what would be accepted
    """

    hold_s: float | str = 30.0
    min_requests: int = 100
    max_slowdown: float = 3.0
    max_wait_s: float | str = 3600.0
    approval: Approval = "auto"
    keep_warm_s: float | str = 600.0
    confirm_labels: int = 0
    confirm_wait_s: float | str = 604800.0

    def __post_init__(self) -> None:
        for name in ("hold_s", "max_wait_s", "keep_warm_s", "confirm_wait_s"):
            object.__setattr__(self, name, seconds(getattr(self, name), name))
        _whole("min_requests", self.min_requests, 1)
        _whole("confirm_labels", self.confirm_labels, 0)
        slowdown = self.max_slowdown
        if not isinstance(slowdown, (int, float)) or isinstance(slowdown, bool) or not slowdown >= 1.0:
            raise ConfigError(
                f"max_slowdown={slowdown!r} cannot be: give a number from 1, or float('inf') for no limit."
            )
        if float(self.max_wait_s) < float(self.hold_s):
            raise ConfigError(
                f"max_wait_s={self.max_wait_s} is shorter than hold_s={self.hold_s}: no rollout would succeed."
            )
        if self.approval not in ("auto", "manual"):
            raise ConfigError(f"approval={self.approval!r} is unknown: give 'auto' or 'manual'.")

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """What the challenger goes through before it is the champion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary(Rules):
    """Weights a challenger goes through. Reaching 1 is the promotion: the challenger becomes the champion.

    Attributes
    ----------
    weights : shares of the traffic, strictly rising, the last one 1
    """

    weights: tuple[float, ...] = (0.1, 0.5, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _rising(self.weights))
        Rules.__post_init__(self)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(weight=weight) for weight in self.weights[:-1] or self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlueGreen(Rules):
    """All traffic at once, and all of it back at once.

    First the new version (green) gets a copy of each request and answers nobody; then it answers all of them, the old
    one (blue) still loaded in every gateway; after ``hold_s`` without a failure it is promoted. Until then green answers
    from its own deployment, as every challenger does: size that for all the traffic.

    Attributes
    ----------
    preview : ``False`` leaves the copies out. Green is then judged by what it answers alone, with nothing beside it
    """

    preview: bool = True

    @property
    def stages(self) -> tuple[Stage, ...]:
        switched = Stage(weight=1.0)
        return (Stage(weight=1.0, shadow=True), switched) if self.preview else (switched,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow(Rules):
    """The challenger answers copies only; what both say of the same rows is compared pair by pair.

    Attributes
    ----------
    share : share of the requests that is copied
    min_labels : rows with a label and both answers that must show the challenger's loss to be no worse (within
        0.02) before it is promoted; 0 asks for no labels
    """

    share: float = 1.0
    min_labels: int = 0

    def __post_init__(self) -> None:
        _share("share", self.share, 0.0, 1.0)
        _whole("min_labels", self.min_labels, 0)
        Rules.__post_init__(self)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(weight=float(self.share), shadow=True),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ABTest(Rules):
    """A fixed share until the labels say which one is better. A request's ``key`` keeps its side.

    The challenger is promoted when its mean loss is lower beyond chance, and rolled back when it is higher beyond
    chance, or when neither was shown within ``max_wait_s``.

    Attributes
    ----------
    share : the challenger's share of the keys
    min_labels : labelled rows of each side before a verdict on the loss
    """

    share: float = 0.5
    min_labels: int = 100
    max_wait_s: float | str = 604800.0

    def __post_init__(self) -> None:
        _share("share", self.share, 0.0, 1.0, below=True)
        _whole("min_labels", self.min_labels, 1)
        Rules.__post_init__(self)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(weight=float(self.share)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandit(Rules):
    """Thompson sampling: the challenger's share is the probability that it is the better one, given the labels so far.

    A reward is 1 minus the loss of a labelled row, whenever its label comes. The posterior is Bayesian: its
    probability is not an anytime-valid error rate, as the other policies' verdicts are.

    Attributes
    ----------
    floor, cap : the share stays within them until the end; at ``floor`` until it is shown that the challenger works
    confidence : promoted above this probability of being better, rolled back below 1 minus it
    min_labels : labelled rows of each side before the end
    update_s : least time between two changes of the share
    """

    floor: float = 0.05
    cap: float = 0.95
    confidence: float = 0.99
    min_labels: int = 100
    update_s: float | str = 30.0
    max_wait_s: float | str = 604800.0

    def __post_init__(self) -> None:
        _share("floor", self.floor, 0.0, 1.0, below=True)
        _share("cap", self.cap, self.floor, 1.0, below=True)
        _share("confidence", self.confidence, 0.5, 1.0, below=True)
        _whole("min_labels", self.min_labels, 1)
        object.__setattr__(self, "update_s", seconds(self.update_s, "update_s"))
        Rules.__post_init__(self)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(weight=float(self.floor)),)


Policy: TypeAlias = Canary | BlueGreen | Shadow | ABTest | Bandit
POLICIES: tuple[type[Any], ...] = (Canary, BlueGreen, Shadow, ABTest, Bandit)


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r} cannot be: give a whole number from {least}.")


def _share(name: str, value: object, low: float, high: float, *, below: bool = False) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
        if low < number and (number < high if below else number <= high):
            return
    end = "below" if below else "up to"
    raise ConfigError(f"{name}={value!r} is not a share: give a number above {low:g} and {end} {high:g}.")


def _rising(weights: Iterable[float]) -> tuple[float, ...]:
    example = "Give shares that rise strictly to 1, such as (0.1, 0.5, 1.0)."
    try:
        given = tuple(weights)
        numbers = tuple(float(weight) for weight in given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"weights={weights!r} are not shares of the traffic. {example}") from error
    if any(isinstance(weight, (bool, str)) for weight in given):
        raise ConfigError(f"weights={given!r} are not shares of the traffic. {example}")
    rising = all(low < high for low, high in zip((0.0, *numbers), numbers, strict=False))
    if not numbers or not rising or numbers[-1] != 1.0:
        raise ConfigError(f"weights={given!r} do not rise strictly to 1. {example}")
    return numbers
