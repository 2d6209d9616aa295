"""A contract as YAML that a person edits and reviews: written so that no reader misreads it, read with nothing guessed.

Of YAML only mappings, lists and scalars are taken: no anchors, no tags, no name twice. Words that YAML 1.1 and 1.2 read
differently (``no``, ``on``, ``010``, ``1:30``, dates) are refused with their line instead of being one or the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from raymlops.clock import seconds
from raymlops.data.contract import Declared
from raymlops.data.contract_checks import age_text
from raymlops.data.contract_rules import Rule
from raymlops.data.schema import DataContract
from raymlops.errors import ConfigError, nearest

FORMAT = 1
_MAX_BYTES = 2_000_000
_MAX_NODES = 200_000
_TOP = ("contract", "label", "task", "classes", "others", "unique", "max_age", "columns", "rules")
_COLUMN = ("kind", "nullable", "seen", "range", "categories", "unseen")
_RULE = ("check", "scope")
_KINDS = ("number", "integer", "boolean", "category")
_TASKS = ("binary", "multiclass", "regression")
_HEAD = """\
# What this data must be. Columns: kind, whether nulls may occur, and, where a person sets them, the range of numbers
# that is accepted (seen is what was there when it was learned and refuses nothing) and what becomes of unseen categories.
# unique and max_age are checked on data sets, rules over the model's columns on requests too. docs/data.md explains it.
"""

_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+([eE][-+]?[0-9]+)?")
_TRAPS = re.compile(
    r"(?i:y|n|yes|no|on|off)|[-+]?0[0-9_]+|0[xob][0-9a-fA-F_]+|[-+]?[0-9][0-9_]*_[0-9_.]*|[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"
    r"|[-+]?\.(?i:inf|nan)|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?|=|<<"
)
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS: dict[str, bool | None] = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_WORDS |= dict.fromkeys(("null", "Null", "NULL", "~", ""))


# --- writing -------------------------------------------------------------------------------------------


class _Quoted(str):
    """Text that must not be taken for anything else."""


class _Inline(list[Any]):
    """A list on one line."""


class _Writer(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Writer.add_representer(_Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
_Writer.add_representer(
    _Inline, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def to_yaml(contract: DataContract) -> str:
    """The contract as a file; :func:`parse` and :meth:`Declared.complete` give it back."""
    body: dict[Any, Any] = {"contract": FORMAT, "label": _text(contract.label), "task": contract.task}
    if contract.task != "regression":
        body["classes"] = _Inline(map(_value, contract.classes))
    body["others"] = contract.others
    if contract.unique:
        body["unique"] = [_Inline(map(_text, key)) for key in contract.unique]
    if contract.max_age_s is not None:
        body["max_age"] = age_text(contract.max_age_s)
    body["columns"] = {}
    for column in contract.columns:
        said: dict[str, Any] = {"kind": column.kind, "nullable": column.nullable}
        if column.minimum is not None or column.maximum is not None:
            said["seen"] = _Inline([column.minimum, column.maximum])
        if column.low is not None or column.high is not None:
            said["range"] = _Inline([column.low, column.high])
        if column.kind == "category" or column.closed or column.categories:
            said["unseen"] = "refuse" if column.closed else "missing"
            said["categories"] = _Inline(map(_Quoted, column.categories))
        body["columns"][_text(column.name)] = said
    if contract.rules:
        body["rules"] = {
            _text(rule.name): _Quoted(rule.check)
            if rule.scope == "rows"
            else {"check": _Quoted(rule.check), "scope": rule.scope}
            for rule in contract.rules
        }
    return _HEAD + yaml.dump(body, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)


def _text(text: str) -> str:
    plain = _PLAIN_NAME.fullmatch(text) and text not in _WORDS and not _TRAPS.fullmatch(text)
    return text if plain else _Quoted(text)


def _value(value: Any) -> Any:
    return _Quoted(value) if isinstance(value, str) else value


# --- reading -------------------------------------------------------------------------------------------


def read(given: str | Path | DataContract | Declared) -> Declared:
    """What a file of YAML states, or a contract.

    Raises
    ------
    ConfigError : no such file, or what :func:`parse` refuses
    """
    if isinstance(given, Declared):
        return given
    if isinstance(given, DataContract):
        return Declared.of(given)
    try:
        content = Path(given).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"The contract {str(given)!r} cannot be read: {why}.") from error
    try:
        return parse(content.decode(), str(given))
    except UnicodeDecodeError as error:
        raise ConfigError(f"The contract {str(given)!r} is not UTF-8 (byte {error.start}).") from error


def parse(text: str, where: str = "the contract") -> Declared:
    """What a contract file states; each complaint names the line and what would be accepted.

    Raises
    ------
    ConfigError : not YAML, an unknown or repeated name (with the nearest known), a value of another type, words that YAML
        readers read differently, anchors, tags, rules that are no expressions
    """
    reader = _Reader(where)
    top = reader.mapping(reader.root(text), "", _TOP)
    version = top.get("contract")
    if version is not None and reader.number(version, "contract") != FORMAT:
        raise reader.error(version, f"contract: {FORMAT} is the format this raymlops reads, got {version.value}")
    columns = {
        name: _column(reader, node, f"columns.{name}")
        for name, node in (reader.pairs(top["columns"], "columns") if "columns" in top else {}).items()
    }
    age = top.get("max_age")
    return Declared(
        columns=columns,
        label=reader.text(top["label"], "label") if "label" in top else None,
        task=reader.word(top["task"], "task", _TASKS) if "task" in top else None,
        classes=tuple(reader.items(top["classes"], "classes", reader.scalar)) if "classes" in top else None,
        others=reader.word(top["others"], "others", ("learn", "refuse")) if "others" in top else "learn",
        unique=tuple(_keys(reader, top["unique"])) if "unique" in top else (),
        max_age_s=None if age is None else reader.tried(age, lambda: seconds(reader.scalar(age, "max_age"), "max_age")),
        rules=tuple(_rules(reader, top["rules"])) if "rules" in top else (),
    )


def _column(reader: _Reader, node: yaml.Node, path: str) -> Mapping[str, Any]:
    given = reader.mapping(node, path, _COLUMN)
    said: dict[str, Any] = {}
    if "kind" in given:
        said["kind"] = reader.word(given["kind"], f"{path}.kind", _KINDS)
    if "nullable" in given:
        said["nullable"] = reader.flag(given["nullable"], f"{path}.nullable")
    if "seen" in given:
        said["minimum"], said["maximum"] = reader.bounds(given["seen"], f"{path}.seen")
    if "range" in given:
        said["low"], said["high"] = reader.bounds(given["range"], f"{path}.range")
    if "categories" in given:
        texts = reader.items(given["categories"], f"{path}.categories", reader.text)
        if len(set(texts)) < len(texts):
            raise reader.error(given["categories"], f"{path}.categories holds a text twice")
        said["categories"] = tuple(texts)
    if "unseen" in given:
        said["closed"] = reader.word(given["unseen"], f"{path}.unseen", ("missing", "refuse")) == "refuse"
    kind = said.get("kind")
    for word, fits in (("range", ("number", "integer")), ("categories", ("category",)), ("unseen", ("category",))):
        if word in given and kind not in (None, *fits):
            raise reader.error(given[word], f"{path}.{word} is for a {' or '.join(fits)}, and this is a {kind}")
    return said


def _keys(reader: _Reader, node: yaml.Node) -> list[tuple[str, ...]]:
    """``[customer, day]`` is one key of two columns; ``[[a], [b, c]]`` are two keys."""
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.SequenceNode) for item in node.value):
        return [tuple(reader.items(item, "unique", reader.text)) for item in node.value]
    return [tuple(reader.items(node, "unique", reader.text))]


def _rules(reader: _Reader, node: yaml.Node) -> list[Rule]:
    made = []
    for name, given in reader.pairs(node, "rules").items():
        path = f"rules.{name}"
        scope: Literal["rows", "data"] = "rows"
        if isinstance(given, yaml.MappingNode):
            said = reader.mapping(given, path, _RULE)
            if "check" not in said:
                raise reader.error(given, f"{path} has no check: give an expression")
            if "scope" in said:
                scope = reader.word(said["scope"], f"{path}.scope", ("rows", "data"))
            check = reader.text(said["check"], f"{path}.check")
        else:
            check = reader.text(given, path)
        made.append(reader.tried(given, partial(Rule, name=name, check=check, scope=scope)))
    return made


class _Reader:
    """Nodes of a file as values, with the line in each complaint."""

    def __init__(self, where: str) -> None:
        self._where = where

    def error(self, node: yaml.Node | None, why: str) -> ConfigError:
        line = f", line {node.start_mark.line + 1}" if node is not None else ""
        return ConfigError(f"{self._where}{line}: {why}{'' if why.endswith(('.', '?')) else '.'}")

    def tried(self, node: yaml.Node, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ConfigError as error:
            raise self.error(node, error.message) from error

    def root(self, text: str) -> yaml.Node:
        if len(text) > _MAX_BYTES:
            raise self.error(None, f"{len(text):,} characters, at most {_MAX_BYTES:,} are read")
        try:
            for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
                if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                    raise self.error(event, "anchors and aliases (& and *) are not read: write it out")
                if getattr(event, "tag", None):
                    raise self.error(event, f"the tag {event.tag!r} is not read: write a plain value")
                if count > _MAX_NODES:
                    raise self.error(event, f"more than {_MAX_NODES:,} values")
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark is not None else ""
            why = getattr(error, "problem", None) or str(error).split("\n")[0] or type(error).__name__
            raise ConfigError(f"{self._where}{line}: this is not YAML: {why}.") from error
        if node is None:
            raise self.error(None, "the file is empty: `raymlops data contract show NAME` writes a whole one")
        return node

    def pairs(self, node: yaml.Node, path: str) -> dict[str, yaml.Node]:
        """A mapping with any names."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{path or 'the file'} must be a mapping of names to values")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key, f"a name in {path or 'the file'}")
            if name in found:
                raise self.error(key, f"{name!r} is there twice in {path or 'the file'}: keep one")
            found[name] = value
        return found

    def mapping(self, node: yaml.Node, path: str, known: tuple[str, ...]) -> dict[str, yaml.Node]:
        found = self.pairs(node, path)
        for (key, _), name in zip(node.value, found, strict=True):
            if name not in known:
                raise self.error(
                    key, f"{path + '.' if path else ''}{name} is not known.{nearest(name, known)}".rstrip(".")
                )
        return found

    def scalar(self, node: yaml.Node, path: str) -> Any:
        """A number, true, false, null or text; text in quotes is text whatever it says."""
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, f"{path} must be one value")
        text = str(node.value)
        if node.style is not None:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _NUMBER.fullmatch(text):
            number: int | float = float(text) if set(text) & set(".eE") else int(text)
            if math.isinf(float(number) if abs(number) < 10**400 else math.inf):
                raise self.error(node, f"{path}: {text[:40]} is too large a number")
            return number
        if _TRAPS.fullmatch(text):
            raise self.error(
                node,
                f'{path}: {text[:40]} is read as a truth value, number or time by some: put quotes round it ("{text[:40]}")',
            )
        return text

    def text(self, node: yaml.Node, path: str) -> str:
        value = self.scalar(node, path)
        if not isinstance(value, str):
            raise self.error(node, f'{path}: {node.value!r} is no text: put quotes round it ("{node.value}")')
        return value

    def number(self, node: yaml.Node, path: str) -> float:
        value = self.scalar(node, path)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(node, f"{path}: expected a number, got {node.value!r}")
        return value

    def flag(self, node: yaml.Node, path: str) -> bool:
        value = _WORDS.get(str(node.value)) if isinstance(node, yaml.ScalarNode) and node.style is None else None
        if not isinstance(value, bool):
            raise self.error(node, f"{path}: expected true or false, got {node.value!r}")
        return value

    def word(self, node: yaml.Node, path: str, known: tuple[str, ...]) -> Any:
        value = self.text(node, path)
        if value not in known:
            raise self.error(node, f"{path}: {value!r} is not known.{nearest(value, known)}")
        return value

    def items(self, node: yaml.Node, path: str, read: Callable[[yaml.Node, str], Any]) -> list[Any]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{path} must be a list")
        return [read(item, f"{path}[{index}]") for index, item in enumerate(node.value)]

    def bounds(self, node: yaml.Node, path: str) -> tuple[float | None, float | None]:
        """``[low, high]``, either of them null."""
        if not isinstance(node, yaml.SequenceNode) or len(node.value) != 2:
            raise self.error(node, f"{path} must be a list of two: [low, high], null where there is no limit")
        low, high = (None if self.scalar(item, path) is None else float(self.number(item, path)) for item in node.value)
        if low is not None and high is not None and low > high:
            raise self.error(node, f"{path}: {low:g} is above {high:g}")
        return low, high
