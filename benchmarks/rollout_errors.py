"""How often a rollout's judge is wrong: good canaries rolled back, bad ones promoted, and the requests it takes.

    python benchmarks/rollout_errors.py [--quick] [--runs N] [--rate REQUESTS_PER_SECOND] [--seed N]

A simulation of requests that fail at random, looked at every second. Our judge is `decide` with the `Canary` of the defaults
(weights 0.1 and 0.5, 30 s each). Its peers, on the same traffic:

- flagger: request success rate of the last minute at least 99 %, looked at each minute; a failed check is counted and
  holds the weight, the fifth rolls back; weights 10 to 50 in steps of 10, then promotion. What its documentation shows.
- argo: the success rate of the last minute at least 95 % each minute, failed at the fourth failure (`failureLimit: 3`, as in
  its documentation); weights 20, 40, 60, 80 for two minutes each.
- z-test: our weights and times with a two-proportion z-test at 5 % looked at every second, as if each look were the only one.

Prints one line of JSON last. `false_rollback_rate`, `miss_rate` and `requests_to_verdict` are ours over all good, all bad and
all runs; `cells` has them for each pair of error rates and judge, with the failed requests that users met before
the verdict (ours are answered by the champion: shielded). `ever_failed` is the share of equal pairs that is ever failed
when nobody stops looking, to be held against `alpha`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from raymlops.serving.analysis import ALPHA, Comparison, VariantStats
from raymlops.serving.policies import Canary
from raymlops.serving.rollout import Advance, Promote, Rollback, Rollout, decide

GOOD = ((0.001, 0.001), (0.005, 0.005), (0.01, 0.01), (0.02, 0.02), (0.1, 0.1))
BAD = ((0.001, 0.03), (0.005, 0.05), (0.01, 0.1), (0.01, 0.3), (0.01, 1.0))
LIMIT_S = 7200


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How one rollout ended: requests the challenger got and those of them that failed."""

    promoted: bool
    requests: int
    errors: int
    seconds: int


class Traffic:
    """One second at a time: requests and errors of both, at the weight of that second."""

    def __init__(self, rng: np.random.Generator, rate: int, old: float, new: float) -> None:
        self._rng, self._rate, self._old, self._new = rng, rate, old, new

    def second(self, weight: float) -> tuple[int, int, int, int]:
        n = int(self._rng.poisson(self._rate))
        mine = int(self._rng.binomial(n, weight))
        rest = n - mine
        return rest, int(self._rng.binomial(rest, self._old)), mine, int(self._rng.binomial(mine, self._new))


def ours(traffic: Traffic, policy: Canary) -> Run:
    """The real `decide`, once a second; past ten minutes every tenth, to save the machine's time and not its own."""
    first = policy.stages[0]
    rollout = Rollout(champion=1, challenger=2, step=0, entered_at=0.0, event_id="e", weight=first.weight)
    counts = np.zeros(4, dtype=int)
    for now in range(1, LIMIT_S):
        counts += traffic.second(rollout.weight)
        if now > 600 and now % 10:
            continue
        n_old, bad_old, n_new, bad_new = (int(count) for count in counts)
        comparison = Comparison(
            champion=VariantStats(requests=n_old, errors=bad_old),
            challenger=VariantStats(requests=n_new, errors=bad_new),
        )
        match decide(policy, rollout, comparison, float(now)):
            case Advance(step=step, weight=weight):
                rollout = replace(rollout, step=step, weight=weight, entered_at=float(now))
            case Promote():
                return Run(promoted=True, requests=n_new, errors=bad_new, seconds=now)
            case Rollback():
                return Run(promoted=False, requests=n_new, errors=bad_new, seconds=now)
    return Run(promoted=False, requests=int(counts[2]), errors=int(counts[3]), seconds=LIMIT_S)


def z_test(traffic: Traffic, policy: Canary) -> Run:
    """The same steps with a test that is valid at one look."""
    counts, now = np.zeros(4, dtype=int), 0
    for stage in policy.stages:
        for _ in range(int(float(policy.hold_s))):
            now += 1
            counts += traffic.second(stage.weight)
            n_old, bad_old, n_new, bad_new = (int(count) for count in counts)
            if n_new < policy.min_requests or not n_old:
                continue
            pooled = (bad_old + bad_new) / (n_old + n_new)
            error = math.sqrt(pooled * (1 - pooled) * (1 / n_old + 1 / n_new))
            if error > 0 and (bad_new / n_new - bad_old / n_old) / error > 1.645:
                return Run(promoted=False, requests=n_new, errors=bad_new, seconds=now)
    return Run(promoted=True, requests=int(counts[2]), errors=int(counts[3]), seconds=now)


def minutes(traffic: Traffic, weight: float, count: int) -> Iterator[tuple[int, int]]:
    for _ in range(count):
        seen = np.sum([traffic.second(weight) for _ in range(60)], axis=0)
        yield int(seen[2]), int(seen[3])


def flagger(traffic: Traffic, threshold: float = 0.99, limit: int = 5) -> Run:
    """A failed check holds the weight and is counted; the count is not taken back (its `scheduler.go`)."""
    failed = requests = errors = seconds = 0
    weight = 0.1
    while True:
        n, bad = next(minutes(traffic, weight, 1))
        requests, errors, seconds = requests + n, errors + bad, seconds + 60
        if n == 0 or 1 - bad / n < threshold:
            failed += 1
            if failed >= limit:
                return Run(promoted=False, requests=requests, errors=errors, seconds=seconds)
        elif weight >= 0.5:
            return Run(promoted=True, requests=requests, errors=errors, seconds=seconds)
        else:
            weight = round(weight + 0.1, 2)


