"""Files that outlive a process: snapshots, packages, the prediction log. A folder by default, any fsspec URL on a cluster."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from raymlops.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Lake:
    """A tree of files named by relative keys such as ``packages/churn/3/manifest.json``.

    Writing is whole or not at all: bytes go to a temporary name first and are moved into place.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"The lake {url!r} cannot be opened: {error}") from error

    def uri(self, key: str) -> str:
        """The full address of ``key``, as other readers (pyarrow, Spark) take it."""
        return (
            f"{self._root}/{_checked(key)}"
            if self._is_local
            else self._fs.unstrip_protocol(f"{self._root}/{_checked(key)}")
        )

    @property
    def _is_local(self) -> bool:
        return "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def write(self, key: str, content: bytes) -> None:
        """Store ``content`` under ``key``, replacing what was there in one step."""
        path = f"{self._root}/{_checked(key)}"
        if not self._is_local:
            self._fs.pipe_file(path, content)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=Path(path).parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def read(self, key: str) -> bytes:
        """The bytes under ``key``. Raises :class:`DataError` when there are none."""
        try:
            content: bytes = self._fs.cat_file(f"{self._root}/{_checked(key)}")
        except FileNotFoundError as error:
            raise DataError(f"The lake {self.url} holds no {key!r}.") from error
        return content

    def open(self, key: str) -> BinaryIO:
        """A stream of the bytes under ``key`` to seek in, so that a reader of some of them fetches no more. Raises
        :class:`DataError` when there are none."""
        try:
            stream: BinaryIO = self._fs.open(f"{self._root}/{_checked(key)}", "rb")
        except FileNotFoundError as error:
            raise DataError(f"The lake {self.url} holds no {key!r}.") from error
        return stream

    def exists(self, key: str) -> bool:
        return bool(self._fs.exists(f"{self._root}/{_checked(key)}"))

    def remove(self, key: str) -> None:
        """Let there be nothing under ``key``; nothing happens when there is none."""
        if self.exists(key):
            self._fs.rm_file(f"{self._root}/{_checked(key)}")

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys below ``prefix``, sorted; unfinished writes are not listed."""
        base = f"{self._root}/{_checked(prefix)}"
        for path in sorted(self._fs.find(base)) if self._fs.exists(base) else ():
            if not Path(path).name.startswith(".writing-"):
                yield str(path)[len(self._root) + 1 :]

    def fetch_folder(self, key: str, target: str | Path) -> Path:
        """Copy every file below ``key`` to a local folder and return it."""
        shutil.rmtree(target, ignore_errors=True)
        found = list(self.keys(key))
        if not found:
            raise DataError(f"The lake {self.url} holds nothing under {key!r}.")
        for name in found:
            path = Path(target) / name[len(key) + 1 :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(name))
        return Path(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Lake, (self.url,))


def sha256_of(content: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _checked(key: str) -> str:
    parts = key.split("/")
    if not key or any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
        raise ConfigError(f"{key!r} is not a key of the lake: it must be a relative path without '.' or '..'.")
    return key
