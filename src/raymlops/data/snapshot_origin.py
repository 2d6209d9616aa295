"""What made a snapshot: files, code to the letter, Spark's plan, and the snapshots it was made of."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType
from typing import Any

_MAX_PLAN = 100_000
_MAX_FILES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """One function of the user's.

    Attributes
    ----------
    role : ``prepare`` or ``features``
    source : its text; empty where Python has none (typed into a console)
    digest : SHA-256 of the text, else of the compiled code
    module_digest : SHA-256 of the file it stands in, for the helpers it calls; empty where there is none
    """

    role: str
    name: str
    source: str
    digest: str
    module_digest: str

    @classmethod
    def of(cls, role: str, function: Callable[..., Any]) -> Code:
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        shown: Any = inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner)
        try:
            source = inspect.getsource(shown)
        except (OSError, TypeError):
            source = ""
        compiled = getattr(shown, "__code__", None)
        content = source.encode() if source or compiled is None else _compiled(compiled)
        file = getattr(sys.modules.get(getattr(shown, "__module__", "") or ""), "__file__", None)
        there = Path(file).read_bytes() if file and Path(file).is_file() else b""
        return cls(
            role=role,
            name=f"{getattr(shown, '__module__', '')}.{getattr(shown, '__qualname__', repr(shown))}",
            source=source,
            digest=hashlib.sha256(content).hexdigest(),
            module_digest=hashlib.sha256(there).hexdigest() if there else "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a snapshot's rows came from.

    Attributes
    ----------
    files : paths, globs and URLs that were read; a ``SparkSource``'s are what Spark says it read
    plan : Spark's plans, parsed to physical; empty where no Spark ran
    parents : keys of the snapshots it holds rows of
    served : the endpoint whose labelled requests it holds, if any
    """

    files: tuple[str, ...] = ()
    code: tuple[Code, ...] = ()
    plan: str = ""
    parents: tuple[str, ...] = ()
    served: str | None = None

    @classmethod
    def of(
        cls,
        functions: Mapping[str, Callable[..., Any] | None],
        *,
        files: Iterable[str] = (),
        plan: str = "",
        parents: Iterable[str] = (),
        served: str | None = None,
    ) -> Origin:
        """With the code of ``functions``, by their role; those that are ``None`` are left out."""
        return cls(
            files=tuple(files)[:_MAX_FILES],
            code=tuple(Code.of(role, function) for role, function in functions.items() if function is not None),
            plan=plan if len(plan) <= _MAX_PLAN else plan[:_MAX_PLAN] + "\n… cut here",
            parents=tuple(parents),
            served=served,
        )

    @property
    def digest(self) -> str:
        """SHA-256 over the functions' code."""
        return hashlib.sha256("".join(f"{code.role}:{code.digest}\n" for code in self.code).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Origin:
        plain = {name: tuple(data[name]) for name in ("files", "parents")}
        return cls(**{**data, **plain, "code": tuple(Code(**code) for code in data["code"])})


def _compiled(code: CodeType) -> bytes:
    """Bytes that another text of the same meaning may share; constants that are code themselves included."""
    inner = b"".join(_compiled(item) for item in code.co_consts if isinstance(item, CodeType))
    plain = repr([item for item in code.co_consts if not isinstance(item, CodeType)])
    return code.co_code + repr((code.co_names, code.co_varnames, plain)).encode() + inner
