"""Pipeline: the whole loop, declared. Validated when it is built, so that what cannot work never starts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.data.assess import Assess
from raymlops.data.combined import CombinedSource, parts_of
from raymlops.data.contract import Declared
from raymlops.data.features import FeatureFunction
from raymlops.data.schema import DataContract
from raymlops.data.served import ServedSource
from raymlops.data.sources import FileSource, FrameSource, RayDatasetSource, SparkSource
from raymlops.data.split import SplitBy
from raymlops.data.sql import SQLSource
from raymlops.errors import ConfigError
from raymlops.gate import Gate
from raymlops.monitor.monitor import Monitor
from raymlops.retrain import RetrainPolicy
from raymlops.search.selection import Search
from raymlops.serving.policies import POLICIES, Canary, Policy
from raymlops.serving.spec import Serving

if TYPE_CHECKING:
    from raymlops.loop.ports import Progress
    from raymlops.loop.ray_endpoint import Endpoint
    from raymlops.settings import Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_RESERVED = frozenset({"v2", "health", "champion", "challenger", "latest"})
SOURCES = (FileSource, FrameSource, SparkSource, SQLSource, RayDatasetSource, ServedSource, CombinedSource)
_SPECS = {
    "source": SOURCES,
    "assess": (Assess,),
    "split": (SplitBy,),
    "search": (Search,),
    "gate": (Gate,),
    "serving": (Serving,),
    "rollout": POLICIES,
    "monitor": (Monitor,),
    "retrain": (RetrainPolicy,),
}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One endpoint, from its data to its retraining. ``Pipeline(name=..., source=...)`` alone is a complete loop.

    Attributes
    ----------
    name : the endpoint's name and route; lower-case letters, digits, ``-`` and ``_``
    source : where the rows come from, with ``label=`` and, for data that has an order, ``time=``
    contract : what the data must be, as a file of YAML or a `DataContract`, whole or in part; what it leaves open is
        learned. Read when the pipeline is built
    features : pandas frame in, pandas frame out, one row per row; Spark runs it to train, the server to serve
    assess : how the data is judged before training, and which faults stop the pipeline
    split : which rows judge: the newest, or by group or stratum
    search, gate, serving, monitor, retrain : one spec a stage, each with useful defaults
    rollout : how a version gets its traffic: `Canary`, `BlueGreen`, `Shadow`, `ABTest` or `Bandit`

    Raises
    ------
    ConfigError : names the field, what was given, and what would be accepted
    """

    name: str
    source: FileSource | FrameSource | SparkSource | SQLSource | RayDatasetSource | ServedSource | CombinedSource
    features: FeatureFunction | None = None
    contract: str | Path | DataContract | Declared | None = None
    assess: Assess = field(default_factory=Assess)
    split: SplitBy = field(default_factory=SplitBy)
    search: Search = field(default_factory=Search)
    gate: Gate = field(default_factory=Gate)
    serving: Serving = field(default_factory=Serving)
    rollout: Policy = field(default_factory=Canary)
    monitor: Monitor = field(default_factory=Monitor)
    retrain: RetrainPolicy = field(default_factory=RetrainPolicy)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise ConfigError(
                f"name={self.name!r} cannot name an endpoint: give 1 to 63 lower-case letters, digits, '-' or '_', "
                f"beginning with a letter or digit, and none of {', '.join(sorted(_RESERVED))}."
            )
        for spec in fields(self):
            accepted, value = _SPECS.get(spec.name), getattr(self, spec.name)
            if accepted is not None and not isinstance(value, accepted):
                names = " or ".join(kind.__name__ for kind in accepted)
                raise ConfigError(f"{spec.name}={value!r} is a {type(value).__name__}: give a {names}.")
        if self.features is not None and not callable(self.features):
            raise ConfigError(f"features={self.features!r} is not callable: give a function of a pandas frame.")
        if self.contract is not None:
            self._read_contract()

    def _read_contract(self) -> None:
        from raymlops.data.contract_text import read

        if not isinstance(self.contract, (str, Path, DataContract, Declared)):
            raise ConfigError(
                f"contract={self.contract!r} is a {type(self.contract).__name__}: give a file's path or a DataContract."
            )
        declared = read(self.contract)
        if declared.label not in (None, self.source.label):
            raise ConfigError(
                f"The contract is about the label {declared.label!r}, the source about {self.source.label!r}."
            )
        object.__setattr__(self, "contract", declared)

    @property
    def declared(self) -> Declared:
        """What is stated about the data; nothing when no contract was given."""
        return self.contract if isinstance(self.contract, Declared) else Declared()

    @property
    def hidden(self) -> tuple[str, ...]:
        """Columns that the contract's checks need and the model must not see: they are in ``drop`` of the source, or of one
        of those it combines."""
        dropped = frozenset().union(*(part.drop for part in parts_of(self.source)))
        return tuple(name for name in self.declared.keys if name in dropped)

    def run(self, *, settings: Settings | None = None, progress: Progress | None = None) -> Endpoint:
        """Turn the loop once: prepare, search, gate, register, serve; then leave the endpoint to its steward.

        Joins the cluster that is running, or starts one in this process, which then ends with this process. Without ``progress``
        a notebook's cell, or the terminal that standard error is, shows the stages and a leaderboard that updates.

        Raises
        ------
        RunInProgress : another run of this pipeline has not ended
        AssessmentFailed, SearchFailed, GateRefused : the stage that stopped it; a champion that is serving stays
        """
        # At import time a line, at run time a loop: here, and only here, an earlier layer calls the last one.
        endpoint: Endpoint = import_module("raymlops.loop.ray_loop").run(self, settings=settings, progress=progress)
        return endpoint

    def dumps(self) -> bytes:
        """The pipeline by value: code of the user's own modules travels with it, so a retraining needs no source tree."""
        from raymlops.by_value import dumps_by_value

        return dumps_by_value(self, _user_code(self))


