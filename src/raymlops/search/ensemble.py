"""Which trials make a better model together: greedy selection over what they said of the validation rows. Pure.

Caruana, Niculescu-Mizil, Crew and Ksikes (2004), "Ensemble selection from libraries of models", ICML: forward selection with replacement,
begun with the best model. Whether the ensemble is taken is not decided here but on rows it was not chosen on, see
:mod:`raymlops.loop.ensembling`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import ConfigError
from raymlops.search.candidates import Candidate, Settled, settled
from raymlops.search.ensemble_model import EnsembleEstimator, mean

if TYPE_CHECKING:
    import optuna

    from raymlops.data.schema import Task
    from raymlops.search.objective import Objective

FAMILY = "ensemble"
MOST_MEMBERS = 10
LIBRARY, JUDGED = 12, 10_000
_STEPS = 20

Said = NDArray[np.float32]


def check_ensemble(given: Any, distributed: Any) -> None:
    """Raises :class:`ConfigError` for what is neither 0 nor a whole number from 2 to 10, and beside spread fits."""
    if isinstance(given, bool) or not isinstance(given, int) or given == 1 or not 0 <= given <= MOST_MEMBERS:
        raise ConfigError(
            f"ensemble={given!r} cannot work: give 0 for none, or how many trials may make one, from 2 to {MOST_MEMBERS}."
        )
    if given and distributed is True:
        raise ConfigError(
            f"ensemble={given} and distributed=True do not go together: each member would be spread over the workers in turn. "
            "Give ensemble=0, or distributed=False."
        )


def judged_rows(n: int, classes: int) -> NDArray[np.intp]:
    """Of ``n`` validation rows those whose predictions are kept, spread evenly: 10,000, or with more than two classes fewer."""
    most = JUDGED if classes <= 2 else max(1000, 2 * JUDGED // classes)
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.intp))


class Library:
    """What the best trials of a search, fitted on train rows alone, say of the :func:`judged_rows`.

    Attributes
    ----------
    said : by number of the trial, ``(n,)`` or ``(n, k)``; of at most twelve, the best by score, those over-fitted by more than ``max_gap`` last
    until : on the monotonic clock, when the search's time budget ends; ``None`` without one
    threads : that a fit may take
    """

    def __init__(self, objective: Objective, max_gap: float | None = None) -> None:
        self._objective, self._max_gap = objective, max_gap
        self._places: dict[int, tuple[bool, float, int]] = {}
        self.said: dict[int, Said] = {}
        self.until: float | None = None
        self.threads = 1

    def add(self, number: int, score: float, gap: float, said: Said) -> None:
        sign = -1.0 if self._objective.mode == "max" else 1.0
        beyond = self._max_gap is not None and gap > self._max_gap
        self._places[number], self.said[number] = (beyond, sign * score, number), said
        if len(self.said) > LIBRARY:
            worst = max(self._places, key=self._places.__getitem__)
            del self._places[worst], self.said[worst]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Weights by number of the trial, positive, of sum 1; ``score`` is on the rows they were chosen on."""

    weights: Mapping[int, float]
    score: float

    def predict(self, said: Mapping[int, NDArray[Any]]) -> NDArray[np.float64]:
        numbers = sorted(self.weights)
        return np.asarray(mean([said[number] for number in numbers], [self.weights[number] for number in numbers]))


def select(
    objective: Objective, y: NDArray[Any], said: Mapping[int, NDArray[Any]], most: int, steps: int = _STEPS
) -> Selection:
    """At most ``most`` trials and their weights, by the objective on the rows ``y`` ``(n,)``.

    Each step adds the trial, perhaps one that is in already, that makes the mean best; the step with the best mean is kept, and the
    first one is the best trial alone: on these rows the selection is never worse than it. Equal scores go to the lower number, so that
    the order in which trials are given does not matter.

    Parameters
    ----------
    said : by number of the trial, ``(n,)`` or ``(n, k)``; at least one
    """
    numbers = sorted(said)
    parts = {number: np.asarray(said[number], dtype=np.float64) for number in numbers}
    counts: dict[int, int] = {}
    total = np.zeros_like(parts[numbers[0]])
    best: Selection | None = None
    for step in range(1, steps + 1):
        open_to = numbers if len(counts) < most else sorted(counts)
        highest, chosen = float("nan"), open_to[0]
        for number in open_to:
            tried = objective.score_part(y, (total + parts[number]) / step)
            if objective.better(tried, highest):
                highest, chosen = tried, number
        counts[chosen] = counts.get(chosen, 0) + 1
        total = total + parts[chosen]
        made = Selection(weights={number: count / step for number, count in sorted(counts.items())}, score=float("nan"))
        # Of what will be served: the sum above may break ties of ranks otherwise, in its last bit.
        made = replace(made, score=objective.score_part(y, made.predict(parts)))
        if best is None or objective.better(made.score, best.score):
            best = made
    assert best is not None
    return best


