"""Stand-ins for what needs a service, with the behaviour of the real ones (the contract tests run over both)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raymlops.registry.version import ModelVersion, check_alias, check_tag, unknown_version


class InMemoryRegistry:
    """A :class:`raymlops.registry.version.Registry` that is gone with its process."""

    def __init__(self) -> None:
        self._versions: dict[str, list[ModelVersion]] = {}
        self._aliases: dict[str, dict[str, int]] = {}

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
        held = self._versions.setdefault(name, [])
        for item in self.versions(name):
            if event_id and item.event_id == event_id:
                return item
        made = ModelVersion(
            name=name,
            version=len(held) + 1,
            aliases=(),
            package_key=package_key,
            digest=digest,
            metric=metric,
            score=score,
            family=family,
            params=dict(params),
            snapshot_key=snapshot_key,
            created_at=created_at,
            data_end=data_end,
            event_id=event_id,
            tags=dict(tags or {}),
        )
        held.append(made)
        return made

    def get(self, name: str, version: int | str) -> ModelVersion:
        number = version if isinstance(version, int) else self._aliases.get(name, {}).get(version)
        for item in self.versions(name):
            if item.version == number:
                return item
        raise unknown_version(name, version, self.versions(name))

    def versions(self, name: str) -> list[ModelVersion]:
        pointing = self._aliases.get(name, {})
        return [
            replace(item, aliases=tuple(sorted(alias for alias, number in pointing.items() if number == item.version)))
            for item in self._versions.get(name, [])
        ]

    def set_alias(self, name: str, alias: str, version: int) -> None:
        self.get(name, version)
        self._aliases.setdefault(name, {})[check_alias(alias)] = version

    def set_tag(self, name: str, version: int, key: str, value: str) -> None:
        check_tag(key, value)
        self.get(name, version)
        held = self._versions[name]
        tags = {**held[version - 1].tags, key: value}
        held[version - 1] = replace(held[version - 1], tags={key: value for key, value in tags.items() if value})

    def delete_alias(self, name: str, alias: str) -> None:
        self._aliases.get(name, {}).pop(alias, None)

    def names(self) -> list[str]:
        return sorted(name for name, held in self._versions.items() if held)
