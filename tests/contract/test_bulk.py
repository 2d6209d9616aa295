"""Scoring parts without Ray: the same answers as requests, refusals put aside, runs that go on where they broke off."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlops.data.parts import plan_input
from raymlops.data.schema import learn_contract
from raymlops.errors import ConfigError, ContractViolation, DataError, ModelFault
from raymlops.lake import Lake
from raymlops.registry.package import Reference, build_package
from raymlops.search import candidates
from raymlops.serving.bulk import Scorer, answer_columns, choose_runtime
from raymlops.serving.bulk_run import Bulk, finished_parts, open_run, read_seen, totals
from raymlops.serving.predictor import Predictor
from raymlops.sketch.histogram import Sketch
from raymlops.sketch.profile import with_score

Make = Callable[..., Bulk]


def frame(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"id": np.arange(rows), "a": rng.normal(size=rows), "c": rng.choice(["x", "y"], rows)})


def _ratio(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[["a", "c"]].assign(double=rows.a * 2)


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    def made(task: Any = "binary", features: Any = None) -> Path:
        rows = frame(300, seed=1)
        values = {"binary": np.where(rows.a > 0, "yes", "no"), "multiclass": np.digitize(rows.a, [-0.5, 0.5]) * 10}
        learnt = features(rows) if features else rows[["a", "c"]]
        learnt = learnt.assign(label=values.get(task, rows.a * 3))
        contract = learn_contract(learnt, "label", task)
        x, y = contract.encode(learnt), contract.encode_label(learnt.label)
        family = candidates.xgboost()
        estimator = family.build(dict(family.start), task, len(contract.classes), [], seed=0).fit(x, y)
        reference = Reference(columns=contract.names, x=x, scores=y, losses=np.zeros(300), ordered=False)
        folder = tmp_path / f"package-{task}-{features is not None}"
        build_package(folder, estimator, contract, features, reference, {})
        return folder

    return made


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(rows: pd.DataFrame | str, name: str = "in", **changes: Any) -> Bulk:
        if isinstance(rows, str):
            path = tmp_path / f"{name}.csv"
            path.write_text(rows)
        else:
            path = tmp_path / f"{name}.parquet"
            rows.to_parquet(path, row_group_size=100)
        bulk = Bulk(
            endpoint="e",
            version=2,
            package_key="k",
            digest="d",
            runtime="native",
            source=plan_input([str(path)], part_rows=200),
            output=str(tmp_path / "out"),
            block_rows=64,
            file_rows=150,
        )
        return replace(bulk, **changes)

    return made


def score(bulk: Bulk, folder: Path) -> pd.DataFrame:
    """All parts, as a reader of the output folder finds them."""
    scorer = Scorer(bulk, Predictor.load(folder, 2), folder)
    for part in bulk.source.parts:
        scorer.score(part)
    return pq.read_table(bulk.output).to_pandas()


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("features", [None, _ratio])
def test_answers_are_those_of_a_request(make: Make, package: Any, task: str, features: Any) -> None:
    rows, folder = frame(450), package(task, features)
    out = score(make(rows), folder)
    predictor = Predictor.load(folder, 2)
    predictions, probabilities = predictor.answer(predictor.predict_rows(rows[["a", "c"]].to_dict("records"))[1])
    assert out.id.tolist() == rows.id.tolist()
    if task == "regression":
        np.testing.assert_allclose(out.prediction, predictions, atol=1e-4)
        assert "probability" not in out
    else:
        assert out.prediction.tolist() == predictions
        given = np.stack(out.probabilities) if task == "multiclass" else out.probability
        np.testing.assert_allclose(given, probabilities, atol=1e-5)


def test_csv_gives_what_parquet_gives(make: Make, package: Any, tmp_path: Path) -> None:
    rows, folder = frame(300), package()
    one = score(make(rows), folder)
    text = make(rows.to_csv(index=False), output=str(tmp_path / "text"))
    two = score(text, folder)
    assert two.id.tolist() == [str(number) for number in one.id]
    np.testing.assert_array_equal(one.probability, two.probability)


def test_refused_rows_are_put_aside_with_their_reason_and_none_is_lost(make: Make, package: Any) -> None:
    rows = frame(450)
    rows.loc[[0, 199, 200, 449], "a"] = np.nan
    bulk = make(rows, on_bad="keep")
    out = score(bulk, package())
    refused = pq.read_table(f"{bulk.output}/_refused").to_pandas()
    assert sorted([*out.id, *refused.id]) == list(range(450))
    assert refused.id.tolist() == [0, 199, 200, 449]
    assert refused.row.tolist() == [0, 199, 0, 49]
    assert refused.part.tolist() == [0, 0, 1, 2]
    assert set(refused.reason) == {"column 'a': expected number, got nan"} or set(refused.reason) == {
        "column 'a': expected number, got null"
    }
    assert totals(finished_parts(Lake(bulk.output)).values()) == (450, 446, 4)


def test_a_refused_row_stops_the_run_unless_it_is_told_otherwise(make: Make, package: Any) -> None:
    rows = frame(450)
    rows.loc[[250, 251], "a"] = np.nan
    bulk = make(rows)
    message = r"in\.parquet, row 50 of part 1: column 'a': expected number, .*\. 2 rows of this block .*--on-bad keep"
    with pytest.raises(ContractViolation, match=message):
        score(bulk, package())
    assert list(finished_parts(Lake(bulk.output))) == [0]


def test_a_part_of_nothing_but_refusals(make: Make, package: Any) -> None:
    bulk = make(frame(100).assign(a=np.nan), on_bad="keep")
    assert len(score(bulk, package())) == 0
    assert totals(finished_parts(Lake(bulk.output)).values()) == (100, 0, 100)
    assert read_seen(Lake(bulk.output), [0]).rows == 0


def test_cells_that_do_not_read_are_refused_before_the_features_see_them(make: Make, package: Any) -> None:
    text = "id,a,c\n1,0.5,x\n2,high,y\n3,-0.5,x\n"
    bulk = make(text, on_bad="keep", kinds={"id": "number", "a": "number", "c": "text"})
    out = score(bulk, package("binary", _ratio))
    assert out.id.tolist() == ["1", "3"]
    refused = pq.read_table(f"{bulk.output}/_refused").to_pandas()
    assert refused.reason.tolist() == ["column 'a': expected number, got 'high'"]
    assert refused.a.tolist() == ["high"]


class Broken:
    """A runtime with a fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def predict(self, x: Any) -> Any:
        if self.fault == "raise":
            raise RuntimeError("broken")
        return np.where(np.arange(len(x)) == 3, np.nan, 0.25)


