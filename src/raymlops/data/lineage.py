"""From a request to the model version that answered it, the data that version learned from, and what made that data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raymlops.data.catalog import Catalog, DatasetVersion
from raymlops.errors import UnknownRequest
from raymlops.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """One request's way back.

    Attributes
    ----------
    rows : how many rows it had
    model_version, variant, served_at : what answered, as which side of a rollout, and when (seconds since 1970)
    package : where the model lies in the lake and the SHA-256 of its manifest
    dataset : what the version learned from; ``None`` for versions from before there was a catalog
    parents : the data sets that one holds rows of, nearest first
    """

    request_id: str
    endpoint: str
    rows: int
    model_version: int
    variant: str
    served_at: float
    package: Mapping[str, Any]
    dataset: DatasetVersion | None
    parents: tuple[DatasetVersion, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def trace(store: Store, catalog: Catalog, request_id: str) -> Lineage:
    """The way back from a request that was served.

    Raises
    ------
    UnknownRequest : no endpoint of this store has served it, or its record is not written yet
    """
    served = store.served(request_id)
    if not served:
        raise UnknownRequest(
            f"No endpoint has served a request {request_id!r}: take request_id from an answer, and give the gateways a "
            "second to write their records."
        )
    endpoint, row = served[0]
    dataset = catalog.trained_on(endpoint, row.version)
    return Lineage(
        request_id=request_id,
        endpoint=endpoint,
        rows=len(served),
        model_version=row.version,
        variant=row.variant,
        served_at=row.served_at,
        package=store.get("versions", f"{endpoint}/{row.version}") or {},
        dataset=dataset,
        parents=() if dataset is None else ancestors(catalog, dataset),
    )


def ancestors(catalog: Catalog, version: DatasetVersion) -> tuple[DatasetVersion, ...]:
    """The data sets whose rows this one holds, nearest first, each once."""
    found: dict[str, DatasetVersion] = {}
    waiting = list(version.origin["parents"])
    while waiting:
        key = waiting.pop(0)
        parent = catalog.by_key(key)
        if parent is not None and key not in found:
            found[key] = parent
            waiting += parent.origin["parents"]
    return tuple(found.values())
