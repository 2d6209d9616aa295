"""SQL sources on SQLite and on a real PostgreSQL: every row once, in parts or whole, with plain types."""

from __future__ import annotations

import datetime as dt
import uuid

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from raymlops.data.sql import Range, SQLSource, connected, cut, planned, read_range
from raymlops.errors import ConfigError, DataError

ROWS = 1000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        found = f"sqlite:///{tmp_path_factory.mktemp('sql')}/x.db"
    else:
        base = request.getfixturevalue("postgres")
        schema = f"sql_{uuid.uuid4().hex[:8]}"
        with sa.create_engine(base).begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
        found = f"{base}{'&' if '?' in base else '?'}options=-csearch_path%3D{schema}"
    engine = sa.create_engine(found)
    table = sa.Table(
        "Sales",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("price", sa.Numeric(9, 2, asdecimal=True)),
        sa.Column("day", sa.DateTime(timezone=True)),
        sa.Column("group", sa.Integer),
        sa.Column("sold", sa.Boolean),
    )
    table.metadata.create_all(engine)
    start = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
    with engine.begin() as connection:
        connection.execute(
            table.insert(),
            [
                {
                    "id": i,
                    "price": None if i % 7 == 0 else i / 4,
                    "day": start + dt.timedelta(hours=i),
                    "group": None if i % 10 == 0 else i % 5,
                    "sold": i % 2 == 0,
                }
                for i in range(ROWS)
            ],
        )
    engine.dispose()
    return found


def everything(source: SQLSource) -> pa.Table:
    with planned(source) as (parts, snapshot):
        read = [read_range(source.address(), source.statement, part, snapshot) for part in parts]
    return pa.concat_tables(read, promote_options="permissive")


def test_parts_hold_every_row_once(url: str) -> None:
    whole = everything(SQLSource(url, table='"Sales"', label="sold"))
    assert whole.num_rows == ROWS
    for column, parts in (("id", 3), ("group", 5), ("group", 40)):
        query = 'SELECT * FROM "Sales";'
        source = SQLSource(url, query=query, label="sold", partition=column, partitions=parts)
        with planned(source) as (ranges, _):
            assert len(ranges) == min(parts, 5 if column == "group" else parts)
        assert sorted(everything(source)["id"].to_pylist()) == list(range(ROWS))
    assert pa.types.is_floating(whole["price"].type)


def test_times_cut_ranges_on_postgresql(url: str) -> None:
    if url.startswith("sqlite"):
        with pytest.raises(DataError, match="its values are str; ranges are cut over numbers or times"):
            everything(SQLSource(url, table='"Sales"', label="sold", partition="day"))
        return
    found = everything(SQLSource(url, table='"Sales"', label="sold", partition="day", partitions=6))
    assert sorted(found["id"].to_pylist()) == list(range(ROWS))
    assert found["day"].type == pa.timestamp("us")
    assert min(found["day"].to_pylist()) == dt.datetime(2026, 1, 1)


def test_all_parts_of_postgresql_see_one_moment(url: str) -> None:
    if url.startswith("sqlite"):
        return
    source = SQLSource(url, table='"Sales"', label="sold", partition="id", partitions=2)
    with planned(source) as (parts, snapshot):
        assert snapshot is not None
        first = read_range(url, source.statement, parts[0], snapshot)
        with sa.create_engine(url).begin() as connection:
            connection.execute(sa.text('UPDATE "Sales" SET id = id + 5000'))
        second = read_range(url, source.statement, parts[1], snapshot)
        later = read_range(url, source.statement, parts[1], None)
    assert sorted([*first["id"].to_pylist(), *second["id"].to_pylist()]) == list(range(ROWS))
    assert min(later["id"].to_pylist()) == 5000
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text('UPDATE "Sales" SET id = id - 5000'))


def test_nothing_is_written(url: str) -> None:
    if url.startswith("sqlite"):
        return
    with connected(url) as connection, pytest.raises(sa.exc.DBAPIError, match="read-only transaction"):
        connection.execute(sa.text('DELETE FROM "Sales"'))


def test_what_the_database_refuses_is_said_without_the_url(url: str) -> None:
    with pytest.raises(DataError, match=r"refused: .*nowhere") as caught:
        everything(SQLSource(url, table="nowhere", label="y"))
    assert url not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: SQLSource("sqlite://", label="y"), "either query= or table="),
        (lambda: SQLSource("sqlite://", query="a", table="b", label="y"), "either query= or table="),
        (lambda: SQLSource("nothing", table="b", label="y"), "is no URL"),
        (lambda: SQLSource("sqlite://", table="b", label="y", partitions=0), "whole number of at least 1"),
        (lambda: SQLSource("sqlite://", table="b", label="y", jars=("x.jar",)), "is for jdbc: URLs"),
        (lambda: SQLSource("env:RAYMLOPS_NOT_SET", table="b", label="y").address(), "RAYMLOPS_NOT_SET is not set"),
        (lambda: everything(SQLSource("oracle9://x", table="b", label="y")), "no driver for 'oracle9'"),
    ],
)
def test_sources_that_cannot_work(build: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build()


def test_a_password_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SQLSource("postgresql+psycopg://me:secret@h/b", query="SELECT  1", label="y")
    assert "secret" not in repr(source) + source.describe()
    assert source.describe() == "postgresql+psycopg: query SELECT 1"
    shown = {
        "jdbc:oracle:thin:scott/tiger@//db:1521/x": "jdbc:oracle",
        "jdbc:h2:mem:x;PASSWORD=tiger": "jdbc:h2",
        "jdbc:scott/tiger@db:1": "jdbc",
        "scott/tiger@db:1521": "url",
        "sqlite:///rows.db": "sqlite",
        "env:ROWS_URL": "env:ROWS_URL",
    }
    for url, scheme in shown.items():
        assert SQLSource(url, table="t", label="y").describe() == f"{scheme}: table t"
    monkeypatch.setenv("LAKE_URL", "sqlite:///x.db")
    assert SQLSource("env:LAKE_URL", table="b", label="y").address() == "sqlite:///x.db"


@given(
    low=st.integers(-1000, 1000),
    width=st.integers(0, 500),
    parts=st.integers(1, 20),
    where=st.floats(0, 1),
    nulls=st.booleans(),
)
def test_ranges_hold_every_value_once(low: int, width: int, parts: int, where: float, nulls: bool) -> None:
    ranges = cut("c", low, low + width, parts)
    value = None if nulls else low + round(where * width)

    def holds(part: Range) -> bool:
        if value is None:
            return part.nulls
        return (part.low is None or value >= part.low) and (part.high is None or value < part.high)

    assert sum(map(holds, ranges)) == 1
    assert 1 <= len(ranges) <= parts
