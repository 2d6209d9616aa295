"""Which version a request goes to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raymlops.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSplit:
    """The traffic table of one endpoint.

    Attributes
    ----------
    number : grows with every table; an older one never replaces a newer one
    champion, challenger : versions
    weight : the challenger's share of the requests, 0 to 1; 0 means none, 1 means all
    shadow : the challenger gets its share as copies, and every answer is the champion's
    warm : versions that stay loaded in the gateways beside the champion, so that going back is a pointer swap

    Raises
    ------
    ConfigError : a weight outside [0, 1], a weight without a challenger, the champion as its own challenger
    """

    number: int
    champion: int
    challenger: int | None = None
    weight: float = 0.0
    shadow: bool = False
    warm: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.weight, bool) or not (math.isfinite(self.weight) and 0.0 <= self.weight <= 1.0):
            raise ConfigError(f"weight={self.weight!r} is not a share of the traffic: give a number from 0 to 1.")
        if self.challenger is None and self.weight > 0:
            raise ConfigError(f"weight={self.weight!r} needs a challenger: name its version, or give weight=0.")
        if self.challenger == self.champion:
            raise ConfigError(f"Version {self.champion} cannot be champion and challenger at once.")

    def pick(self, u: float) -> int:
        """The version for a request that drew ``u``, uniform on [0, 1).

        >>> TrafficSplit(number=1, champion=1, challenger=2, weight=0.1).pick(0.05)
        2
        """
        return self.challenger if self.challenger is not None and u < self.weight else self.champion

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> TrafficSplit:
        return cls(**{**body, "warm": tuple(body.get("warm", ()))})


def draw(key: str, salt: str) -> float:
    """A number in [0, 1) that is always the same for one key and salt, and uniform over keys.

    With the challenger's version as salt a key keeps its side of a rollout, only ever moves from champion to
    challenger while the weight rises, and the next rollout tries other keys first.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode()[:64]).digest()
    return (int.from_bytes(digest, "big") >> 11) / float(1 << 53)
