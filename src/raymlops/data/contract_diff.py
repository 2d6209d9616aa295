"""Two versions of a contract side by side: what was added, removed and changed, and whether rows are refused that were not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from raymlops.data.contract_checks import age_text
from raymlops.data.schema import Column, DataContract

Sign = Literal["+", "-", "~"]
Effect = Literal["stricter", "looser", "model", "none"]
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference.

    Attributes
    ----------
    sign : ``+`` added, ``-`` removed, ``~`` changed
    effect : ``stricter``: rows may be refused that were accepted; ``looser``: the other way round; ``model``: what the
        model takes is another; ``none``: no row is treated otherwise
    """

    sign: Sign
    what: str
    before: str
    after: str
    effect: Effect

    def __str__(self) -> str:
        said = {"+": self.after, "-": self.before, "~": f"{self.before} → {self.after}"}[self.sign]
        note = "" if self.effect == "none" else f"  ({self.effect})"
        return f"{self.sign} {self.what}{': ' if said else ''}{said}{note}"


def diff_contracts(old: DataContract, new: DataContract) -> tuple[Change, ...]:
    """From ``old`` to ``new``, in the order of the file; nothing when they are the same."""
    found: list[Change] = []
    found += _value("label", old.label, new.label, "model")
    found += _value("task", old.task, new.task, "model")
    found += _set("classes", old.classes, new.classes, "model")
    found += _value("others", old.others, new.others, "stricter" if new.others == "refuse" else "looser")
    before, after = {c.name: c for c in old.columns}, {c.name: c for c in new.columns}
    for name in (*before, *(name for name in after if name not in before)):
        what = f"column {name!r}"
        if name not in after:
            found.append(Change(sign="-", what=what, before=_about(before[name]), after="", effect="model"))
        elif name not in before:
            found.append(Change(sign="+", what=what, before="", after=_about(after[name]), effect="model"))
        else:
            found += _columns(what, before[name], after[name])
    common = [name for name in before if name in after]
    if common != [name for name in after if name in before]:
        found.append(Change(sign="~", what="order of the columns", before="", after="another", effect="model"))
    found += _named("unique", {", ".join(k): "" for k in old.unique}, {", ".join(k): "" for k in new.unique})
    ages = [None if age is None else age_text(age) for age in (old.max_age_s, new.max_age_s)]
    tighter = (new.max_age_s or float("inf")) < (old.max_age_s or float("inf"))
    found += _value("max_age", ages[0], ages[1], "stricter" if tighter else "looser")
    rules = ({rule.name: _rule(rule) for rule in contract.rules} for contract in (old, new))
    found += _named("rule", *rules)
    return tuple(found)


def _rule(rule: Any) -> str:
    return f"{rule.check}" + ("" if rule.scope == "rows" else f" ({rule.scope} only)")


def _columns(what: str, old: Column, new: Column) -> list[Change]:
    found = _value(f"{what} kind", old.kind, new.kind, "model")
    found += _value(f"{what} nullable", old.nullable, new.nullable, "looser" if new.nullable else "stricter")
    found += _value(f"{what} seen", (old.minimum, old.maximum), (new.minimum, new.maximum), "none")
    limits = ((old.low, old.high), (new.low, new.high))
    found += _value(f"{what} range", *limits, _narrower(*limits))
    words = ["refuse" if column.closed else "missing" for column in (old, new)]
    found += _value(f"{what} unseen", words[0], words[1], "stricter" if new.closed else "looser")
    return found + _set(f"{what} categories", old.categories, new.categories, "model")


def _narrower(old: tuple[Any, Any], new: tuple[Any, Any]) -> Effect:
    infinity = float("inf")
    low = [-infinity if pair[0] is None else pair[0] for pair in (old, new)]
    high = [infinity if pair[1] is None else pair[1] for pair in (old, new)]
    return "stricter" if low[1] > low[0] or high[1] < high[0] else "looser"


def _value(what: str, old: Any, new: Any, effect: Effect) -> list[Change]:
    if old == new:
        return []
    return [Change(sign="~", what=what, before=_shown(old), after=_shown(new), effect=effect)]


def _set(what: str, old: tuple[Any, ...], new: tuple[Any, ...], effect: Effect) -> list[Change]:
    gone, come = [v for v in old if v not in new], [v for v in new if v not in old]
    found = []
    signed: tuple[tuple[Sign, list[Any]], ...] = (("-", gone), ("+", come))
    for sign, values in signed:
        if values:
            more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
            text = ", ".join(map(repr, values[:_SHOWN])) + more
            found.append(Change(sign=sign, what=what, before=text, after=text, effect=effect))
    if not found and old != new:
        found.append(Change(sign="~", what=what, before="the same", after="in another order", effect=effect))
    return found


def _named(what: str, old: dict[str, str], new: dict[str, str]) -> list[Change]:
    found: list[Change] = []
    for name in (*old, *(name for name in new if name not in old)):
        title = f"{what} {name!r}" if what == "rule" else f"{what} ({name})"
        if name not in new:
            found.append(Change(sign="-", what=title, before=old[name], after="", effect="looser"))
        elif name not in old:
            found.append(Change(sign="+", what=title, before="", after=new[name], effect="stricter"))
        elif old[name] != new[name]:
            found.append(Change(sign="~", what=title, before=old[name], after=new[name], effect="stricter"))
    return found


def _about(column: Column) -> str:
    extra = f" of {len(column.categories)}" if column.kind == "category" else ""
    return f"{column.kind}{extra}{', nullable' if column.nullable else ''}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        low, high = ("none" if v is None else f"{v:g}" for v in value)
        return f"{low} to {high}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
