"""Quick models on generated tables: what they name, what they leave alone, and how sure they say they are."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.data.assess import assess
from raymlops.data.assess.curve import fit_curve
from raymlops.data.assess.spec import QUICK_MODELS
from raymlops.errors import DataError
from raymlops.testing.faulty_tables import FAULTS
from raymlops.testing.tables import CLEAN, NOW, mixed

MODELLED = {
    "filled_after_the_outcome": r"Column 'calls' tells the label in older rows \(score 0\.9\d+\) and not in the newest",
    "nothing_to_learn": r"A quick model of 15000 rows reaches AUC 0\.\d+ .*chance is 0\.500",
    "mostly_unrelated": r"1\d of 20 columns matter no more than shuffled copies: 'noise_\d+'",
    "more_rows_would_help": r"rises from 0\.\d+ to 0\.\d+; twice the rows: AUC \+0\.\d+ \[0\.\d+, 0\.\d+\]",
}


@pytest.mark.parametrize("name", MODELLED)
def test_what_quick_models_find_is_named(name: str) -> None:
    case = FAULTS[name](np.random.default_rng(11))
    assert case.check is not None
    others = [check for check in QUICK_MODELS if check != case.check.partition(":")[0]]
    found = assess(case.frame, case.label, case.time, spec=case.spec.without(*others), now=NOW)
    hits = [check for check in found.checks if check.name == case.check]
    assert [check.verdict in ("warn", "fail") for check in hits] == [True], hits
    assert re.search(MODELLED[name], hits[0].message), hits[0].message


@pytest.mark.parametrize("name", ["mixed_small", "regression", "ordered", "hourly"])
def test_sound_tables_are_left_alone(name: str) -> None:
    case = CLEAN[name](np.random.default_rng(5))
    found = assess(case.frame, case.label, case.time, spec=case.spec.without("unrelated"), now=NOW)
    assert [check.message for check in found.checks if check.verdict != "pass"] == []


def test_an_assessment_is_the_same_twice() -> None:
    case = CLEAN["mixed_small"](np.random.default_rng(2))
    first, again = (assess(case.frame, "y", now=NOW) for _ in range(2))
    assert first == again


def test_a_leaking_column_does_not_flatter_what_comes_after() -> None:
    frame = mixed(np.random.default_rng(4), 3000)
    noise = frame.assign(y=np.random.default_rng(5).permutation(frame.y))
    found = assess(noise.assign(answer=noise.y * 2), "y", now=NOW)
    assert found.failures[0].name == "leak:answer"
    told = next(check for check in found.checks if check.name == "predictive")
    assert told.verdict != "pass"


@given(st.floats(0.01, 0.3), st.floats(0.5, 3.0), st.floats(0.2, 1.0), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_learning_curve_finds_the_gain_of_more_rows(a: float, b: float, c: float, seed: int) -> None:
    sizes = np.array([250, 500, 1000, 2000, 4000])
    truth = a + b * sizes.astype(float) ** -c
    errors = truth[:, None] * (1 + np.random.default_rng(seed).normal(0, 0.01, (5, 4)))
    errors[2, 0] *= 3  # one fit that went wrong
    curve = fit_curve(sizes, errors)
    gain, low, high = curve.gain(4000, 8000)
    assert low <= gain <= high
    assert gain >= 0
    assert abs(gain - b * (4000.0**-c - 8000.0**-c)) < 0.02 + 0.3 * (truth[-2] - truth[-1])


def test_a_curve_needs_three_sizes() -> None:
    with pytest.raises(DataError, match="A learning curve needs three sizes, not 2"):
        fit_curve(np.array([1, 2]), np.ones((2, 3)))


@given(st.integers(0, 2**32 - 1), st.integers(60, 400))
@settings(max_examples=15, deadline=None)
def test_any_table_gets_a_verdict(seed: int, rows: int) -> None:
    """Columns of all kinds, with holes: a verdict that survives JSON, and never an error."""
    rng = np.random.default_rng(seed)
    kinds = {
        "number": rng.normal(size=rows) * 10.0 ** rng.integers(-300, 300),
        "holes": np.where(rng.random(rows) < 0.5, np.nan, rng.normal(size=rows)),
        "odd": rng.choice([np.inf, -np.inf, np.nan, 0.0, 1e308], rows),
        "text": rng.choice(["", " ", "a", "A", "é", "\x00", "9"], rows),
        "flag": rng.random(rows) < 0.5,
        "maybe": pd.array(rng.choice([True, False], rows), dtype="boolean"),
        "whole": pd.array(rng.integers(-5, 5, rows), dtype="Int64"),
        "kind": pd.Categorical(rng.choice(["x", "y"], rows)),
        "at": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(-(10**9), 10**9, rows), unit="s"),
        "any": pd.Series([rng.choice([None, "x", 1, 2.5, True]) for _ in range(rows)], dtype=object),
    }
    chosen = rng.permutation(list(kinds))[: rng.integers(1, len(kinds) + 1)]
    frame = pd.DataFrame({name: kinds[name] for name in chosen}).assign(y=rng.integers(0, 2, rows))
    time = "at" if "at" in chosen and len(chosen) > 1 else None
    found = assess(frame, "y", time, "binary", now=NOW)
    assert type(found).from_dict(found.to_dict()) == found
    assert all(check.message for check in found.checks)
