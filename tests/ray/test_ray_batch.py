"""Bulk scoring on a real Ray Data actor pool: counts, a drift report, kills in the middle, and refusals in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from raymlops.errors import ConfigError, ContractViolation, DataError, DigestMismatch, UnknownVersion
from raymlops.lake import Lake
from raymlops.loop import ray_bulk
from raymlops.loop.ray_endpoint import Endpoint
from raymlops.serving.predictor import Predictor
from raymlops.settings import Settings
from raymlops.store import Store
from raymlops.testing.packages import install_version

NAME = "bulk"


def frame(rows: int, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {"id": np.arange(rows), "a": rng.normal(size=rows) + shift, "b": rng.normal(size=rows), "note": "kept"}
    )


def write(path: Path, rows: pd.DataFrame, group: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), path, row_group_size=group)
    return str(path)


def install(settings: Settings) -> None:
    """Two versions, known to the store as a pipeline's run leaves them; version 1 is champion."""
    settings.ensure_home()
    store = Store(settings.store)
    for version, rounds in ((1, 20), (2, 5)):
        install_version(settings, store, NAME, version, rounds=rounds)
    store.put("routing", NAME, {"number": 1, "champion": 1})
    store.put("endpoints", NAME, {"url": "http://127.0.0.1:1/bulk", "direct_url": "http://127.0.0.1:1/bulk"})
    store.close()


@pytest.fixture(scope="module")
def endpoint(ray_cluster: Settings) -> Endpoint:
    install(ray_cluster)
    return Endpoint(NAME, ray_cluster)


