"""BentoML with two workers and adaptive batching (its latency bound is wide, so that nothing is refused); XGBoost has one thread a process."""

import json
import os

import bentoml
import numpy as np
import xgboost


@bentoml.service(workers=2, traffic={"timeout": 30})
class Model:
    def __init__(self) -> None:
        self.booster = xgboost.Booster({"nthread": 1})
        self.booster.load_model(os.environ["MODEL"])
        self.columns = json.loads(os.environ["COLUMNS"])

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=6400, max_latency_ms=1000)
    def predict(self, rows: list[dict[str, float]]) -> list[float]:
        x = np.array([[row[name] for name in self.columns] for row in rows], dtype=np.float32)
        return self.booster.inplace_predict(x).tolist()
