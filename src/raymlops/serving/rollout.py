"""Canary: how a challenger is given traffic, declared; and the decision what to do next. Nothing here acts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from raymlops.clock import seconds
from raymlops.errors import ConfigError

if TYPE_CHECKING:
    from raymlops.serving.analysis import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Weights a challenger goes through. Reaching 1 is the promotion: the challenger becomes the champion.

    Attributes
    ----------
    weights : shares of the traffic, strictly rising, the last one 1
    hold_s : least time at each weight, in seconds or as ``"30s"``
    min_requests : least requests to the challenger, over the whole rollout, before its first step. A proof that
        its error rate is not more than 10 points higher takes about 55 clean requests, so fewer changes nothing
    max_wait_s : longest time at one weight; without a verdict by then the rollout is rolled back
    approval : ``"manual"`` leaves the promotion to a person; the steps before it are taken all the same

    Raises
    ------
    ConfigError : names the field, what was given, and what would be accepted
    """

    weights: tuple[float, ...] = (0.1, 0.5, 1.0)
    hold_s: float | str = 30.0
    min_requests: int = 100
    max_wait_s: float | str = 3600.0
    approval: Literal["auto", "manual"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _checked(self.weights))
        object.__setattr__(self, "hold_s", seconds(self.hold_s, "hold_s"))
        object.__setattr__(self, "max_wait_s", seconds(self.max_wait_s, "max_wait_s"))
        if not isinstance(self.min_requests, int) or isinstance(self.min_requests, bool) or self.min_requests < 1:
            raise ConfigError(f"min_requests={self.min_requests!r} cannot be: give a whole number from 1.")
        if float(self.max_wait_s) < float(self.hold_s):
            raise ConfigError(
                f"max_wait_s={self.max_wait_s} is shorter than hold_s={self.hold_s}: no rollout would succeed."
            )
        if self.approval not in ("auto", "manual"):
            raise ConfigError(f"approval={self.approval!r} is unknown: give 'auto' or 'manual'.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout under way: at ``weights[step]`` since ``entered_at`` (wall time in seconds)."""

    champion: int
    challenger: int
    step: int
    entered_at: float
    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Stay at the present weight."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Go to ``weights[step]``."""

    step: int
    weight: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Make the challenger the champion."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Take the challenger out of the traffic."""

    reason: str


Decision: TypeAlias = Hold | Advance | Promote | Rollback


def decide(canary: Canary, rollout: Rollout, comparison: Comparison, now: float) -> Decision:
    """What to do with a rollout at ``now`` (wall time in seconds), given what both variants did since it began."""
    verdict = comparison.verdict(canary.min_requests)
    if verdict.outcome == "FAIL":
        return Rollback(reason=verdict.reason)
    hold_s, max_wait_s, held = float(canary.hold_s), float(canary.max_wait_s), now - rollout.entered_at
    if held < hold_s:
        return Hold(reason=f"at this weight for {max(0.0, held):.0f} of {hold_s:g} s")
    if verdict.outcome == "PASS":
        following = rollout.step + 1
        if following < len(canary.weights) and canary.weights[following] < 1.0:
            return Advance(step=following, weight=canary.weights[following], reason=verdict.reason)
        if canary.approval == "manual":
            return Hold(reason=f"{verdict.reason}; waits for a person to promote it")
        return Promote(reason=verdict.reason)
    if held >= max_wait_s:
        return Rollback(reason=f"no verdict within {max_wait_s:g} s: {verdict.reason}")
    return Hold(reason=verdict.reason)


def _checked(weights: Iterable[float]) -> tuple[float, ...]:
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
