"""Virtual environments for peers, each with its own versions, made once and kept in a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def install(root: Path, name: str, requirements: Sequence[str]) -> Path:
    """The Python of a virtual environment with these packages, made on the first call.

    Raises
    ------
    RuntimeError : it could not be made; the message is pip's last words
    """
    folder, wanted = root / name, "\n".join(requirements)
    python, mark = folder / "bin" / "python", folder / "requirements.txt"
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"installing {name}: {' '.join(requirements)}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
    ):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines() or ["no reason was given"]
            raise RuntimeError(f"{name} cannot be installed: {words[-1][:300]}")
    mark.write_text(wanted)
    return python


def venv(root: Path, name: str, requirements: Sequence[str]) -> Path | None:
    """As :func:`install`; ``None``, with a message, when it fails."""
    try:
        return install(root, name, requirements)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return None


def environment() -> dict[str, str]:
    """One thread for everybody and no message home."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "LOKY_MAX_CPU_COUNT")}
    quiet = {"NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1"}
    return {**os.environ, **threads, **quiet, "PYTHONPATH": ""}
