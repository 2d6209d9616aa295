"""Which data sets there are: versions, owners, tags, columns, where each came from and what was made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from raymlops.data.catalog_tables import bring_up, columns, datasets, tags, uses, versions
from raymlops.data.snapshot import DatasetSnapshot, load_snapshot
from raymlops.errors import ConfigError, DataError, nearest
from raymlops.lake import Lake
from raymlops.settings import Settings
from raymlops.store import Store

_TAG = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What belongs to all versions of a data set.

    Attributes
    ----------
    keep_versions, keep_days : a version that is beyond either and that nothing needs is removed; ``None``: no limit
    """

    name: str
    owner: str
    description: str
    keep_versions: int | None
    keep_days: float | None
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A model version that was trained on a version of a data set; ``serves`` says as what, ``""`` when it does not."""

    endpoint: str
    model_version: int
    event_id: str
    serves: str

    def __str__(self) -> str:
        return f"model {self.endpoint} version {self.model_version}{f' ({self.serves})' if self.serves else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """One snapshot, as the catalog knows it.

    Attributes
    ----------
    origin : files, code (role, name, digest), parents, served; see :class:`raymlops.data.snapshot_origin.Origin`
    columns : names to kinds, the label and the time included
    removed_at : when its rows were removed; what is known of it stays
    """

    name: str
    version: int
    snapshot_key: str
    content: str
    rows: int
    created_at: float
    event_id: str
    source: str
    origin: Mapping[str, Any]
    columns: Mapping[str, str]
    tags: tuple[str, ...]
    removed_at: float | None

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Catalog:
    """The catalog in a store, of snapshots in a lake. A pipeline records its snapshots by itself.

    A reference is ``NAME`` (the newest version), ``NAME@3``, ``NAME@tag`` (the newest with it) or ``NAME@`` and the
    beginning of a fingerprint.

    Raises
    ------
    StoreError : the store cannot be read, or a later release wrote the catalog
    """

    def __init__(self, store: Store, lake: Lake) -> None:
        self._store = store
        self._lake = lake
        bring_up(store)

    @classmethod
    def open(cls, settings: Settings | None = None) -> Catalog:
        """The catalog of these settings, or of the environment's."""
        settings = settings or Settings.read()
        return cls(Store(settings.store), Lake(settings.lake))

    # --- recording ------------------------------------------------------------------------------------

    def record(self, snapshot: DatasetSnapshot, event_id: str) -> DatasetVersion:
        """Enter a snapshot, and remove what its data set need not keep. A snapshot that is there keeps its version."""
        origin = snapshot.origin.to_dict()
        code = [{word: item[word] for word in ("role", "name", "digest", "module_digest")} for item in origin["code"]]
        with self._store.transaction() as connection:
            known = connection.execute(
                sa.select(versions.c.version).where(versions.c.snapshot_key == snapshot.key)
            ).scalar_one_or_none()
            if known is not None:
                number = known
                connection.execute(
                    sa.update(versions).where(versions.c.snapshot_key == snapshot.key).values(removed_at=None)
                )
            else:
                self._ensure(connection, snapshot.name)
                highest = sa.select(sa.func.max(versions.c.version)).where(versions.c.name == snapshot.name)
                number = (connection.execute(highest).scalar_one() or 0) + 1
                row = {
                    "name": snapshot.name,
                    "version": number,
                    "snapshot_key": snapshot.key,
                    "content": snapshot.content,
                    "rows": snapshot.rows,
                    "created_at": self._store.clock.now(),
                    "event_id": event_id,
                    "source": snapshot.source,
                    "origin": json.dumps({**origin, "code": code, "plan": bool(origin["plan"])}),
                }
                connection.execute(sa.insert(versions).values(row))
                connection.execute(
                    sa.insert(columns),
                    [
                        {"name": snapshot.name, "version": number, "position": at, "column": name, "kind": kind}
                        for at, (name, kind) in enumerate(_columns_of(snapshot).items())
                    ],
                )
        self.expire(snapshot.name, spare=number)
        return self.get(f"{snapshot.name}@{number}")

    def used(self, snapshot_key: str, endpoint: str, model_version: int, event_id: str) -> None:
        """Remember which snapshot a model version was trained on."""
        row = {"endpoint": endpoint, "model_version": model_version, "snapshot_key": snapshot_key}
        mine = sa.and_(uses.c.endpoint == endpoint, uses.c.model_version == model_version)
        with self._store.transaction() as connection:
            connection.execute(sa.delete(uses).where(mine))
            connection.execute(sa.insert(uses).values(**row, event_id=event_id, at=self._store.clock.now()))

    def describe(
        self,
        name: str,
        *,
        owner: str | None = None,
        description: str | None = None,
        keep_versions: int | None = None,
        keep_days: float | None = None,
    ) -> Dataset:
        """Change what belongs to all versions; what is ``None`` stays, 0 lifts a limit.

        Raises
        ------
        DataError : no such data set
        ConfigError : a limit below 0
        """
        for word, value in (("keep_versions", keep_versions), ("keep_days", keep_days)):
            if value is not None and value < 0:
                raise ConfigError(f"{word}={value} is below 0: give how much to keep, or 0 for no limit.")
        self.dataset(name)
        given: dict[str, Any] = {"owner": owner, "description": description}
        given |= {"keep_versions": keep_versions, "keep_days": keep_days}
        change = {
            word: (value or None) if word.startswith("keep") else value
            for word, value in given.items()
            if value is not None
        }
        if change:
            with self._store.transaction() as connection:
                connection.execute(sa.update(datasets).where(datasets.c.name == name).values(**change))
        return self.dataset(name)

    def tag(self, ref: str, *names: str) -> DatasetVersion:
        """Put tags on a version.

        Raises
        ------
        ConfigError : something that is no tag
        DataError : no such version
        """
        version = self.get(ref)
        for name in names:
            if not _TAG.fullmatch(name) or name == "latest":
                raise ConfigError(
                    f"{name!r} is no tag: give lower-case letters, digits, '.', '_' or '-', beginning with a letter, and "
                    "not 'latest'."
                )
        with self._store.transaction() as connection:
            for name in set(names) - set(version.tags):
                connection.execute(sa.insert(tags).values(name=version.name, version=version.version, tag=name))
        return self.get(version.ref)

    def untag(self, ref: str, *names: str) -> DatasetVersion:
        """Take tags off a version. Raises :class:`DataError` when it has none of that name."""
        version = self.get(ref)
        for name in names:
            if name not in version.tags:
                raise DataError(f"{version.ref} has no tag {name!r}.{nearest(name, version.tags)}")
        mine = sa.and_(tags.c.name == version.name, tags.c.version == version.version, tags.c.tag.in_(names))
        with self._store.transaction() as connection:
            connection.execute(sa.delete(tags).where(mine))
        return self.get(version.ref)

    # --- looking --------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """All data sets, sorted."""
        with self._store.transaction() as connection:
            return tuple(connection.execute(sa.select(datasets.c.name).order_by(datasets.c.name)).scalars())

    def dataset(self, name: str) -> Dataset:
        """What belongs to all versions. Raises :class:`DataError` for a name that is not there."""
        with self._store.transaction() as connection:
            row = connection.execute(sa.select(datasets).where(datasets.c.name == name)).one_or_none()
        if row is None:
            raise DataError(f"The catalog holds no data set {name!r}.{nearest(name, self.names())}")
        return Dataset(**row._mapping)

    def list(
        self,
        *,
        search: str | None = None,
        column: str | None = None,
        tag: str | None = None,
        name: str | None = None,
        removed: bool = False,
    ) -> tuple[DatasetVersion, ...]:
        """Versions by name and number.

        Parameters
        ----------
        search : a word that stands in name, owner, description, tags, source, files or names of functions; any case
        column : a column of that name is there
        """

        def of_name(table: sa.Table, *order: sa.Column[Any]) -> sa.Select[Any]:
            query = sa.select(table).order_by(*order)
            return query if name is None else query.where(table.c.name == name)

        query = of_name(versions, versions.c.name, versions.c.version)
        if not removed:
            query = query.where(versions.c.removed_at.is_(None))
        with self._store.transaction() as connection:
            rows = connection.execute(query).all()
            found_columns = connection.execute(of_name(columns, columns.c.position)).all()
            found_tags = connection.execute(of_name(tags, tags.c.tag)).all()
            named = connection.execute(of_name(datasets)).all()
        about = {row.name: f"{row.owner}\n{row.description}" for row in named}
        of: dict[tuple[str, int], dict[str, str]] = {}
        for item in found_columns:
            of.setdefault((item.name, item.version), {})[item.column] = item.kind
        tagged: dict[tuple[str, int], list[str]] = {}
        for item in found_tags:
            tagged.setdefault((item.name, item.version), []).append(item.tag)
        made = [
            DatasetVersion(
                **{
                    **row._mapping,
                    "origin": json.loads(row.origin),
                    "columns": of.get((row.name, row.version), {}),
                    "tags": tuple(tagged.get((row.name, row.version), ())),
                }
            )
            for row in rows
        ]
        return tuple(
            item
            for item in made
            if (column is None or column in item.columns)
            and (tag is None or tag in item.tags)
            and (search is None or search.lower() in f"{about[item.name]}\n{_words(item)}".lower())
        )

    def get(self, ref: str) -> DatasetVersion:
        """The version a reference names; one that was removed too, when it is named by number or fingerprint.

        Raises
        ------
        DataError : there is none, with what there is; a beginning that several fingerprints share
        """
        name, at, which = ref.partition("@")
        self.dataset(name)
        every = self.list(name=name, removed=True)
        there = [item for item in every if item.removed_at is None]
        if not at or which == "latest":
            found = there[-1:]
        elif which.isdigit() and len(which) < 8:
            found = [item for item in every if item.version == int(which)]
        else:
            found = [item for item in there if which in item.tags][-1:]
            found = found or [
                item for item in every if len(which) >= 6 and item.snapshot_key.rpartition("/")[2].startswith(which)
            ]
        if len(found) > 1:
            raise DataError(f"{ref!r} names {', '.join(item.ref for item in found)}: give more of the fingerprint.")
        if not found:
            kept = ", ".join(str(item.version) for item in there) or "none"
            named = sorted({tag for item in there for tag in item.tags})
            raise DataError(
                f"The catalog holds no {ref!r}: versions {kept}{'; tags ' + ', '.join(named) if named else ''}."
            )
        return found[0]

    def snapshot(self, ref: str) -> DatasetSnapshot:
        """The snapshot itself, with contract, profile and code. Raises :class:`DataError` when its rows were removed."""
        version = self.get(ref)
        if version.removed_at is not None:
            raise DataError(f"The rows of {version.ref} were removed: what the catalog knows of it is all there is.")
        return load_snapshot(self._lake, version.snapshot_key)

    def uses(self, snapshot_key: str) -> tuple[Use, ...]:
        """The model versions that were trained on a snapshot, and what they serve as now."""
        query = sa.select(uses).where(uses.c.snapshot_key == snapshot_key)
        with self._store.transaction() as connection:
            rows = connection.execute(query.order_by(uses.c.endpoint, uses.c.model_version)).all()
        serving = {row.endpoint: self._serving(row.endpoint) for row in rows}
        return tuple(
            Use(
                endpoint=row.endpoint,
                model_version=row.model_version,
                event_id=row.event_id,
                serves=serving[row.endpoint].get(row.model_version, ""),
            )
            for row in rows
        )

    def trained_on(self, endpoint: str, model_version: int) -> DatasetVersion | None:
        """The version of a data set that a model version learned from, where the catalog was told."""
        mine = sa.and_(uses.c.endpoint == endpoint, uses.c.model_version == model_version)
        with self._store.transaction() as connection:
            key = connection.execute(sa.select(uses.c.snapshot_key).where(mine)).scalar_one_or_none()
        return None if key is None else self.by_key(key)

    def by_key(self, key: str) -> DatasetVersion | None:
        """The version of a snapshot, by its key in the lake."""
        with self._store.transaction() as connection:
            row = connection.execute(
                sa.select(versions.c.name, versions.c.version).where(versions.c.snapshot_key == key)
            ).one_or_none()
        return None if row is None else self.get(f"{row.name}@{row.version}")

    # --- removing -------------------------------------------------------------------------------------

    def needed_by(self, version: DatasetVersion) -> tuple[str, ...]:
        """What would miss a version, in words."""
        found = [str(use) for use in self.uses(version.snapshot_key)]
        first = self._store.get("snapshots", version.name)
        if first is not None and first["key"] == version.snapshot_key:
            found.append(f"retrainings of {version.name}, which start from it")
        return tuple(found)

    def remove(self, ref: str, *, force: bool = False) -> DatasetVersion:
        """Remove the rows of a version from the lake; what is known of it stays, marked as removed.

        Raises
        ------
        DataError : something needs it, and ``force`` was not given
        """
        version = self.get(ref)
        needed = self.needed_by(version)
        if needed and not force:
            raise DataError(
                f"{version.ref} is needed by {'; '.join(needed)}: nothing was removed. To remove it all the same, force it.",
                {"needed_by": list(needed)},
            )
        with self._store.transaction() as connection:
            mine = versions.c.snapshot_key == version.snapshot_key
            connection.execute(sa.update(versions).where(mine).values(removed_at=self._store.clock.now()))
        # The description first: rows without it are no snapshot, and are written again when they come again.
        self._lake.remove(f"{version.snapshot_key}/snapshot.json")
        for key in list(self._lake.keys(version.snapshot_key)):
            self._lake.remove(key)
        return self.get(version.ref)

    def expire(self, name: str, *, spare: int | None = None) -> tuple[DatasetVersion, ...]:
        """Remove the versions beyond what the data set keeps; the newest, tagged ones and needed ones stay.

        Parameters
        ----------
        spare : number of a version that stays too: one just recorded, old as its number may be, is about to be used
        """
        about = self.dataset(name)
        there = self.list(name=name)
        oldest = None if about.keep_days is None else self._store.clock.now() - about.keep_days * _DAY_S
        newest = len(there) - (about.keep_versions or len(there))
        beyond = [
            item for at, item in enumerate(there) if at < newest or (oldest is not None and item.created_at < oldest)
        ]
        stay = {spare, *(item.version for item in there[-1:])}
        gone = [item for item in beyond if item.version not in stay and not item.tags and not self.needed_by(item)]
        return tuple(self.remove(item.ref) for item in gone)

    # --- inside ---------------------------------------------------------------------------------------

    def _ensure(self, connection: sa.Connection, name: str) -> None:
        known = connection.execute(
            sa.select(datasets.c.name).where(datasets.c.name == name).with_for_update()
        ).one_or_none()
        if known is None:
            connection.execute(
                sa.insert(datasets).values(name=name, owner="", description="", created_at=self._store.clock.now())
            )

    def _serving(self, endpoint: str) -> dict[int, str]:
        """What an endpoint's versions serve as, from the state its steward keeps in the store."""
        body = self._store.get("loop", endpoint) or {}
        split = body.get("split") or {}
        roles = {
            body.get("previous"): "kept for a rollback",
            split.get("challenger"): "challenger",
            body.get("champion"): "champion",
        }
        return {int(version): role for version, role in roles.items() if version is not None}


def _columns_of(snapshot: DatasetSnapshot) -> dict[str, str]:
    contract = snapshot.contract
    kinds: dict[str, str] = {column.name: column.kind for column in contract.columns}
    kinds[contract.label] = "label"
    return kinds | ({snapshot.time: "time"} if snapshot.time else {})


def _words(item: DatasetVersion) -> str:
    code = [part["name"] for part in item.origin["code"]]
    return "\n".join([item.name, item.source, *item.tags, *item.origin["files"], *code])
