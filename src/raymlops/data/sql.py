"""Rows of a database: any SQLAlchemy URL, read in parallel ranges of one column; or a JDBC URL, read by Spark.

On PostgreSQL all ranges see the same moment: one connection exports its snapshot and the readers import it (PostgreSQL
documentation, "Snapshot Synchronization Functions"). Elsewhere each range is a statement of its own.
"""

from __future__ import annotations

import datetime as dt
import decimal
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raymlops.data.sources import check_names
from raymlops.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy.engine import Connection, Engine

_FETCH_ROWS = 20_000
_BY_NAME = "env:"
_SCHEME = re.compile(r"(jdbc:)?[A-Za-z][A-Za-z0-9+._-]*(?=:)")


@dataclass(frozen=True, slots=True)
class SQLSource:
    """Rows of a query or a table.

    Parameters
    ----------
    url : a SQLAlchemy URL such as ``postgresql+psycopg://…``, or ``jdbc:…``; ``"env:NAME"`` takes it from an environment
        variable when it is read, so that no password is stored with the pipeline
    query, table : one of the two
    partition : a column of numbers or times whose range is cut into ``partitions`` parts that are read side by side;
        without it the query is read as one
    partitions : how many parts
    driver, jars : of a ``jdbc:`` URL, the class of its driver and local paths of where it is

    Raises
    ------
    ConfigError : both or none of query and table, no URL, partitions below 1, jars without JDBC
    """

    url: str = field(repr=False)
    query: str | None = field(default=None, kw_only=True)
    table: str | None = field(default=None, kw_only=True)
    label: str = field(kw_only=True)
    time: str | None = field(default=None, kw_only=True)
    drop: tuple[str, ...] = field(default=(), kw_only=True)
    partition: str | None = field(default=None, kw_only=True)
    partitions: int = field(default=4, kw_only=True)
    driver: str | None = field(default=None, kw_only=True)
    jars: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        check_names(self)
        if (self.query is None) == (self.table is None):
            raise ConfigError("SQLSource takes either query= or table=: give one of the two.")
        if not isinstance(self.url, str) or not (self.url.startswith(_BY_NAME) or ":" in self.url):
            raise ConfigError(
                "SQLSource(url=…) is no URL: give one such as postgresql+psycopg://user@host/base, or env:NAME."
            )
        if type(self.partitions) is not int or self.partitions < 1:
            raise ConfigError(f"SQLSource(partitions={self.partitions!r}): give a whole number of at least 1.")
        object.__setattr__(self, "jars", (self.jars,) if isinstance(self.jars, str) else tuple(self.jars))
        if self.jars and not (self.url.startswith((_BY_NAME, "jdbc:"))):
            raise ConfigError(
                "SQLSource(jars=…) is for jdbc: URLs; SQLAlchemy takes its driver from Python's packages."
            )

    def address(self) -> str:
        """The URL to connect to.

        Raises
        ------
        ConfigError : the environment variable is not set
        """
        if not self.url.startswith(_BY_NAME):
            return self.url
        name = self.url.removeprefix(_BY_NAME)
        found = os.environ.get(name)
        if not found:
            raise ConfigError(f"SQLSource(url='env:{name}'): the environment variable {name} is not set.")
        return found

    @property
    def statement(self) -> str:
        """What is selected from: the table's name, or the query in parentheses."""
        return str(self.table) if self.table is not None else f"({str(self.query).strip().rstrip(';')}) AS given"

    def describe(self) -> str:
        what = f"table {self.table}" if self.table is not None else f"query {' '.join(str(self.query).split())[:200]}"
        return f"{_scheme(self.url)}: {what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Rows with ``low <= column < high``; ``None`` is no bound. ``nulls``: and those without a value."""

    column: str
    low: Any
    high: Any
    nulls: bool


