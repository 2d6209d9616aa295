"""LitServe with its batching (64 requests, 2 ms) and its fast queue; XGBoost has one thread."""

import json
import os
import sys

import litserve
import numpy as np
import xgboost


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.booster = xgboost.Booster({"nthread": 1})
        self.booster.load_model(os.environ["MODEL"])
        self.columns = json.loads(os.environ["COLUMNS"])

    def decode_request(self, request: dict) -> np.ndarray:
        return np.array([[row[name] for name in self.columns] for row in request["rows"]], dtype=np.float32)

    def batch(self, inputs: list) -> tuple:
        return np.concatenate(inputs), [len(x) for x in inputs]

    def predict(self, batch: tuple) -> tuple:
        x, counts = batch
        return self.booster.inplace_predict(x), counts

    def unbatch(self, output: tuple) -> list:
        values, counts = output
        return np.split(values, np.cumsum(counts)[:-1])

    def encode_response(self, output: np.ndarray) -> dict:
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", log_level="warning", generate_client_file=False)
