"""One behaviour, every registry."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymlops.errors import ConfigError, UnknownVersion
from raymlops.registry.board import ranked
from raymlops.registry.mlflow import MlflowRegistry
from raymlops.registry.version import ModelVersion, Registry
from raymlops.search.selection import Leaderboard, Trial
from raymlops.testing.fakes import InMemoryRegistry


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A new MLflow database costs seconds: the tests share one and use names of their own."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/deep/mlflow.db"


@pytest.fixture(params=["memory", "mlflow"])
def registry(request: pytest.FixtureRequest) -> Registry:
    return InMemoryRegistry() if request.param == "memory" else MlflowRegistry(request.getfixturevalue("mlflow_uri"))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return "n-" + request.node.originalname.removeprefix("test_")


def add(registry: Registry, name: str, event_id: str = "e1", **changes: Any) -> ModelVersion:
    facts: dict[str, Any] = {
        "package_key": f"packages/{name}/{event_id}",
        "digest": "ab" * 32,
        "metric": "roc_auc",
        "score": 0.875,
        "family": "xgboost",
        "params": {"max_depth": 6, "learning_rate": 0.1, "recent": 1.0},
        "snapshot_key": "snapshots/churn/ff",
        "created_at": 1_700_000_000.25,
        "data_end": 12.5,
        "tags": {"time": "ts"},
    }
    return registry.register(name=name, event_id=event_id, **{**facts, **changes})


def test_what_is_registered_comes_back_whole(registry: Registry, name: str) -> None:
    made = add(registry, name)
    assert (made.name, made.version, made.aliases) == (name, 1, ())
    assert registry.get(name, 1) == made
    assert made.params == {"max_depth": 6, "learning_rate": 0.1, "recent": 1.0}
    assert (made.score, made.created_at, made.data_end, made.tags) == (0.875, 1_700_000_000.25, 12.5, {"time": "ts"})
    assert add(registry, name, "e2", data_end=None, tags=None).data_end is None


def test_versions_count_up_and_come_oldest_first(registry: Registry, name: str) -> None:
    for number in range(1, 12):
        assert add(registry, name, f"e{number}").version == number
    assert [item.version for item in registry.versions(name)] == list(range(1, 12))
    assert name in registry.names()
    assert registry.names() == sorted(registry.names())


def test_one_event_makes_one_version(registry: Registry, name: str) -> None:
    first = add(registry, name, "same")
    assert add(registry, name, "same", score=0.1) == first
    assert len(registry.versions(name)) == 1


def test_an_alias_points_at_one_version_at_a_time(registry: Registry, name: str) -> None:
    add(registry, name, "e1")
    add(registry, name, "e2")
    registry.set_alias(name, "champion", 1)
    assert registry.get(name, "champion").version == 1
    registry.set_alias(name, "challenger", 2)
    registry.set_alias(name, "champion", 2)
    assert registry.get(name, "champion").version == 2
    assert registry.get(name, 1).aliases == ()
    assert registry.get(name, 2).aliases == ("challenger", "champion")
    registry.delete_alias(name, "challenger")
    registry.delete_alias(name, "challenger")
    registry.delete_alias("nobody", "champion")
    assert registry.get(name, 2).aliases == ("champion",)


def test_people_may_say_something_about_a_version_and_take_it_back(registry: Registry, name: str) -> None:
    made = add(registry, name, tags={"time": "ts", "run_id": "", "parent": "7"})
    assert made.parent == 7
    registry.set_tag(name, 1, "reviewed-by", "ada")
    registry.set_tag(name, 1, "note", "x")
    registry.set_tag(name, 1, "note", "")
    tags = {key: value for key, value in registry.get(name, 1).tags.items() if value}
    assert tags == {"time": "ts", "parent": "7", "reviewed-by": "ada"}
    with pytest.raises(ConfigError, match="'parent' was set when the version was registered and stays"):
        registry.set_tag(name, 1, "parent", "3")
    with pytest.raises(ConfigError, match="'a b' is no tag"):
        registry.set_tag(name, 1, "a b", "3")
    with pytest.raises(UnknownVersion):
        registry.set_tag(name, 2, "note", "x")


def test_what_is_not_there_is_named_with_what_is(registry: Registry, name: str) -> None:
    with pytest.raises(UnknownVersion) as caught:
        registry.get(name, 1)
    assert str(caught.value) == f"The registry holds no version of {name!r}."
    assert registry.versions(name) == []
    add(registry, name, "e1")
    with pytest.raises(UnknownVersion) as caught:
        registry.get(name, 3)
    assert str(caught.value) == f"The registry holds no version 3 of {name!r}: it holds 1 only."
    add(registry, name, "e2")
    registry.set_alias(name, "champion", 2)
    with pytest.raises(UnknownVersion) as caught:
        registry.get(name, "challenger")
    assert (
        str(caught.value) == f"The registry holds no alias 'challenger' of {name!r}: it holds 1 to 2 and champion = 2."
    )
    with pytest.raises(UnknownVersion):
        registry.set_alias(name, "champion", 9)


@pytest.mark.parametrize("alias", ["latest", "v3", "Champion", "", "3"])
def test_an_alias_that_mlflow_would_refuse_is_refused_everywhere(registry: Registry, name: str, alias: str) -> None:
    add(registry, name)
    with pytest.raises(ConfigError, match="is no alias: give lower-case letters"):
        registry.set_alias(name, alias, 1)


# --- MLflow alone ----------------------------------------------------------------------------------


def test_every_trial_is_a_run_with_parameters_and_metrics(mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    trials = (
        Trial(
            number=0,
            family="linear",
            params={"C": 1.0, "recent": 1.0},
            score=0.8,
            train_score=0.82,
            gap=0.02,
            fit_s=0.5,
        ),
        Trial(
            number=1, family="xgboost", params={"max_depth": 6}, score=0.9, train_score=0.95, gap=0.05, status="stopped"
        ),
        Trial(number=2, family="xgboost", params={}, status="failed", error="ValueError: no"),
    )
    registry = MlflowRegistry(mlflow_uri)
    parent = registry.log_search("searched", Leaderboard(metric="roc_auc", mode="max", trials=trials), event_id="e1")
    client = MlflowClient(mlflow_uri, mlflow_uri)
    experiment = client.get_experiment_by_name("searched")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"e1", "0 linear", "1 xgboost", "2 xgboost"}
    assert runs["e1"].info.run_id == parent
    assert runs["e1"].data.params["family"] == "linear"  # a stopped trial does not win
    done = runs["0 linear"].data
    assert done.params == {"family": "linear", "C": "1.0", "recent": "1.0"}
    assert done.metrics == {"roc_auc": 0.8, "train_roc_auc": 0.82, "gap": 0.02, "fit_s": 0.5}
    assert done.tags["mlflow.parentRunId"] == parent
    assert [runs[key].info.status for key in ("0 linear", "1 xgboost", "2 xgboost")] == ["FINISHED", "KILLED", "FAILED"]
    assert runs["2 xgboost"].data.tags["raymlops.error"] == "ValueError: no"


def test_the_run_of_a_search_has_the_figures_of_the_trial_that_was_promoted(mlflow_uri: str) -> None:
    trials = tuple(
        Trial(number=i, family=name, params={}, score=0.9 - i / 100) for i, name in enumerate(("big", "small"))
    )
    registry = MlflowRegistry(mlflow_uri)
    board = Leaderboard(metric="roc_auc", mode="max", trials=trials)
    parent = registry._client.get_run(registry.log_search("promoted", board, promoted=trials[1])).data
    assert (parent.params["family"], parent.metrics["roc_auc"]) == ("small", 0.89)


def test_a_registry_crosses_processes_by_its_address(mlflow_uri: str) -> None:
    registry = MlflowRegistry(mlflow_uri)
    add(registry, "crossing")
    again: MlflowRegistry = pickle.loads(pickle.dumps(registry))
    assert again.get("crossing", 1).version == 1


def test_versions_another_tool_registered_are_not_ours(mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri, mlflow_uri)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", source="runs:/x/model")
    registry = MlflowRegistry(mlflow_uri)
    assert registry.versions("theirs") == []
    assert "theirs" not in registry.names()


def test_making_one_imports_nothing(tmp_path: Path, run_python: Callable[[str], str]) -> None:
    assert (
        run_python(
            "import sys; from raymlops.registry.mlflow import MlflowRegistry\n"
            f"MlflowRegistry('sqlite:///{tmp_path}/m.db'); print('mlflow' in sys.modules)"
        )
        == "False"
    )


@pytest.fixture
def run_python() -> Callable[[str], str]:
    import subprocess
    import sys

    def run(program: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
        ).stdout.strip()

    return run


def test_a_search_comes_back_as_it_was_logged(mlflow_uri: str, tmp_path: Path) -> None:
    registry = MlflowRegistry(mlflow_uri)
    assert registry.searches("board") == []
    trials = (
        Trial(number=0, family="linear", params={"C": 1.0}, score=0.7, train_score=0.72, gap=0.02, fit_s=0.5),
        Trial(number=1, family="xgboost", params={"max_depth": 3}, score=0.8, train_score=0.9, fit_s=1.5),
        Trial(number=2, family="xgboost", params={}, status="failed", error="ValueError: no"),
        Trial(number=3, family="linear", params={}, score=0.9, train_score=0.9, status="stopped"),
    )
    registry.log_search("board", Leaderboard(metric="roc_auc", mode="max", trials=trials[:1]), event_id="e1")
    run_id = registry.log_search("board", Leaderboard(metric="roc_auc", mode="max", trials=trials), event_id="e2")
    newest, oldest = registry.searches("board")
    assert (newest.event_id, newest.metric, newest.mode, oldest.event_id) == ("e2", "roc_auc", "max", "e1")
    assert newest.run_id == run_id
    found = ranked(newest, registry.trials(newest))
    assert [item.number for item in found] == [1, 0, 3, 2]
    assert (found[0].family, found[0].score, found[0].train_score, found[0].fit_s) == ("xgboost", 0.8, 0.9, 1.5)
    assert (found[0].params, found[0].error) == ({"max_depth": "3"}, None)
    assert (found[-1].status, found[-1].reason, found[-1].score) == ("failed", "ValueError: no", None)
    json.dumps([item.to_dict() for item in found])
    assert registry.log_files(run_id, {"card.json": b"{}"})
    kept = list(Path(mlflow_uri.removeprefix("sqlite:///")).parent.rglob("card.json"))
    assert [path.read_bytes() for path in kept] == [b"{}"]
    assert not registry.log_files("no-such-run", {"card.json": b"{}"})


def test_a_logged_standard_error_is_read_by_its_name(mlflow_uri: str) -> None:
    registry = MlflowRegistry(mlflow_uri)
    trial = Trial(number=0, family="linear", params={}, score=2.0, train_score=1.0)
    run_id = registry.log_search("errors", Leaderboard(metric="rmse", mode="min", trials=(trial,)), event_id="e1")
    (search,) = registry.searches("errors")
    client = registry._client
    child = client.search_runs([search.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")[0]
    client.log_metric(child.info.run_id, "rmse_se", 0.25)
    assert registry.trials(search)[0].error == 0.25
