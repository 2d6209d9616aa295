"""Families: every one fits every task, with missing values, on one thread's worth of work."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import optuna
import pytest

from raymlops.errors import ConfigError
from raymlops.search import candidates
from raymlops.search.estimators import XGBoostEstimator

optuna.logging.set_verbosity(optuna.logging.ERROR)

FAMILIES = (*candidates.defaults(), candidates.extra_trees())
CLASSES = {"binary": 2, "multiclass": 3, "regression": 0}


def rows(task: str, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Columns: a number, one with gaps, a category code with gaps, one wholly empty, one constant."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(n, 5)).astype(np.float32)
    x[:, 2] = rng.integers(0, 4, n)
    signal = x[:, 0] + (x[:, 2] == 1) * 2 + rng.normal(size=n) * 0.3
    x[::9, 1] = x[::11, 2] = np.nan
    x[:, 3], x[:, 4] = np.nan, 1.0
    if task == "binary":
        return x, (signal > 0.5).astype(float)
    if task == "multiclass":
        return x, np.digitize(signal, [0.0, 1.0]).astype(float)
    return x, signal.astype(float) * 50 + 1000


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("candidate", FAMILIES, ids=lambda c: c.name)
def test_every_family_learns_every_task_and_survives_pickling(candidate: Any, task: str) -> None:
    x, y = rows(task)
    estimator = candidate.build(dict(candidate.start), task, CLASSES[task], [2], seed=0)
    estimator.fit(x[:300], y[:300], x[300:], y[300:])
    prediction = estimator.predict(x)
    assert prediction.shape == ((400, 3) if task == "multiclass" else (400,))
    assert np.isfinite(prediction).all()
    if task == "multiclass":
        np.testing.assert_allclose(prediction.sum(axis=1), 1.0, atol=1e-5)
        assert (prediction.argmax(axis=1) == y).mean() > 0.8
    elif task == "binary":
        assert prediction.min() >= 0
        assert prediction.max() <= 1
        assert ((prediction > 0.5) == y).mean() > 0.85
    else:
        assert np.sqrt(((prediction - y) ** 2).mean()) < 0.8 * y.std()
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(again.predict(x), prediction)


@pytest.mark.parametrize("candidate", FAMILIES, ids=lambda c: c.name)
def test_a_space_names_the_parameters_of_its_start_and_builds(candidate: Any) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    x, y = rows("binary", 120)
    for _ in range(3):
        trial = study.ask()
        params = candidate.space(trial)
        assert set(params) == set(candidate.start)
        candidate.build(params, "binary", 2, [2], seed=0).fit(x, y)
    # A start outside its own space could never be enqueued as it is.
    study.enqueue_trial(dict(candidate.start))
    assert candidate.space(study.ask()) == pytest.approx(dict(candidate.start))


def test_xgboost_finds_its_rounds_on_validation_rows_and_a_refit_keeps_them() -> None:
    x, y = rows("binary")
    family = candidates.xgboost()
    found = family.build(dict(family.start), "binary", 2, [], seed=0).fit(x[:300], y[:300], x[300:], y[300:])
    assert isinstance(found, XGBoostEstimator)
    rounds = found.learned["rounds"]
    assert 1 <= rounds < 300
    again = family.build({**family.start, "rounds": rounds}, "binary", 2, [], seed=0).fit(x[:300], y[:300])
    assert isinstance(again, XGBoostEstimator)
    assert again.booster is not None
    assert again.booster.num_boosted_rounds() == rounds
    np.testing.assert_allclose(again.predict(x), found.predict(x), atol=1e-6)


def test_time_that_ends_in_the_first_round_leaves_a_model_of_one_round() -> None:
    x, y = rows("binary")
    estimator: Any = candidates.xgboost().build(dict(candidates.xgboost().start), "binary", 2, [2], seed=0)
    estimator.until_s = 0.0
    estimator.fit(x[:300], y[:300], x[300:], y[300:])
    assert estimator.learned["rounds"] == 1
    assert np.isfinite(estimator.predict(x)).all()


@pytest.mark.parametrize("candidate", FAMILIES, ids=lambda c: c.name)
def test_a_class_missing_from_the_training_rows_gets_no_probability(candidate: Any) -> None:
    x, y = rows("multiclass")
    kept = y != 1
    prediction = candidate.build(dict(candidate.start), "multiclass", 3, [2], seed=0).fit(x[kept], y[kept]).predict(x)
    assert prediction.shape == (400, 3)
    assert prediction[:, 1].max() < 0.05


def test_a_space_of_the_users_own_replaces_ours() -> None:
    family = candidates.linear(lambda trial: {"C": trial.suggest_float("C", 1.0, 2.0)}, name="narrow")
    assert (family.name, dict(family.start)) == ("narrow", {})
    assert 1.0 <= family.space(optuna.create_study().ask())["C"] <= 2.0


def test_what_is_no_space_or_no_name_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"linear\(space=\.\.\.\) takes a function of an Optuna trial that returns a dict, or a dict of .* not int",
    ):
        candidates.linear(3)
    with pytest.raises(ConfigError, match=r"name='a/b' is not a family's name"):
        candidates.xgboost(name="a/b")
    with pytest.raises(ConfigError, match=r"is no estimator's class: give the class"):
        candidates.sklearn(3, name="three")


def test_spaces_of_optuna_and_of_fixed_values_are_drawn_from() -> None:
    space = {
        "C": optuna.distributions.FloatDistribution(0.01, 1.0, log=True),
        "max_iter": optuna.distributions.IntDistribution(100, 300, step=100),
        "kind": optuna.distributions.CategoricalDistribution(["a", "b"]),
        "fixed": 7,
    }
    drawn = [candidates.linear(space).space(optuna.create_study().ask()) for _ in range(5)]
    assert all(0.01 <= one["C"] <= 1.0 and one["max_iter"] in (100, 200, 300) for one in drawn)
    assert all(one["kind"] in "ab" and one["fixed"] == 7 for one in drawn)


def test_any_estimator_of_scikit_learn_is_a_family() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    family = candidates.sklearn(
        KNeighborsClassifier,
        lambda trial: {"n_neighbors": trial.suggest_int("n_neighbors", 3, 9)},
        name="neighbours",
        start={"n_neighbors": 5},
        tasks=("binary", "multiclass"),
    )
    x, y = rows("binary")
    fitted = family.build(dict(family.start), "binary", 2, [2], seed=0).fit(x[:300], y[:300])
    assert ((fitted.predict(x) > 0.5) == y).mean() > 0.8
    assert family.tasks == ("binary", "multiclass")


def test_native_categories_split_sets_and_survive_a_file(tmp_path: Any) -> None:
    """Codes 1 and 3 of eight are the positive ones: one set split finds them, one threshold cannot."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, size=(2000, 1)).astype(np.float32)
    y = np.isin(x[:, 0], (1, 3)).astype(float)
    params = {"max_depth": 1, "rounds": 1, "learning_rate": 1.0, "max_cat_to_onehot": 1}
    found = {}
    for native in (True, False):
        family = candidates.xgboost(native_categories=native)
        made = family.build(params, "binary", 2, [0], seed=0).fit(x, y)
        found[native] = ((made.predict(x) > 0.5) == y).mean()
        made.save(tmp_path / "model.json")
        np.testing.assert_array_equal(
            XGBoostEstimator.load(tmp_path / "model.json", "binary", 2).predict(x), made.predict(x)
        )
    assert found[True] == 1.0 > found[False]


