"""One line around any torch optimizer that keeps a training run alive."""

from typing import TYPE_CHECKING

from stableopt.runtime.lazy import lazily
from stableopt.runtime.version import __version__

if TYPE_CHECKING:
    from stableopt.errors import (
        ConfigError,
        DivergenceError,
        MissingExtraError,
        RanksError,
        StableOptError,
    )
    from stableopt.guard import Guard
    from stableopt.optimizer import StableOptimizer
    from stableopt.optimizer.gate import StabilityGate
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
    from stableopt.triggers import SignalRule
    from stableopt.triggers.conditions import above, below, drift
    from stableopt.types import Action, Event, Finding, Verdict

_HOMES = {
    "Action": "types",
    "AdaptiveWeightDecay": "transforms",
    "ClipGradNorm": "transforms",
    "ConfigError": "errors",
    "DivergenceError": "errors",
    "Event": "types",
    "Finding": "types",
    "Guard": "guard",
    "JsonLines": "telemetry",
    "LoRANormClamp": "transforms",
    "LogitBound": "transforms",
    "MaxNorm": "transforms",
    "MissingExtraError": "errors",
    "QKClip": "transforms",
    "RanksError": "errors",
    "SignalRule": "triggers",
    "SpectralCap": "transforms",
    "SpectralNormalization": "transforms",
    "StabilityGate": "optimizer.gate",
    "StableOptError": "errors",
    "StableOptimizer": "optimizer",
    "UpdateCap": "transforms",
    "Verdict": "types",
    "above": "triggers",
    "below": "triggers",
    "drift": "triggers",
    "layers": "transforms",
}
"""Where each public name comes from: it is imported when it is first asked for."""

__getattr__, __dir__ = lazily(
    __name__,
    _HOMES,
    modules=(
        "errors",
        "functional",
        "guard",
        "presets",
        "sensors",
        "telemetry",
        "testing",
        "transforms",
        "triggers",
        "types",
    ),
)

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
    "RanksError",
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
