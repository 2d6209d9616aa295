"""Which rows train, which choose, which judge: by time, by group, by stratum, and never with one foot on each side.

Pure functions over arrays. A part's rows come as row numbers; rows that would leak are put aside as ``unused``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.clock import seconds
from raymlops.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

TRAIN, VALIDATION, TEST = 0.70, 0.15, 0.15
Rows = npt.NDArray[np.intp]
# Of groups that live through the whole time, half keep their rows of train. By the parts' own shares nearly all would, and
# next to nothing would be left to judge by.
_STRADDLING = (0.5, 0.25, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBy:
    """How a pipeline divides its rows. ``SplitBy()``: the newest rows judge; without a time, each class is divided alike.

    Attributes
    ----------
    group : column whose rows stay together: a customer, a machine, a document. The model does not see it
    stratify : column whose values are divided alike; ``None`` for the label's classes. Not together with a time or a group
    embargo : time between parts, as seconds or ``"1d"``: rows of the earlier part that are nearer are put aside, because
        their labels, or windows over them, reach into the later one
    validation, test : shares of the rows

    Raises
    ------
    ConfigError : names the field
    """

    group: str | None = None
    stratify: str | None = None
    embargo: float | str = 0.0
    validation: float = VALIDATION
    test: float = TEST

    def __post_init__(self) -> None:
        object.__setattr__(self, "embargo", seconds(self.embargo, "embargo"))
        for name in ("validation", "test"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
                raise ConfigError(f"SplitBy({name}={share!r}) is no share of the rows: give a number between 0 and 1.")
        if self.validation + self.test >= 1:
            raise ConfigError(f"SplitBy: validation={self.validation} and test={self.test} leave nothing to train on.")
        for name in ("group", "stratify"):
            column = getattr(self, name)
            if column is not None and (not isinstance(column, str) or not column.strip()):
                raise ConfigError(f"SplitBy({name}={column!r}) is not a column name: give a non-empty string.")
        if self.group is not None and self.stratify is not None:
            raise ConfigError(
                f"SplitBy(group={self.group!r}, stratify={self.stratify!r}): groups stay whole, so strata cannot be kept. "
                "Give one of them."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How many rows each part has; rows are stored in this order. ``ordered``: each part lies later in time.

    ``unused`` rows were put aside, by an embargo or because their group belongs to another part; they are not stored.
    """

    train: int
    validation: int
    test: int
    ordered: bool
    unused: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form; ``Split(**...)`` reads it back."""
        plain = {"train": self.train, "validation": self.validation, "test": self.test, "ordered": self.ordered}
        return plain | ({"unused": self.unused} if self.unused else {})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Parts:
    """Row numbers of each part, and of what is in none; together every row once."""

    train: Rows
    validation: Rows
    test: Rows
    unused: Rows
    ordered: bool

    @property
    def order(self) -> Rows:
        """The rows of train, validation and test, one after the other."""
        return np.concatenate([self.train, self.validation, self.test])

    def counts(self) -> Split:
        """How many rows each has.

        Raises
        ------
        DataError : a part is empty
        """
        sizes = {name: len(getattr(self, name)) for name in ("train", "validation", "test", "unused")}
        empty = [name for name in ("train", "validation", "test") if not sizes[name]]
        if empty:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise DataError(
                f"The split leaves no rows for {' and '.join(empty)} ({told}): there are too few rows, groups or times. "
                "Give more rows, a smaller embargo, or other shares."
            )
        return Split(**sizes, ordered=self.ordered)


def split_rows(
    rows: int,
    by: SplitBy,
    *,
    times: npt.NDArray[np.float64] | None = None,
    keys: pd.Series | None = None,
    strata: npt.NDArray[Any] | None = None,
    holdout_rows: int | None = None,
    seed: int = 0,
) -> Parts:
    """The parts of a table of so many rows.

    Parameters
    ----------
    times : of each row, ascending: then each part lies later than the one before
    keys : of each row's group; strata : of each row, divided alike when there are neither times nor keys
    holdout_rows : validation and test have at most this many rows each; groups are not cut for it

    Raises
    ------
    DataError : fewer than three rows, a ``holdout_rows`` below one, rows without a key
    """
    if rows < 3:
        raise DataError(f"{rows} rows cannot be split into train, validation and test.")
    if holdout_rows is not None and holdout_rows < 1:
        raise DataError(f"holdout_rows={holdout_rows}: validation and test need at least one row each.")
    shares = (by.validation, by.test)
    if keys is not None and times is not None:
        return by_time_and_group(times, keys, shares=shares, embargo_s=float(by.embargo))
    if keys is not None:
        return by_group(keys, shares=shares)
    if times is not None:
        return by_time(times, shares=shares, embargo_s=float(by.embargo), holdout_rows=holdout_rows)
    return by_stratum(np.zeros(rows) if strata is None else strata, shares=shares, holdout_rows=holdout_rows, seed=seed)


def column_of(frame: pd.DataFrame, role: str, name: str) -> pd.Series:
    """A column that :class:`SplitBy` names. Raises :class:`DataError` when it is not there, or missing in a row."""
    if name not in frame.columns:
        hint = nearest(name, map(str, frame.columns))
        raise DataError(f"The data has no {role} column {name!r}, which SplitBy({role}=) names.{hint}")
    missing = int(frame[name].isna().sum())
    if missing:
        raise DataError(
            f"The {role} column {name!r} is missing in {missing} of {len(frame)} rows: no side can be chosen for them. "
            "Fill it with a value of its own for each, or drop the rows."
        )
    return frame[name]


def by_time(
    times: npt.NDArray[np.float64],
    *,
    shares: tuple[float, float] = (VALIDATION, TEST),
    embargo_s: float = 0.0,
    holdout_rows: int | None = None,
) -> Parts:
    """The newest rows judge, those before them choose, the others train; ``times`` is ascending, in seconds.

    With an embargo, rows of an earlier part within ``embargo_s`` of the first time of the next are unused (purging and
    embargo: López de Prado 2018, chapter 7).
    """
    rows = np.arange(len(times))
    validation, test = _sizes(len(times), shares, holdout_rows)
    second, third = len(times) - validation - test, len(times) - test
    parts = [rows[:second], rows[second:third], rows[third:]]
    if embargo_s > 0:
        starts = (times[second], times[third])
        for index, start in enumerate(starts):
            parts[index] = parts[index][times[parts[index]] < start - embargo_s]
    return _parts(rows, parts, ordered=True)


def by_group(keys: pd.Series, *, shares: tuple[float, float] = (VALIDATION, TEST)) -> Parts:
    """Each group goes where the hash of its key says: to the same part whatever other rows there are, now or later."""
    where = _side(_positions(keys), shares)
    rows = np.arange(len(keys))
    return _parts(rows, [rows[where == part] for part in range(3)], ordered=False)


def by_time_and_group(
    times: npt.NDArray[np.float64],
    keys: pd.Series,
    *,
    shares: tuple[float, float] = (VALIDATION, TEST),
    embargo_s: float = 0.0,
) -> Parts:
    """Each part later than the one before, and no group in two of them.

    Time divides first. A group with rows in one part only stays there; one with rows in several belongs to the one that
    the hash of its key says, among these, and its other rows are unused.
    """
    base = by_time(times, shares=shares, embargo_s=embargo_s)
    part = np.full(len(times), 3)
    for index, rows in enumerate((base.train, base.validation, base.test)):
        part[rows] = index
    codes, _ = _codes(keys)
    groups = int(codes.max()) + 1
    present = np.zeros((groups, 3), dtype=bool)
    present[codes[part < 3], part[part < 3]] = True
    position = np.zeros(groups)
    position[codes] = _positions(keys)
    weights = present * np.array(_STRADDLING)
    edges = np.cumsum(weights, axis=1)
    chosen = (position[:, None] * edges[:, -1:] >= edges).sum(axis=1).clip(max=2)
    rows = np.arange(len(times))
    return _parts(rows, [rows[(part == index) & (chosen[codes] == index)] for index in range(3)], ordered=True)


def by_stratum(
    strata: npt.NDArray[Any],
    *,
    shares: tuple[float, float] = (VALIDATION, TEST),
    holdout_rows: int | None = None,
    seed: int = 0,
) -> Parts:
    """Shuffled, with each stratum's share of each part: within a row of it where a part has enough rows for all strata.

    A stratum gets its share of each part rounded down; the rows left over go to the parts that are furthest behind.
    """
    n = len(strata)
    validation, test = _sizes(n, shares, holdout_rows)
    wanted = np.array([n - validation - test, validation, test], dtype=np.float64)
    codes, sizes = _codes(strata)
    due = sizes[:, None] * (wanted / n)[None, :]
    counts = np.floor(due + 1e-9).astype(np.intp)
    behind = wanted - counts.sum(axis=0)
    for stratum in np.argsort(-sizes, kind="stable"):
        fraction = due[stratum] - counts[stratum]
        for _ in range(int(sizes[stratum] - counts[stratum].sum())):
            open_to = fraction > 1e-9
            # The part with most rows still to get; a part that is full is only taken when no other is left.
            choice = int(np.argmax(np.where(open_to, behind, -np.inf)))
            counts[stratum, choice] += 1
            behind[choice] -= 1
            fraction[choice] = 0.0
    _at_most(counts, due, validation, test)
    shuffled = np.random.default_rng(seed).permutation(n)
    grouped = shuffled[np.argsort(codes[shuffled], kind="stable")]
    ends = np.cumsum(sizes)
    parts: list[list[Rows]] = [[], [], []]
    for stratum, end in enumerate(ends):
        own = grouped[end - sizes[stratum] : end]
        cuts = np.cumsum(counts[stratum])[:2]
        for index, piece in enumerate(np.split(own, cuts)):
            parts[index].append(piece)
    rng = np.random.default_rng((seed, 1))
    return _parts(np.arange(n), [rng.permutation(np.concatenate(pieces)) for pieces in parts], ordered=False)


def _at_most(counts: npt.NDArray[np.intp], due: npt.NDArray[np.float64], validation: int, test: int) -> None:
    """Validation and test get no more rows than they may have, and one at least; train gives or takes."""
    for part, most in ((1, validation), (2, test)):
        while counts[:, part].sum() > most:
            stratum = int(np.argmax(np.where(counts[:, part] > 0, counts[:, part] - due[:, part], -np.inf)))
            counts[stratum, part] -= 1
            counts[stratum, 0] += 1
        if not counts[:, part].sum():
            stratum = int(np.argmax(counts[:, 0]))
            counts[stratum, part] += 1
            counts[stratum, 0] -= 1


def _sizes(rows: int, shares: tuple[float, float], holdout_rows: int | None) -> tuple[int, int]:
    most = rows if holdout_rows is None else holdout_rows
    validation, test = (min(max(1, round(rows * share)), most) for share in shares)
    return validation, test


def _parts(rows: Rows, parts: list[Rows], *, ordered: bool) -> Parts:
    used = np.zeros(len(rows), dtype=bool)
    for part in parts:
        used[part] = True
    return Parts(train=parts[0], validation=parts[1], test=parts[2], unused=rows[~used], ordered=ordered)


def _positions(keys: pd.Series) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each row, from the key's text alone."""
    import pandas as pd

    codes, values = pd.factorize(keys.astype(object))
    # Whole numbers that a missing value once turned into floats keep their side.
    texts = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values]
    bits = pd.util.hash_array(np.array(texts, dtype=object), categorize=False)
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) / 2.0**53)[codes]


def _side(position: npt.NDArray[np.float64], shares: tuple[float, float]) -> npt.NDArray[np.intp]:
    train = 1.0 - sum(shares)
    return np.searchsorted(np.array([train, train + shares[0]]), position, side="right")


def _codes(values: Any) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    import pandas as pd

    codes = np.asarray(pd.factorize(np.asarray(values, dtype=object), use_na_sentinel=False)[0])
    return codes, np.bincount(codes)