def halves(n: int, *, ordered: bool, seed: int) -> NDArray[np.bool_]:
    """Which of ``n`` rows are in the first half: every other tenth where the rows have an order in time, else at random."""
    if ordered:
        return (np.arange(n) * 10 // max(n, 1)) % 2 == 0
    return np.random.default_rng(seed).permutation(n) % 2 == 0


def cross_fitted(
    objective: Objective, y: NDArray[Any], said: Mapping[int, NDArray[Any]], most: int, first: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """What an ensemble says of each row that was chosen on the other half of the rows."""
    answer = np.zeros(next(iter(said.values())).shape)
    for half in (first, ~first):
        made = select(objective, y[~half], {number: part[~half] for number, part in said.items()}, most)
        answer[half] = made.predict({number: part[half] for number, part in said.items()})
    return answer


# --- an ensemble as a family ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """The family of an ensemble: its parameter ``members`` lists ``trial``, ``weight``, ``family`` and ``params`` of each."""

    families: Mapping[str, Candidate] = field(repr=False)
    start: Mapping[str, Any] = field(default_factory=dict)
    name: str = FAMILY

    @property
    def tasks(self) -> tuple[Task, ...]:
        shared = [set(family.tasks) for family in self._used()]
        return tuple(sorted(set.intersection(*shared)))

    @property
    def can(self) -> tuple[str, ...]:
        shared = [set(getattr(family, "can", ())) for family in self._used()]
        return tuple(sorted(set.intersection(*shared)))

    def _used(self) -> list[Candidate]:
        named = [member["family"] for member in self.start.get("members", ())]
        return [self.families[name] for name in named] or list(self.families.values())

    def space(self, trial: optuna.Trial) -> dict[str, Any]:
        return dict(self.start)

    def build(
        self, params: Mapping[str, Any], task: Task, n_classes: int, categorical: Sequence[int], seed: int
    ) -> EnsembleEstimator:
        members = params["members"]
        built = [
            self.families[member["family"]].build(
                {key: value for key, value in member["params"].items() if key != "recent"},
                task,
                n_classes,
                categorical,
                seed,
            )
            for member in members
        ]
        windows = [float(member["params"].get("recent", 1.0)) for member in members]
        return EnsembleEstimator(built, [member["weight"] for member in members], windows, seed)


def settle(name: str, params: Mapping[str, Any], offered: Sequence[Candidate]) -> Settled | None:
    """A version's family with its parameters, to be fitted again; ``None`` when ``offered`` does not hold it.

    An ensemble stays one: its members' configurations and weights are kept, and all learn from one window of the rows.
    """
    families = {family.name: family for family in offered}
    if name != FAMILY:
        return settled(families[name], params) if name in families else None
    if not {member["family"] for member in params["members"]} <= set(families):
        return None
    members = []
    for member in params["members"]:
        kept = settled(families[member["family"]], member["params"])
        members.append({**member, "params": dict(kept.params)})
    ensemble = Ensemble(families=families, start={"members": members})
    return Settled(family=ensemble, params=ensemble.start)


def plain(family: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as a person reads them in one line: of an ensemble, the weight, family and trial of each member.

    >>> plain("ensemble", {"members": [{"trial": 3, "weight": 0.75, "family": "xgboost", "params": {}}]})
    {'members': '0.75 x xgboost (trial 3)'}
    """
    if family != FAMILY:
        return dict(params)
    return {**params, "members": named(params["members"])}


def named(members: Sequence[Mapping[str, Any]]) -> str:
    return " + ".join(f"{item['weight']:.2f} x {item['family']} (trial {item['trial']})" for item in members)
