"""Where the rows come from: a frame at hand, files, or a function of a Spark session. Read by ``ray_dp``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raymlops.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

Format = Literal["csv", "json", "orc", "parquet"]
Engine = Literal["auto", "spark", "arrow"]

FORMATS: tuple[Format, ...] = ("csv", "json", "orc", "parquet")
_ENGINES: tuple[Engine, ...] = ("auto", "spark", "arrow")
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".csv.gz": "csv",
    ".txt": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".jsonl.gz": "json",
    ".json": "json",
    ".orc": "orc",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_LOCAL_PREFIXES = ("file://", "local://")


class Source(Protocol):
    """Rows with a label. ``time`` orders them; ``drop`` names columns the model must not see."""

    @property
    def label(self) -> str: ...

    @property
    def time(self) -> str | None: ...

    @property
    def drop(self) -> tuple[str, ...]: ...

    def describe(self) -> str:
        """A few words for the snapshot: where the rows came from."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FrameSource:
    """Rows that are in memory already, as a pandas DataFrame or a ``pyarrow.Table``. No JVM is started.

    Raises
    ------
    ConfigError : neither of the two, or names that cannot be names
    DataError : the label, time or a dropped column is not in the frame
    """

    frame: Any
    label: str = field(kw_only=True)
    time: str | None = field(default=None, kw_only=True)
    drop: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        check_names(self)
        if not (hasattr(self.frame, "columns") or hasattr(self.frame, "column_names")):
            raise ConfigError(
                f"FrameSource takes a pandas DataFrame or a pyarrow Table, got {type(self.frame).__name__}."
            )
        names = self.frame.column_names if hasattr(self.frame, "column_names") else self.frame.columns
        check_columns(map(str, names), self)

    def to_pandas(self) -> pd.DataFrame:
        """The rows as pandas, whatever was given; the given frame is not changed."""
        frame = self.frame.to_pandas() if hasattr(self.frame, "column_names") else self.frame
        return frame.reset_index(drop=True)

    def describe(self) -> str:
        return f"a frame of {len(self.frame)} rows"


@dataclass(frozen=True, slots=True)
class FileSource:
    """CSV (with a header; types are inferred, empty fields are missing), JSON-lines, ORC or Parquet files.

    Parameters
    ----------
    path : a path, a glob, a folder or an fsspec URL, or a list of them
    format : ``"csv"``, ``"json"``, ``"orc"`` or ``"parquet"``; found from the name when not given
    engine : ``"auto"`` reads up to 64 MiB in one process and more with Spark on Ray; ``"arrow"`` and ``"spark"`` always
        do the one or the other. The rows, their order and their types are the same.

    Quoted CSV fields may hold separators and quotes but no line breaks; for such files write a :class:`SparkSource`.

    Raises
    ------
    ConfigError : no path, an unknown format or engine, a URL that Spark's processes cannot see
    """

    path: str | list[str] | tuple[str, ...]
    label: str = field(kw_only=True)
    time: str | None = field(default=None, kw_only=True)
    drop: tuple[str, ...] = field(default=(), kw_only=True)
    format: Format | None = field(default=None, kw_only=True)
    engine: Engine = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        check_names(self)
        given = self.path if isinstance(self.path, (list, tuple)) else [self.path]
        paths = tuple(str(path) for path in given)
        if not paths or not all(path.strip() for path in paths):
            raise ConfigError(
                f"FileSource(path={self.path!r}) names no file: give a path, a glob, a folder, a URL or a list."
            )
        for path in paths:
            if path.startswith("memory://"):
                raise ConfigError(f"FileSource(path={path!r}): memory:// lives in one process only; use FrameSource.")
        object.__setattr__(self, "path", paths)
        if self.format is not None and self.format not in FORMATS:
            raise ConfigError(
                f"FileSource(format={self.format!r}) is not a format.{nearest(str(self.format), FORMATS)}"
            )
        if self.engine not in _ENGINES:
            raise ConfigError(f"FileSource(engine={self.engine!r}) is no engine.{nearest(str(self.engine), _ENGINES)}")

    @property
    def paths(self) -> tuple[str, ...]:
        """What was given, as a tuple."""
        return tuple(self.path)

    def expand(self) -> tuple[tuple[str, ...], Format, bool]:
        """The files there are now, sorted within each pattern; their format; whether they are local.

        Raises
        ------
        DataError : a path or glob that matches nothing, or a mixture of formats or of local and remote files
        """
        return expand_files(self.paths, self.format)

    def describe(self) -> str:
        return ", ".join(self.paths)