def contents(folder: Path) -> dict[str, bytes]:
    """Every byte of a run but the summary, which holds how long it took."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "summary.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def records(folder: Path) -> int:
    return len(list(folder.glob("_raymlops/parts/[0-9]*.json")))


def until(done: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_run_scores_every_row_once_and_reports_what_moved(endpoint: Endpoint, tmp_path: Path) -> None:
    rows = frame(50_000, shift=1.5)
    rows.loc[[7, 40_000], "b"] = np.nan
    first = write(tmp_path / "in" / "1.parquet", rows[:30_000], 10_000)
    write(tmp_path / "in" / "2.parquet", rows[30_000:], 10_000)
    result = endpoint.batch(f"{tmp_path}/in/*.parquet", str(tmp_path / "out"), on_bad="keep", part_rows=10_000)
    assert (result.rows, result.scored, result.refused, result.parts) == (50_000, 49_998, 2, 5)
    assert result.version == 1
    out = pq.read_table(tmp_path / "out").to_pandas()
    assert list(out.columns) == ["id", "note", "prediction", "probability"]
    assert sorted(set(range(50_000)) - set(out.id)) == [7, 40_000]
    store = Store(endpoint.settings.store)
    body = store.get("versions", f"{NAME}/1")
    store.close()
    assert body is not None
    predictor = Predictor.load(Path(endpoint.settings.home) / "cache" / "packages" / body["digest"], 1)
    expected = predictor.predict(rows.loc[out.id, ["a", "b"]].to_numpy(np.float32))
    np.testing.assert_allclose(out.probability, expected, atol=1e-5)
    summary = json.loads((tmp_path / "out" / "_raymlops" / "summary.json").read_text())
    assert (summary["digest"], summary["rows"]) == (body["digest"], 50_000)
    assert summary["drift"]["sampled_rows"] == pytest.approx(10_000, abs=10)
    assert summary["drift"]["rows"] == 49_998
    assert "a" in summary["drift"]["columns"]
    assert "b" not in summary["drift"]["columns"]
    assert Store(endpoint.settings.store).get("monitor", NAME) is None, "the live monitor is not told"
    again = endpoint.batch(first, str(tmp_path / "older"), version=2, keep=["id"], on_bad="keep")
    assert (again.version, again.rows) == (2, 30_000)
    assert pq.read_schema(tmp_path / "older" / "part-00000-0000.parquet").names[0] == "id"


def test_a_killed_run_ends_with_the_same_bytes_as_an_unbroken_one(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.parquet", frame(60_000), 300)
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    command = [sys.executable, "-m", "raymlops", "batch", NAME, "--input", source, "--output", str(broken)]
    environ = {**os.environ, **endpoint.settings.environ()}
    environ["RAYMLOPS_RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    process = subprocess.Popen([*command, "--part-rows", "300"], env=environ, stderr=subprocess.PIPE)
    until(lambda: records(broken) >= 3 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = records(broken)
    assert 3 <= left < 200, process.stderr and process.stderr.read().decode()
    with pytest.raises(ConfigError, match="parts done: resume it with --resume"):
        endpoint.batch(source, str(broken), part_rows=300)
    resumed = endpoint.batch(source, str(broken), part_rows=300, resume=True)
    assert resumed.resumed >= left
    assert (resumed.rows, resumed.scored) == (60_000, 60_000)
    assert records(broken) == 200
    # Which runtime is faster is measured; two runs may differ in it, and then in the last bits.
    monkeypatch.setattr(ray_bulk, "choose_runtime", lambda *_: resumed.runtime)
    endpoint.batch(source, str(whole), part_rows=300)
    assert contents(broken) == contents(whole)
    nothing_to_do = endpoint.batch(source, str(broken), part_rows=300, resume=True)
    assert nothing_to_do.resumed == 200
    assert contents(broken) == contents(whole)


def test_an_actor_that_is_killed_is_replaced_and_no_row_is_lost(endpoint: Endpoint, tmp_path: Path) -> None:
    from ray.util.state import list_actors

    source, output = write(tmp_path / "in.parquet", frame(60_000), 300), tmp_path / "out"
    found: list[Any] = []
    run = threading.Thread(target=lambda: found.append(endpoint.batch(source, str(output), part_rows=300)))
    run.start()
    until(lambda: records(output) >= 3 or not run.is_alive())
    alive = list_actors(filters=[("state", "=", "ALIVE")], limit=1000, detail=True)
    scorers = [actor for actor in alive if "PartScorer" in actor.class_name]
    assert scorers, [actor.class_name for actor in alive]
    os.kill(scorers[0].pid, signal.SIGKILL)
    run.join(timeout=120)
    assert found[0].scored == 60_000
    assert pq.read_table(output).column("id").to_pylist() == list(range(60_000))


def test_a_bad_row_stops_the_run_with_its_place_and_what_to_do(endpoint: Endpoint, tmp_path: Path) -> None:
    rows = frame(900)
    rows.loc[650, "a"] = np.nan
    source = write(tmp_path / "in.parquet", rows, 300)
    with pytest.raises(ContractViolation, match=r"in\.parquet, row 50 of part 2: column 'a'.*--on-bad keep"):
        endpoint.batch(source, str(tmp_path / "out"), part_rows=300)
    result = endpoint.batch(source, str(tmp_path / "out"), part_rows=300, on_bad="keep", resume=True)
    assert (result.rows, result.refused) == (900, 1)


def test_csv_with_columns_of_its_own(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,b,a\n001,0.5,1\n002,,x\n003,-1,2\n")
    result = endpoint.batch(str(tmp_path / "in.csv"), str(tmp_path / "out"), on_bad="keep")
    assert (result.rows, result.scored, result.refused, result.drift) == (3, 2, 1, None)
    assert pq.read_table(tmp_path / "out").column("id").to_pylist() == ["001", "003"]
    refused = pq.read_table(tmp_path / "out" / "_refused").to_pylist()
    assert refused[0]["reason"] == "column 'a': expected number, got 'x'; column 'b': expected number, got null"


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"input": "nothing-*.parquet"}, DataError, r"No file matches .*nothing-\*\.parquet"),
        ({"input": "torn.parquet"}, DataError, r"torn\.parquet cannot be read as parquet"),
        ({"input": "other.parquet"}, ContractViolation, r"lacks 'b', which version 1 needs\. Did you mean 'bb'\?"),
        ({"input": "good.parquet", "version": 9}, UnknownVersion, r"no version 9 of 'bulk'\. Known: 1, 2\."),
        ({"input": "good.parquet", "keep": ["idd"]}, ConfigError, r"no column 'idd' to keep\. Did you mean 'id'"),
        ({"input": "good.parquet", "on_bad": "kep"}, ConfigError, r"on_bad='kep' is not known\. Did you mean 'keep'"),
        ({"input": "good.parquet", "part_rows": 0}, ConfigError, r"part_rows=0 cannot be"),
        ({"input": "good.parquet", "format": "orc"}, ConfigError, r"format='orc' is not a format"),
        ({"input": "good.parquet", "output": "torn.parquet"}, ConfigError, r"holds something that is no run"),
        ({"input": "good.parquet", "output": "torn.parquet/below"}, ConfigError, r"cannot be (written|used)"),
    ],
)
def test_what_cannot_work_is_refused_before_any_row_is_scored(
    tmp_path: Path, settings: Settings, given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    install(settings)
    write(tmp_path / "good.parquet", frame(10), 10)
    write(tmp_path / "other.parquet", frame(10).rename(columns={"b": "bb"}), 10)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1" + bytes(64))
    arguments = {"output": "out", **given}
    arguments |= {name: str(tmp_path / arguments[name]) for name in ("input", "output")}
    with pytest.raises(kind, match=said):
        Endpoint(NAME, settings).batch(**arguments)
    assert not (tmp_path / "out" / "_raymlops" / "parts").exists()


def test_a_package_with_a_changed_byte_scores_nothing(tmp_path: Path, settings: Settings) -> None:
    install(settings)
    lake = Lake(settings.lake)
    content = bytearray(lake.read(f"packages/{NAME}/1/model.json"))
    content[len(content) // 2] ^= 1
    lake.write(f"packages/{NAME}/1/model.json", bytes(content))
    source = write(tmp_path / "in.parquet", frame(10), 10)
    with pytest.raises(DigestMismatch, match=r"model\.json"):
        Endpoint(NAME, settings).batch(source, str(tmp_path / "out"))
