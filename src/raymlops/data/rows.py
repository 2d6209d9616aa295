"""Rows of requests that came as one list of values: a matrix for those who take one, rows for those who ask for rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any, overload


class MadeRows(Sequence[dict[str, Any]]):
    """Rows that are made when somebody asks for one."""

    __slots__ = ()

    @abstractmethod
    def row(self, index: int) -> dict[str, Any]:
        """The row at ``index``, which is from 0 and below the length."""

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self.row(at) for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.row(index % len(self))


class FlatRows(MadeRows):
    """Rows of the same columns.

    Attributes
    ----------
    names : of the columns, each once
    values : of all rows, row after row, ``len(names)`` each
    """

    __slots__ = ("names", "values")

    def __init__(self, names: tuple[str, ...], values: list[Any]) -> None:
        self.names, self.values = names, values

    def __len__(self) -> int:
        return len(self.values) // len(self.names)

    def row(self, index: int) -> dict[str, Any]:
        start = index * len(self.names)
        return dict(zip(self.names, self.values[start : start + len(self.names)], strict=True))


def join_rows(parts: Sequence[Sequence[dict[str, Any]]]) -> Sequence[dict[str, Any]]:
    """All rows of some requests, in order; flat when all of them are, with the same columns.

    >>> join_rows([FlatRows(("a",), [1]), FlatRows(("a",), [2, 3])]).values
    [1, 2, 3]
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, FlatRows):
        flat = [part.values for part in parts if isinstance(part, FlatRows) and part.names == first.names]
        if len(flat) == len(parts):
            return FlatRows(first.names, list(chain.from_iterable(flat)))
    return list(chain.from_iterable(parts))
