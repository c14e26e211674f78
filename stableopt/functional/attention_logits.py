"""How large attention logits can get, from the weights alone, and how to make them smaller."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stableopt.functional.matrices import precisely

_ROUNDING = 16.0
"""Of a decomposition, and of logits in the same dtype: in its units, of the Frobenius norms."""


@precisely
@torch.no_grad()
def attention_logit_bound(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
    rope: bool = False,
    input_norm: float | None = None,
    centred: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    r"""Bound the attention logits of every head, whatever the input of its norm.

    Both sides see ``x = g x̂ + β`` with ``‖x̂‖ ≤ r``, so that a query is ``A x̂ + c`` with
    ``A = W·diag g`` and ``c = W β + b``. No logit is larger than

    .. math::
        s \left( r² ‖A_qᵀ A_k‖₂ + r ‖A_kᵀ c_q‖ + r ‖A_qᵀ c_k‖ + |c_q·c_k| \right)

    where the first norm is that of ``R_q R_kᵀ`` from two QR decompositions. Rotary positions
    put a rotation between query and key; what is left is
    ``s (r‖A_q‖₂ + ‖c_q‖)(r‖A_k‖₂ + ‖c_k‖)``.

    Args:
        query: ``W_q (heads, head_dim, d)``.
        key: ``W_k (key heads, head_dim, d)``; query head h uses key head
            ``h // (heads / key heads)``.
        scale: s, the factor on q·k; only its magnitude counts.
        gain: g of the norm that feeds both, ``(d,)``; ``None`` for ones.
        shift: β of that norm, ``(d,)``; ``None`` for zeros.
        query_bias: b of the query projection, ``(heads, head_dim)``.
        key_bias: b of the key projection, ``(key heads, head_dim)``.
        rope: Whether queries and keys are rotated by their positions. ``True`` is a bound for
            those that are not, too.
        input_norm: r; ``None`` for ``√d``, what LayerNorm and RMSNorm give.
        centred: Whether the features of ``x̂`` sum to 0, as those of LayerNorm do.
        dropout: Probability of the dropout between norm and projection, below 1.

    Returns:
        ``(heads,)`` float64, never below a logit computed in float32 or better. NaN for a head
        any of whose inputs is not finite.

    Raises:
        ValueError: The shapes do not fit together.

    Cost:
        ``4·heads·head_dim²·d`` flops for as many key heads, in the dtype of the weights but at
        least float32; a copy of both weights. A layer of 8 heads in d = 512 takes 5 ms of
        one CPU core.

    Reference:
        Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", 2023,
        arXiv:2302.05442 (the growth of logits); Kimi Team, "Kimi K2", 2025, arXiv:2507.20534
        (QK-clip, with measured logits).

    Example:
        >>> eye = torch.eye(4)[None]
        >>> round(attention_logit_bound(eye, 3 * eye, scale=0.5).item(), 3)
        6.0
    """
    _check_shapes(
        query,
        key,
        {"gain": gain, "shift": shift},
        {"query_bias": (query_bias, query), "key_bias": (key_bias, key)},
    )
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    radius = math.sqrt(query.shape[-1]) if input_norm is None else float(input_norm)
    if dropout > 0:
        gain, radius = _dropped(query, gain, shift, radius, dropout)
        shift, centred = None, False
    q = _Side(query.to(dtype), gain, shift, query_bias, centred)
    k = _Side(key.to(dtype), gain, shift, key_bias, centred).shared(len(query) // len(key))
    bound = q.reach(radius) * k.reach(radius) if rope else _aligned(q, k, radius)
    bound = bound + _ROUNDING * torch.finfo(dtype).eps * q.span(radius) * k.span(radius)
    bound = bound * q.largest * k.largest * abs(scale)
    return torch.where(q.finite & k.finite, bound, torch.full_like(bound, torch.nan))


@torch.no_grad()
def qk_norm_logit_bound(
    query_gain: Tensor,
    key_gain: Tensor,
    *,
    scale: float,
    query_shift: Tensor | None = None,
    key_shift: Tensor | None = None,
    rope: bool = False,
    input_norm: float | None = None,
    centred: bool = False,
) -> Tensor:
    """Bound the attention logits behind a QK-norm, from its gains and biases alone.

    Queries are ``g_q x̂ + β_q`` with ``‖x̂‖ ≤ r``, and the keys likewise: the bound of
    :func:`attention_logit_bound` for diagonal matrices.

    Args:
        query_gain: ``(heads, head_dim)``.
        key_gain: ``(key heads, head_dim)``.
        scale: The factor on q·k.
        query_shift: β of the norm of queries, ``(heads, head_dim)``.
        key_shift: β of the norm of keys, ``(key heads, head_dim)``.
        rope: Whether positions rotate what comes out of the norm.
        input_norm: r, ``None`` for ``√head_dim``. A norm over all heads together leaves up to
            ``√(heads·head_dim)`` for one.
        centred: Whether the norm subtracts the mean of each head.

    Returns:
        ``(heads,)`` float64; NaN where something is not finite.

    Raises:
        ValueError: The shapes do not fit together.

    Cost:
        That of decomposing ``heads`` matrices of ``head_dim²``.

    Reference:
        Henry et al., "Query-Key Normalization for Transformers", 2020, arXiv:2010.04245.

    Example:
        >>> ones = torch.ones(2, 16)
        >>> [round(x, 3) for x in qk_norm_logit_bound(ones, ones, scale=0.25).tolist()]
        [4.0, 4.0]
    """
    return attention_logit_bound(
        torch.diag_embed(query_gain),
        torch.diag_embed(key_gain),
        scale=scale,
        query_bias=query_shift,
        key_bias=key_shift,
        rope=rope,
        input_norm=input_norm,
        centred=centred,
    )


def qk_scales(bound: Tensor, limit: float, *, kv_heads: int | None = None) -> tuple[Tensor, Tensor]:
    """Return by what to multiply query and key rows so that ``bound`` becomes at most ``limit``.

    ``√(limit / bound)`` on both; where several query heads share a key head, all of
    ``limit / bound`` on the query. Biases have to be scaled along. Exactly 1 for a head that is
    under its limit, and for one whose bound is not finite: what is not known is not acted on.

    Args:
        bound: ``(heads,)``, from :func:`attention_logit_bound` or a measured maximum.
        limit: Above 0.
        kv_heads: Key heads; ``None`` for as many as query heads.

    Returns:
        ``(heads,)`` for the queries and ``(kv_heads,)`` for the keys, in the dtype of ``bound``.

    Raises:
        ValueError: ``limit`` is not above 0.

    Reference:
        Kimi Team, "Kimi K2", 2025, arXiv:2507.20534.

    Example:
        >>> qk_scales(torch.tensor([400.0, 50.0]), 100.0)
        (tensor([0.5000, 1.0000]), tensor([0.5000, 1.0000]))
    """
    if not limit > 0:
        raise ValueError(f"limit={limit!r} must be above 0: the largest logit that is allowed")
    over = torch.isfinite(bound) & (bound > limit)
    factor = torch.where(over, limit / bound, torch.ones_like(bound))
    if kv_heads is not None and kv_heads != len(bound):
        return factor, bound.new_ones(kv_heads)
    return factor.sqrt(), factor.sqrt()


class _Side:
    """Queries or keys as ``A x̂ + c``, divided by a magnitude that is safe to square.

    Attributes:
        root: R of the QR decomposition of ``Aᵀ``, ``(heads, ≤ head_dim, head_dim)`` float64.
        constant: c, ``(heads, head_dim)`` float64; ``None`` for zeros.
        largest: By what both were divided, ``(heads,)`` float64, above 0.
        finite: ``(heads,)``.
    """

    def __init__(
        self,
        weight: Tensor,
        gain: Tensor | None,
        shift: Tensor | None,
        bias: Tensor | None,
        centred: bool,
    ) -> None:
        constant = None if bias is None else bias.double()
        if shift is not None:
            moved = weight.double() @ shift.double()
            constant = moved if constant is None else moved + constant
        self.finite, self.largest = _magnitude(weight)
        matrix = weight / self.largest.to(weight.dtype)[:, None, None]
        if gain is not None:
            finite, largest = _magnitude(gain[None, None])
            matrix.mul_((gain / largest).to(weight.dtype))
            self.finite, self.largest = self.finite & finite, self.largest * largest
        if constant is not None:
            self.finite = self.finite & torch.isfinite(constant).all(-1)
        if centred:
            matrix.sub_(matrix.mean(-1, keepdim=True))
        # Decompositions raise on what is not finite.
        matrix.masked_fill_(~self.finite[:, None, None], 0.0)
        self.root = torch.linalg.qr(matrix.mT, mode="r").R.double()
        self.constant = None
        if constant is not None:
            constant = constant / self.largest[:, None]
            self.constant = constant.masked_fill(~self.finite[:, None], 0.0)

    def shared(self, times: int) -> _Side:
        """Repeat every head for the query heads that share it."""
        if times > 1:
            for name in ("root", "constant", "largest", "finite"):
                value = getattr(self, name)
                if value is not None:
                    setattr(self, name, value.repeat_interleave(times, 0))
        return self

    def length(self) -> Tensor | float:
        """Return ``‖c‖``."""
        return 0.0 if self.constant is None else self.constant.norm(dim=-1)

    def span(self, radius: float) -> Tensor:
        """Return ``r ‖A‖_F + ‖c‖``, which rounding errors are relative to."""
        size: Tensor = torch.linalg.matrix_norm(self.root)
        return radius * size + self.length()

    def reach(self, radius: float) -> Tensor:
        """Return the longest that a query or a key can be, or a little more."""
        return radius * _norm(self.root) + self.length()


def _magnitude(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each head is finite, and its largest magnitude, ``(heads,)``, above 0."""
    largest = values.abs().amax((-2, -1)).double()
    finite = torch.isfinite(largest)
    # Nothing is divided by a subnormal number, whose reciprocal overflows.
    safe = largest.clamp(min=torch.finfo(torch.float32).tiny)
    return finite, torch.where(finite, safe, torch.ones_like(safe))


