"""An ensemble of a search's trials, with real estimators: chosen, judged, packaged, served, explained, settled, refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raymlops.data.schema import DataContract, learn_contract
from raymlops.data.snapshot import Arrays
from raymlops.errors import ConfigError, DigestMismatch
from raymlops.explain.explainers import explainer_for
from raymlops.gate import GateReport
from raymlops.loop.ensembling import Combined, beyond_limits, combine
from raymlops.registry.package import Reference, build_package
from raymlops.search import candidates
from raymlops.search.ensemble import Ensemble, Library, select, settle
from raymlops.search.ensemble_model import EnsembleEstimator
from raymlops.search.leaderboard import Leaderboard, Trial
from raymlops.search.selection import (
    Problem,
    Search,
    SearchResult,
    compare_windows,
    finish,
    refit,
    run_trial,
    unseen_validation,
)
from raymlops.serving.explaining import explain_rows
from raymlops.serving.predictor import Predictor

PARTS = {"train": slice(0, 1500), "validation": slice(1500, 3500), "test": slice(3500, 4500)}
# Each learns something that the other cannot: the mean of the two is better than either.
FAMILIES = [candidates.xgboost(), candidates.linear()]
CONFIGS = [
    ("xgboost", {**candidates.xgboost().start, "rounds": 40, "stopping": False, "max_leaves": 6}),
    ("xgboost", {**candidates.xgboost().start, "rounds": 25, "stopping": False, "max_leaves": 4, "subsample": 0.6}),
    ("linear", {"C": 1.0}),
]


def rows_of(task: str) -> tuple[Arrays, DataContract]:
    """A sum of many columns, which trees learn slowly, and a product, which a linear model cannot learn."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4500, 8)).round(4)
    signal = x[:, :6].sum(axis=1) * 0.6 + 1.6 * np.abs(x[:, 6]) * np.sign(x[:, 7]) + 0.5 * rng.normal(size=len(x))
    y = {
        "binary": (signal > 0).astype(int),
        "multiclass": np.digitize(signal, [-1.0, 1.0]),
        "regression": signal.round(4),
    }[task]
    frame = pd.DataFrame({**{f"c{i}": x[:, i] for i in range(8)}, "y": y})
    contract = learn_contract(frame, "y")
    assert contract.task == task
    coded, label = contract.encode(frame), contract.encode_label(frame.y)
    cut = {f"{a}_{name}": data[part] for name, part in PARTS.items() for a, data in (("x", coded), ("y", label))}
    return Arrays(**cut, time_test=None), contract


def searched(task: str, configs: Any = CONFIGS, **fields: Any) -> tuple[SearchResult, Arrays, DataContract]:
    """What a search leaves, without Ray."""
    arrays, contract = rows_of(task)
    spec = Search(candidates=FAMILIES, ensemble=3, prefer="score", **fields)
    problem = Problem.of(spec, contract, arrays)
    library, trials = Library(problem.objective), []
    for number, (family, params) in enumerate(configs):
        outcome = run_trial(problem, arrays, family, params)
        assert outcome.said is not None
        library.add(number, outcome.score, outcome.gap, outcome.said)
        trials.append(
            Trial(
                number=number,
                family=family,
                params={**params, **outcome.learned},
                score=outcome.score,
                train_score=outcome.train_score,
                gap=outcome.gap,
                fit_s=outcome.fit_s,
                groups=outcome.groups,
                cost=outcome.cost,
            )
        )
    objective = problem.objective
    board = Leaderboard(metric=objective.metric, mode=objective.mode, trials=tuple(trials), prefer="score")
    return replace(finish(problem, arrays, board), library=library), arrays, contract


def combined(task: str, **fields: Any) -> tuple[Combined, Arrays, DataContract]:
    result, arrays, contract = searched(task, **fields)
    return combine(result, arrays, most=3, ordered=False, prefer="score"), arrays, contract


def packed(folder: Path, estimator: Any, arrays: Arrays, contract: DataContract) -> Predictor:
    scores = np.zeros(len(arrays.x_test))
    reference = Reference(columns=contract.names, x=arrays.x_test, scores=scores, losses=scores, ordered=False)
    build_package(folder, estimator, contract, None, reference, {})
    return Predictor.load(folder)


@pytest.mark.parametrize("given", [1, -1, 11, 2.0, True, "3", None])
def test_what_is_no_number_of_members_is_refused(given: Any) -> None:
    with pytest.raises(
        ConfigError, match="cannot work: give 0 for none, or how many trials may make one, from 2 to 10"
    ):
        Search(ensemble=given)


