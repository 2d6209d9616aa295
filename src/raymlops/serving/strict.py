"""JSON, strictly: what a parser takes without a word is refused here, at a price ordinary requests do not feel.

Each rule has a necessary condition that is cheap to see in the raw bytes; only where it holds is the exact question asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from raymlops.errors import MalformedRequest, TooLarge

MAX_DEPTH = 16
MAX_STRING = 4096
_SMALL = 64 * 1024
_BLOCK = MAX_STRING // 2
_STRUCTURE = (b"{", b"[", b":", b",")
_HUGE = 10**400  # stands for whole numbers no double holds


@dataclass(frozen=True, slots=True)
class _Marks:
    """How often the characters that structure is made of occur in a body, inside its strings and outside."""

    objects: int
    lists: int
    colons: int
    commas: int

    @classmethod
    def of(cls, body: bytes) -> _Marks:
        if len(body) <= MAX_STRING:
            return cls(*(body.count(mark) for mark in _STRUCTURE))
        # Where characters are frequent, NumPy counts them several times faster.
        counts = [0] * len(_STRUCTURE)
        whole = np.frombuffer(body, dtype=np.uint8)
        for start in range(0, len(whole), 2**18):
            part = whole[start : start + 2**18]
            for index, mark in enumerate(_STRUCTURE):
                counts[index] += int(np.count_nonzero(part == mark[0]))
        return cls(*counts)

    @property
    def containers(self) -> int:
        return self.objects + self.lists


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a body of more than 64 KiB may hold before it is worth parsing: parsed, a small body can grow tenfold.

    Attributes
    ----------
    values : members of all lists and objects together
    columns : members of an object, on the average
    """

    values: int
    columns: int

    @classmethod
    def of(cls, max_rows: int, columns: int) -> Bounds:
        """For ``max_rows`` rows of ``columns`` columns, with room for whoever sends twice as many by mistake."""
        wide = max(16, 2 * columns)
        return cls(values=max_rows * wide, columns=wide)


def parse_json(body: bytes, max_rows: int = 0, columns: int = 0) -> Any:
    """The JSON value in ``body``.

    ``NaN``, ``Infinity`` and numbers too large for a double, which many writers emit, are read as what they mean, so
    that the contract can say which column they are in.

    Parameters
    ----------
    max_rows, columns : what a body may be made of, for :class:`Bounds`; 0 rows set none

    Raises
    ------
    MalformedRequest : not JSON in UTF-8, a name twice in one object, nested deeper than 16, a NUL character
    TooLarge : a string of more than 4096 characters, or more values than the bounds allow
    """
    marks = _Marks.of(body) if len(body) > MAX_STRING else None
    if marks is not None and len(body) > _SMALL and max_rows:
        _within(body, marks, Bounds.of(max_rows, columns))
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        content = _loosely(body, error)
    if marks is None:
        if _is_one_row(body, content):
            return content
        marks = _Marks.of(body)
    escaped = b"\\" in body
    _check_depth(marks, content)
    if _colons_of_rows(content) != marks.colons:
        _check_names(body, marks, content)
    if (escaped and b"\\u0000" in body) or (len(body) > MAX_STRING and (escaped or _has_long_string(body))):
        _check_strings(content, marks.containers)
    return content


def _is_one_row(body: bytes, content: Any) -> bool:
    """Whether all rules hold for a small body with one row, as most are; ``False`` when it takes more to know."""
    if type(content) is not dict:
        return False
    rows = content.get("rows")
    if type(rows) is not list or len(rows) != 1 or type(rows[0]) is not dict:
        return False
    if body.count(b":") != len(content) + len(rows[0]) or b"\\" in body:
        return False
    return body.count(b"{") == 2 and body.count(b"[") == 1


