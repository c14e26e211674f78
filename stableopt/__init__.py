"""One line around any torch optimizer that keeps a training run alive."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stableopt.version import __version__

if TYPE_CHECKING:
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
    "SignalRule": "guard",
    "SpectralCap": "transforms",
    "SpectralNormalization": "transforms",
    "StabilityGate": "gate",
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

_ROOMS = frozenset(
    {
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
    }
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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"stableopt.{_HOMES[name]}"), name)
    elif name in _ROOMS:
        value = import_module(f"stableopt.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