def loads(content: bytes, digest: str) -> Pipeline:
    """The pipeline from :meth:`Pipeline.dumps`, after checking its SHA-256.

    Raises
    ------
    ConfigError : the bytes are not the ones that were stored
    """
    import pickle

    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ConfigError(
            f"The stored pipeline has SHA-256 {found}, not {digest}: it was changed. Run the pipeline again."
        )
    pipeline = pickle.loads(content)
    if not isinstance(pipeline, Pipeline):
        raise ConfigError(f"The stored pipeline is a {type(pipeline).__name__}. Run the pipeline again.")
    _complete(pipeline)
    return pipeline


def _complete(spec: Any) -> None:
    """Give fields that an earlier raymlops did not have, and its pickle leaves unset, their defaults."""
    if isinstance(spec, (tuple, list)):
        for item in spec:
            _complete(item)
        return
    if not is_dataclass(spec) or isinstance(spec, type):
        return
    for item in fields(spec):
        if hasattr(spec, item.name):
            _complete(getattr(spec, item.name))
        elif item.default is not MISSING:
            object.__setattr__(spec, item.name, item.default)
        elif item.default_factory is not MISSING:
            object.__setattr__(spec, item.name, item.default_factory())
        else:
            raise ConfigError(
                f"The stored pipeline's {type(spec).__name__} has no {item.name!r}, which this raymlops needs. Run the pipeline again."
            )


def _user_code(pipeline: Pipeline) -> Iterator[Any]:
    """Whatever of the user's own a pipeline calls: functions, classes, families of models."""
    yield pipeline.features
    for part in parts_of(pipeline.source):
        yield from (getattr(part, name, None) for name in ("prepare", "dataset"))
    search = pipeline.search
    yield from (search.metric, search.weights)
    for family in search.candidates or ():
        yield from (family, getattr(family, "draw", None), *getattr(family, "options", {}).values())