def test_predictions_that_are_no_numbers_are_refused(make: Make, package: Any) -> None:
    bulk, folder = make(frame(50), on_bad="keep"), package()
    scorer = Scorer(bulk, Predictor.load(folder, 2), folder)
    scorer._runtime = Broken("nan")
    record = scorer.score(bulk.source.parts[0])
    assert (record.rows, record.scored, record.refused) == (50, 49, 1)
    failing = Scorer(make(frame(50)), Predictor.load(folder, 2), folder)
    failing._runtime = Broken("nan")
    with pytest.raises(ModelFault, match="row 3 of part 0: the model's prediction is not a finite number"):
        failing.score(bulk.source.parts[0])
    failing._runtime = Broken("raise")
    with pytest.raises(ModelFault, match="Version 2 failed on a block of 50 rows: RuntimeError: broken"):
        failing.score(bulk.source.parts[0])


def test_kept_columns(make: Make, package: Any, tmp_path: Path) -> None:
    rows, folder = frame(20).assign(probability=1.0, when="now"), package()
    assert list(score(make(rows), folder).columns) == ["id", "raw.probability", "when", "prediction", "probability"]
    for keep, names in ((("when",), ["when"]), ((), []), (("a", "id"), ["id", "a"])):
        out = score(make(rows, keep=keep, output=str(tmp_path / "-".join(("out", *keep)))), folder)
        assert list(out.columns) == [*names, "prediction", "probability"]


def test_a_part_is_written_in_files_of_bounded_size(make: Make, package: Any) -> None:
    bulk = make(frame(450))
    score(bulk, package())
    files = sorted(Path(bulk.output).glob("part-*.parquet"))
    assert [path.name for path in files[:2]] == ["part-00000-0000.parquet", "part-00000-0001.parquet"]
    assert max(pq.read_metadata(path).num_rows for path in files) <= 150 + 64
    assert pq.read_schema(files[0]).metadata[b"raymlops.version"] == b"2"


