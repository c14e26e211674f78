"""One line around any torch optimizer that keeps a training run alive."""

from stableopt.errors import ConfigError, DivergenceError, MissingExtraError, StableOptError
from stableopt.guard import Guard
from stableopt.optimizer import StableOptimizer
from stableopt.telemetry import JsonLines
from stableopt.transforms import ClipGradNorm
from stableopt.types import Action, Event, Finding, Verdict
from stableopt.version import __version__

__all__ = [
    "Action",
    "ClipGradNorm",
    "ConfigError",
    "DivergenceError",
    "Event",
    "Finding",
    "Guard",
    "JsonLines",
    "MissingExtraError",
    "StableOptError",
    "StableOptimizer",
    "Verdict",
    "__version__",
]
