"""The model card: what is on it, that nothing on it can run, and the commands about versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from raymlops import cli_model
from raymlops.cli import app
from raymlops.data.assess import assess
from raymlops.data.raw import learn_raw
from raymlops.data.schema import learn_contract
from raymlops.data.snapshot import Arrays, DatasetSnapshot, load_arrays, read_frame, write_snapshot
from raymlops.errors import ConfigError, ContractViolation, DataError, DigestMismatch, UnknownVersion
from raymlops.gate import Gate, evaluate
from raymlops.lake import Lake
from raymlops.loop import judging
from raymlops.loop.judging import Rival, Timing, explained, held_out, measure, raw_row, served_row, time_one_row
from raymlops.registry.card import CardFacts, build_card, reliability
from raymlops.registry.lineage import lineage
from raymlops.registry.package import CARD, CARD_PAGE, build_package, read_file, size_mb, upload
from raymlops.report.model_card import card_page
from raymlops.search import candidates
from raymlops.search.decision import Decision, decide
from raymlops.search.selection import Search, SearchResult, compare_windows
from raymlops.search.threshold import Costs
from raymlops.serving.predictor import Predictor
from raymlops.settings import Settings
from raymlops.testing.fakes import InMemoryRegistry

NASTY = "<script>alert(1)</script>'\""


def table(n: int = 1200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=n), NASTY: rng.choice(["x", "y"], n), "t": np.arange(n, dtype=float)})
    frame["y"] = (rng.random(n) < 1 / (1 + np.exp(-3 * frame.a - (frame[NASTY] == "x")))).astype(int)
    return frame


class Made:
    """A turn of the loop up to its package, without the loop."""

    def __init__(self, folder: Path, lake: Lake, *, rival: bool = False) -> None:
        frame = table()
        contract = learn_contract(frame, "y", "binary", drop=("t",))
        self.snapshot: DatasetSnapshot = write_snapshot(
            lake, "churn", frame, contract, "t", "a test", assess(frame, "y", "t", "binary"), 0.0
        )
        self.arrays: Arrays = load_arrays(lake, self.snapshot)
        search = Search(candidates=[candidates.linear()], trials=1, threshold=Costs(false_negative=3))
        self.result: SearchResult = compare_windows(self.arrays, contract, search, ordered=True)
        self.decision: Decision = decide(
            self.result, self.arrays, ordered=True, calibrated=True, threshold=search.threshold
        )
        reference = held_out(self.snapshot, self.arrays, self.result, self.decision)
        gate = Gate(slices={"high": "a > 1"})
        test = read_frame(lake, self.snapshot).tail(self.snapshot.split.test)
        coin = Rival(prediction=np.full(len(test), 0.5), saw=True) if rival else None
        self.evidence = measure(
            gate,
            self.result,
            self.snapshot,
            self.arrays,
            self.decision,
            test_frame=test,
            rival=coin,
            timing=Timing(p99_ms=1.0, features_timed=None),
            size_mb=0.5,
        )
        raw = self.result.estimator.predict(self.arrays.x_test)
        facts = CardFacts(
            name="churn",
            event_id="e1",
            created_at=1_700_000_000.0,
            data_end=1199.0,
            snapshot=self.snapshot,
            leaderboard=self.result.leaderboard,
            trial=self.result.trial,
            rows=1200,
            report=evaluate(gate, self.evidence),
            evidence=self.evidence,
            decision=self.decision,
            explanation=explained(self.result.estimator, contract, reference),
            y_test=self.arrays.y_test,
            raw_test=raw,
            test=self.decision.apply(raw),
            parent=2 if rival else None,
            run_id="run",
            features=None,
        )
        self.card: dict[str, Any] = {}

        def extras(package: Any) -> dict[str, bytes]:
            self.card = build_card(facts, package)
            return {CARD: json.dumps(self.card).encode(), CARD_PAGE: card_page(self.card).encode()}

        build_package(
            folder, self.result.estimator, contract, None, reference, {}, decision=self.decision, extras=extras
        )
        self.folder = folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("card")
    return Made(home / "package", Lake(str(home / "lake")), rival=True)


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_card_holds_what_made_the_version_and_is_json(made: Made) -> None:
    card = json.loads(json.dumps(made.card, allow_nan=False))
    assert set(card) == {
        *("format", "name", "event_id", "created_at", "raymlops", "task", "data", "search", "gate", "slices"),
        *("explanations", "calibration", "threshold", "package", "limits", "lineage"),
    }
    assert card["data"]["split"]["train"] == made.snapshot.split.train
    assert card["search"]["family"] == "linear"
    assert card["threshold"]["rule"] == "costs"
    assert card["explanations"]["columns"][0]["column"] == "a"
    assert card["lineage"]["parent"] == 2
    assert {item["name"] for item in card["gate"]["checks"]} >= {"underfit", "related", "champion", "slices", "size"}
    champion = next(item for item in card["gate"]["checks"] if item["name"] == "champion")
    assert champion["evidence"]["paired_bootstrap"]["low"] > 0
    assert {item["name"] for item in card["slices"] if item["asked"]} == {"high"}
    assert "The champion it was compared with may have learnt from the test rows." in card["limits"]


def test_the_page_shows_it_and_runs_nothing(made: Made) -> None:
    known = {
        "version": 3,
        "aliases": ["champion"],
        "tags": {"note": NASTY},
        "lineage": {"up": {"ancestors": [2], "package": "p", "digest": "d"}, "down": {"children": [4, 5]}},
    }
    for page in (card_page(made.card), card_page(made.card, known)):
        read = Reader(page)
        assert not {"script", "link", "img", "iframe", "a"} & set(read.tags)
        assert not [name for name, value in read.attributes if name.startswith("on") or "http" in (value or "")]
        text = " ".join(read.words)
        for heading in ("Data", "Search", "Gate", "Slices", "Calibration", "Decision threshold", "Limits", "Lineage"):
            assert heading in text
        assert NASTY in text
    assert "churn version 3" in text
    assert "4, 5" in text


def test_tenths_of_the_rows_tell_predicted_from_observed() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(5000)
    y = (rng.random(5000) < p).astype(int)
    found = reliability(y, p)
    assert [item["rows"] for item in found] == [500] * 10
    assert all(abs(item["predicted"] - item["observed"]) < 0.08 for item in found)
    both = np.column_stack([p, 1 - p])
    assert reliability(1 - y, both)[0]["predicted"] >= 0.5


def test_a_features_function_is_timed_on_a_row_it_takes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Any] = []
    monkeypatch.setattr(judging, "measure_latency", lambda predictor, row: timed.append(row) or 1.0)
    plain = Predictor.load(made.folder)
    x = np.array([0.5, 1.0], dtype=np.float32)
    assert time_one_row(plain, x) == Timing(p99_ms=1.0, features_timed=None)
    assert timed.pop() == {"a": 0.5, NASTY: "y"}
    refusing = Predictor.load(made.folder)

    def refuse(_rows: object) -> None:
        raise ContractViolation("a rule over exact values")

    monkeypatch.setattr(refusing, "encode", refuse)
    assert time_one_row(refusing, x) == Timing(p99_ms=1.0, features_timed=None)
    assert timed.pop().shape == (1, 2)
    raw = learn_raw(table()[["a"]].assign(when="text"))

    def hours(frame: pd.DataFrame) -> pd.DataFrame:
        late = pd.to_datetime(frame.when).dt.hour >= 12
        return frame[["a"]].assign(**{NASTY: np.where(late, "x", "y")})

    def picky(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[["a"]].assign(**{NASTY: frame.when.map({"2020-02-02": "x"})})

    predictor = Predictor.load(made.folder)
    predictor.raw, predictor.features = raw, hours
    assert time_one_row(predictor, x).features_timed is True
    assert timed.pop() == {"a": 0.5, "when": "2026-01-31 12:00:00"}
    predictor.features = picky
    assert time_one_row(predictor, x, {"a": 1.0, "when": "2020-02-02"}).features_timed is True
    assert timed.pop() == {"a": 1.0, "when": "2020-02-02"}
    predictor.features = lambda frame: frame[["a"]]
    assert time_one_row(predictor, x).features_timed is False
    assert timed.pop().shape == (1, 2)
    assert raw_row((), predictor.contract, {}) is None
    assert served_row(pd.DataFrame({"a": [1, 2], "b": ["x", None]})) == {"a": 2, "b": None}
    assert served_row(pd.DataFrame({"a": []})) is None


# --- commands ----------------------------------------------------------------------------------------


@pytest.fixture
def registered(made: Made, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> InMemoryRegistry:
    """Versions 1 and 2 of ``churn`` of one package, 2 made to replace 1; MLflow is tried in tests/contract."""
    settings.ensure_home()
    digest = upload(Lake(settings.lake), "packages/churn/e1", made.folder)
    registry = InMemoryRegistry()
    for event, tags in (("e1", {"run_id": "run"}), ("e2", {"parent": "1"})):
        registry.register(
            name="churn",
            package_key="packages/churn/e1",
            digest=digest,
            metric="roc_auc",
            score=0.8,
            family="linear",
            params={"C": 1.0},
            snapshot_key="snapshots/churn/1",
            created_at=1_700_000_000.0,
            data_end=None,
            event_id=event,
            tags=tags,
        )
    registry.set_alias("churn", "champion", 2)
    for name, value in settings.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli_model, "_registry", lambda _settings: registry)
    return registry


Say = Callable[..., str]


@pytest.fixture
def say() -> Say:
    def run(*words: str) -> str:
        result = CliRunner().invoke(app, words, catch_exceptions=False, env={"COLUMNS": "200"})
        assert result.exit_code == 0
        return result.output

    return run


def test_the_card_command_writes_the_champions_page_or_the_json_of_any_version(
    registered: InMemoryRegistry, say: Say, tmp_path: Path
) -> None:
    path = Path(say("card", "churn").strip())
    assert path.name == "churn-2.html"
    assert "churn version 2" in path.read_text()
    card = json.loads(say("card", "churn", "--version", "1", "--json"))
    assert card["version"]["version"] == 1
    assert card["version"]["lineage"]["down"]["children"] == [2]
    with pytest.raises(UnknownVersion, match="holds no version 9 of 'churn': it holds 1 to 2 and champion = 2"):
        say("card", "churn", "--version", "9")
    with pytest.raises(UnknownVersion, match=r"The registry holds no version of 'chrun'\. Did you mean 'churn'"):
        say("card", "chrun")


def test_any_version_explains_rows_from_its_package_without_serving(registered: InMemoryRegistry, say: Say) -> None:
    row = {"a": 1.0, NASTY: "x"}
    answer = json.loads(say("explain", "churn", json.dumps(row), "--version", "1", "--json"))
    (told,) = answer["rows"]
    assert answer["version"] == 1
    assert set(told["contributions"]) == set(row)
    assert told["output"] == pytest.approx(told["base"] + sum(told["contributions"].values()), abs=1e-4)
    assert "version 2" in say("explain", "churn", json.dumps(row), "--version", "champion")
    with pytest.raises(UnknownVersion, match="holds no version 9 of 'churn'"):
        say("explain", "churn", json.dumps(row), "--version", "9")


def test_a_card_that_was_changed_in_the_lake_is_not_shown(registered: InMemoryRegistry, settings: Settings) -> None:
    lake, digest = Lake(settings.lake), registered.get("churn", 1).digest
    lake.write("packages/churn/e1/card.json", b"{}")
    with pytest.raises(DigestMismatch, match=r"card\.json in packages/churn/e1 has SHA-256"):
        read_file(lake, "packages/churn/e1", digest, CARD)
    with pytest.raises(DataError, match=r"holds no other\.json: it was made by an older release"):
        read_file(lake, "packages/churn/e1", digest, "other.json")
    with pytest.raises(DigestMismatch):
        read_file(lake, "packages/churn/e1", "00", CARD)


def test_versions_and_tags(registered: InMemoryRegistry, say: Say) -> None:
    assert "champion" in say("versions", "churn")
    one = json.loads(say("versions", "churn", "--version", "champion", "--json"))
    assert (one["version"], one["lineage"]["up"]["ancestors"]) == (2, [1])
    say("tag", "churn", "champion", "reviewed=yes", "note=x")
    say("tag", "churn", "2", "note=")
    assert [item["tags"].get("reviewed") for item in json.loads(say("versions", "churn", "--json"))] == [None, "yes"]
    with pytest.raises(ConfigError, match="'reviewed' says nothing: give KEY=VALUE"):
        say("tag", "churn", "2", "reviewed")


def test_lineage_follows_parents_up_and_children_down(registered: InMemoryRegistry) -> None:
    held = registered.versions("churn")
    assert lineage(held[0], held)["down"] == {"aliases": [], "children": [2]}
    found = lineage(held[1], held)
    assert found["up"]["ancestors"] == [1]
    assert found["up"]["same_data"] == [1]
    assert found["down"] == {"aliases": ["champion"], "children": []}


def test_the_size_of_a_package_is_that_of_its_files(made: Made) -> None:
    assert size_mb(made.folder) == sum(path.stat().st_size for path in made.folder.iterdir()) / 1e6