def contents(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_run_that_broke_off_ends_with_the_same_bytes(make: Make, package: Any, tmp_path: Path) -> None:
    rows, folder = frame(1000), package()
    whole, broken = make(rows), make(rows, output=str(tmp_path / "broken"))
    open_run(whole, resume=False)
    score(whole, folder)
    lake, done = open_run(broken, resume=False)
    assert done == {}
    scorer = Scorer(broken, Predictor.load(folder, 2), folder)
    for number in (3, 1):
        scorer.score(broken.source.parts[number])
    # The crash came when a part was half written: a file without a record, and a record whose file is gone.
    lake.write("part-00000-0000.parquet", b"half")
    scorer.score(broken.source.parts[2])
    (tmp_path / "broken" / "part-00002-0001.parquet").unlink()
    _, done = open_run(broken, resume=True)
    assert sorted(done) == [1, 3]
    for part in broken.source.parts:
        if part.number not in done:
            scorer.score(part)
    assert contents(whole.output) == contents(broken.output)


def test_what_was_seen_is_every_row_and_the_same_however_it_was_cut(make: Make, package: Any, tmp_path: Path) -> None:
    rows, folder = frame(450), package()
    first, second = make(rows), make(rows, output=str(tmp_path / "again"), block_rows=7)
    score(first, folder)
    score(second, folder)
    seen = read_seen(Lake(first.output), [0, 1, 2])
    predictor = Predictor.load(folder, 2)
    x = predictor.contract.encode(rows[["a", "c"]])
    assert seen.sketch == Sketch.of(predictor.bins, with_score(x, predictor.score(predictor.predict(x))))
    assert seen.whole
    np.testing.assert_array_equal(seen.sample.x[:, :2], x)
    assert seen.to_dict() == read_seen(Lake(second.output), [2, 1, 0]).to_dict()


def test_of_many_rows_a_part_keeps_its_share(make: Make, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bulk", "bulk_run"):
        monkeypatch.setattr(f"raymlops.serving.{module}.SAMPLE_ROWS", 60)
    bulk = make(frame(450))
    score(bulk, package())
    seen = read_seen(Lake(bulk.output), [0, 1, 2])
    assert (seen.rows, seen.whole) == (450, False)
    assert len(seen.sample) == 60
    of_part = [len(np.intersect1d(seen.sample.keys, read_seen(Lake(bulk.output), [n]).sample.keys)) for n in range(3)]
    assert sum(of_part) == 60
    # Rows 200, 200 and 50: the sample is spread evenly, so the shares are off by a row or two and no more.
    np.testing.assert_allclose(of_part, [60 * 200 / 450, 60 * 200 / 450, 60 * 50 / 450], atol=3)
    with pytest.raises(DataError, match="nothing to show"):
        read_seen(Lake(bulk.output), [])


def test_an_output_that_holds_a_run_is_not_written_over(make: Make, package: Any) -> None:
    bulk = make(frame(450))
    open_run(bulk, resume=False)
    Scorer(bulk, Predictor.load(folder := package(), 2), folder).score(bulk.source.parts[0])
    with pytest.raises(ConfigError, match=r"a run of version 2 of 'e' with 1 of 3 parts done: resume it with --resume"):
        open_run(bulk, resume=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 3, "digest": "other"}, "a run with version 2, not 3: give an empty folder"),
        ({"endpoint": "f"}, "a run with endpoint 'e', not 'f'"),
        ({"digest": "other"}, "a run with another digest"),
        ({"keep": ("id",)}, r"a run with kept columns None, not \['id'\]"),
    ],
)
def test_another_run_is_not_resumed(make: Make, changes: dict[str, Any], said: str) -> None:
    bulk = make(frame(450))
    open_run(bulk, resume=False)
    with pytest.raises(ConfigError, match=said):
        open_run(replace(bulk, **changes), resume=True)


def test_input_that_was_changed_is_not_resumed(make: Make) -> None:
    open_run(make(frame(450)), resume=False)
    with pytest.raises(ConfigError, match=r"other input files \(or the same ones, changed\): give an empty folder"):
        open_run(make(frame(450, seed=5)), resume=True)


def test_parts_of_another_size_are_not_resumed(make: Make, tmp_path: Path) -> None:
    bulk = make(frame(450))
    open_run(bulk, resume=False)
    other = replace(bulk, source=plan_input([str(tmp_path / "in.parquet")], part_rows=100))
    with pytest.raises(ConfigError, match="a run with parts of another size"):
        open_run(other, resume=True)


def test_outputs_that_cannot_be_used(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("something")
    for output in ("file", "full"):
        with pytest.raises(ConfigError, match="holds something that is no run of raymlops: give an empty folder"):
            open_run(make(frame(10), output=str(tmp_path / output)), resume=False)
    with pytest.raises(ConfigError, match=r"cannot be (written|used): "):
        open_run(make(frame(10), output=str(tmp_path / "file" / "below")), resume=False)
    with pytest.raises(ConfigError, match="cannot be used: "):
        open_run(make(frame(10), output="nosuch://bucket"), resume=False)


def test_the_runtime_is_one_that_the_package_has(package: Any) -> None:
    folder = package()
    predictor = Predictor.load(folder, 2)
    assert choose_runtime(folder, predictor) in ("native", "onnx")
    without = {name: digest for name, digest in predictor.manifest.files.items() if name != "model.onnx"}
    predictor.manifest = replace(predictor.manifest, files=without)
    assert choose_runtime(folder, predictor) == "native"


def test_answers_have_the_types_of_the_classes() -> None:
    labels = pd.DataFrame({"a": [1.0, 2.0], "label": [True, False]})
    made = answer_columns(learn_contract(labels, "label"), np.array([0.5, 0.25]))
    assert made["prediction"] == pa.array([True, False])
    assert made["probability"].to_pylist() == [0.5, 0.25]


def test_run_and_records_are_json(make: Make, package: Any) -> None:
    bulk = make(frame(10))
    open_run(bulk, resume=False)
    score(bulk, package())
    body = json.loads((Path(bulk.output) / "_raymlops" / "run.json").read_text())
    assert (body["version"], body["runtime"], body["parts"]) == (2, "native", 1)
    assert json.loads((Path(bulk.output) / "_raymlops" / "parts" / "00000.json").read_text())["scored"] == 10
