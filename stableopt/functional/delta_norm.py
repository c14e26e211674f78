"""Updates of weights that a network puts out, one for each sample: clamped, or paid for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from stableopt.functional.scaling import at_least_float32, require_floating, scaled, smooth_norm

_MARGIN = 1e-6
"""What the sum of squares may be off by: a clamped sample is under when it is looked at again."""


def clamp_delta_norm(
    delta: Tensor, max_norm: float, *, dim: int | tuple[int, ...] | None = None
) -> Tensor:
    """Return ``delta`` with every sample whose 2-norm is above ``max_norm`` scaled down to it.

    δ · min(1, c / ‖δ‖₂), for each sample alone. For an update that is kept as factors see
    :func:`~stableopt.functional.clamp_lora_output`.

    Args:
        delta: ``(B, ...)``, one update per sample.
        max_norm: c, above 0.
        dim: The dimensions that make up one update; all but the first if not given. An update
            without samples ``(out, in)`` is ``dim=(0, 1)``.

    Returns:
        As ``delta`` in shape and dtype; a sample that is under, or not finite, bit for bit. The
        norm is at most ``max_norm`` after rounding to the dtype, too: what is scaled aims below
        it by half a unit in the last place (0.4% in bfloat16, 0.05% in float16). The gradient is
        finite everywhere, zero and 1e30 included.

    Raises:
        ValueError: ``max_norm`` is not above 0, ``delta`` is not real floating, or there is no
            dimension to take the norm over.

    Cost:
        A few passes and, for autograd, copies in float32; no host synchronisation.

    Example:
        >>> delta = torch.tensor([[3.0, 4.0], [30.0, 40.0]])
        >>> clamp_delta_norm(delta, 5.0).norm(dim=1).round(decimals=4).tolist()
        [5.0, 5.0]
    """
    require_floating("delta", delta)
    if not 0 < max_norm < math.inf:
        raise ValueError(f"max_norm={max_norm} must be above 0 and finite")
    dims = tuple(range(1, delta.dim())) if dim is None else (dim,) if isinstance(dim, int) else dim
    if not dims:
        raise ValueError(
            f"delta.shape={tuple(delta.shape)}, dim={dim} leave nothing to take the norm over; "
            "delta must be (B, ...), or dim name the dimensions of one update"
        )
    if delta.numel() == 0:
        return delta
    wide = at_least_float32(delta)
    quotient, scale = scaled(wide.detach(), dims)
    over = smooth_norm(quotient, dims) > max_norm / scale
    # Samples that are under take no part, so that nothing of theirs can reach the gradient.
    quotient = torch.where(over, wide, 0.0) / torch.where(over, scale, 1.0)
    norm = torch.where(over, smooth_norm(quotient, dims), 1.0)
    aim = _aim(max_norm, delta.numel() // norm.numel(), delta.dtype)
    clamped = quotient * (aim / norm)
    return torch.where(over, clamped.to(delta.dtype), delta)


def lora_norm_penalty(
    deltas: Mapping[str, Tensor] | Iterable[Tensor], target: float = 1.0
) -> Tensor:
    """Return the mean over updates of | mean over samples of ‖δ‖_F - target |.

    Keeps the updates of a hyper-network near one size, from both sides; add it to the loss with
    a small weight (1e-3). Every value of a mapping counts: leave out what is no update.

    Args:
        deltas: Each ``(B, ...)``, commonly ``(B, out, in)``, with its scale applied.
        target: What the norm is drawn to, at least 0.

    Returns:
        0-dim, float32, or float64 if an update is. The gradient is finite everywhere; an update
        that is exactly zero has none, since no direction is better than another.

    Raises:
        ValueError: There are no updates, one is empty, has no samples' dimension or is not
            real floating, or ``target`` is below 0.

    Cost:
        A few passes over the updates; no host synchronisation.

    Example:
        >>> lora_norm_penalty({"gate": torch.ones(2, 2, 2), "up": torch.zeros(2, 3, 3)}).item()
        1.0
    """
    if isinstance(deltas, Tensor):
        raise ValueError(f"deltas is one tensor {tuple(deltas.shape)}; pass a list of updates")
    named = deltas.items() if isinstance(deltas, Mapping) else enumerate(deltas)
    members = [(f"deltas[{name!r}]", delta) for name, delta in named]
    if not members:
        raise ValueError("deltas is empty: it must have at least one update; drop the penalty")
    if not target >= 0:
        raise ValueError(f"target={target} must be at least 0: a norm is")
    distances = [(_mean_norm(name, delta) - target).abs() for name, delta in members]
    return torch.stack(distances).mean()


def _mean_norm(name: str, delta: Tensor) -> Tensor:
    require_floating(name, delta)
    if delta.dim() < 2 or delta.numel() == 0:
        raise ValueError(
            f"{name}.shape={tuple(delta.shape)} must be (B, ...) and not empty; "
            "give an update without samples a first dimension of 1"
        )
    quotient, scale = scaled(at_least_float32(delta).flatten(1), 1)
    return (smooth_norm(quotient, 1) * scale).mean()


def _aim(max_norm: float, size: int, dtype: torch.dtype) -> float:
    """Return what to scale to so that rounding to ``dtype`` does not end above ``max_norm``."""
    info = torch.finfo(dtype)
    subnormal = info.tiny * info.eps
    aim = max_norm * (1 - info.eps / 2 - _MARGIN) - math.sqrt(size) * subnormal / 2
    return max(aim, 0.0)