def test_two_families_of_boosting_do_not_share_a_matrix_that_one_reads_otherwise() -> None:
    x, y = rows("binary")
    cache: dict[Any, Any] = {}

    def once(key: Any, make: Any) -> Any:
        if key not in cache:
            cache[key] = make()
        return cache[key]

    for family in (candidates.xgboost(), candidates.xgboost(name="sets", native_categories=True)):
        fitted, alone = (family.build({"rounds": 5}, "binary", 2, [2], 0) for _ in range(2))
        assert isinstance(fitted, XGBoostEstimator)
        fitted.once = once
        said, own = (one.fit(x[:300], y[:300], x[300:], y[300:]).predict(x) for one in (fitted, alone))
        np.testing.assert_array_equal(said, own)
    assert len(cache) == 4


def test_a_settled_family_has_nothing_left_to_draw() -> None:
    found = {"learning_rate": 0.2, "max_depth": 3, "rounds": 7, "recent": 0.25}
    fixed = candidates.settled(candidates.xgboost(), found)
    study = optuna.create_study()
    trial = study.ask()
    params = fixed.space(trial)
    assert trial.params == {}
    assert params == {"learning_rate": 0.2, "max_depth": 3, "rounds": 7, "stopping": False}
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(float)
    fitted = fixed.build(params, "binary", 2, [], 0).fit(x[:200], y[:200], x[200:], y[200:])
    assert fitted.booster.num_boosted_rounds() == 7


def test_histogram_boosting_takes_a_column_whose_few_values_its_binning_may_not_see() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(210_000, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(float)
    x[:, 1] = np.nan
    # scikit-learn bins by 200,000 rows of its choice: with one value in row 45,000 it raises, as for an empty column.
    x[45_000, 1] = 1.0
    fitted = candidates.hist_boosting().build({"max_iter": 1}, "binary", 2, [], 0).fit(x, y)
    assert ((fitted.predict(x[:100]) > fitted.predict(x[:100]).mean()) == y[:100]).all()


def test_a_hurried_fit_learns_faster_in_as_many_rounds_less() -> None:
    x, y = rows("binary")
    family = candidates.xgboost()
    params = {**family.start, "learning_rate": 0.05, "rounds": 90}
    calm, hurried = (family.build(params, "binary", 2, [2], 0) for _ in range(2))
    assert calm.quickest == pytest.approx(6.0)
    hurried.hurry = 3.0
    for model in (calm, hurried):
        model.fit(x[:300], y[:300])
    assert (calm.booster.num_boosted_rounds(), hurried.booster.num_boosted_rounds()) == (90, 30)
    assert np.abs(calm.predict(x) - hurried.predict(x)).mean() < 0.1
    # Where the rounds are found anew, the rate is what a later fit on other rows must keep with them.
    found = family.build({**params, "rounds": 200}, "binary", 2, [2], 0)
    found.hurry = 3.0
    found.fit(x[:300], y[:300], x[300:], y[300:])
    assert found.learned["learning_rate"] == pytest.approx(0.15)


def test_trees_chosen_on_a_sample_have_more_leaves_on_all_rows() -> None:
    x, y = rows("binary")
    family = candidates.xgboost()
    wide = family.build(dict(family.start), "binary", 2, [2], 0)
    wide.widen, wide.threads = 16.0, 2
    wide.fit(x[:300], y[:300], x[300:], y[300:])
    assert wide.learned["max_leaves"] == 64
    assert set(wide.learned) == {"rounds", "max_leaves"}
    # However many threads fitted it, one predicts.
    assert json.loads(wide.booster.save_config())["learner"]["generic_param"]["nthread"] == "1"


def test_a_family_on_a_gpu_asks_for_one_and_fits_there() -> None:
    family = candidates.xgboost(gpu=True)
    assert family.resources == {"GPU": 1.0}
    assert family.build(dict(family.start), "binary", 2, [], 0).settings()["device"] == "cuda"
    assert candidates.xgboost().resources == {}
