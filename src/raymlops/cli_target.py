"""The pipeline, or the rows, that a command is about."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from raymlops.pipeline import Pipeline


def load_target(target: str) -> Pipeline:
    """The pipeline behind ``FILE.py:NAME`` or ``package.module:NAME``.

    Raises
    ------
    ConfigError : names what is missing and the nearest thing that is there
    """
    from raymlops.pipeline import Pipeline

    place, colon, name = target.rpartition(":")
    if not colon:
        raise ConfigError(f"{target!r} names no pipeline: give FILE.py:NAME or package.module:NAME.")
    if place.endswith(".py"):
        path = Path(place).absolute()
        if not path.is_file():
            raise ConfigError(f"There is no file {place!r}.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{place!r} cannot be imported.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        sys.path.insert(0, str(path.parent))
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(place)
    found = getattr(module, name, None)
    if not isinstance(found, Pipeline):
        pipelines = [key for key, value in vars(module).items() if isinstance(value, Pipeline)]
        raise ConfigError(f"{place!r} defines no pipeline {name!r}.{nearest(name, pipelines)}")
    return found


def read_frame(path: str, label: str, time_column: str | None, drop: tuple[str, ...]) -> pd.DataFrame:
    """The rows of the files that ``path`` names, without a JVM.

    Raises
    ------
    DataError : nothing there, a file that cannot be read or has other columns, no such column
    """
    from raymlops.data.files import read_files
    from raymlops.data.ray_read import arrange, plain
    from raymlops.data.sources import FileSource, check_columns

    source = FileSource(path, label=label, time=time_column, drop=drop)
    files, form, _ = source.expand()
    table = read_files(files, form)
    check_columns(table.column_names, source)
    return arrange(plain(table), source)
