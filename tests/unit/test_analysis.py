from __future__ import annotations

import json
import math
import random

import pytest

from raymlops.serving.analysis import (
    LATENCY_EDGES_MS,
    SLOW_MS,
    Comparison,
    StatsRecorder,
    VariantStats,
    loss_radius,
    median_ms,
)
from raymlops.serving.sequences import asymptotic_radius, paired_radius, rate_interval


def stats(requests: int, errors: int = 0, nonfinite: int = 0, latency_ms: float = 1.0) -> VariantStats:
    recorder = StatsRecorder()
    for index in range(requests):
        recorder.request(latency_ms, error=index < errors, nonfinite=index < nonfinite)
    return recorder.stats()


def compare(champion: VariantStats, challenger: VariantStats, min_requests: int = 100) -> str:
    return Comparison(champion=champion, challenger=challenger).verdict(min_requests).outcome


def test_figures_add_up_and_survive_json() -> None:
    left, right = stats(3, 1, latency_ms=2.0), stats(5, latency_ms=20.0).with_losses([0.5, 2.0, float("nan")])
    both = left + right
    assert (both.requests, both.errors, both.loss_n, both.loss_sum) == (8, 1, 2, 1.5)
    assert VariantStats.from_dict(json.loads(json.dumps(both.to_dict()))) == both


def test_latency_quantiles_are_upper_edges() -> None:
    mixed = stats(99, latency_ms=1.0) + stats(1, latency_ms=900.0)
    assert mixed.latency_ms(0.5) == 1.0
    assert mixed.latency_ms(0.99) == 1.0
    assert mixed.latency_ms(1.0) == 1000.0
    assert math.isnan(VariantStats().latency_ms(0.5))
    assert stats(1, latency_ms=1e9).latency_ms(0.5) == math.inf


def test_slow_counts_what_is_above_its_edge() -> None:
    assert SLOW_MS in LATENCY_EDGES_MS
    assert stats(4, latency_ms=SLOW_MS).slow == 0
    assert stats(4, latency_ms=SLOW_MS * 1.5).slow == 4


def test_too_few_requests_are_no_verdict() -> None:
    verdict = Comparison(champion=stats(900), challenger=stats(99)).verdict(100)
    assert (verdict.outcome, verdict.reason) == ("INCONCLUSIVE", "99 of 100 requests seen")


def test_a_clean_challenger_passes() -> None:
    verdict = Comparison(champion=stats(900), challenger=stats(100)).verdict(100)
    assert (verdict.outcome, verdict.reason) == ("PASS", "0 errors in 100 requests, no worse than the champion")


def test_a_proof_takes_about_55_clean_requests() -> None:
    assert compare(stats(100), stats(50), min_requests=1) == "INCONCLUSIVE"
    assert compare(stats(100), stats(55), min_requests=1) == "PASS"


@pytest.mark.parametrize(
    ("challenger", "sentence"),
    [
        (stats(20, 5), "5 of its 20 requests failed"),
        (stats(400, 3, nonfinite=3), "3 of 400 requests got a prediction that is not finite"),
        (stats(500, 40), "error rate: at least"),
        (stats(200, latency_ms=3000.0), "share slower than 1000 ms: at least"),
    ],
)
def test_a_worse_challenger_fails_with_the_reason(challenger: VariantStats, sentence: str) -> None:
    verdict = Comparison(champion=stats(900), challenger=challenger).verdict(100)
    assert verdict.outcome == "FAIL"
    assert sentence in verdict.reason


def test_two_early_errors_are_not_yet_a_verdict() -> None:
    assert compare(stats(900), stats(16, 2)) == "INCONCLUSIVE"


def test_when_both_fail_alike_the_challenger_is_not_to_blame() -> None:
    assert compare(stats(900, 300), stats(300, 100)) == "PASS"
    assert compare(stats(20, 10), stats(20, 10)) == "INCONCLUSIVE"


def test_some_errors_more_than_the_champion_need_more_traffic() -> None:
    verdict = Comparison(champion=stats(900), challenger=stats(100, 2)).verdict(100)
    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.reason == "error rate 2.0% against 0.0%: not yet told from chance"


def test_worse_losses_fail_and_equal_ones_do_not() -> None:
    rng = random.Random(0)
    good = [rng.uniform(0.0, 0.3) for _ in range(2000)]
    bad = [rng.uniform(0.2, 0.6) for _ in range(2000)]
    champion = stats(2000).with_losses(good)
    verdict = Comparison(champion=champion, challenger=stats(2000).with_losses(bad)).verdict(100)
    assert verdict.outcome == "FAIL"
    assert "mean loss 0.403" in verdict.reason
    assert compare(champion, stats(2000).with_losses(good)) == "PASS"


def test_the_interval_of_nothing_is_everything() -> None:
    assert rate_interval(0, 0, 0.05) == (0.0, 1.0)


def test_rates_are_covered_at_every_look() -> None:
    """The share of runs whose interval ever misses the truth stays below alpha."""
    rng, missed = random.Random(1), 0
    for _ in range(200):
        bad = 0
        for n in range(1, 301):
            bad += rng.random() < 0.1
            low, high = rate_interval(bad, n, 0.05) if n % 10 == 0 else (0.0, 1.0)
            if not low <= 0.1 <= high:
                missed += 1
                break
    assert missed <= 10


def test_loss_means_are_covered_at_every_look() -> None:
    rng, missed = random.Random(2), 0
    for _ in range(200):
        seen = VariantStats()
        for _ in range(30):
            seen = seen.with_losses([rng.random() ** 2 for _ in range(20)])
            if abs(seen.mean_loss - 1 / 3) > loss_radius(seen, 0.05):
                missed += 1
                break
    assert missed <= 20


