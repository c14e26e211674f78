"""One line around any torch optimizer that keeps a training run alive."""

from stableopt.errors import ConfigError, DivergenceError, MissingExtraError, StableOptError
from stableopt.gate import StabilityGate
from stableopt.guard import Guard, SignalRule
from stableopt.optimizer import StableOptimizer
from stableopt.telemetry import JsonLines
from stableopt.transforms import (
    AdaptiveWeightDecay,
    ClipGradNorm,
    LogitBound,
    LoRANormClamp,
    MaxNorm,
    QKClip,
    SpectralCap,
    SpectralNormalization,
    UpdateCap,
    layers,
)
from stableopt.triggers import above, below, drift
from stableopt.types import Action, Event, Finding, Verdict
from stableopt.version import __version__

__all__ = [
    "Action",
    "AdaptiveWeightDecay",
    "ClipGradNorm",
    "ConfigError",
    "DivergenceError",
    "Event",
    "Finding",
    "Guard",
    "JsonLines",
    "LoRANormClamp",
    "LogitBound",
    "MaxNorm",
    "MissingExtraError",
    "QKClip",
    "SignalRule",
    "SpectralCap",
    "SpectralNormalization",
    "StabilityGate",
    "StableOptError",
    "StableOptimizer",
    "UpdateCap",
    "Verdict",
    "__version__",
    "above",
    "below",
    "drift",
    "layers",
]
