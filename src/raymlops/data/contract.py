"""A contract as a person states it: whole or in part; what it leaves open is learned from each snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from raymlops.data.contract_checks import Violation, check_data, named_columns, other_columns, violation_error
from raymlops.data.contract_rules import Rule
from raymlops.data.schema import Class, Column, DataContract, Others, Task
from raymlops.data.schema_learn import learn_columns
from raymlops.errors import ConfigError, nearest

_STATED = ("kind", "nullable", "low", "high", "closed", "categories")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a contract file says.

    Attributes
    ----------
    columns : attributes of :class:`raymlops.data.schema.Column` by column name; those not stated are learned
    label, task, classes : ``None`` where they are not stated

    The rest as in :class:`raymlops.data.schema.DataContract`.
    """

    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    label: str | None = None
    task: Task | None = None
    classes: tuple[Class, ...] | None = None
    rules: tuple[Rule, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    max_age_s: float | None = None
    others: Others = "learn"

    @classmethod
    def of(cls, contract: DataContract) -> Declared:
        """Everything a contract says, as stated."""
        return cls(
            columns={
                column.name: {k: v for k, v in column.to_dict().items() if k != "name"}
                | {"categories": column.categories}
                for column in contract.columns
            },
            label=contract.label,
            task=contract.task,
            classes=contract.classes,
            rules=contract.rules,
            unique=contract.unique,
            max_age_s=contract.max_age_s,
            others=contract.others,
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns that name rows or stand in rules: checks need them, also where the model must not see them."""
        return tuple(sorted(named_columns(self)))

    def complete(self) -> DataContract:
        """The contract itself, when everything is stated.

        Raises
        ------
        ConfigError : names what is left open, or what does not fit together
        """
        open_ = [name for name in ("label", "task") if getattr(self, name) is None]
        open_ += ["classes"] if self.classes is None and self.task != "regression" else []
        for name, stated in self.columns.items():
            open_ += [f"columns.{name}.{word}" for word in ("kind", "nullable") if word not in stated]
        if open_ or not self.columns:
            raise ConfigError(
                f"The contract leaves {', '.join(open_[:10]) or 'its columns'} open: give it to a pipeline, which "
                "learns the rest from its data, or state it."
            )
        assert self.label is not None
        assert self.task is not None
        columns = tuple(
            Column(name=name, **{"minimum": None, "maximum": None, **stated}) for name, stated in self.columns.items()
        )
        return self._made(columns, self.label, self.task, self.classes or ())

    def over(
        self,
        frame: pd.DataFrame,
        label: str,
        *,
        time: str | None,
        now: float,
        hidden: Iterable[str] = (),
        served: bool = False,
    ) -> tuple[DataContract, tuple[str, ...]]:
        """The contract of a data set: what is stated, with the rest learned from ``frame``, which has been checked.

        Parameters
        ----------
        time : the column with each row's time, which is no input
        now : seconds since 1970, for freshness
        hidden : columns that the model must not see: what checks need, and what names or groups rows
        served : as :func:`raymlops.data.contract_checks.check_data` has it

        Returns
        -------
        the contract, and in words what does not apply to served rows

        Raises
        ------
        ContractViolation : the data does not keep what is stated
        ConfigError : the contract states another label than the source
        DataError : what :func:`raymlops.data.schema.learn_contract` refuses
        """
        if self.label not in (None, label):
            raise ConfigError(f"The contract is about the label {self.label!r}, the source about {label!r}.")
        hidden, there = frozenset(hidden), list(map(str, frame.columns))
        if self.others == "refuse":
            found = other_columns(frame, {*self.columns, label, time, *self.keys, *hidden})
            if found:
                raise violation_error(found)
        lost = [name for name in self.columns if name not in there]
        if lost:
            words = ((name, f"no such column.{nearest(name, there)}") for name in lost)
            raise violation_error([Violation(what=f"column {n!r}", expected="to be there", got=w) for n, w in words])
        stated = {name: {word: said[word] for word in _STATED if word in said} for name, said in self.columns.items()}
        left_out = {*hidden, *([time] if time else [])} - {label}
        unchecked = left_out - {time, *self.keys}
        columns, task, classes = learn_columns(frame, label, self.task, left_out, stated)
        contract = self._made(columns, label, task, classes if self.classes is None else self.classes)
        learned = [name for name in contract.names if not self.columns.get(name)]
        checked = frame.drop(columns=[name for name in frame.columns if name in unchecked])
        return contract, check_data(contract, checked, time=time, now=now, served=served, learned=learned)

    def _made(self, columns: tuple[Column, ...], label: str, task: Task, classes: tuple[Class, ...]) -> DataContract:
        return DataContract(
            columns=columns,
            label=label,
            task=task,
            classes=() if task == "regression" else classes,
            rules=self.rules,
            unique=self.unique,
            max_age_s=self.max_age_s,
            others=self.others,
        )
