"""Models as raymlops fits them: one thread, a float32 matrix in, probabilities or values out.

Only numpy, scikit-learn and XGBoost: a package that holds one of these loads without Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from raymlops.data.schema import Task

Floats = NDArray[np.floating[Any]]
Weigh = Callable[[Floats, Floats], Floats]

# Rounds without a better score before boosting stops: at least so many, or what moves a prediction five times its way.
_PATIENCE, _PATIENCE_RATE = 30, 5.0
_WIDER = 0.25
_WATCHED_ROWS, _WATCHED_LEAST = 50_000, 5_000
_FASTEST = 0.3
_BINNED_ROWS = 200_000
_OBJECTIVE: dict[Task, str] = {
    "binary": "binary:logistic",
    "multiclass": "multi:softprob",
    "regression": "reg:squarederror",
}


class Estimator(Protocol):
    """What a candidate builds.

    ``x`` is ``(n_rows, n_features)`` float32 with NaN for missing; ``y`` class indices or values. ``predict`` gives the
    positive class's probability ``(n,)``, class probabilities ``(n, k)``, or values ``(n,)``.

    Two things are optional. An attribute ``learned`` holds parameters that the validation rows fixed (rounds of boosting)
    and a refit must keep. A method ``watch(metric)`` is told, before the fit, what the search optimises.
    """

    def fit(self, x: Floats, y: Floats, x_val: Floats | None = None, y_val: Floats | None = None) -> Estimator: ...

    def predict(self, x: Floats) -> Floats: ...


# XGBoost's name for what the search optimises; where it has none that is smooth enough, the loss it boosts decides.
_WATCHED = {"roc_auc": "auc", "average_precision": "aucpr", "mae": "mae"}


class XGBoostEstimator:
    """Gradient-boosted trees (Chen & Guestrin 2016), histogram method, on quantile bins.

    With validation rows the number of rounds is found by early stopping, unless ``stopping`` was set to false. Category
    codes are split on as numbers: that keeps the model convertible to ONNX. With ``max_leaves`` among the parameters trees grow
    leaf by leaf, the best split first.

    Attributes
    ----------
    most : rounds, where early stopping is to find how many are needed; ``rounds`` where it is not
    threads : for the fit; prediction takes one
    until_s : boosting ends this many seconds after the fit began, with the rounds it has; ``None`` has no limit
    hurry : how many times faster to learn, at most ``quickest``: a higher learning rate needs as many rounds less
    widen : times the rows on which ``max_leaves`` was chosen: a tree may have more leaves, by the fourth root of it
    weigh : sample weights ``(n,)`` from the rows and labels of a fit; ``None`` weighs all alike
    monotone : 1, 0 or -1 a column: the prediction may only rise, do as it likes, or only fall with it
    quantile : of a regression to predict; ``None`` predicts the mean
    once : keeps binned matrices from fit to fit on the same rows, see :meth:`raymlops.search.rows.Rows.once`
    """

    def __init__(self, params: Mapping[str, Any], task: Task, n_classes: int, rounds: int, seed: int) -> None:
        self.task = task
        self.n_classes = n_classes
        self.rounds = self.most = rounds
        self.stopping = True
        self.threads = 1
        self.until_s: float | None = None
        self.hurry = self.widen = 1.0
        self.weigh: Weigh | None = None
        self.monotone: tuple[int, ...] = ()
        self.quantile: float | None = None
        self.categorical: tuple[int, ...] = ()
        self.once: Callable[[Any, Callable[[], Any]], Any] = lambda _key, make: make()
        self.learned: dict[str, Any] = {}
        self._params = {
            **({"grow_policy": "lossguide", "max_depth": 0} if "max_leaves" in params else {}),
            **params,
            "objective": _OBJECTIVE[task],
            "tree_method": "hist",
            "seed": seed,
            "verbosity": 0,
        }
        if task == "multiclass":
            self._params["num_class"] = n_classes
        self.booster: xgb.Booster | None = None

    @property
    def bins(self) -> int:
        """Quantile bins a column."""
        return int(self._params.get("max_bin", 256))

    @property
    def quickest(self) -> float:
        """How large ``hurry`` may be for a small loss of score: up to a learning rate of 0.3."""
        return max(1.0, _FASTEST / float(self._params.get("learning_rate", _FASTEST)))

    def kinds(self, width: int) -> list[str] | None:
        """XGBoost's word for each column's kind; ``None`` where all are numbers."""
        return ["c" if i in self.categorical else "q" for i in range(width)] if self.categorical else None

    def settings(self) -> dict[str, Any]:
        """What ``xgboost.train`` is given."""
        params = {**self._params, "nthread": self.threads}
        if self.hurry > 1.0:
            params["learning_rate"] = float(self._params["learning_rate"]) * self.hurry
        if self.widen > 1.0 and "max_leaves" in params:
            params["max_leaves"] = round(int(params["max_leaves"]) * self.widen**_WIDER)
        if any(self.monotone):
            params["monotone_constraints"] = tuple(self.monotone)
        if self.quantile is not None:
            params |= {"objective": "reg:quantileerror", "quantile_alpha": self.quantile, "eval_metric": "quantile"}
        return params

    def watch(self, metric: str) -> None:
        """Let ``metric`` choose the rounds: under a shift of the base rate, log loss stops a ranking far too early."""
        if metric in _WATCHED and self.task != "multiclass":
            self._params["eval_metric"] = _WATCHED[metric]

    def fit(self, x: Floats, y: Floats, x_val: Floats | None = None, y_val: Floats | None = None) -> XGBoostEstimator:
        # XGBoost takes no more threads than OpenMP's own limit, which Ray sets to 1 in its workers and jobs.
        with threadpool_limits(self.threads if self.threads > 1 else None, user_api="openmp"):
            return self._fit(x, y, x_val, y_val)

    def _fit(self, x: Floats, y: Floats, x_val: Floats | None, y_val: Floats | None) -> XGBoostEstimator:
        bins, params = self.bins, self.settings()
        ends: list[Any] = [] if self.until_s is None else [_Until(self.until_s)]
        train = self.once(("train", bins, self.categorical), lambda: self._matrix(x, y, bins))
        if x_val is None or not self.stopping:
            rounds = math.ceil(self.rounds / self.hurry)
            self.booster = self._alone(xgb.train(params, train, num_boost_round=rounds, callbacks=ends))
            if ends and self.booster.num_boosted_rounds() < rounds:
                self.learned = {"rounds": self.booster.num_boosted_rounds()}
            return self
        # Each round is judged on a quarter as many rows as it learns from: more would take longer than the round itself.
        most = min(len(x_val), _WATCHED_ROWS, max(_WATCHED_LEAST, len(x) // 4))
        some = np.linspace(0, len(x_val) - 1, most).astype(int)
        y_val = np.zeros(len(x_val)) if y_val is None else y_val
        watched = self.once(
            ("watched", bins, self.categorical), lambda: self._matrix(x_val[some], y_val[some], bins, train)
        )
        patience = max(_PATIENCE, int(_PATIENCE_RATE / float(params.get("learning_rate", _FASTEST))))
        grown = xgb.train(
            params,
            train,
            num_boost_round=self.most,
            evals=[(watched, "validation")],
            early_stopping_rounds=patience,
            verbose_eval=False,
            callbacks=ends,
        )
        best = grown.attr("best_iteration")  # there is none where the time ended in the first round
        kept = grown.num_boosted_rounds() if best is None else int(best) + 1
        self.learned = {"rounds": kept}
        changed = {"learning_rate": self.hurry, "max_leaves": self.widen}
        self.learned |= {name: params[name] for name, by in changed.items() if by > 1.0 and name in params}
        self.booster = self._alone(grown[:kept])
        return self

    def _alone(self, booster: xgb.Booster) -> xgb.Booster:
        """It predicts with one thread, however many fitted it."""
        if self.threads > 1:
            booster.set_param({"nthread": 1})
        return booster

    def _matrix(self, x: Floats, y: Floats, bins: int, like: xgb.DMatrix | None = None) -> xgb.QuantileDMatrix:
        weight = None if self.weigh is None else self.weigh(x, y)
        kinds = self.kinds(x.shape[1])
        return xgb.QuantileDMatrix(
            x,
            label=y,
            weight=weight,
            nthread=self.threads,
            max_bin=bins,
            ref=like,
            feature_types=kinds,
            enable_categorical=bool(kinds),
        )

    def predict(self, x: Floats) -> Floats:
        if self.booster is None:
            raise RuntimeError("fit() comes before predict().")
        if kinds := self.kinds(x.shape[1]):
            rows = xgb.DMatrix(x, feature_types=kinds, enable_categorical=True, nthread=1)
            return np.asarray(self.booster.predict(rows), dtype=np.float64)
        return np.asarray(self.booster.inplace_predict(x), dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write XGBoost's JSON, the form whose damage is noticed."""
        if self.booster is None:
            raise RuntimeError("fit() comes before save().")
        self.booster.save_model(path)

    @classmethod
    def load(cls, path: Path, task: Task, n_classes: int) -> XGBoostEstimator:
        loaded = cls({}, task, n_classes, rounds=0, seed=0)
        loaded.booster = xgb.Booster({"nthread": 1})
        loaded.booster.load_model(path)
        kinds = loaded.booster.feature_types or []
        loaded.categorical = tuple(i for i, kind in enumerate(kinds) if kind == "c")
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key not in ("once", "weigh")}
        state["booster"] = None if self.booster is None else bytes(self.booster.save_raw("json"))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        raw = state.pop("booster")
        self.__dict__.update(state)
        self.once = lambda _key, make: make()
        self.weigh = None
        self.booster = None
        if raw is not None:
            self.booster = xgb.Booster({"nthread": 1})
            self.booster.load_model(bytearray(raw))


