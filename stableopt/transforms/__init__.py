"""Transforms change gradients and weights around the inner step; one file each."""

from typing import TYPE_CHECKING

from stableopt.runtime.lazy import lazily

if TYPE_CHECKING:
    from stableopt.transforms.adaptive_weight_decay import AdaptiveWeightDecay
    from stableopt.transforms.clip_grad_norm import ClipGradNorm
    from stableopt.transforms.logit_bound import LogitBound
    from stableopt.transforms.lora_norm_clamp import LoRANormClamp
    from stableopt.transforms.max_norm import MaxNorm
    from stableopt.transforms.protocol import Change, Found, Needs, Phase, Target, Transform
    from stableopt.transforms.qk_clip import QKClip
    from stableopt.transforms.selection import NothingSelectedError, Selection, layers
    from stableopt.transforms.site import Site
    from stableopt.transforms.spectral_cap import SpectralCap
    from stableopt.transforms.spectral_normalization import SpectralNormalization
    from stableopt.transforms.update_cap import UpdateCap
    from stableopt.transforms.view import StepView
    from stableopt.transforms.where_found import WhereFound

__getattr__, __dir__ = lazily(
    __name__,
    {
        "AdaptiveWeightDecay": "adaptive_weight_decay",
        "Change": "protocol",
        "ClipGradNorm": "clip_grad_norm",
        "Found": "protocol",
        "LoRANormClamp": "lora_norm_clamp",
        "LogitBound": "logit_bound",
        "MaxNorm": "max_norm",
        "Needs": "protocol",
        "NothingSelectedError": "selection",
        "Phase": "protocol",
        "QKClip": "qk_clip",
        "Selection": "selection",
        "Site": "site",
        "SpectralCap": "spectral_cap",
        "SpectralNormalization": "spectral_normalization",
        "StepView": "view",
        "Target": "protocol",
        "Transform": "protocol",
        "UpdateCap": "update_cap",
        "WhereFound": "where_found",
        "layers": "selection",
    },
)

__all__ = [
    "AdaptiveWeightDecay",
    "Change",
    "ClipGradNorm",
    "Found",
    "LoRANormClamp",
    "LogitBound",
    "MaxNorm",
    "Needs",
    "NothingSelectedError",
    "Phase",
    "QKClip",
    "Selection",
    "Site",
    "SpectralCap",
    "SpectralNormalization",
    "StepView",
    "Target",
    "Transform",
    "UpdateCap",
    "WhereFound",
    "layers",
]
