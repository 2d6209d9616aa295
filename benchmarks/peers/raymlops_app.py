"""The model of the benchmark through a real pipeline: data, search, gate, registry, Ray Serve, steward and monitor.

    python raymlops_app.py FILE PORT...

The n-th port is that of the endpoint ``benchN``, which has n gateways.
Retraining on drift is off, so that nothing trains while others are measured; routing, sketches and the prediction log are
on. Writes where it answers to the file named first, and stays until it is ended.
"""

import json
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd

from raymlops import FrameSource, Gate, Pipeline, RetrainPolicy, Search, candidates
from raymlops.search.candidates import settled
from raymlops.serving.spec import Serving
from raymlops.settings import Settings
from raymlops.store import Store

FEATURES = 28
TREES = {"learning_rate": 0.1, "max_depth": 6, "rounds": 200}


def table(rows: int = 20_000) -> pd.DataFrame:
    """28 float features, and a label that asks for deep trees."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, FEATURES))
    logit = x @ rng.normal(size=FEATURES) * 0.5 + x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2])
    frame = pd.DataFrame(x, columns=[f"f{i:02d}" for i in range(FEATURES)])
    return frame.assign(label=(logit + rng.logistic(size=rows) > 0).astype(int))


def main() -> None:
    out, ports = Path(sys.argv[1]), [int(port) for port in sys.argv[2:]]
    settings = Settings.read()
    for replicas, port in enumerate(ports, 1):
        pipeline = Pipeline(
            name=f"bench{replicas}",
            source=FrameSource(table(), label="label"),
            search=Search(candidates=[settled(candidates.xgboost(), TREES)], trials=1, recency=False),
            gate=Gate(max_gap=None),
            serving=Serving(port=port, replicas=replicas),
            retrain=RetrainPolicy(on_drift=False),
        )
        pipeline.run(settings=settings)
    store = Store(settings.store)
    routing = store.get("routing", "bench1")
    version = routing and store.get("versions", f"bench1/{routing['champion']}")
    if not version:
        raise SystemExit("the pipeline has run and nothing is served")
    folder = Path(settings.home) / "cache" / "packages" / version["digest"]
    out.write_text(json.dumps({"package": str(folder), "manifest": json.loads((folder / "manifest.json").read_text())}))
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