class _Until(xgb.callback.TrainingCallback):
    """Ends boosting when its time is used."""

    def __init__(self, until_s: float) -> None:
        self._ends = time.monotonic() + until_s

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        return time.monotonic() >= self._ends


class SklearnEstimator:
    """Any scikit-learn pipeline behind the same two methods.

    Attributes
    ----------
    threads : for the fit, of its thread pools and of a model that has ``n_jobs``; prediction takes one
    """

    def __init__(self, pipeline: Any, task: Task, n_classes: int) -> None:
        self.threads = 1
        self.pipeline = pipeline
        self.task = task
        self.n_classes = n_classes
        self.learned: dict[str, Any] = {}
        self.weigh: Weigh | None = None

    def fit(self, x: Floats, y: Floats, x_val: Floats | None = None, y_val: Floats | None = None) -> SklearnEstimator:
        given: dict[str, Any] = {}
        if self.weigh is not None:
            steps = getattr(self.pipeline, "steps", None)
            given = {f"{steps[-1][0]}__sample_weight" if steps else "sample_weight": self.weigh(x, y)}
        model = self.pipeline[-1] if hasattr(self.pipeline, "steps") else self.pipeline
        own = self.threads > 1 and getattr(model, "n_jobs", None) == 1
        if own:
            model.n_jobs = self.threads
        with threadpool_limits(self.threads):
            self.pipeline.fit(x, y, **given)
        if own:
            model.n_jobs = 1
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "weigh": None}

    def predict(self, x: Floats) -> Floats:
        if self.task == "regression":
            return np.asarray(self.pipeline.predict(x), dtype=np.float64)
        given = np.asarray(self.pipeline.predict_proba(x), dtype=np.float64)
        seen = self.seen_classes()
        if len(seen) < self.n_classes:
            # A class that the training rows did not hold has probability 0.
            full = np.zeros((len(given), self.n_classes))
            full[:, seen] = given
            given = full
        return given[:, 1] if self.task == "binary" else given

    def seen_classes(self) -> list[int]:
        """Class indices that the training rows held."""
        return [int(k) for k in self.pipeline.classes_]


