"""The transforms that come with the package, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stableopt import transforms

_NAMES = (
    "AdaptiveWeightDecay",
    "ClipGradNorm",
    "LogitBound",
    "LoRANormClamp",
    "MaxNorm",
    "QKClip",
    "SpectralCap",
    "SpectralNormalization",
    "UpdateCap",
)

TRANSFORMS: Mapping[str, Callable[..., transforms.Transform]] = {
    name: getattr(transforms, name) for name in _NAMES
}
"""What plain data may name."""
