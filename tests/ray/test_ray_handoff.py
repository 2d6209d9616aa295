"""Partitions that were handed over, read by Ray Data in a stream through a store that holds half of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raymlops.data.ray_write import RowWriter
from raymlops.data.row_bytes import RowBytes

SCRIPT = """
import json, sys
import numpy as np, pyarrow as pa, ray
from raymlops.data.handed import part_path, write_part
from raymlops.data.ray_handoff import read_parts
from raymlops.data.ray_write import read_tables
from raymlops.data.schema import learn_contract

ROWS, COLUMNS, PARTS = 65_536, 16, 40
folder, total = sys.argv[1], 0.0
for number in range(PARTS):
    values = np.random.default_rng(number).standard_normal((COLUMNS, ROWS), dtype=np.float32)
    columns = {f"c{i}": values[i] for i in range(COLUMNS)}
    batch = pa.RecordBatch.from_pydict({**columns, "y": np.arange(ROWS) % 2})
    write_part(folder, number, [batch])
    total += float(values[0].sum(dtype=np.float64))
contract = learn_contract(batch.to_pandas(), "y")
ray.init(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
rows = found = labels = 0
files = [part_path(folder, number) for number in range(PARTS)]
for batch in read_parts({"": files}, read_tables, [*columns, "y"], contract).iter_batches(batch_size=None, batch_format="numpy"):
    rows += len(batch["y"])
    found += float(batch["c0"].sum(dtype=np.float64))
    labels += float(batch["y"].sum())
    assert batch["c0"].dtype == np.float32
print(json.dumps({"rows": rows, "off": abs(found - total), "labels": labels}))
"""


def test_twice_the_object_store_goes_through_in_a_stream(tmp_path: Path) -> None:
    """178 MB of rows and a store of 80 MB, in a cluster of its own: this process already belongs to the session's."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYMLOPS_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["rows"] == 65_536 * 40
    assert told["off"] < 1e-3
    assert told["labels"] == 65_536 * 20


def test_a_part_of_another_node_is_not_looked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's thread finds it while the driver still asks for the next part of its own."""
    writer = RowWriter(None, RowBytes(packs=(), singles=()))
    monkeypatch.setattr("raymlops.data.ray_write.listed", lambda _: [("part-00001-x", 8)])
    writer._take([("part-00000-x", 8)], "/nowhere", "another node")
    assert writer.find("/nowhere", 0) is None
    assert writer.find("/nowhere", 1) == "/nowhere/part-00001-x"