def _loosely(body: bytes, problem: Exception) -> Any:
    """What is JSON but for numbers that are none. Python's parser is slower, and more lenient in other things too."""
    if b"NaN" in body or b"Infinity" in body or "infinity" in str(problem):
        try:
            content = json.loads(body.decode("utf-8"), parse_int=_whole, object_pairs_hook=_once)
            if b"\\u" in body:
                json.dumps(content, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no character
            return content
        except MalformedRequest:
            raise
        except (ValueError, RecursionError) as error:
            problem = error
    what = "is empty" if not body else f"is not JSON: {str(problem)[:200]}"
    raise MalformedRequest(f"The body {what}. Send a JSON object in UTF-8.") from problem


def _whole(digits: str) -> int:
    """Python refuses, for good reason, to read whole numbers of thousands of digits; they are no doubles either."""
    return int(digits) if len(digits) < 400 else (-_HUGE if digits[0] == "-" else _HUGE)


def _within(body: bytes, marks: _Marks, bounds: Bounds) -> None:
    if _exceeds([marks], bounds) and _exceeds(map(_Marks.of, _outside_strings(body)), bounds):
        raise TooLarge(
            f"The body holds more than {bounds.values} values, or objects of more than {bounds.columns} columns on the "
            "average: more than this endpoint takes. Send fewer rows a request, with its columns only."
        )


def _exceeds(parts: Iterable[_Marks], bounds: Bounds) -> bool:
    objects = others = names = 0
    for part in parts:
        objects += part.objects
        others += part.commas + part.lists
        names += part.colons
    return objects + others > bounds.values or names > (objects + 1) * bounds.columns


def _outside_strings(text: bytes) -> Iterator[bytes]:
    """The text without what stands between quotes, in parts of about 64 KiB: nothing of its size is built."""
    start, inside = 0, 0
    while start < len(text):
        stop = start + _SMALL
        while text[stop - 1 : stop] == b"\\":
            stop += 1
        part = text[start:stop].replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.split(b'"')
        yield b"".join(pieces[inside::2])
        inside ^= (len(pieces) - 1) & 1
        start = stop


# --- names ----------------------------------------------------------------------------------------------


def _colons_of_rows(content: Any) -> int:
    """The names in a body of rows; never more than it has."""
    if type(content) is not dict:
        return 0
    rows = content.get("rows")
    if type(rows) is list and set(map(type, rows)) == {dict}:
        return len(content) + sum(map(len, rows))
    return len(content)


def _check_names(body: bytes, marks: _Marks, content: Any) -> None:
    """Every name in the text has a colon outside strings; names that were repeated are missing from what was parsed."""
    named = sum(len(item) for item, _ in _containers(content, dict, marks.containers))
    if named == marks.colons or named == sum(part.count(b":") for part in _outside_strings(body)):
        return
    json.loads(body.decode("utf-8"), parse_int=_whole, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise MalformedRequest(f"The name {twice[:60]!r} appears more than once in an object: send each name once.")
    return made


# --- depth and strings ------------------------------------------------------------------------------------


def _check_depth(marks: _Marks, content: Any) -> None:
    brackets = marks.containers
    if brackets <= MAX_DEPTH:
        return
    if type(content) is dict and type(content.get("rows")) is list and brackets == 2 + len(content["rows"]):
        return
    for _, depth in _containers(content, (list, dict), brackets):
        if depth > MAX_DEPTH:
            raise MalformedRequest(f"The body is nested deeper than {MAX_DEPTH} levels: send rows of plain values.")


def _containers(content: Any, wanted: type | tuple[type, ...], most: int) -> Iterator[tuple[Any, int]]:
    """Every list and object in ``content`` that is ``wanted``, with its depth from 1.

    ``most`` is how many opening brackets the text has: when as many are found, no long list needs to be searched for more.
    """
    stack = [(content, 1)] if type(content) in (list, dict) else []
    found = len(stack)
    while stack:
        item, depth = stack.pop()
        if isinstance(item, wanted):
            yield item, depth
        if found >= most:
            continue
        inner = item.values() if type(item) is dict else item
        if not {list, dict}.isdisjoint(map(type, inner)):
            deeper = [(value, depth + 1) for value in inner if type(value) in (list, dict)]
            found += len(deeper)
            stack += deeper


def _has_long_string(body: bytes) -> bool:
    """Whether a string in a body without escapes has more than :data:`MAX_STRING` bytes: it would cover a whole block."""
    if all(body.find(b'"', start, start + _BLOCK) >= 0 for start in range(0, len(body) - _BLOCK + 1, _BLOCK)):
        return False
    quotes = np.flatnonzero(np.frombuffer(body, dtype=np.uint8) == 34)
    return bool((quotes[1::2] - quotes[::2] > MAX_STRING).any())


def _check_strings(content: Any, most: int) -> None:
    if type(content) is str:
        _check_string(content)
    for item, _ in _containers(content, (list, dict), most):
        values = item
        if type(item) is dict:
            for name in item:
                _check_string(name)
            values = item.values()
        if str in set(map(type, values)):
            for value in values:
                if type(value) is str:
                    _check_string(value)


def _check_string(text: str) -> None:
    if len(text) > MAX_STRING:
        raise TooLarge(f"The body holds a text of {len(text)} characters; at most {MAX_STRING} are taken.")
    if "\0" in text:
        raise MalformedRequest("The body holds a text with a NUL character, which nothing can store: leave it out.")