@dataclass(frozen=True, slots=True)
class SparkSource:
    """Rows that a function makes from a Spark session: joins, aggregates, any reader Spark has.

    Raises
    ------
    ConfigError : ``prepare`` cannot be called, or names that cannot be names
    """

    prepare: Callable[[SparkSession], DataFrame]
    label: str = field(kw_only=True)
    time: str | None = field(default=None, kw_only=True)
    drop: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        check_names(self)
        if not callable(self.prepare):
            raise ConfigError(
                f"SparkSource(prepare={self.prepare!r}): give a function of a SparkSession that returns a DataFrame."
            )

    def describe(self) -> str:
        name = getattr(self.prepare, "__qualname__", type(self.prepare).__name__)
        return f"Spark: {getattr(self.prepare, '__module__', '')}.{name}"


@dataclass(frozen=True, slots=True, eq=False)
class RayDatasetSource:
    """Rows of a ``ray.data.Dataset``, or of one that a function makes: read block by block, in order, without a JVM.

    A function is made anew at each run; a dataset that is given itself is run as it stands.

    Raises
    ------
    ConfigError : neither a dataset nor a function, or names that cannot be names
    """

    dataset: Any
    label: str = field(kw_only=True)
    time: str | None = field(default=None, kw_only=True)
    drop: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        check_names(self)
        if not (hasattr(self.dataset, "iter_batches") or callable(self.dataset)):
            raise ConfigError(
                f"RayDatasetSource takes a ray.data.Dataset or a function that returns one, got "
                f"{type(self.dataset).__name__}."
            )

    def describe(self) -> str:
        name = getattr(self.dataset, "__qualname__", "")
        return f"Ray Data: {getattr(self.dataset, '__module__', '')}.{name}" if name else "a Ray dataset"


def expand_files(paths: Iterable[str], format: Format | None = None) -> tuple[tuple[str, ...], Format, bool]:
    """The files that paths, globs, folders and URLs name now, sorted within each; their format; whether they are local.

    Raises
    ------
    ConfigError : a name that does not tell its format
    DataError : a path or glob that matches nothing, or a mixture of formats or of local and remote files
    """
    files: list[str] = []
    for path in paths:
        files += _expand(path)
    formats = {format or _format_of(name) for name in files}
    local = {"://" not in name for name in files}
    if len(formats) > 1 or len(local) > 1:
        raise DataError(
            f"The source mixes formats, or local and remote files: {', '.join(files[:10])}. Use one source for each."
        )
    return tuple(files), formats.pop(), local.pop()


def check_columns(columns: Iterable[str], source: Source) -> None:
    """Check that the label, the time and the dropped columns are there.

    Raises
    ------
    DataError : the first that is not, with the columns there are and the nearest name
    """
    known = list(columns)
    wanted = [
        ("label", source.label),
        *([("time", source.time)] if source.time else []),
        *(("drop", name) for name in source.drop),
    ]
    for role, name in wanted:
        if name not in known:
            hint = nearest(name, known)
            listed = f" Columns: {', '.join(known[:50])}." if "Did you mean" in hint else ""
            raise DataError(
                f"The data has no {role} column {name!r}.{hint}{listed}",
                {"role": role, "column": name, "columns": known[:50]},
            )


def check_names(source: Source) -> None:
    """Check that label, time and dropped columns can be names, and make ``drop`` a tuple.

    Raises
    ------
    ConfigError : an empty name, or one column in two roles
    """
    kind = type(source).__name__
    drop = (source.drop,) if isinstance(source.drop, str) else tuple(source.drop)
    object.__setattr__(source, "drop", drop)
    for role, name in (
        ("label", source.label),
        *([] if source.time is None else [("time", source.time)]),
        *(("drop", n) for n in drop),
    ):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{kind}({role}={name!r}) is not a column name: give a non-empty string.")
    if source.label == source.time or source.label in drop or source.time in drop:
        raise ConfigError(
            f"{kind}: label={source.label!r}, time={source.time!r} and drop={list(drop)} must be different columns."
        )


def _expand(path: str) -> list[str]:
    import fsspec

    for prefix in _LOCAL_PREFIXES:
        path = path.removeprefix(prefix)
    try:
        filesystem, root = fsspec.core.url_to_fs(path)
        if any(character in root for character in "*?["):
            found = filesystem.glob(root)
        elif filesystem.isdir(root):
            found = [name for name in filesystem.find(root) if not _hidden(name)]
        else:
            found = [root] if filesystem.exists(root) else []
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{path!r} cannot be listed: {error}") from error
    if not found:
        raise DataError(f"No file matches {path!r}.")
    return sorted(map(str, found)) if "://" not in path else sorted(filesystem.unstrip_protocol(name) for name in found)


def _hidden(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith((".", "_"))


def _format_of(name: str) -> Format:
    lowered = name.lower()
    for suffix, format_ in _SUFFIXES.items():
        if lowered.endswith(suffix):
            return format_
    raise ConfigError(
        f"The format of {name!r} is not clear from its name: give format='csv', 'json', 'orc' or 'parquet'."
    )
