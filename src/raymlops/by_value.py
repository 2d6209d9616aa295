"""Pickles with the code of the user's own modules inside: whoever loads them need not have those modules."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from types import ModuleType
from typing import Any

import cloudpickle


def dumps_by_value(thing: Any, defined_by: Iterable[Any]) -> bytes:
    """``thing`` as a pickle that holds the modules of ``defined_by`` where they are the user's own; see :func:`own_modules`."""
    known = cloudpickle.list_registry_pickle_by_value()
    modules = [module for module in own_modules(defined_by) if module.__name__ not in known]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(thing))
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def own_modules(defined_by: Iterable[Any]) -> tuple[ModuleType, ...]:
    """Modules of functions, classes and instances that another process may not have: neither installed, nor Python's, nor
    this library's. What ``__main__`` defines travels by value anyway."""
    names = {getattr(_unwrapped(item), "__module__", None) or "" for item in defined_by}
    found = (sys.modules.get(name) for name in sorted(names))
    return tuple(module for module in found if module is not None and _is_own(module))


def _unwrapped(item: Any) -> Any:
    """The function that a partial, or a scorer of scikit-learn, calls."""
    while isinstance(item, partial):
        item = item.func
    inside = getattr(item, "_score_func", None)
    return item if inside is None else _unwrapped(inside)


def _is_own(module: ModuleType) -> bool:
    first, origin = module.__name__.split(".")[0], getattr(module, "__file__", None) or ""
    if first in ("__main__", "raymlops") or first in sys.stdlib_module_names:
        return False
    return bool(origin) and "site-packages" not in origin and "dist-packages" not in origin