def test_the_familys_name_is_taken() -> None:
    with pytest.raises(ConfigError, match=r"name='ensemble' is what Search\(ensemble=\) calls its own"):
        candidates.linear(name="ensemble")


def test_spread_fits_have_no_ensemble() -> None:
    with pytest.raises(ConfigError, match="ensemble=3 and distributed=True do not go together: each member"):
        Search(ensemble=3, distributed=True)


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("binary", {}),
        ("multiclass", {}),
        ("regression", {}),
        ("binary", {"metric": "log_loss", "weights": "balanced"}),
        ("binary", {"metric": "neg_brier_score"}),
    ],
)
def test_an_ensemble_that_pays_goes_the_whole_way(task: str, fields: dict[str, Any], tmp_path: Path) -> None:
    made, arrays, contract = combined(task, **fields)
    assert made.tried is not None
    assert made.taken, made.tried.reason
    result, single, objective = made.result, made.single, made.result.problem.objective
    assert result.trial.family == "ensemble"
    assert result.trial.number == 3
    weights = [member["weight"] for member in result.trial.params["members"]]
    assert sum(weights) == pytest.approx(1.0)
    assert weights == sorted(weights, reverse=True)
    assert {member["family"] for member in result.trial.params["members"]} == {"xgboost", "linear"}
    # Better on rows that neither the search nor the choice of members has seen.
    scores = [objective.score(arrays.y_test, item.estimator.predict(arrays.x_test)) for item in (result, single)]
    assert objective.better(*scores)
    assert made.tried.comparison is not None
    assert made.tried.comparison.low > 0
    # The same rows again, one process later: out of the package, by either runtime.
    expected = result.estimator.predict(arrays.x_test)
    predictor = packed(tmp_path / "package", result.estimator, arrays, contract)
    assert predictor.manifest.form == "ensemble"
    assert predictor.manifest.onnx == ""
    assert set(predictor.manifest.latency_us) == {"native", "onnx"}
    assert predictor.predict(arrays.x_test) == pytest.approx(expected, abs=2e-4)
    assert predictor.predict(arrays.x_test[:1]) == pytest.approx(expected[:1], abs=2e-4)
    members = [name for name in predictor.manifest.files if name.startswith("member-")]
    assert len(members) == len(weights)
    # The refit after the gate is the same configuration on more rows, and what it says of validation rows is unseen.
    x, y = np.concatenate([arrays.x_train, arrays.x_test]), np.concatenate([arrays.y_train, arrays.y_test])
    again = refit(result, x, y)
    assert isinstance(again, EnsembleEstimator)
    assert list(again.weights) == pytest.approx(weights)
    unseen = objective.score(arrays.y_validation, unseen_validation(result, arrays))
    assert unseen == pytest.approx(result.trial.score, abs=0.02 * max(1.0, abs(unseen)))


def test_a_changed_member_is_not_loaded(tmp_path: Path) -> None:
    made, arrays, contract = combined("binary")
    packed(tmp_path / "package", made.result.estimator, arrays, contract)
    held = tmp_path / "package" / "ensemble.json"
    held.write_text(held.read_text().replace("0.", "0.0", 1))
    with pytest.raises(DigestMismatch, match=r"ensemble\.json"):
        Predictor.load(tmp_path / "package")


def test_members_without_an_onnx_form_are_served_by_their_libraries(tmp_path: Path) -> None:
    arrays, contract = rows_of("regression")
    parts = [
        candidates.hist_boosting().build(dict(candidates.hist_boosting().start), "regression", 0, [], 0),
        candidates.linear().build({"C": 1.0}, "regression", 0, [], 0),
    ]
    estimator = EnsembleEstimator(parts, [0.5, 0.5]).fit(arrays.x_train, arrays.y_train)
    predictor = packed(tmp_path / "package", estimator, arrays, contract)
    assert predictor.manifest.runtime == "native"
    assert predictor.manifest.onnx != ""
    assert predictor.predict(arrays.x_test) == pytest.approx(estimator.predict(arrays.x_test))


def test_a_mean_of_quantiles() -> None:
    families = [candidates.xgboost(), candidates.hist_boosting()]
    arrays, contract = rows_of("regression")
    problem = Problem.of(Search(candidates=families, quantile=0.9, ensemble=2), contract, arrays)
    members = [
        {"trial": i, "weight": 0.5, "family": family.name, "params": {**family.start, "rounds": 40}}
        for i, family in enumerate(families)
    ]
    members[1]["params"] = dict(families[1].start)
    problem = replace(problem, families={**problem.families, "ensemble": Ensemble(families=problem.families)})
    fitted = problem.build("ensemble", {"members": members}).fit(arrays.x_train, arrays.y_train)
    assert np.mean(arrays.y_test <= fitted.predict(arrays.x_test)) == pytest.approx(0.9, abs=0.05)