def cut(column: str, low: Any, high: Any, parts: int) -> tuple[Range, ...]:
    """Ranges that hold every row once, missing values with the first: equal in width, open at both ends.

    Parameters
    ----------
    low, high : smallest and largest value; both ``None`` when there are no values
    """
    if low is None or parts == 1 or low == high:
        return (Range(column=column, low=None, high=None, nulls=True),)
    inner: list[Any]
    if isinstance(low, int) and isinstance(high, int):
        parts = min(parts, high - low + 1)
        inner = [low + (high - low + 1) * part // parts for part in range(1, parts)]
    elif isinstance(low, dt.date) and not isinstance(low, dt.datetime):
        parts = min(parts, (high - low).days + 1)
        inner = [low + dt.timedelta(days=((high - low).days + 1) * part // parts) for part in range(1, parts)]
    else:
        inner = [low + (high - low) * part / parts for part in range(1, parts)]
    bounds = [None, *inner, None]
    return tuple(
        Range(column=column, low=bounds[part], high=bounds[part + 1], nulls=part == 0)
        for part in range(len(bounds) - 1)
    )


def plan(source: SQLSource, connection: Connection) -> tuple[Range | None, ...]:
    """The parts to read; ``(None,)`` is everything at once.

    Raises
    ------
    DataError : the partition column is not there, or is neither numbers nor times
    """
    import sqlalchemy as sa

    if source.partition is None or source.partitions == 1:
        return (None,)
    name = _quoted(connection, source.partition)
    row = connection.execute(sa.text(f"SELECT min({name}), max({name}) FROM {source.statement}")).one()
    low, high = (float(v) if isinstance(v, decimal.Decimal) else v for v in row)
    if low is not None and not isinstance(low, (int, float, dt.date)):
        raise DataError(
            f"SQLSource(partition={source.partition!r}): its values are {type(low).__name__}; ranges are cut over numbers "
            "or times. Name such a column, or leave partition= out."
        )
    return cut(source.partition, low, high, source.partitions)


def read_range(url: str, statement: str, part: Range | None, snapshot: str | None) -> pa.Table:
    """The rows of one part, in the database's order.

    Raises
    ------
    DataError : the database refused
    """
    import pyarrow as pa
    import sqlalchemy as sa

    with _as_data_error(url), connected(url, snapshot) as connection:
        where, values = _where(connection, part)
        result = connection.execution_options(stream_results=True).execute(
            sa.text(f"SELECT * FROM {statement}{where}"), values
        )
        names = list(result.keys())
        tables = [_table(names, rows) for rows in result.partitions(_FETCH_ROWS)]
    return pa.concat_tables(tables or [_table(names, [])], promote_options="permissive")


@contextmanager
def connected(url: str, snapshot: str | None = None) -> Iterator[Connection]:
    """A read-only look at the database; on PostgreSQL at one moment, ``snapshot``'s when it is given."""
    import sqlalchemy as sa

    engine: Engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                if snapshot is not None:
                    literal = sa.literal(snapshot).compile(
                        dialect=engine.dialect, compile_kwargs={"literal_binds": True}
                    )
                    connection.execute(sa.text(f"SET TRANSACTION SNAPSHOT {literal}"))
            yield connection
    finally:
        engine.dispose()


@contextmanager
def planned(source: SQLSource) -> Iterator[tuple[tuple[Range | None, ...], str | None]]:
    """The parts of a source and the moment they share; the moment is there until the block ends.

    Raises
    ------
    DataError : the database cannot be reached, or refused the query
    """
    import sqlalchemy as sa

    url = source.address()
    with _as_data_error(url), connected(url) as connection:
        parts = plan(source, connection)
        snapshot = None
        if len(parts) > 1 and connection.dialect.name == "postgresql":
            snapshot = str(connection.execute(sa.text("SELECT pg_export_snapshot()")).scalar_one())
        yield parts, snapshot


@contextmanager
def _as_data_error(url: str) -> Iterator[None]:
    import sqlalchemy as sa

    try:
        yield
    except sa.exc.NoSuchModuleError as error:
        raise ConfigError(f"SQLSource: SQLAlchemy has no driver for {_scheme(url)!r}: install its package.") from error
    except sa.exc.ArgumentError as error:
        raise ConfigError(f"SQLSource: {_scheme(url)}:… is no URL that SQLAlchemy can read.") from error
    except ModuleNotFoundError as error:
        raise ConfigError(f"SQLSource: the driver {error.name!r} of {_scheme(url)!r} is not installed.") from error
    except sa.exc.DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
        raise DataError(f"The database ({_scheme(url)}) refused: {reason}") from None  # the cause shows the URL


def _scheme(url: str) -> str:
    """What of a URL may be shown: what follows the kind of database may hold a password, wherever the driver puts it."""
    if url.startswith(_BY_NAME):
        return url
    found = _SCHEME.match(url)
    return found[0] if found else "url"


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)


def _where(connection: Connection, part: Range | None) -> tuple[str, dict[str, Any]]:
    if part is None:
        return "", {}
    name = _quoted(connection, part.column)
    bounds = [f"{name} >= :low"] if part.low is not None else []
    bounds += [f"{name} < :high"] if part.high is not None else []
    values = {key: value for key, value in (("low", part.low), ("high", part.high)) if value is not None}
    if not bounds:
        return "", {}
    inside = " AND ".join(bounds)
    return f" WHERE {inside} OR {name} IS NULL" if part.nulls else f" WHERE {inside}", values


def _table(names: Sequence[str], rows: Sequence[Any]) -> pa.Table:
    import pyarrow as pa

    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return pa.table({name: _column(name, values) for name, values in zip(names, columns, strict=True)})


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    kinds = {type(value) for value in values}
    if decimal.Decimal in kinds:
        values = [float(value) if isinstance(value, decimal.Decimal) else value for value in values]
    if dt.datetime in kinds:
        values = [_naive(value) if isinstance(value, dt.datetime) else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        shown = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(
            f"The query's column {name!r} holds {shown}, which is no type of a table: select it otherwise, or leave it out."
        ) from error


def _naive(value: dt.datetime) -> dt.datetime:
    return value if value.tzinfo is None else value.astimezone(dt.timezone.utc).replace(tzinfo=None)