class HistBoostingEstimator(SklearnEstimator):
    """Histogram boosting, which cannot bin a column without one value (scikit-learn 1.9.1): such a column becomes 0.

    It bins by a sample of 200,000 rows, so a column of many more must have values enough for one to be surely among them.
    """

    def __init__(self, pipeline: Any, task: Task, n_classes: int) -> None:
        super().__init__(pipeline, task, n_classes)
        self.monotone: tuple[int, ...] = ()
        self.quantile: float | None = None

    def fit(
        self, x: Floats, y: Floats, x_val: Floats | None = None, y_val: Floats | None = None
    ) -> HistBoostingEstimator:
        self.empty = (~np.isnan(x)).sum(axis=0) < _values_to_bin(len(x))
        if any(self.monotone):
            self.pipeline.set_params(monotonic_cst=list(self.monotone))
        if self.quantile is not None:
            self.pipeline.set_params(loss="quantile", quantile=self.quantile)
        super().fit(self._filled(x), y)
        return self

    def predict(self, x: Floats) -> Floats:
        return super().predict(self._filled(x))

    def _filled(self, x: Floats) -> Floats:
        return np.where(self.empty, np.float32(0), x) if self.empty.any() else x


def _values_to_bin(n: int) -> int:
    """How many values a column of ``n`` rows needs for a sample of 200,000 to hold one with a chance of all but 1e-12."""
    return 1 if n <= _BINNED_ROWS else math.ceil(math.log(1e-12) / math.log(1.0 - _BINNED_ROWS / n))