def test_probabilities_are_explained_by_sampling_and_values_of_one_kind_exactly(tmp_path: Path) -> None:
    made, arrays, contract = combined("binary")
    predictor = packed(tmp_path / "package", made.result.estimator, arrays, contract)
    row = {f"c{i}": 0.3 * i - 1 for i in range(8)}
    body = explain_rows(predictor, 1, [row])
    assert (body["method"], body["units"]) == ("sampled_shapley", "probability")
    found = body["rows"][0]
    assert found["base"] + sum(found["contributions"].values()) == pytest.approx(found["output"], abs=1e-9)

    arrays, contract = rows_of("regression")
    parts = [
        candidates.xgboost().build({**candidates.xgboost().start, "rounds": n}, "regression", 0, [], 0)
        for n in (10, 20)
    ]
    trees = EnsembleEstimator(parts, [0.25, 0.75]).fit(arrays.x_train, arrays.y_train)
    exact = explainer_for(trees, contract, arrays.x_test).explain(arrays.x_test[:9])
    assert exact.method == "tree_shap"
    assert exact.residual < 1e-4
    assert exact.output == pytest.approx(trees.predict(arrays.x_test[:9]), abs=1e-5)


def test_a_retraining_keeps_members_and_weights_and_chooses_the_window() -> None:
    made, arrays, contract = combined("binary")
    champion = made.result.trial
    settled = settle("ensemble", champion.params, FAMILIES)
    assert settled is not None
    spec = Search(candidates=[settled], trials=4, metric="roc_auc")
    result = compare_windows(arrays, contract, spec, ordered=True)
    assert result.trial.family == "ensemble"
    assert {trial.params["recent"] for trial in result.leaderboard.trials} == {1.0, 0.5}
    assert list(result.estimator.weights) == [member["weight"] for member in champion.params["members"]]
    rounds = {m["trial"]: m["params"].get("rounds") for m in champion.params["members"]}
    assert {m["trial"]: m["params"].get("rounds") for m in result.trial.params["members"]} == rounds
    assert settle("ensemble", champion.params, [candidates.linear()]) is None
    assert settle("linear", {"C": 2.0}, FAMILIES).start == {"C": 2.0}
    assert settle("neighbours", {}, FAMILIES) is None


def test_members_learn_from_their_own_windows() -> None:
    configs = [
        (family, {**params, "recent": share}) for (family, params), share in zip(CONFIGS, (0.5, 0.5, 0.25), strict=True)
    ]
    result, arrays, _ = searched("regression", configs)
    made = combine(result, arrays, most=3, ordered=False, prefer="score")
    assert made.taken
    params = made.result.trial.params
    assert params["recent"] == 0.5
    assert {m["family"]: m["params"]["recent"] for m in params["members"]} == {"xgboost": 1.0, "linear": 0.5}
    # The whole fitted again is each member fitted again as the trial it was.
    x, y = np.concatenate([arrays.x_train, arrays.x_test]), np.concatenate([arrays.y_train, arrays.y_test])
    trials = {trial.number: trial for trial in result.leaderboard.trials}
    alone = [
        refit(replace(result, trial=trials[m["trial"]]), x, y).predict(arrays.x_validation) for m in params["members"]
    ]
    expected = sum(m["weight"] * said for m, said in zip(params["members"], alone, strict=True))
    assert refit(made.result, x, y).predict(arrays.x_validation) == pytest.approx(expected)


def test_trials_that_say_the_same_stay_one() -> None:
    result, arrays, _ = searched("binary", [CONFIGS[2], ("linear", {"C": 1.01}), ("linear", {"C": 1.02})])
    made = combine(result, arrays, most=3, ordered=False, prefer="score")
    assert not made.taken
    assert made.tried is not None
    assert made.result.trial is result.trial
    if made.tried.members:
        assert made.tried.reason.startswith("It is not surely better than one trial alone (roc_auc ")
        refused = made.result.leaderboard.trials[-1]
        assert (refused.family, refused.status) == ("ensemble", "stopped")
        assert refused.error.startswith("not taken: It is not surely better")
    else:
        assert made.tried.reason == "No mean of 3 trials is better than one of them alone."


def test_prefer_asks_for_more() -> None:
    """What loses two standard errors to be fast does not take three models for less."""
    result, arrays, _ = searched("binary")
    y, said = arrays.y_validation[:400], result.library.said
    small = replace(arrays, x_validation=arrays.x_validation[:400], y_validation=y)
    result.library.said = {number: part[:400] for number, part in said.items()}
    gains = [combine(result, small, most=3, ordered=False, prefer=prefer).tried for prefer in ("score", "fast")]
    comparison = gains[1].comparison
    error = (comparison.high - comparison.low) / (2 * 1.645)
    assert gains[0].taken == (comparison.low > 0)
    assert gains[1].taken == (comparison.low > 0 and comparison.gain > 2 * error)


