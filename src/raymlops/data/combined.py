"""Several sources as one: what the lake holds, and what was served since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.data.sources import Source
from raymlops.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class CombinedSource:
    """The rows of several sources, one below the other; with times, merged by time.

    Label and features have the same names in all of them; the time may be called otherwise (``served_at``), and takes the
    first one's name. Columns that only some of them have are refused rather than filled: a model would learn where a row
    came from.

    Raises
    ------
    ConfigError : fewer than two sources, another label, a time in some of them only
    """

    sources: tuple[Any, ...]

    def __init__(self, *sources: Source) -> None:
        object.__setattr__(self, "sources", tuple(sources))
        if len(sources) < 2:
            raise ConfigError("CombinedSource takes two or more sources.")
        for source in sources:
            if not hasattr(source, "describe") or not hasattr(source, "label"):
                raise ConfigError(f"CombinedSource takes sources, got {type(source).__name__}.")
        labels = dict.fromkeys(source.label for source in sources)
        if len(labels) > 1:
            raise ConfigError(
                f"CombinedSource: the label is called {', '.join(map(repr, labels))}: rename it, so that all have one name."
            )
        timed = [source.time is not None for source in sources]
        if any(timed) and not all(timed):
            without = sources[timed.index(False)]
            raise ConfigError(
                f"CombinedSource: {type(without).__name__} ({without.describe()}) names no time= and others do: name it "
                "in all of them, or in none."
            )

    @property
    def label(self) -> str:
        return str(self.sources[0].label)

    @property
    def time(self) -> str | None:
        found: str | None = self.sources[0].time
        return found

    @property
    def drop(self) -> tuple[str, ...]:
        return ()

    def describe(self) -> str:
        return " + ".join(source.describe() for source in self.sources)


def parts_of(source: Source) -> tuple[Source, ...]:
    """The sources that one is made of; itself, when it is made of no others."""
    if not isinstance(source, CombinedSource):
        return (source,)
    return tuple(part for inner in source.sources for part in parts_of(inner))


def combine(source: CombinedSource, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The frames of the sources (features made, label and time included) as one, in the first one's columns.

    Raises
    ------
    DataError : other columns, or times of another kind
    """
    import pandas as pd

    # A part that has no rows has no say in the columns: nothing was served yet.
    given = [(part, frame) for part, frame in zip(source.sources, frames, strict=True) if len(frame)]
    if not given:
        return frames[0]
    renamed = [frame.rename(columns={part.time: source.time}) if part.time else frame for part, frame in given]
    (lead, *others), first = [part for part, _ in given], renamed[0]
    for part, frame in zip(others, renamed[1:], strict=True):
        missing = [str(name) for name in first.columns if name not in frame.columns]
        more = [str(name) for name in frame.columns if name not in first.columns]
        if missing or more:
            told = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
            told += [f"has {', '.join(map(repr, more))} besides"] if more else []
            raise DataError(
                f"{part.describe()} {' and '.join(told)} compared with {lead.describe()}: sources that are "
                "combined have the same columns. Name the others in drop=."
            )
        if source.time is not None and _is_time(frame[source.time]) != _is_time(first[source.time]):
            raise DataError(
                f"The time of {part.describe()} is {frame[source.time].dtype}, of {lead.describe()} "
                f"{first[source.time].dtype}: give times in all of them, or numbers in all."
            )
    columns = list(first.columns)
    return pd.concat([frame[columns] for frame in renamed], ignore_index=True)


def _is_time(column: pd.Series) -> bool:
    import pandas as pd

    return not pd.api.types.is_numeric_dtype(column)
