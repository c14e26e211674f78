"""Find out what a normalisation layer computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stableopt.layouts.attention import NormLayout
from stableopt.layouts.tree import Tree

_TOLERANCE = 2e-3
"""Largest relative error of a probe in float32; more than that is another function."""


def is_norm(module: object) -> bool:
    """Return whether a module is a normalisation of the last dimension, by its kind or its name."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return True
    if not isinstance(module, nn.Module) or isinstance(module, nn.modules.batchnorm._NormBase):
        return False
    named = "norm" in type(module).__name__.lower()
    return named and not any(True for _ in module.children())


def norm_layout(module: nn.Module | None, tree: Tree) -> NormLayout | None:
    """Return what a normalisation layer computes; ``None`` if that is not certain.

    LayerNorm and RMSNorm of torch are known. Any other layer is called once: its output for one
    drawn input has to be ``g x̂ + β`` with x̂ of one of the two, and g its weight or that plus 1.

    Args:
        module: The layer.
        tree: The model that it is in.

    Cost:
        A forward pass of the layer on 6 vectors, for those that are not torch's.

    Example:
        >>> from stableopt.layouts.tree import Tree
        >>> layer = nn.LayerNorm(8)
        >>> norm_layout(layer, Tree(nn.Sequential(layer))).gain
        '0.weight'
    """
    if module is None or not is_norm(module):
        return None
    gain, shift = (_tensor(module, name) for name in ("weight", "bias"))
    names = tree.parameter(gain), tree.parameter(shift)
    if (gain is not None and names[0] is None) or (shift is not None and names[1] is None):
        return None  # computed from other parameters
    features = _features(module, gain)
    if features is None:
        return None
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        offset, centred = 0.0, type(module) is nn.LayerNorm
    else:
        found = _probe(module, features, gain, shift)
        if found is None:
            return None
        offset, centred = found
    return NormLayout(
        features=features, gain=names[0], bias=names[1], gain_offset=offset, centred=centred
    )


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    value = getattr(module, name, None)
    return value if isinstance(value, torch.Tensor) else None


def _features(module: nn.Module, gain: Tensor | None) -> int | None:
    shape = getattr(module, "normalized_shape", None)
    if gain is not None:
        shape = tuple(gain.shape)
    if isinstance(shape, int):
        return shape
    return int(shape[0]) if isinstance(shape, (tuple, list)) and len(shape) == 1 else None


@torch.no_grad()
def _probe(
    module: nn.Module, features: int, gain: Tensor | None, shift: Tensor | None
) -> tuple[float, bool] | None:
    """Return what is added to the gain, and whether the mean is subtracted."""
    like = gain if gain is not None else torch.zeros(())
    if like.device.type == "meta" or features < 2:
        return None
    generator = torch.Generator().manual_seed(0)
    # Large, so that no epsilon matters; and with a mean, which only some subtract.
    drawn = 100 * (1 + torch.randn(2, 3, features, generator=generator))
    x = drawn.to(like.device, like.dtype)
    try:
        # Not the call: hooks must not run.
        out = type(module).forward(module, x)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None
    if not isinstance(out, torch.Tensor) or out.shape != x.shape:
        return None
    if shift is not None:
        out = out - shift
    gamma = torch.ones(features) if gain is None else gain.float().cpu()
    errors: dict[tuple[float, bool], float] = {}
    for centred in (False, True):
        unit = x.float().cpu()
        unit = unit - centred * unit.mean(-1, keepdim=True)
        unit = unit / unit.square().mean(-1, keepdim=True).sqrt()
        for offset in (0.0, 1.0) if gain is not None else (0.0,):
            expected = unit * (gamma + offset)
            error = (out.float().cpu() - expected).norm() / expected.norm().clamp(min=1e-30)
            errors[offset, centred] = float(error)
    best = min(errors, key=lambda k: errors[k])
    tolerance = max(_TOLERANCE, 4 * torch.finfo(like.dtype).eps)
    return best if errors[best] < tolerance else None
