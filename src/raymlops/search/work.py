"""What a worker does with an order: fit after fit, each under a time limit, each failure caught with its reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from raymlops.search.rows import RowCache
from raymlops.search.selection import Outcome, Problem, run_trial

if TYPE_CHECKING:
    from raymlops.data.snapshot import Arrays
    from raymlops.search.schedule import Job, Order

_REASON_LIMIT = 500
_LEAST = 0.1


class Worker:
    """Holds one problem and one read-only copy of the arrays; its cuts and binned matrices live from order to order.

    Attributes
    ----------
    stuck : a fit did not end within its limit; its thread still runs, so this process should not be used again
    """

    def __init__(self, problem: Problem, arrays: Arrays) -> None:
        self._problem, self._arrays = problem, arrays
        self._cache = RowCache(arrays, problem.seed)
        self.stuck = False

    def work(self, order: Order, late_s: float = 0.0) -> dict[int, Outcome | str]:
        """Outcome or reason of failure by number of trial.

        Jobs after one that is stuck, or when the time is used, are left out: they were not run. So is one that was stopped because
        the time was used.

        Parameters
        ----------
        late_s : since the order was given; a worker may have had to start first
        """
        ended: dict[int, Outcome | str] = {}
        began = time.monotonic() - late_s
        for job in order.jobs:
            spent = time.monotonic() - began
            if ended and job.until_s is not None and spent >= job.until_s:
                break
            found = self._fit(job, spent)
            if found is not None:
                ended[job.proposal.number] = found
            if self.stuck:
                break
        return ended

    def _fit(self, job: Job, spent: float) -> Outcome | str | None:
        """``None`` when it was stopped because the time was used."""
        # However late, a fit that was ordered has a tenth of its time: a model of a few rounds may be the only one.
        until = None if job.until_s is None else max(_LEAST * job.until_s, job.until_s - spent)
        stop = None if job.stop_s is None else max(_LEAST * job.stop_s, job.stop_s - spent)
        found: list[Outcome | str] = []

        def run() -> None:
            try:
                found.append(
                    run_trial(
                        self._problem,
                        self._arrays,
                        job.proposal.family,
                        job.proposal.params,
                        job.share,
                        cache=self._cache,
                        until_s=until,
                    )
                )
            except BaseException as error:
                # A configuration that fails, or that tries to end the process, is a finding: the worker lives on.
                found.append(f"{type(error).__name__}: {error}"[:_REASON_LIMIT])

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(job.limit_s if stop is None else min(job.limit_s, stop))
        if found:
            return found[0]
        self.stuck = True
        if stop is not None and stop < job.limit_s:
            return None
        return f"no result within {job.limit_s:g} s (trial_timeout_s)"


def left_over(order: Order, ended: Mapping[int, Outcome | str]) -> tuple[Job, ...]:
    """Jobs of an order that were not run."""
    return tuple(job for job in order.jobs if job.proposal.number not in ended)
