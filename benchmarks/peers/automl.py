"""One AutoML tool on one table, in its own environment: ``automl.py TOOL table.npz task budget seed out.npz``.

The table holds ``x`` (float64 codes and numbers, NaN missing), ``y``, ``x_test`` and the indices of category columns. Written are the prediction for
``x_test`` (probability of class 1, or value) and the seconds of the fit.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd

THREADS = 2


def frame(x: np.ndarray, categorical: np.ndarray) -> pd.DataFrame:
    made = pd.DataFrame(x, columns=[f"c{i}" for i in range(x.shape[1])])
    for i in categorical:
        codes = made[f"c{i}"]
        made[f"c{i}"] = codes.where(codes.isna(), codes.fillna(-1).astype(int).astype(str)).astype("category")
    return made


def by_flaml(x: Any, y: Any, test: Any, task: str, budget: float, seed: int) -> np.ndarray:
    from flaml import AutoML

    kind, metric = ("classification", "roc_auc") if task == "binary" else ("regression", "rmse")
    tool = AutoML()
    tool.fit(x, y, task=kind, metric=metric, time_budget=budget, n_jobs=THREADS, seed=seed, verbose=0)
    return tool.predict_proba(test)[:, 1] if task == "binary" else tool.predict(test)


def by_autogluon(x: Any, y: Any, test: Any, task: str, budget: float, seed: int) -> np.ndarray:
    import tempfile

    from autogluon.tabular import TabularPredictor

    metric = "roc_auc" if task == "binary" else "root_mean_squared_error"
    with tempfile.TemporaryDirectory() as folder:
        kind = "binary" if task == "binary" else "regression"
        tool = TabularPredictor("label", problem_type=kind, eval_metric=metric, path=folder, verbosity=0)
        tool.fit(x.assign(label=y), time_limit=budget, presets="medium_quality", num_cpus=THREADS)
        return np.asarray(tool.predict_proba(test)[1.0] if task == "binary" else tool.predict(test))


def by_optuna(x: Any, y: Any, test: Any, task: str, budget: float, seed: int) -> np.ndarray:
    """XGBoost with early stopping on a fifth of the rows; two trials at once, one thread each."""
    import joblib
    import optuna
    import xgboost as xgb

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ends = time.monotonic() + budget
    cut = np.random.default_rng(seed).random(len(y)) < 0.8
    train, held = (xgb.DMatrix(x[m], y[m], enable_categorical=True, nthread=1) for m in (cut, ~cut))
    binary = task == "binary"
    fixed = {
        "objective": "binary:logistic" if binary else "reg:squarederror",
        "eval_metric": "auc" if binary else "rmse",
        "tree_method": "hist",
    }
    study = optuna.create_study(
        direction="maximize" if binary else "minimize",
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
    )

    def one(_: int) -> None:
        if time.monotonic() > ends:
            return
        trial = study.ask()
        params = {
            "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.3, log=True),
            "max_depth": trial.suggest_int("max_depth", 3, 10),
            "min_child_weight": trial.suggest_float("min_child_weight", 0.1, 100, log=True),
            "subsample": trial.suggest_float("subsample", 0.5, 1.0),
            "colsample_bytree": trial.suggest_float("colsample_bytree", 0.3, 1.0),
            "lambda": trial.suggest_float("lambda", 1e-3, 100, log=True),
        }
        grown = xgb.train(
            {**fixed, **params, "nthread": 1},
            train,
            2000,
            [(held, "held")],
            early_stopping_rounds=50,
            verbose_eval=False,
        )
        trial.set_user_attr("rounds", grown.best_iteration + 1)
        study.tell(trial, grown.best_score)

    joblib.Parallel(n_jobs=THREADS, require="sharedmem")(joblib.delayed(one)(i) for i in range(100_000))
    every = xgb.DMatrix(x, y, enable_categorical=True)
    best = xgb.train({**fixed, **study.best_params, "nthread": THREADS}, every, study.best_trial.user_attrs["rounds"])
    return best.predict(xgb.DMatrix(test, enable_categorical=True))


def by_halving(x: Any, y: Any, test: Any, task: str, budget: float, seed: int) -> np.ndarray:
    """scikit-learn's random halving over rows has no time budget: candidates are added, doubling, until it is used."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    import_module("sklearn.experimental.enable_halving_search_cv")
    from sklearn.model_selection import HalvingRandomSearchCV

    binary, began, candidates, spent = task == "binary", time.monotonic(), 9, 0.0
    kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
    space = {
        "learning_rate": list(np.geomspace(0.02, 0.3, 20)),
        "max_leaf_nodes": [7, 15, 31, 63, 127],
        "min_samples_leaf": [5, 10, 20, 50, 100],
        "l2_regularization": list(np.geomspace(1e-4, 10, 10)),
        "max_iter": [50, 100, 200, 400],
    }
    best: Any = None
    while best is None or time.monotonic() - began + 2 * spent < budget:
        started = time.monotonic()
        found = HalvingRandomSearchCV(
            kind(random_state=seed, categorical_features="from_dtype"),
            space,
            n_candidates=candidates,
            scoring="roc_auc" if binary else "neg_root_mean_squared_error",
            cv=3,
            n_jobs=THREADS,
            random_state=seed + candidates,
        ).fit(x, y)
        spent, candidates = time.monotonic() - started, candidates * 2
        if best is None or found.best_score_ > best.best_score_:
            best = found
    return best.predict_proba(test)[:, 1] if binary else best.predict(test)


def main() -> None:
    tool, table, task, budget, seed, out = sys.argv[1:]
    with np.load(table) as held:
        categorical = held["categorical"]
        x, test, y = frame(held["x"], categorical), frame(held["x_test"], categorical), held["y"]
    for column in test.columns[categorical]:
        test[column] = test[column].cat.set_categories(x[column].cat.categories)
    began = time.monotonic()
    prediction = globals()[f"by_{tool}"](x, y, test, task, float(budget), int(seed))
    np.savez(out, prediction=np.asarray(prediction, dtype=float), seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()
