"""The size of a low-rank update from its two factors, and an update that is kept to a size."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stableopt.functional.norms import widest_real
from stableopt.functional.scaling import at_least_float32, require_floating, root, scaled

_SQUARINGS = 30
"""Of the core: what is not the largest eigenvalue is then raised to 2³⁰."""


def lora_delta_norm(
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    ord: Literal["fro", "spectral"] = "fro",  # noqa: A002 - as torch calls it
) -> Tensor:
    """Return ‖scale · B A‖ without forming B A.

    Frobenius: √Σ (BᵀB) ∘ (A Aᵀ). Spectral: the largest singular value of R_B R_Aᵀ, where
    B = Q_B R_B and Aᵀ = Q_A R_A. Both in float64 where the device has it: in float32 the norm of
    a product that is much smaller than its factors is lost to cancellation.

    Args:
        a: ``(..., r, in)``; leading dimensions are samples, and broadcast with those of ``b``.
        b: ``(..., out, r)``.
        scale: What the product is multiplied by: alpha / r in most implementations.
        ord: Which norm.

    Returns:
        ``(...)``, float32, or float64 if a factor is; NaN where a factor is not finite, Inf where
        the norm is out of range. Where the norm is zero (a fresh adapter with B = 0) so is its
        gradient, for either norm. That of the spectral norm is u vᵀ with the top singular
        vectors as constants: right, or one of many if σ₁ is repeated; its second derivatives
        are not.

    Raises:
        ValueError: The shapes do not fit or a dimension is zero, a factor is not real floating,
            or ``ord`` is unknown.

    Cost:
        2 r² (in + out) flops and a copy of the factors in float64 for the Frobenius norm; twice
        that, and 60 r³, for the spectral norm. No host synchronisation.

    Reference:
        Hu et al., arXiv:2106.09685 (LoRA).

    Example:
        >>> a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]])
        >>> lora_delta_norm(a, b, scale=2.0).item()
        10.0
    """
    norm = _delta_norm(a, b, scale, ord)
    return norm.to(torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32))


def clamp_lora_output(
    y: Tensor,
    a: Tensor,
    b: Tensor,
    max_norm: float,
    *,
    scale: float = 1.0,
    ord: Literal["fro", "spectral"] = "fro",  # noqa: A002 - as torch calls it
) -> Tensor:
    """Return y · min(1, max_norm / ‖scale · B A‖): the output of an update kept to ``max_norm``.

    With y = scale · (x Aᵀ) Bᵀ that is what a clamped update would have put out, without the
    update ever being formed: one factor for each sample, and the subspaces of A and B kept.

    Args:
        y: ``(..., out)`` or any shape that begins with the leading dimensions of ``a`` and
            ``b``: ``(B, tokens, out)`` for adapters of each sample, any for a shared one.
        a: ``(..., r, in)``.
        b: ``(..., out, r)``.
        max_norm: Above 0.
        scale: The one that is in ``y``.
        ord: Which norm.

    Returns:
        As ``y`` in shape and dtype; bit for bit ``y`` where the norm is at most ``max_norm`` or
        not a number. The gradient reaches the factors through the norm as well.

    Raises:
        ValueError: As :func:`lora_delta_norm`; ``max_norm`` is not above 0, or ``y`` does not
            begin with the leading dimensions of the factors.

    Cost:
        That of :func:`lora_delta_norm`, and one product with ``y``.

    Example:
        >>> x, a, b = torch.ones(1, 2), torch.eye(2), 4 * torch.eye(2)
        >>> clamp_lora_output(x @ a.mT @ b.mT, a, b, max_norm=2.0, ord="spectral").tolist()
        [[2.0, 2.0]]
    """
    require_floating("y", y)
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm} must be above 0; to switch an update off, drop it")
    norm = _delta_norm(a, b, scale, ord)
    if y.shape[: norm.dim()] != norm.shape:
        raise ValueError(
            f"y.shape={tuple(y.shape)} must begin with {tuple(norm.shape)}, the leading "
            "dimensions of a and b; move the samples to the front"
        )
    over = norm > max_norm
    wide = at_least_float32(y)
    factor = torch.where(over, max_norm / torch.where(over, norm, 1.0), 1.0).to(wide.dtype)
    return (wide * factor.reshape(*norm.shape, *[1] * (y.dim() - norm.dim()))).to(y.dtype)


def _delta_norm(a: Tensor, b: Tensor, scale: float, kind: str) -> Tensor:
    """Return the norm in the widest dtype of the device."""
    require_floating("a", a)
    require_floating("b", b)
    if a.dim() < 2 or b.dim() < 2 or a.shape[-2] != b.shape[-1] or 0 in (a.numel(), b.numel()):
        raise ValueError(
            f"a.shape={tuple(a.shape)}, b.shape={tuple(b.shape)} must be (..., r, in) and "
            "(..., out, r) with one r, and not empty; transpose a factor that is stored the "
            "other way round"
        )
    if kind not in ("fro", "spectral"):
        raise ValueError(f"ord={kind!r} must be 'fro' or 'spectral'")
    dtype = widest_real(a.device)
    with torch.autocast(a.device.type, enabled=False):
        left, left_scale = scaled(b.to(dtype), (-2, -1))
        right, right_scale = scaled(a.to(dtype), (-2, -1))
        norm = _frobenius(left, right) if kind == "fro" else _spectral(left, right)
        return norm * (left_scale * right_scale)[..., 0, 0] * abs(scale)


def _frobenius(left: Tensor, right: Tensor) -> Tensor:
    return root(((left.mT @ left) * (right @ right.mT)).sum((-2, -1)))


def _spectral(left: Tensor, right: Tensor) -> Tensor:
    """Return uᵀ B A v with the top singular vectors of B A, which are constants to autograd.

    The backward of a QR has none for factors without full rank, B = 0 among them.
    """
    left_basis, left_core = torch.linalg.qr(left.detach())
    right_basis, right_core = torch.linalg.qr(right.detach().mT)
    core = left_core @ right_core.mT
    coefficients = _top_right_vector(core)
    u = left_basis @ _normalised(core @ coefficients)
    v = right_basis @ coefficients
    norm: Tensor = ((left.mT @ u) * (right @ v)).sum((-2, -1))
    return norm


def _top_right_vector(core: Tensor) -> Tensor:
    """Return the top right singular vector of ``core`` as a column; zero for a zero matrix.

    By squaring its Gram matrix, which unlike a decomposition neither waits for the device nor
    fails: the largest column of the power is the vector.
    """
    core, _ = scaled(core, (-2, -1))
    power = core.mT @ core
    for _ in range(_SQUARINGS):
        power = _normalised(power)
        power = power @ power
    largest = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    return _normalised(power.gather(-1, largest.expand(*power.shape[:-1], 1)))


def _normalised(matrix: Tensor) -> Tensor:
    """Return ``matrix`` over its Frobenius norm; zero for a zero matrix."""
    quotient, _ = scaled(matrix, (-2, -1))
    norm = torch.linalg.matrix_norm(quotient, keepdim=True)
    return quotient / torch.where(norm == 0, 1.0, norm)
