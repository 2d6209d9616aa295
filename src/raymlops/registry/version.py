"""Which versions there are, and which one an alias such as ``champion`` names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from raymlops.errors import ConfigError, UnknownVersion

CHAMPION, CHALLENGER = "champion", "challenger"
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One registered version of an endpoint's model.

    Attributes
    ----------
    version : counts from 1 within ``name``
    aliases : sorted names that point at it now
    package_key, digest : where the package lies in the lake, and the SHA-256 of its manifest
    metric, score : of the winning trial on validation rows
    snapshot_key : the data it learnt from
    created_at, data_end : seconds since 1970; ``data_end`` is the newest row's own time, where rows have one
    event_id : what caused it; one event makes one version
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    package_key: str
    digest: str
    metric: str
    score: float
    family: str
    params: Mapping[str, Any]
    snapshot_key: str
    created_at: float
    data_end: float | None
    event_id: str
    tags: Mapping[str, str] = field(default_factory=dict)


class Registry(Protocol):
    """Where versions are kept. One behaviour, several implementations (``tests/contract/test_registry.py``)."""

    def register(
        self,
        *,
        name: str,
        package_key: str,
        digest: str,
        metric: str,
        score: float,
        family: str,
        params: Mapping[str, Any],
        snapshot_key: str,
        created_at: float,
        data_end: float | None,
        event_id: str,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Add a version; asking again with the same ``event_id`` gives the version it made the first time."""

    def get(self, name: str, version: int | str) -> ModelVersion:
        """By number or by alias. Raises :class:`UnknownVersion`."""

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions, oldest first; none for an unknown name."""

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point ``alias`` at a version, away from where it pointed. Raises :class:`UnknownVersion`, :class:`ConfigError`."""

    def delete_alias(self, name: str, alias: str) -> None:
        """Let ``alias`` point at nothing; nothing happens when it already does."""

    def names(self) -> list[str]:
        """Every name with a version, sorted."""


def check_alias(alias: str) -> str:
    """``alias`` itself, when every registry can keep it. Raises :class:`ConfigError`."""
    if not _ALIAS.fullmatch(alias) or alias == "latest" or re.fullmatch(r"v\d+", alias):
        raise ConfigError(
            f"{alias!r} is no alias: give lower-case letters, digits, '-' or '_', beginning with a letter, "
            "and neither 'latest' nor a version such as 'v1'."
        )
    return alias


def unknown_version(name: str, asked: int | str, known: Iterable[ModelVersion]) -> UnknownVersion:
    """The error that names what there is instead."""
    there = list(known)
    if not there:
        return UnknownVersion(f"The registry holds no version of {name!r}.")
    aliases = sorted(f"{alias} = {item.version}" for item in there for alias in item.aliases)
    kept = f"{there[0].version} to {there[-1].version}" if len(there) > 1 else f"{there[0].version} only"
    also = f" and {', '.join(aliases)}" if aliases else ""
    what = f"version {asked}" if isinstance(asked, int) else f"alias {asked!r}"
    return UnknownVersion(f"The registry holds no {what} of {name!r}: it holds {kept}{also}.")
