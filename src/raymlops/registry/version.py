"""Which versions there are, and which one an alias such as ``champion`` names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from raymlops.errors import ConfigError, UnknownVersion

CHAMPION, CHALLENGER = "champion", "challenger"
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")
FIXED_TAGS = frozenset({"run_id", "time", "parent"})


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
    tags : ``run_id`` of the search, ``time`` column and ``parent`` version, which stay, and what people have said since
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

    @property
    def parent(self) -> int | None:
        """The champion when this version was made."""
        return int(self.tags["parent"]) if self.tags.get("parent") else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {"aliases": list(self.aliases), "params": dict(self.params), "tags": dict(self.tags)}


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

    def set_tag(self, name: str, version: int, key: str, value: str) -> None:
        """Say something about a version; an empty value takes it back. What a version was made of cannot be changed.

        Raises
        ------
        UnknownVersion
        ConfigError : a key that is none, or one that registration set
        """

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


def check_tag(key: str, value: str) -> str:
    """``key`` itself, when a person may set it to ``value``. Raises :class:`ConfigError`."""
    if not _TAG.fullmatch(key) or len(value) > 500:
        raise ConfigError(
            f"{key!r} is no tag: give letters, digits, '-', '_' or '.', beginning with a letter, and a text of at most 500 characters."
        )
    if key in FIXED_TAGS:
        raise ConfigError(f"{key!r} was set when the version was registered and stays: a version is immutable.")
    return key


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
