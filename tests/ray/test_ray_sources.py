"""Sources that need Ray and no JVM: datasets, databases in parallel, and several together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import sqlalchemy as sa

from raymlops.data.combined import CombinedSource
from raymlops.data.ray_prepare import prepare_frame, wants_spark
from raymlops.data.served import ServedSource
from raymlops.data.sources import FileSource, FrameSource, RayDatasetSource, SparkSource
from raymlops.data.sql import SQLSource
from raymlops.errors import DataError
from raymlops.settings import Settings


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(twice=frame["x"] * 2)


def dataset() -> Any:
    return ray.data.range(1000, override_num_blocks=4).map_batches(
        lambda batch: {"x": batch["id"] * 1.0, "y": batch["id"] % 2}
    )


@pytest.mark.parametrize("lazy", [True, False])
def test_a_ray_dataset_in_its_order(ray_cluster: Settings, lazy: bool) -> None:
    told: list[Any] = []
    source = RayDatasetSource(dataset if lazy else dataset(), label="y")
    frame = prepare_frame(source, twice, ray_cluster, on_raw=told.extend)
    assert frame["x"].tolist() == list(range(1000))
    assert frame["twice"].sum() == 999_000
    assert [column.name for column in told] == ["x"]


def test_a_dataset_without_the_label_or_a_function_of_something_else(ray_cluster: Settings) -> None:
    with pytest.raises(DataError, match="no label column 'z'"):
        prepare_frame(RayDatasetSource(dataset, label="z"), None, ray_cluster)
    with pytest.raises(DataError, match=r"returned int: return a ray\.data\.Dataset"):
        prepare_frame(RayDatasetSource(lambda: 3, label="y"), None, ray_cluster)


def test_a_database_in_parallel_parts(ray_cluster: Settings, postgres: str) -> None:
    engine = sa.create_engine(postgres)
    pd.DataFrame({"id": range(5000), "x": 0.5, "y": 1}).to_sql("parts", engine, index=False, if_exists="replace")
    engine.dispose()
    source = SQLSource(postgres, query="SELECT * FROM parts WHERE id >= 100", label="y", partition="id", partitions=3)
    frame = prepare_frame(source, twice, ray_cluster)
    assert sorted(frame["id"].tolist()) == list(range(100, 5000))
    assert frame["twice"].eq(1.0).all()
    with pytest.raises(DataError, match=r"The database .* refused: .*nowhere"):
        prepare_frame(SQLSource(postgres, table="nowhere", label="y"), None, ray_cluster)


def test_the_lake_and_a_frame_together(ray_cluster: Settings, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("x,y,ts\n1.0,0,2026-01-02\n2.0,1,2026-01-01\n")
    new = pd.DataFrame({"x": [3.0], "y": [1], "at": pd.to_datetime(["2026-01-03"])})
    source = CombinedSource(
        FileSource(str(tmp_path / "old.csv"), label="y", time="ts"),
        FrameSource(new, label="y", time="at"),
        ServedSource("nobody", label="y"),
    )
    frame = prepare_frame(source, twice, ray_cluster)
    assert frame["x"].tolist() == [2.0, 1.0, 3.0]
    assert frame["twice"].tolist() == [4.0, 2.0, 6.0]
    assert str(frame["ts"].dtype).startswith("datetime64")


def test_what_wants_a_jvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv"
    path.write_text("x,y\n1,2\n")
    assert not wants_spark(FileSource(str(path), label="y"))
    assert wants_spark(FileSource(str(path), label="y", engine="spark"))
    assert wants_spark(SparkSource(lambda spark: spark.range(3), label="y"))
    assert wants_spark(SQLSource("jdbc:derby:memory:x", table="t", label="y"))
    assert not wants_spark(SQLSource("sqlite://", table="t", label="y"))
    monkeypatch.setattr("raymlops.data.files.SMALL_BYTES", 4)
    assert wants_spark(FileSource(str(path), label="y"))