def linear(
    params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
) -> SklearnEstimator:
    """Logistic or ridge regression on scaled numbers and one-hot categories."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline

    strength = float(params.get("C", 1.0))
    if task == "regression":
        model = Ridge(alpha=1.0 / strength, random_state=seed)
    else:
        model = LogisticRegression(C=strength, max_iter=int(params.get("max_iter", 300)), random_state=seed)
    return SklearnEstimator(make_pipeline(_columns(categorical, one_hot=True), model), task, n_classes)


def random_forest(
    params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
) -> SklearnEstimator:
    """Random forest (Breiman 2001); missing numbers become the median, missing categories a code of their own."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestRegressor if task == "regression" else RandomForestClassifier
    return _trees(kind(**params, n_jobs=1, random_state=seed), task, n_classes, categorical)


def extra_trees(
    params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
) -> SklearnEstimator:
    """Extremely randomised trees (Geurts et al. 2006), with the forest's preprocessing."""
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    kind = ExtraTreesRegressor if task == "regression" else ExtraTreesClassifier
    return _trees(kind(**params, n_jobs=1, random_state=seed), task, n_classes, categorical)


def _trees(model: Any, task: Task, n_classes: int, categorical: Sequence[int]) -> SklearnEstimator:
    from sklearn.pipeline import make_pipeline

    return SklearnEstimator(make_pipeline(_columns(categorical, one_hot=False), model), task, n_classes)


def wrapped(
    params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
) -> SklearnEstimator:
    """What the user's own ``make`` builds of the drawn parameters."""
    from sklearn.pipeline import make_pipeline

    own = {key: value for key, value in params.items() if key not in ("make", "one_hot")}
    model = params["make"](**own)
    if "random_state" in model.get_params() and "random_state" not in own:
        model.set_params(random_state=seed)
    return SklearnEstimator(make_pipeline(_columns(categorical, one_hot=params["one_hot"]), model), task, n_classes)


def hist_boosting(
    params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
) -> SklearnEstimator:
    """scikit-learn's histogram boosting; it takes NaN itself and splits category codes as numbers."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    model = kind(**params, early_stopping=False, random_state=seed)
    return HistBoostingEstimator(model, task, n_classes)


def _columns(categorical: Sequence[int], *, one_hot: bool) -> Any:
    """The preprocessing for models that take no NaN: medians for numbers, a code of its own for a missing category."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers: Any = SimpleImputer(strategy="median", keep_empty_features=True)
    codes: Any = SimpleImputer(strategy="constant", fill_value=-1.0, keep_empty_features=True)
    if one_hot:
        numbers = make_pipeline(numbers, StandardScaler())
        codes = make_pipeline(codes, OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32))
    if not categorical:
        return numbers
    return ColumnTransformer([("codes", codes, list(categorical))], remainder=numbers)