def _aligned(q: _Side, k: _Side, radius: float) -> Tensor:
    """Bound ``|(A_q x + c_q)·(A_k y + c_k)|``."""
    bound = radius**2 * _norm(q.root @ k.root.mT)
    if q.constant is not None:
        bound = bound + radius * (k.root @ q.constant[..., None]).flatten(1).norm(dim=-1)
    if k.constant is not None:
        bound = bound + radius * (q.root @ k.constant[..., None]).flatten(1).norm(dim=-1)
    if q.constant is not None and k.constant is not None:
        bound = bound + (q.constant * k.constant).sum(-1).abs()
    return bound


def _norm(matrices: Tensor) -> Tensor:
    """Return the spectral norms of small float64 matrices; faster than singular values."""
    squares: Tensor = torch.linalg.eigvalsh(matrices @ matrices.mT)[..., -1]
    return squares.clamp(min=0).sqrt()


def _dropped(
    weight: Tensor, gain: Tensor | None, shift: Tensor | None, radius: float, dropout: float
) -> tuple[Tensor | None, float]:
    """Return gain and radius that cover ``D (g x̂ + β)`` for every mask D of a dropout.

    ``[g, β/t] [D x̂; t D 1]``, where D has only zeros and ``1 / (1 - p)``: a gain
    ``√(g² + β²/t²)`` on a vector of norm ``√(r² + t² d) / (1 - p)``, for any t.
    """
    features = weight.shape[-1]
    if shift is None or not bool(shift.any()):
        return gain, radius / (1 - dropout)
    gamma = shift.new_ones(features).double() if gain is None else gain.double()
    # The t that is best if both gains point the same way.
    t = (shift.double().norm() * radius / (gamma.norm() * math.sqrt(features))).sqrt()
    t = t.clamp(1e-3, 1e3)
    covered = (gamma**2 + (shift.double() / t) ** 2).sqrt()
    return covered, math.sqrt(radius**2 + float(t) ** 2 * features) / (1 - dropout)


def _check_shapes(
    query: Tensor,
    key: Tensor,
    vectors: dict[str, Tensor | None],
    biases: dict[str, tuple[Tensor | None, Tensor]],
) -> None:
    if query.dim() != 3 or key.dim() != 3 or query.shape[1:] != key.shape[1:]:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} must be "
            "(heads, head_dim, d) with the same head_dim and d"
        )
    if not len(key) or len(query) % len(key):
        raise ValueError(
            f"heads={len(query)} must be a multiple of the {len(key)} key heads that they share"
        )
    for name, vector in vectors.items():
        if vector is not None and vector.shape != query.shape[-1:]:
            raise ValueError(f"{name} {tuple(vector.shape)} must be ({query.shape[-1]},)")
    for name, (bias, weight) in biases.items():
        if bias is not None and bias.shape != weight.shape[:2]:
            raise ValueError(f"{name} {tuple(bias.shape)} must be {tuple(weight.shape[:2])}")
