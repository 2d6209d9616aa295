"""Virtual environments for peers, each with its own versions, made once and kept in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def venv(folder: Path, name: str, packages: tuple[str, ...]) -> Path | None:
    """The interpreter of ``folder/name`` with ``packages`` installed; ``None``, with a message, when that fails."""
    home = folder / name
    python, done = home / "bin" / "python", home / "installed.txt"
    wanted = "\n".join(packages)
    if done.is_file() and done.read_text() == wanted:
        return python
    folder.mkdir(parents=True, exist_ok=True)
    for command in ([sys.executable, "-m", "venv", str(home)], [str(python), "-m", "pip", "install", "-q", *packages]):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            print(f"no {name}: {result.stderr.strip()[-300:]}", file=sys.stderr)
            return None
    done.write_text(wanted)
    return python


def environment() -> dict[str, str]:
    """One thread for everybody and no message home."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "LOKY_MAX_CPU_COUNT")}
    quiet = {"NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1"}
    return {**os.environ, **threads, **quiet, "PYTHONPATH": ""}
