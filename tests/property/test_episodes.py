"""One retraining an episode of drift, in many seeded worlds: whatever jobs, canaries and probes come to."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from raymlops.monitor.triage import Diagnosis
from raymlops.retrain import RetrainPolicy
from raymlops.retrain_state import ALARMS
from raymlops.testing.simulator import Ending, Simulator, Story, World

HOUR, DAYS = 3600.0, 14
ENDINGS: tuple[Ending, ...] = ("candidate", "refused", "failed")
BROKEN = Diagnosis(kind="broken_data", note="a column is missing")


def world(seed: int) -> tuple[RetrainPolicy, World]:
    """Changes at random times, of which some are over by themselves, some answered by a retraining, some by nothing."""
    rng = random.Random(seed)
    changes = [(at, at + rng.expovariate(1 / 40) * HOUR, rng.random() < 0.5) for at in _times(rng, 4)]
    broken = [(at, at + 5 * HOUR) for at in _times(rng, 2)]
    weights = [rng.random(), rng.random(), rng.random() / 2]
    odd, gains = rng.random() / 2, rng.random()

    def harm(at: float, trained_at: float) -> bool:
        return any(begin <= at < end and not (lasts and trained_at >= begin) for begin, end, lasts in changes)

    def excess(at: float, trained_at: float) -> float:
        lucky = random.Random(f"{seed} {at}").random() < gains
        return 0.5 if harm(at, trained_at) and lucky else 0.0

    policy = RetrainPolicy(
        cooldown=rng.choice(["10m", "1h", "6h"]),
        max_per_day=rng.choice([2, 4, 24]),
        min_labels=rng.choice([100, 500, 3000]),
        give_up_after=rng.choice([2, 5, 20]),
        probe=rng.random() < 0.7,
        every=rng.choice([None, "2d"]),
    )
    return policy, World(
        harm=harm,
        excess=excess,
        probe_fails=lambda number: random.Random(f"{seed} probe {number}").random() < odd,
        ending=lambda turn, _at: random.Random(f"{seed} end {turn}").choices(ENDINGS, weights)[0],
        canary_fails=lambda version: random.Random(f"{seed} canary {version}").random() < odd,
        diagnosis=lambda at: BROKEN if any(begin <= at < end for begin, end in broken) else None,
        labels_per_window=rng.choice([200, 1000]),
        window_s=rng.choice(["20m", "1h"]),
        train_s=rng.choice(["10m", "3h"]),
    )


def _times(rng: random.Random, count: int) -> list[float]:
    return sorted(rng.uniform(0, DAYS * 24) * HOUR for _ in range(count))


def alarmed(story: Story) -> list[tuple[float, dict[str, object]]]:
    """Starts that an alarm asked for: when, and their evidence."""
    started = [(at, body) for kind, at, body in story.events if kind == "retrain_started"]
    return [(at, body["evidence"]) for at, body in started if body["reason"].split(":")[0] in ALARMS]


@pytest.mark.parametrize("first", range(0, 48, 8))
def test_never_more_than_one_retraining_starts_in_an_episode(first: int) -> None:
    alarms = followed = 0
    for seed in range(first, first + 8):
        policy, made = world(seed)
        story = Simulator(policy, made, person=lambda at: at % (3 * 24 * HOUR) < HOUR).run(DAYS)
        started = [body["evidence"] for kind, _, body in story.events if kind == "retrain_started"]
        episodes = [each["episode"] for each in started if "episode" in each]
        assert len(episodes) == len(set(episodes)), seed
        found = alarmed(story)
        assert all("episode" in each for _, each in found), seed
        # Between two of them a window was reported, which asks for the second.
        window_s = 1200.0 if made.window_s == "20m" else HOUR
        for (before, _), (after, each) in pairwise(found):
            assert after // window_s > before // window_s, seed
            followed += each["after_episode"] is not None
        if policy.probe:
            gained = [at for kind, at, body in story.events if kind in ("probed", "probe_failed")]
            for number, (at, _) in enumerate(found):
                since = found[number - 1][0] if number else 0.0
                assert any(since < then <= at for then in gained), seed
        assert story.down_ticks == 0
        alarms += len(found)
    assert alarms > 8
    assert followed > 0