def test_no_good_challenger_of_two_hundred_is_ever_failed() -> None:
    """Looked at after every thirtieth request; both variants have the same error rate of one percent."""
    rng = random.Random(3)
    for _ in range(200):
        champion, challenger = VariantStats(), VariantStats()
        for _ in range(10):
            champion += stats(270, sum(rng.random() < 0.01 for _ in range(270)))
            challenger += stats(30, sum(rng.random() < 0.01 for _ in range(30)))
            assert compare(champion, challenger) != "FAIL"


def scored(mean: float, spread: float, n: int = 400) -> VariantStats:
    """Scores at ``mean`` plus and minus ``spread``, on clean requests."""
    values = [mean + spread * (1 if index % 2 else -1) for index in range(n)]
    return stats(n) + VariantStats(
        score_n=n, score_sum=math.fsum(values), score_sumsq=math.fsum(value * value for value in values)
    )


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        (scored(0.3, 0.2), scored(0.35, 0.2), "PASS"),
        (scored(0.05, 0.05), scored(0.3, 0.2), "PASS"),  # a retraining after the base rate moved
        (scored(10.0, 2.0), scored(10_000.0, 2.0), "FAIL"),  # another unit
        (scored(0.0, 2.0), scored(0.0, 2000.0), "FAIL"),
        (scored(0.3, 0.2), scored(0.3, 0.0), "FAIL"),  # a constant
        (scored(0.3, 0.0), scored(0.9, 0.0), "PASS"),  # one row asked again and again says nothing
        (scored(0.3, 0.2, n=400), scored(0.3, 0.0, n=60), "PASS"),  # too few to say
    ],
)
def test_scores_of_another_kind_fail(old: VariantStats, new: VariantStats, outcome: str) -> None:
    assert compare(old, new, min_requests=55) == outcome


def test_no_verdict_below_min_requests_but_for_what_is_plainly_broken() -> None:
    assert compare(stats(900), stats(99, latency_ms=3000.0)) == "INCONCLUSIVE"
    assert compare(stats(900), stats(100, latency_ms=3000.0)) == "FAIL"
    assert compare(stats(900), stats(5, 5)) == "FAIL"


def test_pairs_are_covered_at_every_look() -> None:
    """Differences around 0.05: the share of runs whose interval ever misses it stays below alpha."""
    rng, missed = random.Random(4), 0
    for _ in range(200):
        seen = VariantStats()
        for _ in range(30):
            seen = seen.with_gaps([0.05 + rng.uniform(-0.3, 0.3) for _ in range(20)])
            if abs(seen.gap_sum / seen.gap_n - 0.05) > paired_radius(seen.gap_n, seen.gap_sumsq, 0.05):
                missed += 1
                break
    assert missed <= 20


def test_asymptotic_means_are_covered_at_every_look_from_the_hundredth() -> None:
    rng, missed = random.Random(5), 0
    for _ in range(300):
        total = squares = 0.0
        for n in range(1, 1001):
            value = rng.expovariate(1.0)
            total, squares = total + value, squares + value * value
            if n >= 100 and n % 10 == 0:
                mean = total / n
                if abs(mean - 1.0) > asymptotic_radius(n, squares / n - mean * mean, 0.05):
                    missed += 1
                    break
    assert missed <= 22  # 5 % of 300 and two standard deviations


def test_a_challenger_many_times_slower_fails_by_its_own_clock() -> None:
    def isolated(work_ms: float, seen_ms: float) -> VariantStats:
        recorder = StatsRecorder()
        for _ in range(100):
            recorder.request(seen_ms, work_ms=work_ms)
        return recorder.stats()

    champion = stats(900, latency_ms=6.0)
    assert compare(champion, isolated(60.0, 70.0)) == "FAIL"
    verdict = Comparison(champion=champion, challenger=isolated(60.0, 70.0)).verdict(100)
    assert verdict.reason == "half of its answers take more than 56.2 ms, the champion's at most 7.5 ms"
    assert compare(champion, isolated(6.0, 200.0)) == "PASS"  # the way to an isolated version is not its doing
    loose = Comparison(champion=champion, challenger=isolated(60.0, 70.0)).verdict(100, max_slowdown=20.0)
    assert loose.outcome == "PASS"


def test_what_is_quick_enough_is_never_too_slow() -> None:
    assert compare(stats(900, latency_ms=0.2), stats(100, latency_ms=8.0)) == "PASS"
    assert compare(stats(900, latency_ms=0.2), stats(100, latency_ms=20.0)) == "FAIL"


def test_the_median_is_bounded_from_both_sides() -> None:
    few, many = (stats(n, latency_ms=10.0) for n in (4, 400))
    assert median_ms(few.latency, 0.01) == (0.0, math.inf)
    low, high = median_ms(many.latency, 0.01)
    assert low < 10.0 <= high == LATENCY_EDGES_MS[LATENCY_EDGES_MS.index(low) + 1]
    assert median_ms(VariantStats().latency, 0.01) == (0.0, math.inf)


def test_the_median_is_hardly_ever_missed_however_often_one_looks() -> None:
    rng, missed = random.Random(0), 0
    for _ in range(200):
        seen = VariantStats()
        for _ in range(40):
            recorder = StatsRecorder()
            for _ in range(10):
                recorder.request(rng.lognormvariate(math.log(7.0), 1.0))
            seen += recorder.stats()
            low, high = median_ms(seen.latency, 0.1)
            if not low <= 7.0 <= high:
                missed += 1
                break
    assert missed <= 20  # of 200 at 10 %, one-sided on each side of a discrete median: rarer than that
