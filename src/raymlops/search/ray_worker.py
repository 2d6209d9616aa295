"""What a Tune actor of a search runs. Kept apart from the search itself: a worker starts a second sooner without Optuna."""

from __future__ import annotations

import os
import time
from typing import Any

from ray import tune

from raymlops.search.work import Worker


class OrderTrainable(tune.Trainable):
    """One order of fits in one step. An actor serves many orders, one after another."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        self._worker = Worker(given["problem"], given["arrays"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._worker.stuck:
            # A thread that does not end cannot be taken back; the order in hand is given to another worker.
            os._exit(1)
        return True

    def step(self) -> dict[str, Any]:
        # Wall clocks, since the order may come from another node; an order from the future is taken for one of now.
        late_s = max(0.0, time.time() - self.config["given_at"])
        return {"ended": 1.0, "outcomes": Kept(self._worker.work(self.config["order"].held, late_s)), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        return None


class Kept:
    """Holds a value that Tune shall neither flatten, copy deeply, nor print."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return self

    def __repr__(self) -> str:
        return "order"
