"""Wild rows: the strange ones, by name, and no more of the ordinary ones than was said."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raymlops.monitor.wild import MOST_ROWS, WildRows

NAMES = ("a", "b", "job", "(score)")


def rows(n: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    return np.column_stack((a, a + 0.1 * rng.normal(size=n), rng.integers(0, 3, n), rng.uniform(size=n))).astype("f4")


def detector(seed: int = 0, rate: float = 0.01) -> WildRows:
    return WildRows(rows(8000, seed), NAMES, categories={2: 3}, rate=rate)


def test_of_unchanged_rows_no_more_are_flagged_than_stated() -> None:
    flagged = sum(detector(seed).flag(rows(10_000, 100 + seed))[1] for seed in range(10))
    assert 600 < flagged < 1300  # of 100,000 at 1 in 100; what differs is the reference's own luck


def test_a_row_out_of_range_is_named_with_its_request() -> None:
    x = rows(100, 1)
    x[17, 0] = 500.0
    (worst, *_), count = detector().flag(x, first_row=3000, ids=[f"r{i}" for i in range(100)])
    assert (worst.row, worst.request_id, worst.columns[0]) == (3017, "r17", "a")
    assert worst.p_value <= 0.01
    assert count >= 1


def test_a_row_that_is_strange_only_in_combination() -> None:
    x = rows(100, 2)
    x[5, :2] = [1.5, -1.5]
    assert detector().flag(x)[0][0].row == 5


def test_unseen_categories_and_infinities_are_wild_missing_values_are_not() -> None:
    x = rows(50, 3)
    x[0, 2], x[1, 1], x[2, 0], x[3, 3] = 9.0, np.inf, np.nan, -np.inf
    found, _ = detector().flag(x)
    assert {0, 1, 3} <= {row.row for row in found}
    assert 2 not in {row.row for row in found}


def test_reports_are_bounded_but_the_count_is_not() -> None:
    found, count = detector().flag(rows(200, 4) + 1000)
    assert len(found) == MOST_ROWS
    assert count == 200


def test_constant_and_empty_columns_do_no_harm() -> None:
    x = np.column_stack((np.full(1000, 2.0), np.full(1000, np.nan), np.arange(1000.0))).astype(np.float32)
    found, count = WildRows(x, ("c", "e", "(score)")).flag(x[:100])
    assert count == len(found) <= 2
    assert WildRows(x, ("c", "e", "(score)")).flag(x[:1] + 50)[0][0].columns[0] == "c"
