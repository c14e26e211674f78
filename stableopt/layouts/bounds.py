"""Upper bounds on attention logits, from the weights of a layout."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from stableopt.functional.attention_logits import attention_logit_bound, qk_norm_logit_bound
from stableopt.layouts.attention import AttentionLayout, NormLayout
from stableopt.layouts.rows import key_rows, lookup, query_rows


@torch.no_grad()
def logit_bound(layout: AttentionLayout, parameters: Mapping[str, Tensor]) -> Tensor:
    """Bound the attention logits of every head of a block, as the weights are now.

    Args:
        layout: Where they are.
        parameters: Tensors by name.

    Returns:
        ``(heads,)`` float64. NaN where there is no bound: what feeds the block is not known, or
        a weight is not finite.

    Raises:
        ConfigError: The layout does not fit the tensors.

    Cost:
        That of :func:`~stableopt.functional.attention_logit_bound`.

    Example:
        >>> from stableopt.layouts import find_attention
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, norm_first=True)
        >>> bound = logit_bound(find_attention(model)[0], dict(model.named_parameters()))
        >>> bound.shape, bool((bound > 0).all())
        (torch.Size([2]), True)
    """
    query, query_bias = query_rows(layout, parameters)
    key, key_bias = key_rows(layout, parameters)
    if layout.q_norm is not None and layout.k_norm is not None:
        return _behind_qk_norm(layout, layout.q_norm, layout.k_norm, parameters)
    if layout.norm is None:
        return torch.full((layout.heads,), torch.nan, dtype=torch.float64, device=query.device)
    gain, shift = norm_values(layout.norm, parameters)
    return attention_logit_bound(
        query,
        key,
        scale=layout.logit_scale,
        gain=gain,
        shift=shift,
        query_bias=query_bias,
        key_bias=key_bias,
        rope=layout.rope,
        centred=layout.norm.centred,
        dropout=layout.dropout,
    )


def norm_values(
    norm: NormLayout, parameters: Mapping[str, Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Return g and β of a norm, ``(features,)`` each; ``None`` for ones and for zeros.

    Args:
        norm: Where they are.
        parameters: Tensors by name.

    Raises:
        ConfigError: A name is unknown.

    Example:
        >>> from stableopt.layouts import NormLayout
        >>> gemma = NormLayout(features=2, gain="norm.weight", gain_offset=1.0)
        >>> norm_values(gemma, {"norm.weight": torch.zeros(2)})
        (tensor([1., 1.]), None)
    """
    gain = None if norm.gain is None else lookup(norm.gain, parameters)
    if gain is not None and norm.gain_offset:
        gain = gain.to(torch.promote_types(gain.dtype, torch.float32)) + norm.gain_offset
    return gain, None if norm.bias is None else lookup(norm.bias, parameters)


def _behind_qk_norm(
    layout: AttentionLayout,
    q_norm: NormLayout,
    k_norm: NormLayout,
    parameters: Mapping[str, Tensor],
) -> Tensor:
    query, query_shift = _by_head(q_norm, layout.heads, layout.head_dim, parameters)
    key, key_shift = _by_head(k_norm, layout.key_heads, layout.head_dim, parameters)
    of_each_head = q_norm.features == k_norm.features == layout.head_dim
    return qk_norm_logit_bound(
        query,
        key,
        scale=layout.logit_scale,
        query_shift=query_shift,
        key_shift=key_shift,
        rope=layout.rope,
        centred=of_each_head and q_norm.centred and k_norm.centred,
    )


def _by_head(
    norm: NormLayout, heads: int, head_dim: int, parameters: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return gain and bias as ``(heads, head_dim)``, for ``‖x̂‖ ≤ √head_dim``."""
    gain, shift = norm_values(norm, parameters)
    if gain is None:
        device = None if shift is None else shift.device
        gain = torch.ones(norm.features, device=device)
    # A norm over all heads together may leave everything to one of them.
    gain = gain * math.sqrt(norm.features / head_dim)
    count = norm.features // head_dim
    spread = gain.view(count, head_dim).expand(heads, head_dim)
    if shift is None:
        return spread, None
    return spread, shift.view(count, head_dim).expand(heads, head_dim)
