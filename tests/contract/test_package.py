"""Packages: what is in them, that ONNX agrees with native, and that one changed byte is noticed before anything is parsed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raymlops.data.schema import DataContract, learn_contract
from raymlops.errors import DataError, DigestMismatch
from raymlops.lake import Lake
from raymlops.registry import package
from raymlops.registry.package import (
    Manifest,
    Reference,
    build_package,
    categories_of,
    download,
    upload,
    verify,
)
from raymlops.search import candidates
from raymlops.serving.predictor import Predictor
from raymlops.sketch.period import CHUNK, PeriodPlan, counted
from raymlops.sketch.profile import SCORE, with_score

TASKS = {"binary": 2, "multiclass": 3, "regression": 0}


def frame(task: str, n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    made = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n), "c": rng.choice(["x", "y", "z"], n)})
    made.loc[::7, "b"] = np.nan
    signal = made.a + (made.c == "x") * 1.5 + rng.normal(size=n) * 0.3
    labels = {
        "binary": np.where(signal > 0, "yes", "no"),
        "multiclass": np.digitize(signal, [0, 1]),
        "regression": signal * 9 + 99,
    }
    return made.assign(label=labels[task])


def parts(task: str, family: Any) -> tuple[Any, DataContract, Reference]:
    rows = frame(task)
    contract = learn_contract(rows, "label", task)
    x, y = contract.encode(rows), contract.encode_label(rows.label)
    estimator = family.build(dict(family.start), task, TASKS[task], [2], seed=0).fit(x, y)
    n = len(x)
    return (
        estimator,
        contract,
        Reference(columns=contract.names, x=x, scores=np.zeros(n), losses=np.zeros(n), ordered=True),
    )


def build(folder: Path, task: str = "binary", family: Any = None, features: Any = None) -> Manifest:
    estimator, contract, reference = parts(task, family or candidates.xgboost())
    return build_package(folder, estimator, contract, features, reference, {"event_id": "e1"})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", candidates.defaults(), ids=lambda f: f.name)
def test_onnx_answers_as_the_native_model_does_or_says_why_it_is_not_there(
    tmp_path: Path, family: Any, task: str
) -> None:
    estimator, contract, reference = parts(task, family)
    manifest = build_package(tmp_path, estimator, contract, None, reference, {})
    assert ("model.json" if family.name == "xgboost" else "model.pkl") in manifest.files
    if family.name == "hist_boosting":
        assert manifest.runtime == "native"
        assert "the conversion failed" in manifest.onnx
    else:
        assert (manifest.onnx, "model.onnx" in manifest.files) == ("", True)
    predictor = Predictor.load(tmp_path)
    np.testing.assert_allclose(predictor.predict(reference.x), estimator.predict(reference.x), rtol=1e-5, atol=1e-4)


def test_a_model_whose_onnx_form_disagrees_is_served_natively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = parts("binary", candidates.linear())[0]
    wrong = package.to_onnx(other, 3)
    monkeypatch.setattr(package, "to_onnx", lambda *_: wrong)
    manifest = build(tmp_path)
    assert manifest.runtime == "native"
    assert manifest.onnx.startswith("ONNX and native differ by ")
    assert "model.onnx" not in manifest.files


def test_the_faster_runtime_for_a_batch_answers_it(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    assert {name: set(times) for name, times in manifest.batch_us.items()} == {
        name: {"1", "4", "16", "64", "256", "1024"} for name in ("native", "onnx")
    }
    times = {"onnx": {"1": 1.0, "16": 9.0, "64": 5.0}, "native": {"1": 2.0, "16": 8.0, "64": 6.0}}
    manifest = replace(manifest, batch_us=times)
    assert [manifest.runtime_for(rows) for rows in (1, 8, 9, 16, 39, 41, 64, 9999)] == [
        *("onnx", "onnx", "native", "native", "native", "onnx", "onnx", "onnx")
    ]
    assert replace(manifest, batch_us={}).runtime_for(64) == manifest.runtime


def test_the_reference_comes_back_as_it_was(tmp_path: Path) -> None:
    _, _, reference = parts("binary", candidates.linear())
    again = Reference.from_bytes(reference.to_bytes())
    assert (again.columns, again.ordered) == (reference.columns, True)
    np.testing.assert_array_equal(again.x, reference.x)
    with pytest.raises(DataError, match="does not fit together"):
        Reference(columns=("a",), x=reference.x, scores=reference.scores, losses=reference.losses, ordered=True)


def test_a_period_counted_whole_comes_back_with_the_package(tmp_path: Path) -> None:
    """And its traffic is counted in the period's borders, not in the kept rows'."""
    estimator, contract, reference = parts("binary", candidates.linear())
    rows = np.tile(with_score(reference.x, reference.scores), (50, 1))
    rows[::9, 0] *= 3.0
    plan = PeriodPlan.learn(rows[::7], (*contract.names, SCORE), categories_of(contract))
    period = plan.profile(counted(plan.count(k, rows[k * CHUNK : (k + 1) * CHUNK]) for k in range(2)), ordered=True)
    build_package(tmp_path / "made", estimator, contract, None, reference, {}, profile=period)
    digest = upload(Lake(str(tmp_path / "lake")), "packages/p/1", tmp_path / "made")
    loaded = Predictor.load(download(Lake(str(tmp_path / "lake")), "packages/p/1", tmp_path / "again", digest))
    assert loaded.profile.to_bytes() == period.to_bytes()
    assert loaded.bins.digest == period.bins.digest != reference.profile(contract).bins.digest
    assert loaded.profile.sketch.rows == 20_000
    assert loaded.profile.memory is not None
    np.testing.assert_array_equal(loaded.reference.x, reference.x)


# --- a changed byte --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["contract.json", "model.json", "model.onnx", "reference.npz"])
def test_one_changed_byte_is_named_and_nothing_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    build(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    def parsed(*_: object) -> None:
        raise AssertionError("a parser ran on a damaged package")

    monkeypatch.setattr("raymlops.serving.predictor.OnnxRuntime", parsed)
    monkeypatch.setattr("raymlops.serving.predictor.load_native", parsed)
    monkeypatch.setattr(DataContract, "from_dict", parsed)
    with pytest.raises(DigestMismatch) as caught:
        Predictor.load(tmp_path)
    expected = caught.value.details["expected"]
    found = caught.value.details["found"]
    assert str(caught.value) == (
        f"{name} in {tmp_path} has SHA-256 {found[:16]}…, not {expected[:16]}…: its bytes were changed. "
        "The package is not loaded; fetch it again or restore it from a backup."
    )


def test_a_rewritten_manifest_does_not_match_the_registry(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    verify(tmp_path, manifest.digest)
    body = json.loads((tmp_path / "manifest.json").read_bytes())
    body["metadata"] = {"event_id": "forged"}
    (tmp_path / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(DigestMismatch, match=r"^manifest\.json in .* its bytes were changed\."):
        verify(tmp_path, manifest.digest)


def test_a_manifest_that_is_no_json_is_a_mismatch(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(DigestMismatch, match="cannot be read: it was changed"):
        verify(tmp_path)


def test_a_lost_file_an_alien_file_and_no_package_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match=r"is no package: it has no manifest\.json"):
        verify(tmp_path)
    build(tmp_path)
    (tmp_path / "features.pkl").write_bytes(b"evil")
    with pytest.raises(DigestMismatch, match=r"features\.pkl in .* is not named by the manifest"):
        verify(tmp_path)
    (tmp_path / "features.pkl").unlink()
    (tmp_path / "model.json").unlink()
    with pytest.raises(DigestMismatch, match=r"model\.json is missing from the package"):
        verify(tmp_path)


# --- through the lake ------------------------------------------------------------------------------


def test_a_package_goes_through_the_lake_and_damage_there_is_refused(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    build(tmp_path / "made")
    digest = upload(lake, "packages/churn/e1", tmp_path / "made")
    folder = download(lake, "packages/churn/e1", tmp_path / "cache" / digest, digest)
    assert verify(folder, digest).metadata == {"event_id": "e1"}
    (folder / "model.json").write_bytes(b"{}")  # a damaged cache is fetched again
    assert download(lake, "packages/churn/e1", folder, digest) == folder
    verify(folder, digest)
    lake.write("packages/churn/e1/model.json", b"{}")
    assert download(lake, "packages/churn/e1", folder, digest) == folder  # what is here is good
    with pytest.raises(DigestMismatch, match=r"^model\.json in "):
        download(lake, "packages/churn/e1", tmp_path / "cache" / "elsewhere", digest)
    assert not (tmp_path / "cache" / "elsewhere").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [digest]


def test_a_package_loads_without_ray_and_without_the_users_module(tmp_path: Path) -> None:
    source = tmp_path / "their_features.py"
    source.write_text(
        "STEP = 2.0\n\ndef _twice(column):\n    return column * STEP\n\ndef features(frame):\n    return frame.assign(a=_twice(frame.a))\n"
    )
    spec = importlib.util.spec_from_file_location("their_features", source)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["their_features"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        build(tmp_path / "package", features=module.features)
    finally:
        del sys.modules["their_features"]
    source.unlink()
    program = (
        "import sys; from raymlops.serving.predictor import Predictor\n"
        f"x, p, _ = Predictor.load({str(tmp_path / 'package')!r}).predict_rows([{{'a': 1.0, 'b': 0.5, 'c': 'x'}}])\n"
        "heavy = {'ray', 'pyspark', 'mlflow', 'optuna', 'skl2onnx', 'onnxmltools'} & set(sys.modules)\n"
        "print(float(x[0, 0]), len(p), sorted(heavy))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout.split("\n")[0] == "2.0 1 []"
