"""What may change gradients and weights around the inner step, one file per transform."""

from stableopt.transforms.clip_grad_norm import ClipGradNorm
from stableopt.transforms.protocol import GradientTransform

__all__ = ["ClipGradNorm", "GradientTransform"]
