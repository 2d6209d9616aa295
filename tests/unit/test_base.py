"""Errors, clock, settings, lake."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

from raymlops import errors
from raymlops.clock import seconds
from raymlops.errors import ConfigError, DataError, RaymlopsError
from raymlops.lake import Lake
from raymlops.settings import Settings

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RaymlopsError)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind: type[RaymlopsError]) -> None:
    back = pickle.loads(pickle.dumps(kind("what was wrong", {"rows": 3})))
    assert type(back) is kind
    assert (str(back), back.details) == ("what was wrong", {"rows": 3})


@pytest.mark.parametrize(("given", "expected"), [(5, 5.0), ("7d", 604800.0), ("250ms", 0.25), ("1.5h", 5400.0)])
def test_durations(given: float | str, expected: float) -> None:
    assert seconds(given, "cooldown") == expected


@pytest.mark.parametrize("given", ["soon", "5 years", -1, "-3s", float("nan"), True])
def test_a_duration_that_is_none_names_its_field(given: object) -> None:
    with pytest.raises(ConfigError, match="cooldown="):
        seconds(given, "cooldown")


def test_settings_travel_by_environment(tmp_path: Path) -> None:
    first = Settings.read({"RAYMLOPS_HOME": str(tmp_path), "RAYMLOPS_HTTP_PORT": "9001", "PATH": "/bin"})
    assert Settings.read(first.environ()) == first
    assert first.store.startswith("sqlite:///")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RAYMLOPS_STOER": "x"}, "RAYMLOPS_STOER, which raymlops does not know. Did you mean 'STORE'"),
        ({"RAYMLOPS_HTTP_PORT": "70000"}, "'70000' is not a port"),
        ({"RAYMLOPS_HTTP_PORT": "http"}, "'http' is not a port"),
    ],
)
def test_settings_that_cannot_work(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.read(environ)


def test_the_lake_keeps_bytes(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.write("a/b.txt", b"one")
    lake.write("a/b.txt", b"two")
    lake.write("a/c/d.txt", b"three")
    assert lake.read("a/b.txt") == b"two"
    assert list(lake.keys("a")) == ["a/b.txt", "a/c/d.txt"]
    with lake.open("a/b.txt") as stream:
        assert (stream.seek(1), stream.read()) == (1, b"wo")
    with pytest.raises(DataError, match=r"holds no 'a/y\.txt'"):
        lake.open("a/y.txt")
    folder = lake.fetch_folder("a", tmp_path / "copy")
    assert (folder / "c" / "d.txt").read_bytes() == b"three"
    with pytest.raises(DataError, match=r"holds no 'a/x\.txt'"):
        lake.read("a/x.txt")


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a//b", "a/../b", "", "a\\b", "a\0b"])
def test_a_key_cannot_leave_the_lake(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="is not a key of the lake"):
        Lake(str(tmp_path)).write(key, b"x")


def test_the_lake_may_be_an_fsspec_url() -> None:
    lake = Lake("memory://lake-test")
    lake.write("a/b", b"one")
    assert lake.read("a/b") == b"one"
    assert list(lake.keys("a")) == ["a/b"]
    with pytest.raises(ConfigError, match="cannot be opened"):
        Lake("nosuch://lake")
