"""Ray Serve as its documentation shows it: a deployment that takes the Starlette request; default settings."""

import json
import os
import signal
import sys
import threading

import numpy as np
import ray
import xgboost
from ray import serve
from starlette.requests import Request


@serve.deployment
class Model:
    def __init__(self, model: str, columns: list[str]) -> None:
        self.booster = xgboost.Booster({"nthread": 1})
        self.booster.load_model(model)
        self.columns = columns

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        rows = (await request.json())["rows"]
        x = np.array([[row[name] for name in self.columns] for row in rows], dtype=np.float32)
        return {"probabilities": self.booster.inplace_predict(x).tolist()}


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Model.bind(os.environ["MODEL"], json.loads(os.environ["COLUMNS"])), name="model", route_prefix="/predict")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()
