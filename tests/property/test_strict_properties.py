"""Strict JSON: what is refused is exactly what should be, whatever the text looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raymlops.errors import MalformedRequest, TooLarge
from raymlops.serving import strict
from raymlops.serving.strict import MAX_DEPTH, MAX_STRING, Bounds, parse_json

SPACE = st.sampled_from(["", " ", "\n\t", "  "])
# Few names, so that they meet; names and texts full of what the cheap conditions count.
TEXT = st.one_of(
    st.sampled_from(["a", "b", "rows", "", ":", '"', '\\":', "{[", "é"]), st.text(":{}[]\\\"',a", max_size=6)
)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False), TEXT)


@st.composite
def texts(draw: st.DrawFn, depth: int = 0) -> str:
    """A JSON text in which a name may appear twice in an object, spaced and escaped in every legal way."""
    kind = draw(st.sampled_from(["scalar", "list", "object", "object", "rows"])) if depth < 3 else "scalar"
    before, after = draw(SPACE), draw(SPACE)
    if kind == "scalar":
        made = json.dumps(draw(SCALAR), ensure_ascii=draw(st.booleans()))
    elif kind == "list":
        made = "[" + ",".join(draw(st.lists(texts(depth + 1), max_size=3))) + "]"
    elif kind == "rows":
        made = '{"rows":[' + ",".join(draw(st.lists(texts(depth + 1), max_size=3))) + "]}"
    else:
        parts = []
        for _ in range(draw(st.integers(0, 4))):
            name = draw(TEXT)
            escaped = "".join(f"\\u{ord(c):04x}" for c in name) if draw(st.booleans()) else json.dumps(name)[1:-1]
            parts.append(f'{draw(SPACE)}"{escaped}"{draw(SPACE)}:{draw(texts(depth + 1))}')
        made = "{" + ",".join(parts) + "}"
    return before + made + after


def has_twice(text: str) -> bool:
    found = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        found |= len(dict(pairs)) < len(pairs)
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    return found


@given(texts())
@example('{"rows": ["ab"], "x": 1, "x": 2, "x": 3}')
@example('{"a": 1, "\\u0061": 2}')
@example('{"a:": 1, "b": 2, "b": 3}')
def test_a_name_is_refused_exactly_when_it_appears_twice(text: str) -> None:
    if has_twice(text):
        with pytest.raises(MalformedRequest, match="appears more than once"):
            parse_json(text.encode())
    else:
        assert parse_json(text.encode()) == json.loads(text)


@given(st.integers(1, 40), st.sampled_from(["[", '{"a":', '[{"a":']), st.sampled_from(["1", '"[["', '"{{{{{{"']))
def test_depth_is_counted_and_brackets_in_texts_are_not(levels: int, opening: str, core: str) -> None:
    closing = {"[": "]", '{"a":': "}", '[{"a":': "}]"}[opening]
    depth = levels * len(closing)
    text = (opening * levels + core + closing * levels).encode()
    if depth > MAX_DEPTH:
        with pytest.raises(MalformedRequest, match="nested deeper than 16"):
            parse_json(text)
    else:
        assert parse_json(text) == json.loads(text)


@given(st.integers(MAX_STRING - 3, MAX_STRING + 3), st.integers(0, 5000), st.sampled_from(["x", '\\"', "\\u0061", "é"]))
def test_texts_are_refused_exactly_from_their_limit_on(length: int, shift: int, unit: str) -> None:
    text = ('{"a":' + " " * shift + '"' + unit * length + '"}').encode()
    if length > MAX_STRING:
        with pytest.raises(TooLarge, match=f"a text of {length} characters"):
            parse_json(text)
    else:
        assert len(parse_json(text)["a"]) == length


@given(st.text(), st.sampled_from(["", ", NaN", ", 1e999"]))
def test_a_nul_character_is_refused_wherever_it_is(text: str, odd: str) -> None:
    body = ("[" + json.dumps(text) + odd + "]").encode()
    if "\0" in text:
        with pytest.raises(MalformedRequest, match="NUL"):
            parse_json(body)
    elif any("\ud800" <= c <= "\udfff" for c in text):
        with pytest.raises(MalformedRequest):
            parse_json(body)
    else:
        assert parse_json(body)[0] == text


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_malformed(body: bytes) -> None:
    try:
        content = parse_json(body)
    except (MalformedRequest, TooLarge):
        return
    assert repr(json.loads(body.decode())) == repr(content)


@given(texts(), st.integers(1, 40))
def test_what_stands_outside_strings_is_found_in_parts_of_any_size(text: str, size: int) -> None:
    small, strict._SMALL = strict._SMALL, size
    try:
        outside = b"".join(strict._outside_strings(text.encode()))
    finally:
        strict._SMALL = small
    bare = json.dumps(json.loads(text, object_pairs_hook=lambda pairs: [["", value] for _, value in pairs]))
    assert outside.count(b":") == text.encode().count(b":") - sum(part.count(":") for part in _strings(text)), bare


def _strings(text: str) -> list[str]:
    found, inside, escaped = [""], False, False
    for c in text:
        if inside:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                inside = False
                continue
            found[-1] += c
        elif c == '"':
            inside = True
            found.append("")
    return found


def test_large_bodies_are_bounded_before_they_are_parsed() -> None:
    assert Bounds.of(max_rows=10, columns=3) == Bounds(values=160, columns=16)
    fits = b'{"rows": [' + b",".join([b'{"a": "' + b",:{[" * 900 + b'"}'] * 30) + b"]}"
    assert len(fits) > 64 * 1024
    assert len(parse_json(fits, 10, 3)["rows"]) == 30
    for body in (b"[" + b"0," * 40_000 + b"0]", b"[" * 70_000, b'{"a":1' + b',"b":1' * 20_000 + b"}"):
        with pytest.raises(TooLarge, match="more than this endpoint takes"):
            parse_json(body, 10, 3)
    for odd in (b'"' + b'\\"' * 60_000, b"\\" * 100_000, b'"' * 100_001):
        with pytest.raises(MalformedRequest):
            parse_json(odd, 10, 3)
