"""What a search has finished, kept in the lake: a search whose driver died goes on, and the next one starts wiser."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from raymlops.data.snapshot_origin import Code
from raymlops.lake import Lake
from raymlops.search.cost import Cost
from raymlops.search.proposals import Earlier
from raymlops.search.schedule import Job, Proposal
from raymlops.search.selection import Outcome

if TYPE_CHECKING:
    from raymlops.data.snapshot import Arrays
    from raymlops.search.leaderboard import Leaderboard, Trial
    from raymlops.search.objective import Mode
    from raymlops.search.selection import Problem

_REMEMBERED = 60
_END = "end.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One fit that ended; ``outcome`` is ``None`` for a failure."""

    proposal: Proposal
    rung: int
    outcome: Outcome | None
    reason: str = ""


class Journal:
    """The journal of one search, ``searches/{name}/{snapshot}`` in the lake.

    Every order's results are one object, written whole before its worker gets the next order: what is there has ended, what
    is not is run (again). A search goes on where an earlier one over the same snapshot, ladder, families and seed broke off; one that
    had come to its end is only taken up by the event that caused it.

    Parameters
    ----------
    name : of the pipeline
    snapshot : fingerprint of the rows
    event_id : of what caused the search
    """

    def __init__(self, lake: Lake, name: str, snapshot: str, event_id: str) -> None:
        self._lake, self._name, self._event_id = lake, name, event_id
        self._root = f"searches/{name}/{snapshot[:16]}"
        self._count = 0

    def open(self, facts: Mapping[str, Any]) -> list[Finished]:
        """What earlier processes of this search finished; empty when ``facts`` (ladder, seed, families) differ."""
        key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self._root = f"{self._root}/{key}"
        end = f"{self._root}/{_END}"
        if self._lake.exists(end) and json.loads(self._lake.read(end))["event_id"] != self._event_id:
            self._root = f"{self._root}-{self._event_id}"
        found: list[Finished] = []
        for item in self._lake.keys(self._root):
            if item != f"{self._root}/{_END}":
                found += [_read(body) for body in json.loads(self._lake.read(item))]
                self._count += 1
        return found

    def write(self, done: Sequence[Finished]) -> None:
        """Make the results of one order durable."""
        content = json.dumps([_plain(item) for item in done], default=_number).encode()
        self._lake.write(f"{self._root}/{self._count:06d}.json", content)
        self._count += 1

    def earlier(self, metric: str, mode: Mode) -> list[Earlier]:
        """The last complete search of this pipeline, best first; empty when it was for another metric."""
        key = f"searches/{self._name}/last.json"
        if not self._lake.exists(key):
            return []
        kept = json.loads(self._lake.read(key))
        # An earlier release kept the trials alone: it is not known which metric their scores are of.
        if not isinstance(kept, dict) or (kept["metric"], kept["mode"]) != (metric, mode):
            return []
        return [Earlier(**item) for item in kept["trials"]]

    def close(self, board: Leaderboard, points: Mapping[int, Mapping[str, Any]], chosen: Trial) -> None:
        """Leave what the search found to the next one, the promoted trial first."""
        ordered = [chosen, *(trial for trial in board.ranked if trial.number != chosen.number)][:_REMEMBERED]
        kept = [
            {"point": dict(points[trial.number]), "score": trial.score, "full": trial.status == "done"}
            for trial in ordered
        ]
        last = {"metric": board.metric, "mode": board.mode, "trials": kept}
        self._lake.write(f"searches/{self._name}/last.json", json.dumps(last, default=_number).encode())
        self._lake.write(f"{self._root}/{_END}", json.dumps({"event_id": self._event_id, "why": board.ended}).encode())


def facts(
    problem: Problem, seed: int, arrays: Arrays, shares: Sequence[float], recent: Sequence[float]
) -> dict[str, Any]:
    """What scores of a search depend on, besides the parameters drawn: where one of these differs, it is another search."""
    objective = problem.objective
    return {
        "rows": [
            len(arrays.y_train),
            len(arrays.y_validation),
            float(arrays.y_train.sum()),
            float(arrays.x_train[-1:].sum()),
        ],
        "metric": [objective.metric, objective.mode, _code(getattr(objective.function, "function", None))],
        "shares": shares,
        "recent": recent,
        "families": [
            [name, family.start, {key: _code(item) for key, item in (getattr(family, "options", None) or {}).items()}]
            for name, family in problem.families.items()
        ],
        "weights": _code(problem.weights),
        "monotone": problem.monotone,
        "quantile": problem.quantile,
        **({} if problem.costs is None else {"costs": [problem.costs.false_positive, problem.costs.false_negative]}),
        "seed": seed,
    }


def _code(given: Any) -> Any:
    """A function by its text and that of its module, since its address differs in every process; all else as it is."""
    if not callable(given):
        return given
    code = Code.of("search", given)
    return [code.name, code.digest, code.module_digest]


def finished(jobs: Sequence[Job], outcomes: Mapping[int, Outcome | str]) -> Iterator[Finished]:
    """The jobs of one order with what came of them."""
    for job in jobs:
        given = outcomes[job.proposal.number]
        if isinstance(given, str):
            yield Finished(proposal=job.proposal, rung=job.rung, outcome=None, reason=given)
        else:
            yield Finished(proposal=job.proposal, rung=job.rung, outcome=given)


def _plain(item: Finished) -> dict[str, Any]:
    return {
        "proposal": asdict(item.proposal),
        "rung": item.rung,
        "outcome": None if item.outcome is None else asdict(item.outcome),
        "reason": item.reason,
    }


def _read(body: Mapping[str, Any]) -> Finished:
    outcome = body["outcome"]
    if outcome is not None:
        cost = outcome["cost"]
        tuples = {name: tuple(outcome.get(name, ())) for name in ("groups", "wrongs")}
        outcome = Outcome(**{**outcome, **tuples, "cost": None if cost is None else Cost(**cost)})
    return Finished(proposal=Proposal(**body["proposal"]), rung=body["rung"], outcome=outcome, reason=body["reason"])


def _number(value: Any) -> Any:
    """NumPy scalars that a space drew are plain numbers in the journal."""
    return value.item()
