"""The transforms that come with the package, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stableopt.transforms.adaptive_weight_decay import AdaptiveWeightDecay
from stableopt.transforms.clip_grad_norm import ClipGradNorm
from stableopt.transforms.logit_bound import LogitBound
from stableopt.transforms.lora_norm_clamp import LoRANormClamp
from stableopt.transforms.max_norm import MaxNorm
from stableopt.transforms.qk_clip import QKClip
from stableopt.transforms.spectral_cap import SpectralCap
from stableopt.transforms.spectral_normalization import SpectralNormalization
from stableopt.transforms.update_cap import UpdateCap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stableopt.transforms.protocol import Transform

_KINDS: tuple[Callable[..., Transform], ...] = (
    AdaptiveWeightDecay,
    ClipGradNorm,
    LogitBound,
    LoRANormClamp,
    MaxNorm,
    QKClip,
    SpectralCap,
    SpectralNormalization,
    UpdateCap,
)

TRANSFORMS: Mapping[str, Callable[..., Transform]] = {kind.__name__: kind for kind in _KINDS}
"""What ``from_config`` knows."""
