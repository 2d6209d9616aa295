"""Small checks that every request format needs, each refusing with a sentence."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from raymlops.errors import ContractViolation, MalformedRequest, TooLarge, nearest

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_KEY = 256
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def as_object(content: Any, known: tuple[str, ...], shape: str, where: str = "The body") -> dict[str, Any]:
    """``content`` when it is an object of ``known`` fields only."""
    if type(content) is not dict:
        raise MalformedRequest(f"{where} is {kind_of(content)}, not an object. {shape}".rstrip())
    for name in content:
        if name not in known:
            raise MalformedRequest(f"{where} has an unknown field {show(name)}.{nearest(name, known)}")
    return content


def check_rows(rows: Any, max_rows: int) -> list[dict[str, Any]]:
    """A non-empty list of objects, at most ``max_rows`` long."""
    if type(rows) is not list:
        raise MalformedRequest(f'"rows" is {kind_of(rows)}: send a list of objects, one a row.')
    if not rows:
        raise ContractViolation('"rows" is empty: send at least one row.')
    check_count(len(rows), max_rows)
    for index, row in enumerate(rows):
        if type(row) is not dict:
            raise MalformedRequest(f"Row {index} is {kind_of(row)}: each row is an object of column names and values.")
    return rows


def check_count(count: int, max_rows: int) -> None:
    """Raises :class:`TooLarge` for more than ``max_rows`` rows."""
    if count > max_rows:
        raise TooLarge(
            f"The request holds {count} rows; this endpoint takes at most {max_rows} a request. Send fewer.",
            {"rows": count, "max_rows": max_rows},
        )


def check_key(key: Any) -> str | None:
    """The key that makes the choice of a variant sticky, if there is one."""
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= MAX_KEY):
        raise MalformedRequest(f'"key" must be a string of 1 to {MAX_KEY} characters, got {show(key)}.')
    return key


def check_own_id(fields: Mapping[str, Any]) -> str | None:
    """The client's own request id, if there is one."""
    given = fields.get("request_id")
    if given is not None and (not isinstance(given, str) or not REQUEST_ID.fullmatch(given)):
        raise MalformedRequest(f"A request id is 1 to 64 letters, digits, '.', '_' or '-', got {show(given)}.")
    return given


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "a number")


def show(value: Any) -> str:
    """A value as a sentence can hold it. Never the digits of a number that has thousands: Python refuses to print it."""
    if isinstance(value, (str, bytes)):
        value = value[:61]
    elif isinstance(value, int) and abs(value) >= 10**60:
        return "a number of more than 60 digits"
    text = reprlib.repr(value) if isinstance(value, (list, dict)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
