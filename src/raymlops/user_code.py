"""Code of the user's own modules, which travels inside what is pickled: whoever loads it need not have those modules."""

from __future__ import annotations

import functools
import inspect
import sys
from types import ModuleType
from typing import Any


def modules_of(*things: Any) -> list[ModuleType]:
    """Modules of the user's that define functions, classes (with their bases) or the classes of objects.

    Left out is what an importing process has as well: what is installed, the standard library, raymlops itself; and ``__main__``,
    which cloudpickle takes along anyway.
    """
    found: dict[str, ModuleType] = {}
    for thing in things:
        while isinstance(thing, functools.partial):
            thing = thing.func
        shown = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
        for definer in inspect.getmro(shown) if inspect.isclass(shown) else (shown,):
            module = sys.modules.get(getattr(definer, "__module__", None) or "")
            if module is not None and _of_the_user(module):
                found[module.__name__] = module
    return [found[name] for name in sorted(found)]


def by_value(thing: Any, *defined_by: Any) -> bytes:
    """Pickle with the code of the user's modules that define ``defined_by`` inside."""
    import cloudpickle

    already = cloudpickle.list_registry_pickle_by_value()
    modules = [module for module in modules_of(*defined_by) if module.__name__ not in already]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(thing))
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _of_the_user(module: ModuleType) -> bool:
    origin = getattr(module, "__file__", None) or ""
    top = module.__name__.split(".")[0]
    shared = top in sys.stdlib_module_names or top in ("raymlops", "__main__")
    return bool(origin) and not shared and "site-packages" not in origin and "dist-packages" not in origin
