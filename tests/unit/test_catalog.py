"""The catalog: what a run enters, how it is found again, what is kept, and the way back from a request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from raymlops.blocks import Block, request_id
from raymlops.clock import ManualClock
from raymlops.data import catalog_tables
from raymlops.data.assess import assess
from raymlops.data.catalog import Catalog
from raymlops.data.catalog_diff import diff_snapshots
from raymlops.data.lineage import trace
from raymlops.data.schema import learn_contract
from raymlops.data.snapshot import DatasetSnapshot, load_snapshot, write_snapshot
from raymlops.data.snapshot_origin import Code, Origin
from raymlops.errors import ConfigError, DataError, StoreError, UnknownRequest
from raymlops.lake import Lake
from raymlops.store import PredictionRow, Store


def prepare(spark: object) -> object:
    return spark


def features(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(double=frame.a * 2)


def framed(seed: int = 0, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"a": rng.normal(size=60) + shift, "city": rng.choice(["Oslo", "Bergen"], 60), "y": rng.integers(0, 2, 60)}
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def catalog(store: Store, lake: Lake) -> Iterator[Catalog]:
    yield Catalog(store, lake)
    catalog_tables.tables.drop_all(store.engine)


@pytest.fixture
def write(lake: Lake) -> object:
    def made(frame: pd.DataFrame, name: str = "churn", origin: Origin | None = None) -> DatasetSnapshot:
        contract = learn_contract(frame, "y")
        return write_snapshot(lake, name, frame, contract, None, "test", assess(frame, contract), 5.0, origin=origin)

    return made


def test_a_snapshot_is_entered_once_and_found_again(catalog: Catalog, write, clock: ManualClock) -> None:
    origin = Origin.of(
        {"prepare": prepare, "features": features, "none": None}, files=["s3://lake/churn/"], plan="== Plan =="
    )
    first = catalog.record(write(framed(), origin=origin), "event-1")
    assert first.ref == "churn@1"
    assert first.columns == {"a": "number", "city": "category", "y": "label"}
    assert first.origin["files"] == ["s3://lake/churn/"]
    assert [part["role"] for part in first.origin["code"]] == ["prepare", "features"]
    assert catalog.record(write(framed().sample(frac=1, random_state=1), origin=origin), "event-2") == first
    clock.advance(10)
    second = catalog.record(write(framed(1)), "event-3")
    assert (second.version, second.created_at) == (2, clock.now())
    assert catalog.names() == ("churn",)
    assert [item.ref for item in catalog.list()] == ["churn@1", "churn@2"]
    assert catalog.get("churn") == catalog.get("churn@latest") == second
    assert catalog.get("churn@1") == first
    assert catalog.get(f"churn@{first.snapshot_key.rpartition('/')[2][:10]}") == first
    snapshot = catalog.snapshot("churn@1")
    assert snapshot.origin.code[1].source.startswith("def features(")
    assert snapshot.origin.plan == "== Plan =="
    assert [column.name for column in snapshot.profile] == ["a", "city", "y"]


def test_search_by_word_by_column_and_by_tag(catalog: Catalog, write) -> None:
    catalog.record(write(framed(), origin=Origin.of({"prepare": prepare}, files=["s3://lake/billing/"])), "e")
    catalog.record(write(framed().rename(columns={"city": "town"}), "rides"), "e")
    catalog.describe("rides", owner="Anna", description="Taxi rides of last year")
    catalog.tag("rides", "golden", "q1.2026")
    found = {
        "BILLING": ["churn@1"],
        "taxi": ["rides@1"],
        "anna": ["rides@1"],
        "gold": ["rides@1"],
        "prepare": ["churn@1"],
        "nothing": [],
    }
    for word, refs in found.items():
        assert [item.ref for item in catalog.list(search=word)] == refs
    assert [item.ref for item in catalog.list(column="town")] == ["rides@1"]
    assert [item.ref for item in catalog.list(column="a", search="test")] == ["churn@1", "rides@1"]
    assert catalog.list(column="tow") == ()
    assert [item.ref for item in catalog.list(tag="golden")] == ["rides@1"]
    assert catalog.get("rides@golden").tags == ("golden", "q1.2026")
    assert catalog.untag("rides", "golden").tags == ("q1.2026",)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: c.get("chrn"), "The catalog holds no data set 'chrn'. Did you mean 'churn'?"),
        (lambda c: c.get("churn@7"), "The catalog holds no 'churn@7': versions 1; tags golden."),
        (lambda c: c.get("churn@abc"), "holds no 'churn@abc'"),
        (lambda c: c.untag("churn", "goldn"), "churn@1 has no tag 'goldn'. Did you mean 'golden'?"),
        (lambda c: c.tag("churn", "No Tag"), "'No Tag' is no tag: give lower-case letters"),
        (lambda c: c.tag("churn", "latest"), "and not 'latest'"),
        (lambda c: c.describe("churn", keep_days=-1), "keep_days=-1 is below 0"),
    ],
)
def test_what_is_not_there_is_said(catalog: Catalog, write, call, sentence: str) -> None:
    catalog.record(write(framed()), "e")
    catalog.tag("churn", "golden")
    with pytest.raises((DataError, ConfigError)) as caught:
        call(catalog)
    assert sentence in str(caught.value)


def test_what_a_model_needs_is_not_removed_unless_forced(catalog: Catalog, store: Store, lake: Lake, write) -> None:
    snapshot = write(framed())
    version = catalog.record(snapshot, "e")
    catalog.used(snapshot.key, "churn", 3, "e")
    catalog.used(snapshot.key, "churn", 4, "e2")
    catalog.used(snapshot.key, "churn", 4, "e2")
    store.put("loop", "churn", {"champion": 3, "previous": 1, "split": {"champion": 3, "challenger": 4}})
    store.put("snapshots", "churn", {"key": snapshot.key})
    with pytest.raises(DataError) as caught:
        catalog.remove("churn")
    assert str(caught.value) == (
        "churn@1 is needed by model churn version 3 (champion); model churn version 4 (challenger); retrainings of churn, which "
        "start from it: nothing was removed. To remove it all the same, force it."
    )
    assert load_snapshot(lake, snapshot.key) == snapshot
    gone = catalog.remove("churn", force=True)
    assert gone.removed_at == store.clock.now()
    assert list(lake.keys(snapshot.key)) == []
    assert catalog.list() == ()
    assert [item.ref for item in catalog.list(removed=True)] == ["churn@1"]
    with pytest.raises(DataError, match="The rows of churn@1 were removed"):
        catalog.snapshot("churn@1")
    assert catalog.record(write(framed()), "again") == version  # the same rows again are the same version again


def test_retention_keeps_the_newest_the_tagged_and_the_needed(catalog: Catalog, write, clock: ManualClock) -> None:
    made = [catalog.record(write(framed(seed)), f"e{seed}") for seed in range(4)]
    catalog.used(made[1].snapshot_key, "churn", 1, "e1")
    catalog.tag("churn@1", "golden")
    about = catalog.describe("churn", keep_versions=2)
    assert about.keep_versions == 2
    assert [item.ref for item in catalog.expire("churn")] == []
    catalog.untag("churn@1", "golden")
    assert [item.ref for item in catalog.expire("churn")] == ["churn@1"]
    clock.advance(86400 * 3)
    catalog.describe("churn", keep_versions=0, keep_days=2)
    catalog.record(write(framed(9)), "e9")  # recording removes what need not be kept
    assert [item.ref for item in catalog.list()] == ["churn@2", "churn@5"]
    clock.advance(86400 * 9)
    assert catalog.expire("churn") == ()


def test_what_was_just_recorded_stays_whatever_its_number(catalog: Catalog, write, lake: Lake) -> None:
    old = write(framed())
    catalog.record(old, "e0")
    catalog.record(write(framed(1)), "e1")
    catalog.describe("churn", keep_versions=1)
    assert catalog.record(write(framed()), "again").version == 1
    assert load_snapshot(lake, old.key) == old
    assert [item.ref for item in catalog.list()] == ["churn@1", "churn@2"]


def test_one_data_set_is_read_without_the_others(catalog: Catalog, write, store: Store) -> None:
    catalog.record(write(framed()), "e")
    catalog.record(write(framed(), "rides"), "e")
    asked: list[tuple[str, object]] = []

    def keep(_connection, _cursor, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    sa.event.listen(store.engine, "before_cursor_execute", keep)
    assert [item.ref for item in catalog.list(name="rides")] == ["rides@1"]
    sa.event.remove(store.engine, "before_cursor_execute", keep)
    of_data = [parameters for statement, parameters in asked if "FROM dataset" in statement]
    assert len(of_data) == 4
    assert all("rides" in str(parameters) for parameters in of_data)


def test_the_store_is_locked_for_a_change_of_the_catalog_only(
    catalog: Catalog, store: Store, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    sa.event.listen(store.engine, "before_cursor_execute", lambda _c, _k, statement, *_: said.append(statement))
    monkeypatch.setattr(store.engine.dialect, "name", "postgresql")
    Catalog(store, lake)
    assert any(statement.startswith("SELECT documents.body") for statement in said)
    assert not any("LOCK" in statement for statement in said)


def test_a_later_releases_catalog_is_not_touched_and_an_earlier_one_is_brought_up(
    store: Store, lake: Lake, monkeypatch: pytest.MonkeyPatch, write
) -> None:
    Catalog(store, lake).record(write(framed()), "e")
    monkeypatch.setattr(catalog_tables, "CHANGES", (("ALTER TABLE datasets ADD COLUMN url VARCHAR(200)",),))
    Catalog(store, lake)
    Catalog(store, lake)
    with store.transaction() as connection:
        assert connection.exec_driver_sql("SELECT url FROM datasets").scalars().all() == [None]
    assert store.get("schema", "catalog") == {"version": 2}
    monkeypatch.setattr(catalog_tables, "CHANGES", ())
    with pytest.raises(StoreError, match="The catalog's tables have version 2, this raymlops knows 1"):
        Catalog(store, lake)
    catalog_tables.tables.drop_all(store.engine)


def test_a_diff_of_snapshots(write) -> None:
    old = write(framed(), origin=Origin.of({"features": features}, files=["a.csv"]))
    changed = framed(0, shift=2.0).assign(extra=1.5)
    changed.loc[:29, "city"] = None
    changed.loc[0, "extra"] = 1.0
    new = write(changed, origin=Origin.of({"features": lambda frame: frame}, files=["b.csv"]))
    found = diff_snapshots(old, new)
    assert found.rows == (60, 60)
    assert not found.same_rows
    assert [change.what for change in found.contract][-1] == "column 'extra'"
    assert [(item.column, item.by > 1) for item in found.moved] == [("a", True), ("city", False)]
    assert "50.00% null" in found.moved[1].after
    assert (found.files_gone, found.files_come) == (("a.csv",), ("b.csv",))
    assert "-    return frame.assign(double=frame.a * 2)" in found.code
    same = diff_snapshots(old, replace(old, key="elsewhere"))
    assert same.same_rows
    assert (same.moved, same.contract, same.code) == ((), (), ())


def test_code_is_kept_to_the_letter_or_by_its_digest() -> None:
    from functools import partial

    first = Code.of("features", features)
    assert (
        first.source
        == "def features(frame: pd.DataFrame) -> pd.DataFrame:\n    return frame.assign(double=frame.a * 2)\n"
    )
    assert first.name.endswith("test_catalog.features")
    assert Code.of("features", partial(features)) == first
    names: dict[str, object] = {}
    exec("def typed(frame, n=1):\n    return frame * 2", names)
    typed = Code.of("features", names["typed"])
    exec("def typed(frame, n=1):\n    return frame * 3", names)
    assert typed.source == ""
    assert Code.of("features", names["typed"]).digest != typed.digest
    assert Origin.of({"f": features}).digest != Origin.of({"f": names["typed"]}).digest
    assert len(Origin.of({}, plan="x" * 200_000).plan) < 100_100


def test_snapshots_of_an_earlier_release_are_read(write, lake: Lake) -> None:
    snapshot = write(framed())
    body = {k: v for k, v in snapshot.to_dict().items() if k not in ("origin", "profile", "content")}
    for name in ("rules", "unique", "max_age_s", "others"):
        body["contract"].pop(name)
    for column in body["contract"]["columns"]:
        for name in ("low", "high", "closed"):
            column.pop(name)
    assert DatasetSnapshot.from_dict(body) == replace(snapshot, origin=Origin(), profile=(), content="")


def test_the_way_back_from_a_request(catalog: Catalog, store: Store, write) -> None:
    first = write(framed(), origin=Origin.of({"prepare": prepare}, files=["s3://lake/churn/"]))
    catalog.record(first, "e1")
    second = write(framed(1), origin=Origin.of({}, parents=[first.key], served="churn"))
    catalog.record(second, "e2")
    catalog.used(second.key, "churn", 2, "e2")
    store.put("versions", "churn/2", {"package_key": "packages/churn/e2", "digest": "ab" * 32})
    row = PredictionRow(request_id="r-1", row_index=0, version=2, variant="champion", score=0.5, served_at=7.0)
    store.add_predictions("churn", [row, replace(row, row_index=1)])
    found = trace(store, catalog, "r-1")
    assert (found.endpoint, found.rows, found.model_version, found.variant, found.served_at) == (
        "churn",
        2,
        2,
        "champion",
        7.0,
    )
    assert found.package["digest"] == "ab" * 32
    assert found.dataset is not None
    assert found.dataset.ref == "churn@2"
    assert [item.ref for item in found.parents] == ["churn@1"]
    assert found.parents[0].origin["files"] == ["s3://lake/churn/"]
    block = Block(
        series="00f1e2d3c4b5a697",
        names=("champion",),
        numbers=np.array([4, 5]),
        counts=np.array([1, 2], dtype=np.int32),
        versions=np.array([1, 9], dtype=np.int32),
        variants=np.zeros(2, dtype=np.uint8),
        served_at=np.array([1.0, 2.0]),
        scores=np.array([0.1, 0.2, 0.3]),
    )
    store.add_block("churn", block)
    packed = trace(store, catalog, request_id("00f1e2d3c4b5a697", 5))
    assert (packed.model_version, packed.rows, packed.dataset, packed.package) == (9, 2, None, {})
    for unknown in ("nope", request_id("00f1e2d3c4b5a697", 6)):
        with pytest.raises(UnknownRequest, match="No endpoint has served a request"):
            trace(store, catalog, unknown)
