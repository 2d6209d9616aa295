"""Where a version comes from and what came of it, from the registry's own facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raymlops.registry.version import ModelVersion


def lineage(version: ModelVersion, held: Sequence[ModelVersion]) -> dict[str, Any]:
    """Up: the event, the data, the search and the champion it was made to replace. Down: aliases, and versions made since.

    Parameters
    ----------
    held : all versions of the same name
    """
    by_number = {item.version: item for item in held}
    ancestors: list[int] = []
    above = version.parent
    while above is not None and above not in ancestors and above in by_number:
        ancestors.append(above)
        above = by_number[above].parent
    return {
        "up": {
            "event_id": version.event_id,
            "snapshot": version.snapshot_key,
            "same_data": [
                item.version for item in held if item.snapshot_key == version.snapshot_key and item != version
            ],
            "run_id": version.tags.get("run_id") or None,
            "ancestors": ancestors,
            "package": version.package_key,
            "digest": version.digest,
        },
        "down": {
            "aliases": list(version.aliases),
            "children": [item.version for item in held if item.parent == version.version],
        },
    }
