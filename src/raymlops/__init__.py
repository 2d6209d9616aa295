"""raymlops: one declared pipeline becomes a model endpoint that looks after itself on a Ray cluster.

The public names load on first use (PEP 562), so that ``import raymlops`` starts nothing and imports no engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "ABTest": "raymlops.serving.policies",
    "Assess": "raymlops.data.assess",
    "Bandit": "raymlops.serving.policies",
    "BlueGreen": "raymlops.serving.policies",
    "Canary": "raymlops.serving.policies",
    "CombinedSource": "raymlops.data.combined",
    "Costs": "raymlops.search.threshold",
    "Catalog": "raymlops.data.catalog",
    "DataContract": "raymlops.data.schema",
    "Endpoint": "raymlops.loop.ray_endpoint",
    "FileSource": "raymlops.data.sources",
    "FrameSource": "raymlops.data.sources",
    "Gate": "raymlops.gate",
    "Monitor": "raymlops.monitor.monitor",
    "Pipeline": "raymlops.pipeline",
    "RayDatasetSource": "raymlops.data.sources",
    "RaymlopsError": "raymlops.errors",
    "RetrainPolicy": "raymlops.retrain",
    "SQLSource": "raymlops.data.sql",
    "Search": "raymlops.search.selection",
    "ServedSource": "raymlops.data.served",
    "Serving": "raymlops.serving.spec",
    "Settings": "raymlops.settings",
    "Shadow": "raymlops.serving.policies",
    "SparkSource": "raymlops.data.sources",
    "SplitBy": "raymlops.data.split",
    "candidates": "raymlops.search.candidates",
}

__all__ = [
    "ABTest",
    "Assess",
    "Bandit",
    "BlueGreen",
    "Canary",
    "CombinedSource",
    "Costs",
    "Catalog",
    "DataContract",
    "Endpoint",
    "FileSource",
    "FrameSource",
    "Gate",
    "Monitor",
    "Pipeline",
    "RayDatasetSource",
    "RaymlopsError",
    "RetrainPolicy",
    "SQLSource",
    "Search",
    "ServedSource",
    "Serving",
    "Settings",
    "Shadow",
    "SparkSource",
    "SplitBy",
    "candidates",
]

if TYPE_CHECKING:
    from raymlops.data.assess import Assess
    from raymlops.data.catalog import Catalog
    from raymlops.data.combined import CombinedSource
    from raymlops.data.schema import DataContract
    from raymlops.data.served import ServedSource
    from raymlops.data.sources import FileSource, FrameSource, RayDatasetSource, SparkSource
    from raymlops.data.split import SplitBy
    from raymlops.data.sql import SQLSource
    from raymlops.errors import RaymlopsError
    from raymlops.gate import Gate
    from raymlops.loop.ray_endpoint import Endpoint
    from raymlops.monitor.monitor import Monitor
    from raymlops.pipeline import Pipeline
    from raymlops.retrain import RetrainPolicy
    from raymlops.search import candidates
    from raymlops.search.selection import Search
    from raymlops.search.threshold import Costs
    from raymlops.serving.policies import ABTest, Bandit, BlueGreen, Canary, Shadow
    from raymlops.serving.spec import Serving
    from raymlops.settings import Settings


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'raymlops' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    value = module if name == "candidates" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