def test_unseen_rows_are_fitted_here_where_one_worker_holds_the_train_rows() -> None:
    result, arrays, _ = searched("binary")

    def spread(estimator: Any, x: Any, y: Any) -> Any:
        raise RuntimeError("spread")

    spreading = replace(result, fit=spread)
    assert unseen_validation(spreading, arrays) == pytest.approx(unseen_validation(result, arrays))
    larger = replace(spreading, problem=replace(result.problem, most=0.5))
    with pytest.raises(RuntimeError, match="spread"):
        unseen_validation(larger, arrays)


def test_no_time_and_no_trials_leave_the_winner() -> None:
    result, arrays, _ = searched("binary")
    result.library.until = 0.0
    late = combine(result, arrays, most=3, ordered=False, prefer="score")
    assert late.tried is not None
    assert "the time budget has -" in late.tried.reason
    assert late.result.trial is result.trial
    spent = combine(replace(result, train_only=True), arrays, most=3, ordered=False, prefer="score")
    assert spent.tried.reason == "The time budget left none for the winner's own fit on all rows."
    one, arrays, _ = searched("binary", CONFIGS[:1])
    lonely = combine(one, arrays, most=3, ordered=False, prefer="score")
    assert lonely.tried.reason == "Too little to choose from: 1 of the trials of full size, 2000 validation rows."
    spread = combine(replace(one, fit=lambda *_: None), arrays, most=3, ordered=False, prefer="score")
    assert spread.tried.reason.startswith("The fits are spread over workers")
    none = combine(one, arrays, most=0, ordered=False, prefer="score")
    assert none.tried is None


def test_what_a_resumed_search_lost_is_fitted_again() -> None:
    result, arrays, _ = searched("binary")
    before = combine(result, arrays, most=3, ordered=False, prefer="score")
    result.library.said.clear()
    after = combine(result, arrays, most=3, ordered=False, prefer="score")
    assert after.taken
    assert after.result.trial.params == before.result.trial.params
    result.library.until = 0.0
    late = combine(result, arrays, most=3, ordered=False, prefer="score")
    assert late.tried.reason == "Too little to choose from: 0 of the trials of full size, 2000 validation rows."


def test_the_gates_limits_put_the_single_winner_back() -> None:
    made, _, _ = combined("binary")
    from raymlops.data.assess import CheckResult

    def check(name: str, verdict: Any) -> CheckResult:
        return CheckResult(name=name, verdict=verdict, value=60.0, limit=50.0, message=f"{name} said.", advice="")

    fine = GateReport(passed=False, checks=(check("latency", "pass"), check("champion", "fail")))
    assert beyond_limits(fine) == ""
    slow = GateReport(passed=False, checks=(check("latency", "fail"), check("size", "pass"), check("overfit", "fail")))
    assert beyond_limits(slow) == "latency said. overfit said."
    back = made.refused(beyond_limits(slow))
    assert not back.taken
    assert back.result.trial is made.single.trial
    members = back.tried.to_dict()["named"]
    assert back.result.leaderboard.trials[-1].error == f"not taken: latency said. overfit said. {members}"
    assert members.count(" x ") == len(back.tried.members) > 1


def test_beyond_the_gap_is_not_taken() -> None:
    result, arrays, _ = searched("binary")
    limit = max(trial.gap for trial in result.leaderboard.trials)
    open_to = combine(result, arrays, most=3, ordered=False, prefer="score", max_gap=limit)
    assert open_to.taken
    closed = combine(result, arrays, most=3, ordered=False, prefer="score", max_gap=-1.0)
    assert not closed.taken
    assert "Too little to choose from: 1 of" in closed.tried.reason


def test_selection_takes_no_more_members_than_allowed() -> None:
    result, arrays, _ = searched("regression")
    objective = result.problem.objective
    assert len(select(objective, arrays.y_validation, result.library.said, 2).weights) == 2


def test_the_leaderboard_shows_members_and_weights() -> None:
    from io import StringIO

    from rich.console import Console

    from raymlops.report.terminal import Plain, leaderboard_table

    made, _, _ = combined("binary")
    written = StringIO()
    console = Console(file=written, width=160)
    Plain(console).trial(made.result.trial)
    console.print(leaderboard_table([made.result.trial]))
    shown = made.tried.to_dict()["named"]
    assert shown.endswith("x linear (trial 2)")
    assert written.getvalue().count(shown) == 2
