"""FastAPI as its documentation shows it: a typed body, an asynchronous handler. XGBoost has one thread a process.

uvicorn --workers 1 or 2, uvloop and httptools. MODEL names XGBoost's JSON, COLUMNS the columns in order.
"""

import json
import os

import numpy as np
import xgboost
from fastapi import FastAPI
from pydantic import BaseModel

booster = xgboost.Booster({"nthread": 1})
booster.load_model(os.environ["MODEL"])
columns = json.loads(os.environ["COLUMNS"])
app = FastAPI()


class Rows(BaseModel):
    rows: list[dict[str, float]]


@app.post("/predict")
async def predict(body: Rows) -> dict[str, list[float]]:
    x = np.array([[row[name] for name in columns] for row in body.rows], dtype=np.float32)
    return {"probabilities": booster.inplace_predict(x).tolist()}