def argo(traffic: Traffic, threshold: float = 0.95, limit: int = 3) -> Run:
    """A background analysis beside the steps."""
    failed = requests = errors = seconds = 0
    for weight in (0.2, 0.4, 0.6, 0.8):
        for n, bad in minutes(traffic, weight, 2):
            requests, errors, seconds = requests + n, errors + bad, seconds + 60
            failed += n > 0 and 1 - bad / n < threshold
            if failed > limit:
                return Run(promoted=False, requests=requests, errors=errors, seconds=seconds)
    return Run(promoted=True, requests=requests, errors=errors, seconds=seconds)


def ever_failed(rng: np.random.Generator, runs: int, paired: bool) -> float:
    """The share of equal pairs that a verdict ever fails over 20,000 requests and labels, looked at 200 times, when
    nobody stops looking. Errors 1 %, losses and scores drawn alike; with `paired` both answer the same rows."""
    failed = 0
    for _ in range(runs):
        old = new = VariantStats()
        for _ in range(200):
            n = 100
            base = rng.beta(1, 4, n)
            first, second = (np.clip(base + rng.normal(0, 0.05, n), 0, 1) for _ in range(2))
            if not paired:
                second = np.clip(rng.beta(1, 4, n) + rng.normal(0, 0.05, n), 0, 1)
            old += _stats(rng, n, first).with_losses(first.tolist())
            fresh = _stats(rng, n, second)
            if paired:
                apart = second - first
                fresh = fresh.with_gaps(apart.tolist()) + VariantStats(
                    pair_n=n, pair_sum=float(apart.sum()), pair_sumsq=float((apart**2).sum())
                )
            new += fresh if paired else fresh.with_losses(second.tolist())
            if Comparison(champion=old, challenger=new).verdict(100).outcome == "FAIL":
                failed += 1
                break
    return failed / runs


def _stats(rng: np.random.Generator, n: int, scores: np.ndarray[Any, Any]) -> VariantStats:
    return VariantStats(
        requests=n,
        errors=int(rng.binomial(n, 0.01)),
        score_n=n,
        score_sum=float(scores.sum()),
        score_sumsq=float((scores**2).sum()),
    )


def cell(runs: list[Run], bad: bool, shielded: bool) -> dict[str, float]:
    wrong = sum(run.promoted == bad for run in runs) / len(runs)
    return {
        "miss_rate" if bad else "false_rollback_rate": round(wrong, 4),
        "requests_to_verdict": float(np.median([run.requests for run in runs])),
        "seconds_to_verdict": float(np.median([run.seconds for run in runs])),
        "failed_for_users": 0.0 if shielded else float(np.median([run.errors for run in runs])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 runs a cell instead of 1,000; minutes on two cores")
    parser.add_argument("--runs", type=int, help="runs a cell")
    parser.add_argument("--rate", type=int, default=40, help="requests a second to the endpoint")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    runs = options.runs or (100 if options.quick else 1000)
    began, policy = time.monotonic(), Canary()
    judges: dict[str, Any] = {
        "raymlops": lambda traffic: ours(traffic, policy),
        "flagger": flagger,
        "argo": argo,
        "z-test": lambda traffic: z_test(traffic, policy),
    }
    cells: dict[str, dict[str, dict[str, float]]] = {}
    totals: dict[str, dict[str, list[Run]]] = {name: {"good": [], "bad": []} for name in judges}
    for kind, pairs in (("good", GOOD), ("bad", BAD)):
        for old, new in pairs:
            key = f"{old:g} -> {new:g}"
            cells[key] = {}
            for name, judge in judges.items():
                rng = np.random.default_rng([options.seed, int(old * 1e6), int(new * 1e6), len(name)])
                ended = [judge(Traffic(rng, options.rate, old, new)) for _ in range(runs)]
                totals[name][kind] += ended
                cells[key][name] = cell(ended, kind == "bad", name == "raymlops")
            print(f"{kind} {key}: {cells[key]}", flush=True)
    rng = np.random.default_rng(options.seed)
    looked = {str(name): ever_failed(rng, runs, name == "paired") for name in ("samples", "paired")}
    summary = {
        name: {
            "false_rollback_rate": round(sum(not run.promoted for run in kinds["good"]) / len(kinds["good"]), 4),
            "miss_rate": round(sum(run.promoted for run in kinds["bad"]) / len(kinds["bad"]), 4),
            "requests_to_verdict": float(np.median([run.requests for run in kinds["good"] + kinds["bad"]])),
            "seconds_to_verdict": float(np.median([run.seconds for run in kinds["good"] + kinds["bad"]])),
        }
        for name, kinds in totals.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "rollout_errors",
                "alpha": ALPHA,
                **summary["raymlops"],
                "ever_failed": looked,
                "runs": runs,
                "rate": options.rate,
                "cells": cells,
                "peers": {name: figures for name, figures in summary.items() if name != "raymlops"},
                "seconds": round(time.monotonic() - began, 1),
                "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
                "versions": {name: version(name) for name in ("raymlops", "numpy", "scipy")},
            }
        )
    )


if __name__ == "__main__":
    main()
