"""Rules of a contract: expressions over columns, read by Python's own parser and evaluated here, never by ``eval``.

``age >= 18 or guardian is not null``, ``0 < spend / calls <= 100``, ``city in ["Oslo", "Bergen"]``,
``column("unit price") * amount == total``. What is allowed is listed in :data:`ALLOWED`. Null is unknown, as in SQL: a comparison with
it is unknown, so is a division by zero, and a row breaks a rule only when the rule is false of it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from raymlops.errors import ConfigError

ALLOWED = (
    "column names, numbers, text in quotes, true, false, + - * / %, < <= > >= == !=, and, or, not, in [...], "
    "is null, is not null, abs(x), length(text), column('any name')"
)
_MAX_LENGTH = 500
_MAX_DEPTH = 40

ValueKind = Literal["number", "boolean", "text", "time"]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """A column, or what was made of columns: ``values`` and where they are unknown, each ``(n_rows,)`` or a scalar array.

    Numbers are float64, times float64 seconds since 1970 in UTC, booleans bool, text objects.
    """

    kind: ValueKind
    values: npt.NDArray[Any]
    null: Bools

    @classmethod
    def of_series(cls, series: pd.Series) -> Vector:
        """A pandas column; values that are of no kind a rule knows, or not of the column's, are unknown."""
        dtype = series.dtype
        if pd.api.types.is_datetime64_any_dtype(dtype):
            naive = series.dt.tz_convert("UTC").dt.tz_localize(None) if hasattr(dtype, "tz") else series
            seconds = naive.to_numpy("datetime64[us]").astype(np.int64) / 1e6
            return cls("time", seconds, series.isna().to_numpy())
        if pd.api.types.is_bool_dtype(dtype) and not series.isna().any():
            return cls("boolean", series.to_numpy(dtype=bool), np.zeros(len(series), dtype=bool))
        if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
            return _numbers(series.to_numpy(dtype=np.float64, na_value=np.nan))
        return cls.of_values(series.tolist())

    @classmethod
    def of_values(cls, values: Sequence[Any], kind: str | None = None) -> Vector:
        """Values as a JSON parser gives them; without ``kind`` the first that is not null tells it."""
        if kind is None:
            kind = next((found for found in map(_kind_of, values) if found), "number")
        if kind == "number":
            usable = [v if _kind_of(v) == "number" else np.nan for v in values]
            return _numbers(np.array(usable, dtype=np.float64))
        known = np.fromiter((_kind_of(v) == kind for v in values), dtype=bool, count=len(values))
        if kind == "boolean":
            return cls("boolean", np.array([v is True or v is np.True_ for v in values], dtype=bool), ~known)
        made = np.empty(len(values), dtype=object)
        made[:] = [v if isinstance(v, str) else "" for v in values]
        return cls("text", made, ~known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One expression that must not be false.

    Attributes
    ----------
    scope : ``"rows"``: of each row, in data sets and, when it names the model's columns only, in requests; ``"data"``: in
        data sets only

    Raises
    ------
    ConfigError : not an expression, or one that holds what is not allowed, with the place and what is
    """

    name: str
    check: str
    scope: Literal["rows", "data"] = "rows"

    def __post_init__(self) -> None:
        if not isinstance(self.check, str) or not self.check.strip():
            raise ConfigError(f"rule {self.name!r}: {self.check!r} is not an expression. Allowed: {ALLOWED}.")
        if self.scope not in ("rows", "data"):
            raise ConfigError(f"rule {self.name!r}: scope={self.scope!r} is neither 'rows' nor 'data'.")
        object.__setattr__(self, "check", " ".join(self.check.split("\n")).strip())
        self._tree()

    @property
    def columns(self) -> frozenset[str]:
        """The columns it names."""
        return _columns_of(self.check)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "check": self.check, "scope": self.scope}

    def broken(self, columns: Mapping[str, Vector], rows: int) -> Bools:
        """True for each row of which the rule is false, ``(rows,)``.

        Raises
        ------
        ConfigError : it compares or computes what does not go together, with the place
        """
        try:
            result = _Evaluation(columns).of(self._tree())
            if result.kind != "boolean":
                raise _Refused(self._tree().body, f"is a {result.kind}, which is neither true nor false")
        except _Refused as error:
            raise self._error(error) from None
        false: Bools = ~result.values & ~result.null
        return np.broadcast_to(false, (rows,))

    def _tree(self) -> ast.Expression:
        try:
            return _parse(self.check)
        except _Refused as error:
            raise self._error(error) from None

    def _error(self, refused: _Refused) -> ConfigError:
        at, part = refused.place(self.check)
        return ConfigError(f"rule {self.name!r}, character {at + 1}: {part!r} {refused.why}.")


def check_types(rules: Iterable[Rule], kinds: Mapping[str, str]) -> None:
    """Refuse rules that cannot be evaluated on columns of these kinds; a rule with a column of unknown kind must wait.

    Raises
    ------
    ConfigError : such a rule, with the place; two rules of one name
    """
    empty: dict[str, Vector] = {}
    for name, kind in kinds.items():
        empty[name] = Vector.of_values([], kind)
    seen = set()
    for rule in rules:
        if rule.name in seen:
            raise ConfigError(f"Two rules are called {rule.name!r}: give each a name of its own.")
        seen.add(rule.name)
        if rule.columns <= empty.keys():
            rule.broken(empty, 0)


# --- parsing -------------------------------------------------------------------------------------------


class _Refused(Exception):
    """A part of an expression and why it cannot stay."""

    def __init__(self, node: ast.AST | int, why: str) -> None:
        super().__init__(why)
        self.node, self.why = node, why

    def place(self, text: str) -> tuple[int, str]:
        """Offset in characters, and the part as it is written there."""
        if isinstance(self.node, int):
            return self.node, text[self.node : self.node + 20] or text[-20:]
        line = text.encode()
        start, end = getattr(self.node, "col_offset", 0), getattr(self.node, "end_col_offset", len(line))
        return len(line[:start].decode(errors="replace")), line[start:end].decode(errors="replace")[:60]


@lru_cache(1024)
def _parse(text: str) -> ast.Expression:
    if len(text) > _MAX_LENGTH:
        raise _Refused(_MAX_LENGTH, f"is behind the {_MAX_LENGTH} characters an expression may have")
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        at = max(0, min((error.offset or 1) - 1, len(text)))
        hint = " (equality is ==)" if "=" in text[at : at + 2] or "'='" in str(error.msg) else ""
        raise _Refused(at, f"cannot be read: {error.msg}{hint}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _Refused(0, f"cannot be read: {error}") from None
    _check(tree.body, 0)
    return tree


def _check(node: ast.expr, depth: int) -> None:
    """Nothing but what :data:`ALLOWED` lists."""
    if depth > _MAX_DEPTH:
        raise _Refused(node, f"is nested deeper than {_MAX_DEPTH}")
    for child in _children(node):
        _check(child, depth + 1)


def _children(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.BoolOp(values=values):
            return values
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            return [operand]
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Mod(), left=left, right=right):
            return [left, right]
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return [left, *(c for op, c in zip(ops, comparators, strict=True) if _is_value(op, c, len(ops)))]
        case ast.Name(id="null" | "None"):
            raise _Refused(node, "is compared with 'is null' and 'is not null' only")
        case ast.Name():
            return []
        case ast.Constant(value=bool() | str()):
            return []
        case ast.Constant(value=int() | float() as value) if abs(value) <= 1e300:
            return []
        case ast.Call(func=ast.Name(id="abs" | "length"), args=[argument], keywords=[]):
            return [argument]
        case ast.Call(func=ast.Name(id="column"), args=[ast.Constant(value=str())], keywords=[]):
            return []
    raise _Refused(node, f"is not allowed in a rule. Allowed: {ALLOWED}")


def _is_value(op: ast.cmpop, right: ast.expr, operators: int) -> bool:
    """Whether what stands right of a comparison is a value; a list of constants or ``null`` is checked here."""
    match op, right:
        case ((ast.Is() | ast.IsNot()), (ast.Name(id="null") | ast.Constant(value=None))) if operators == 1:
            return False
        case ((ast.Is() | ast.IsNot()), _):
            raise _Refused(right, "stands behind 'is', where only null may stand, by itself")
        case ((ast.In() | ast.NotIn()), (ast.List(elts=elements) | ast.Tuple(elts=elements))) if operators == 1:
            for element in elements:
                _constant(element)
            return False
        case ((ast.In() | ast.NotIn()), _):
            raise _Refused(right, "stands behind 'in', where a list of constants such as [1, 2] must stand, by itself")
    return True


def _constant(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | str() | int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if value is not True:
            return -value
        case ast.Name(id="true" | "false"):
            return node.id == "true"
    raise _Refused(node, "stands in a list, which may hold numbers, text, true and false only")


@lru_cache(1024)
def _columns_of(text: str) -> frozenset[str]:
    return frozenset(_names(_parse(text)))


def _names(tree: ast.Expression) -> Iterable[str]:
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and id(node) not in functions and node.id not in ("true", "false", "null"):
            yield node.id
        match node:
            case ast.Call(func=ast.Name(id="column"), args=[ast.Constant(value=str() as name)]):
                yield name


# --- evaluating ----------------------------------------------------------------------------------------

_ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_SUMS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Mod: np.mod,
}


class _Evaluation:
    """One expression over one set of columns."""

    def __init__(self, columns: Mapping[str, Vector]) -> None:
        self._columns = columns

    def of(self, tree: ast.Expression) -> Vector:
        with np.errstate(all="ignore"):
            return self._value(tree.body)

    def _value(self, node: ast.expr) -> Vector:
        match node:
            case ast.Constant() | ast.Name(id="true" | "false"):
                return _scalar(_constant(node))
            case ast.Name(id=name):
                return self._columns[name]
            case ast.Call(func=ast.Name(id="column"), args=[ast.Constant(value=str() as name)]):
                return self._columns[name]
            case ast.Call(func=ast.Name(id="abs"), args=[argument]):
                return _numbers(np.abs(self._typed(argument, "number").values))
            case ast.Call(args=[argument]):
                text = self._typed(argument, "text")
                lengths = np.frompyfunc(len, 1, 1)(text.values)
                return Vector("number", np.asarray(lengths, dtype=np.float64), text.null)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self._typed(operand, "boolean")
                return Vector("boolean", ~inner.values, inner.null)
            case ast.UnaryOp(op=op, operand=operand):
                number = self._typed(operand, "number")
                return number if isinstance(op, ast.UAdd) else _numbers(-number.values)
            case ast.BinOp(left=left, op=op, right=right):
                return self._sum(left, op, right)
            case ast.BoolOp(op=op, values=values):
                return _joined(isinstance(op, ast.And), [self._typed(value, "boolean") for value in values])
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                lefts = [left, *comparators[:-1]]
                steps = zip(lefts, ops, comparators, strict=True)
                return _joined(True, [self._compared(*step) for step in steps])
        raise _Refused(node, "is not allowed in a rule")

    def _typed(self, node: ast.expr, kind: str) -> Vector:
        value = self._value(node)
        if value.kind != kind:
            raise _Refused(node, f"is a {value.kind} where a {kind} is needed")
        return value

    def _sum(self, left: ast.expr, op: ast.operator, right: ast.expr) -> Vector:
        first = self._value(left)
        if first.kind == "time" and isinstance(op, ast.Sub):
            second = self._typed(right, "time")  # two times differ by a number of seconds
        else:
            first, second = self._typed(left, "number"), self._typed(right, "number")
        made = _numbers(_SUMS[type(op)](first.values, second.values))
        return Vector("number", made.values, made.null | first.null | second.null)

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Vector:
        first = self._value(left)
        match op, right:
            case ((ast.Is() | ast.IsNot()), _):
                known = np.zeros_like(first.null)
                return Vector("boolean", first.null if isinstance(op, ast.Is) else ~first.null, known)
            case ((ast.In() | ast.NotIn()), (ast.List(elts=elements) | ast.Tuple(elts=elements))):
                found = np.zeros(np.shape(first.values), dtype=bool)
                for element in elements:
                    found = found | self._ordered(first, np.equal, _as(first, _scalar(_constant(element))), element)
                return Vector("boolean", found if isinstance(op, ast.In) else ~found, first.null)
        second = self._value(right)
        first, second = _as(second, first), _as(first, second)
        made = self._ordered(first, _ORDERS[type(op)], second, right)
        return Vector("boolean", made, first.null | second.null)

    def _ordered(self, first: Vector, compare: Callable[[Any, Any], Any], second: Vector, node: ast.expr) -> Bools:
        if first.kind != second.kind:
            raise _Refused(node, f"is a {second.kind} and is compared with a {first.kind}")
        return np.asarray(compare(first.values, second.values), dtype=bool)


def _scalar(value: bool | str | float) -> Vector:
    known = np.zeros((), dtype=bool)
    if isinstance(value, bool):
        return Vector("boolean", np.asarray(value), known)
    if isinstance(value, str):
        return Vector("text", np.asarray(value, dtype=object), known)
    return Vector("number", np.asarray(value, dtype=np.float64), known)


def _as(other: Vector, value: Vector) -> Vector:
    """A constant text beside times as the time it says."""
    if other.kind != "time" or value.kind != "text" or value.values.ndim:
        return value
    try:
        when = pd.Timestamp(value.values.item())
        seconds = when.tz_convert("UTC").timestamp() if when.tzinfo else when.timestamp()
    except (ValueError, TypeError):
        return value
    return Vector("time", np.asarray(seconds, dtype=np.float64), value.null)


def _numbers(values: Any) -> Vector:
    array = np.asarray(values, dtype=np.float64)
    return Vector("number", array, np.asarray(~np.isfinite(array)))


def _joined(all_of: bool, parts: Sequence[Vector]) -> Vector:
    """``and`` and ``or`` of three values (Kleene): one that settles the matter does so beside unknown ones."""
    settled: Any = np.zeros((), dtype=bool)
    unknown: Any = np.zeros((), dtype=bool)
    for part in parts:
        settled = settled | (~part.null & (part.values != all_of))
        unknown = unknown | part.null
    return Vector("boolean", np.asarray(settled != all_of), np.asarray(unknown & ~settled))


def _kind_of(value: Any) -> ValueKind | None:
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    if isinstance(value, str):
        return "text"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (int, float)):
        return "number" if abs(value) <= 1e308 else None  # None for NaN too
    return None
