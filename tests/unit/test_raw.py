"""What a features function was trained on is what a request may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raymlops.data.raw import check_raw, learn_raw
from raymlops.data.schema import Column, learn_contract
from raymlops.data.sources import FrameSource
from raymlops.data.tables import TableRows
from raymlops.errors import ContractViolation
from raymlops.registry.package import Reference, build_package
from raymlops.search import candidates
from raymlops.serving.predictor import Predictor
from raymlops.settings import Settings

FRAME = pd.DataFrame(
    {
        "spend": [1.5, 2.5, np.nan],
        "calls": [1, 2, 3],
        "gaps": pd.array([1, None, 3], dtype="Int64"),
        "vip": [True, False, True],
        "maybe": np.array([True, None, False], dtype=object),
        "plan": ["a", "b", None],
        "at": pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"]),
        "label": [0, 1, 0],
    }
)
RAW = learn_raw(FRAME, ("label", None))
ROW: dict[str, Any] = {
    "spend": 1.0,
    "calls": 2,
    "gaps": 1.5,
    "vip": True,
    "maybe": False,
    "plan": "z",
    "at": "2026-02-01",
}


def test_kinds_are_those_of_the_training_rows() -> None:
    kinds = {column.name: column.kind for column in RAW}
    assert kinds == {
        "spend": "number",
        "calls": "integer",
        "gaps": "number",
        "vip": "boolean",
        "maybe": "boolean",
        "plan": "category",
        "at": "category",
    }
    assert all(column.nullable for column in RAW)
    assert tuple(Column.from_dict(column.to_dict()) for column in RAW) == RAW


def test_rows_like_those_of_training_pass() -> None:
    check_raw(RAW, [ROW, dict.fromkeys(ROW), {"spend": 1}, {"calls": 2.0}, {}])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"spent": 1.0}, "column 'spent': not one the features are made of (row 1). Did you mean 'spend'?"),
        ({"label": 1}, "column 'label': not one the features are made of (row 1)."),
        ({"spend": "1"}, "column 'spend': expected number, got '1' (row 1)"),
        ({"spend": True}, "column 'spend': expected number, got True (row 1)"),
        ({"spend": 2**53 + 1}, "column 'spend': expected number within"),
        ({"calls": 1.5}, "column 'calls': expected integer, got 1.5 (row 1)"),
        ({"vip": 1}, "column 'vip': expected boolean, got 1 (row 1)"),
        ({"plan": 5}, "column 'plan': expected category (text), got 5 (row 1)"),
        ({"plan": {"a": 1}}, "column 'plan': expected category (text), got {'a': 1} (row 1)"),
        ({f"k{i}": 1 for i in range(10**5)}, "and at least 90 more"),
    ],
)
def test_other_rows_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        check_raw(RAW, [ROW, {**ROW, **change}])
    assert sentence in caught.value.message


def features(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"ratio": frame["spend"] / frame["calls"].clip(lower=1)})


@pytest.mark.parametrize("known", [True, False])
def test_a_package_with_features_refuses_columns_it_was_not_trained_on(tmp_path: Path, known: bool) -> None:
    rng = np.random.default_rng(0)
    given = pd.DataFrame({"spend": rng.normal(size=200), "calls": rng.integers(1, 9, 200)})
    made = features(given).assign(label=(given.spend > 0).astype(int))
    contract = learn_contract(made, "label")
    x, y = contract.encode(made), contract.encode_label(made.label)
    family = candidates.linear()
    estimator = family.build(dict(family.start), "binary", 2, [], seed=0).fit(x, y)
    reference = Reference(columns=contract.names, x=x, scores=y, losses=y, ordered=False)
    raw = learn_raw(given) if known else None
    build_package(tmp_path / "package", estimator, contract, features, reference, {}, raw)
    predictor = Predictor.load(tmp_path / "package")
    assert [column.name for column in predictor.inputs] == (["spend", "calls"] if known else ["ratio"])
    fine = {"spend": 1.0, "calls": 2}
    assert predictor.encode([fine]).tolist() == [[0.5]]
    assert predictor.encode(TableRows(pa.Table.from_pylist([fine]))).tolist() == [[0.5]]
    with pytest.raises(ContractViolation, match="asked for column 'calls'"):
        predictor.encode([{"spend": 1.0}])
    for odd in ({**fine, "other": 1}, {**fine, "calls": True}):
        if known:
            with pytest.raises(ContractViolation):
                predictor.encode([odd])
        else:  # a package from before raw columns were kept
            predictor.encode([odd])


def test_a_frame_source_tells_what_its_features_are_made_of(tmp_path: Path) -> None:
    from raymlops.data.ray_prepare import prepare_frame

    told: list[tuple[Column, ...]] = []
    source = FrameSource(FRAME.drop(columns=["maybe"]), label="label", time="at", drop=("plan",))
    settings = Settings.read({"RAYMLOPS_HOME": str(tmp_path)})
    prepare_frame(source, features, settings, on_raw=told.append)
    assert [column.name for column in told[0]] == ["spend", "calls", "gaps", "vip"]
    prepare_frame(source, None, settings, on_raw=told.append)
    assert len(told) == 1
