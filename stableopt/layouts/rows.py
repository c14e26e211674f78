"""The rows of a layout, as views of the current tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stableopt.errors import ConfigError, unknown_name
from stableopt.layouts.attention import AttentionLayout, NormLayout, Projection


def query_rows(
    layout: AttentionLayout, parameters: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return the query rows of every head, and their biases: views to be scaled in place.

    Args:
        layout: Where they are.
        parameters: Tensors by name.

    Returns:
        ``(heads, head_dim, d)``, and ``(heads, head_dim)`` or ``None``.

    Raises:
        ConfigError: A tensor is missing or too small.

    Cost:
        Nothing is copied.

    Example:
        >>> import torch
        >>> from stableopt.layouts import find_attention
        >>> model = torch.nn.MultiheadAttention(8, 2)
        >>> weight, bias = query_rows(find_attention(model)[0], dict(model.named_parameters()))
        >>> weight.shape, bias.shape
        (torch.Size([2, 4, 8]), torch.Size([2, 4]))
    """
    return _rows(layout.query, layout.heads, layout.head_dim, parameters)


def key_rows(
    layout: AttentionLayout, parameters: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return the key rows of every key head, and their biases, as :func:`query_rows` does.

    Example:
        >>> import torch
        >>> from stableopt.layouts import find_attention
        >>> model = torch.nn.MultiheadAttention(8, 2, bias=False)
        >>> weight, bias = key_rows(find_attention(model)[0], dict(model.named_parameters()))
        >>> torch.equal(weight.flatten(0, 1), model.in_proj_weight[8:16]), bias
        (True, None)
    """
    return _rows(layout.key, layout.key_heads, layout.head_dim, parameters)


def check_layout(layout: AttentionLayout, parameters: Mapping[str, Tensor]) -> None:
    """Refuse a layout that does not fit the tensors it names.

    Args:
        layout: To be checked.
        parameters: Tensors by name.

    Raises:
        ConfigError: A name is unknown, rows lie outside of their tensor, or queries, keys and
            norms do not have the features they should.

    Example:
        >>> import torch
        >>> from stableopt.layouts import find_attention
        >>> model = torch.nn.MultiheadAttention(8, 2)
        >>> check_layout(find_attention(model)[0], dict(model.named_parameters()))
    """
    weight, _ = query_rows(layout, parameters)
    other, _ = key_rows(layout, parameters)
    if layout.norm is not None:
        for side, features in ((layout.query, weight.shape[-1]), (layout.key, other.shape[-1])):
            if features != layout.norm.features:
                raise ConfigError(
                    f"norm.features={layout.norm.features} must be the {features} inputs of "
                    f"{side.weight}: name the norm that feeds it, or none"
                )
        _check_norm(layout.norm, parameters)
    both = (layout.q_norm, layout.heads), (layout.k_norm, layout.key_heads)
    for norm, heads in ((norm, heads) for norm, heads in both if norm is not None):
        if norm.features not in (layout.head_dim, heads * layout.head_dim):
            raise ConfigError(
                f"features={norm.features} of the QK-norm must be head_dim={layout.head_dim}, or "
                f"that of all {heads} heads"
            )
        _check_norm(norm, parameters)


def lookup(name: str, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return the detached tensor of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in parameters:
        raise unknown_name("parameter", name, parameters)
    return parameters[name].detach()


def _rows(
    side: Projection, heads: int, head_dim: int, parameters: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    weight = lookup(side.weight, parameters)
    if weight.dim() != 2:
        raise ConfigError(
            f"{side.weight} {tuple(weight.shape)} must be a matrix (out, in): name a linear layer"
        )
    stride = head_dim if side.stride is None else side.stride
    length = (heads - 1) * stride + head_dim
    rows = weight.mT if side.transposed else weight
    _check_length(side.weight, len(rows), side.start, length)
    found = rows.narrow(0, side.start, length).unfold(0, head_dim, stride).mT
    if side.bias is None:
        return found, None
    bias = lookup(side.bias, parameters)
    start = side.start if side.bias_start is None else side.bias_start
    _check_length(side.bias, len(bias), start, length)
    return found, bias.narrow(0, start, length).unfold(0, head_dim, stride)


def _check_length(name: str, rows: int, start: int, length: int) -> None:
    if start + length > rows:
        raise ConfigError(
            f"{name} has {rows} rows, but heads are expected up to row {start + length}: check "
            "start, stride, heads and head_dim, and transposed=True if it is stored as (in, out)"
        )


def _check_norm(norm: NormLayout, parameters: Mapping[str, Tensor]) -> None:
    for name in (norm.gain, norm.bias):
        if name is not None and lookup(name, parameters).shape != (norm.features,):
            raise ConfigError(
                f"{name} {tuple(parameters[name].shape)} must have features={norm.features} entries"
            )
