from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raymlops.errors import ConfigError
from raymlops.serving.analysis import Comparison, StatsRecorder, VariantStats
from raymlops.serving.policies import Canary
from raymlops.serving.rollout import Advance, Promote, Rollback, Rollout, decide
from raymlops.serving.sequences import rate_interval

rising = st.lists(st.floats(0.001, 0.999), min_size=0, max_size=5, unique=True).map(lambda w: (*sorted(w), 1.0))
counts = st.integers(0, 5000)
variants = st.builds(
    lambda requests, errors: VariantStats(requests=requests, errors=min(errors, requests)), counts, counts
)
recorded = st.lists(st.tuples(st.floats(0.0, 1e6), st.booleans()), max_size=30)


def record(requests: list[tuple[float, bool]]) -> VariantStats:
    recorder = StatsRecorder()
    for latency_ms, error in requests:
        recorder.request(latency_ms, error=error)
    return recorder.stats()


@given(st.lists(st.floats(allow_nan=True), max_size=5))
def test_a_canary_has_rising_weights_or_is_refused(weights: list[float]) -> None:
    try:
        canary = Canary(weights=tuple(weights))
    except ConfigError:
        return
    assert all(0 < low < high for low, high in zip(canary.weights, canary.weights[1:], strict=False))
    assert canary.weights[-1] == 1.0


@given(rising, st.lists(st.tuples(variants, variants, st.floats(0, 5000)), max_size=12))
def test_weights_only_rise_and_a_rollout_ends_once(
    weights: tuple[float, ...], looks: list[tuple[VariantStats, VariantStats, float]]
) -> None:
    canary = Canary(weights=weights, hold_s=10, min_requests=50, max_wait_s=1000)
    rollout, now, given_weights = (
        Rollout(champion=1, challenger=2, step=0, entered_at=0.0, event_id="e"),
        0.0,
        [weights[0]],
    )
    for champion, challenger, passed in looks:
        now += passed
        decision = decide(canary, rollout, Comparison(champion=champion, challenger=challenger), now)
        if isinstance(decision, (Promote, Rollback)):
            break
        if isinstance(decision, Advance):
            assert decision.step == rollout.step + 1
            assert now - rollout.entered_at >= 10
            given_weights.append(decision.weight)
            rollout = Rollout(champion=1, challenger=2, step=decision.step, entered_at=now, event_id="e")
    assert given_weights == list(weights[: len(given_weights)])


@given(variants, st.integers(0, 49))
def test_nobody_advances_on_too_few_requests(champion: VariantStats, requests: int) -> None:
    canary = Canary(hold_s=0, min_requests=50)
    rollout = Rollout(champion=1, challenger=2, step=0, entered_at=0.0, event_id="e")
    comparison = Comparison(champion=champion, challenger=VariantStats(requests=requests))
    assert not isinstance(decide(canary, rollout, comparison, 1.0), (Advance, Promote))


@given(recorded, recorded, recorded)
def test_figures_merge_in_any_order(
    a: list[tuple[float, bool]], b: list[tuple[float, bool]], c: list[tuple[float, bool]]
) -> None:
    first, second, third = record(a), record(b), record(c)
    assert (first + second) + third == first + (second + third)
    assert first + second == second + first
    assert record(a + b) == first + second
    assert sum(first.latency) == first.requests


@given(st.integers(0, 2000), st.integers(1, 2000), st.sampled_from([0.2, 0.05, 0.001]))
def test_a_rate_lies_in_its_interval_and_less_alpha_is_wider(bad: int, good: int, alpha: float) -> None:
    n = bad + good
    low, high = rate_interval(bad, n, alpha)
    assert 0.0 <= low <= bad / n <= high <= 1.0
    wider_low, wider_high = rate_interval(bad, n, alpha / 10)
    assert wider_low <= low
    assert wider_high >= high
