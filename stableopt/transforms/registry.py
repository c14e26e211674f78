"""The transforms that come with the package, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stableopt import transforms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
