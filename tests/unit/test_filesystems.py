"""Files that are not on a disk of this machine: any fsspec filesystem, and what is said where its package is missing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.orc as orc
import pytest

from raymlops.data.files import SMALL_BYTES, is_small, read_files, read_url
from raymlops.data.sources import FileSource, expand_files
from raymlops.errors import ConfigError, DataError
from raymlops.lake import Lake

FRAME = pd.DataFrame({"n": [1, 2, 3], "s": ["æ", None, "c"], "y": [0, 1, 0]})


@pytest.fixture
def remote() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's own in-memory filesystem: reached by URL as s3:// is, with nothing of a local path to it."""
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    if filesystem.exists("/faraway"):
        filesystem.rm("/faraway", recursive=True)


def content(form: str, frame: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    if form == "csv":
        frame.to_csv(sink, index=False)
    elif form == "json":
        frame.to_json(sink, orient="records", lines=True)
    elif form == "orc":
        orc.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink)
    else:
        frame.to_parquet(sink)
    return sink.getvalue()


@pytest.mark.parametrize("form", ["csv", "json", "orc", "parquet"])
def test_every_format_by_folder_glob_and_name(remote: fsspec.AbstractFileSystem, form: str) -> None:
    for number, part in enumerate((FRAME.iloc[:2], FRAME.iloc[2:])):
        remote.pipe_file(f"/faraway/lake/part {number}.{form}", content(form, part))
    remote.pipe_file("/faraway/lake/_SUCCESS", b"")
    both = ("memory:///faraway/lake/part 0." + form, "memory:///faraway/lake/part 1." + form)
    for url in ("memory://faraway/lake", f"memory://faraway/lake/*.{form}"):
        files, found, local = expand_files([url])
        assert (found, local) == (form, False)
        assert [name.replace("memory:///", "memory://") for name in files] == [n.replace(":///", "://") for n in both]
        assert is_small(files, found)
        frame = read_files(files, found).to_pandas()
        assert frame["n"].tolist() == [1, 2, 3]
        assert frame["s"].tolist() == ["æ", None, "c"]


def test_a_folder_too_large_for_one_process_is_not_small(remote: fsspec.AbstractFileSystem) -> None:
    remote.pipe_file("/faraway/large.csv.gz", b"\0" * (SMALL_BYTES // 5 + 1))
    assert not is_small(["memory://faraway/large.csv.gz"], "csv")


def test_what_is_not_there_or_broken_is_named(remote: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(DataError, match=r"No file matches 'memory://faraway/none/\*\.csv'"):
        expand_files(["memory://faraway/none/*.csv"])
    remote.pipe_file("/faraway/b.parquet", content("parquet", FRAME)[:100])
    with pytest.raises(DataError, match=r"memory://faraway/b\.parquet cannot be read as parquet"):
        read_url("memory://faraway/b.parquet", "parquet")
    with pytest.raises(DataError, match="mixes formats, or local and remote files"):
        expand_files(["memory://faraway/b.parquet", __file__], "parquet")


@pytest.mark.parametrize(
    ("url", "package"),
    [("s3://lake/churn/*.parquet", "s3fs"), ("gs://lake/churn.csv", "gcsfs"), ("abfs://lake/churn.csv", "adlfs")],
)
def test_a_filesystem_whose_package_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for scheme in ("s3", "gs", "abfs"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(DataError, match=rf"'{url.partition('*')[0]}.*cannot be listed: .*[Ii]nstall {package}"):
        FileSource(url, label="y").expand()
    with pytest.raises(ConfigError, match=rf"The lake .* cannot be opened: .*[Ii]nstall {package}"):
        Lake(url.rpartition("/")[0])


def test_a_scheme_nobody_knows() -> None:
    with pytest.raises(DataError, match=r"'s4://lake/a\.csv' cannot be listed: Protocol not known: s4"):
        FileSource("s4://lake/a.csv", label="y").expand()
