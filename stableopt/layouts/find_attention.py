"""Find the attention blocks of a model."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from stableopt.layouts.attention import AttentionLayout, NormLayout, Projection
from stableopt.layouts.attributes import (
    HEAD_DIM,
    HEADS,
    KEY_HEADS,
    is_rotated,
    logit_scale,
    stated,
)
from stableopt.layouts.feeding import norm_before, norm_before_multihead
from stableopt.layouts.norms import norm_layout
from stableopt.layouts.tree import Tree

_PAIRS = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("wq", "wk"),
    ("to_q", "to_k"),
    ("q_lin", "k_lin"),
)
"""What separate projections are called."""

_PACKED = ("qkv", "c_attn", "to_qkv", "Wqkv", "qkv_proj", "in_proj")
"""What a projection to queries, keys and values in this order is called."""

_INTERLEAVED = ("query_key_value",)
"""What one is called that makes the three of a head, then those of the next."""

_QK_NORMS = (
    ("q_norm", "k_norm"),
    ("norm_q", "norm_k"),
    ("query_norm", "key_norm"),
    ("q_layernorm", "k_layernorm"),
    ("q_ln", "k_ln"),
)

_OTHERWISE = ("logit_scale", "lambda_q1", "bias_k", "k_bias")
"""Parameters of attention that is not a plain product of what the projections make."""


def find_attention(model: nn.Module) -> tuple[AttentionLayout, ...]:
    """Find every attention block whose queries and keys can be located with certainty.

    Known are :class:`torch.nn.MultiheadAttention`, the attention of GPT-2, of Llama and what is
    like it (GQA, rotary positions, QK-norm), of BERT, of GPT-NeoX and of timm's transformers; and
    any module with a head count and linear layers called like ``q_proj`` and ``k_proj``,
    ``query`` and ``key``, ``wq`` and ``wk``, ``to_q`` and ``to_k``, or one that is packed and
    called like ``qkv``, ``c_attn`` or ``to_qkv``.

    Whether a norm feeds a block is read in the source of ``forward``; where that is not certain,
    ``norm`` is ``None``. A module that does something else with its queries than to multiply
    them with the keys is left out; so are adapters and parametrizations, whose weights are no
    parameters.

    Args:
        model: Any model, compiled or not; names are those of
            :func:`~stableopt.runtime.names.parameter_names`.

    Returns:
        Their layouts, in the order of the modules; empty if there are none.

    Cost:
        Once: a walk over the modules, and the source of those around each attention.

    Example:
        >>> model = nn.TransformerEncoderLayer(16, 4, norm_first=True)
        >>> (block,) = find_attention(model)
        >>> block.name, block.heads, block.key.start, block.norm.gain
        ('self_attn', 4, 16, 'norm1.weight')
    """
    tree = Tree(model)
    found = []
    for name, module in tree.items():
        layouts = (recognise(tree, name, module) for recognise in _RECOGNISERS)
        found.append(next((layout for layout in layouts if layout is not None), None))
    return tuple(layout for layout in found if layout is not None)


def _multihead(tree: Tree, name: str, module: nn.Module) -> AttentionLayout | None:
    """Recognise :class:`torch.nn.MultiheadAttention`."""
    # Keys that are parameters would be left as they are.
    if not isinstance(module, nn.MultiheadAttention) or module.bias_k is not None:
        return None
    width = module.embed_dim
    bias = tree.parameter(module.in_proj_bias)
    query = key = tree.parameter(module.in_proj_weight)
    start = width
    if query is None:
        query, key = tree.parameter(module.q_proj_weight), tree.parameter(module.k_proj_weight)
        start = 0
    if query is None or key is None:
        return None
    same_input = module.kdim == width
    fed = norm_before_multihead(tree, name, width) if same_input else None
    return AttentionLayout(
        name=name,
        query=Projection(weight=query, bias=bias),
        key=Projection(weight=key, start=start, bias=bias, bias_start=width),
        heads=module.num_heads,
        head_dim=module.head_dim,
        norm=None if fed is None else fed[0],
        dropout=0.0 if fed is None else fed[1],
    )


def _separate(tree: Tree, name: str, module: nn.Module) -> AttentionLayout | None:
    """Recognise a layer for queries and one for keys."""
    heads = stated(module, HEADS)
    for pair in _PAIRS:
        query, key = (_matrix(getattr(module, child, None)) for child in pair)
        if heads is None or query is None or key is None:
            continue
        if query.rows % heads or key.rows % (query.rows // heads):
            return None
        head_dim = query.rows // heads
        sides = _Sides(pair, query.projection(tree), key.projection(tree))
        features = query.features if query.features == key.features else None
        kv_heads = key.rows // head_dim
        return _block(tree, name, module, sides, (heads, kv_heads, head_dim), features)
    return None


def _packed(tree: Tree, name: str, module: nn.Module) -> AttentionLayout | None:
    """Recognise one layer for queries, keys and values: in this order, or head by head."""
    heads = stated(module, HEADS)
    layers = {child: _matrix(getattr(module, child, None)) for child in (*_PACKED, *_INTERLEAVED)}
    child, packed = next(((c, m) for c, m in layers.items() if m is not None), ("", None))
    if heads is None or packed is None:
        return None
    by_head = child in _INTERLEAVED
    if not by_head and getattr(module, "multi_query", True) is False:
        return None  # GPT-BigCode then packs head by head
    if (by_head or child == "in_proj") and packed.rows != 3 * packed.features:
        return None  # in_proj is also a name in models without attention
    kv_heads = heads if by_head else stated(module, KEY_HEADS) or heads
    head_dim, rest = divmod(packed.rows, heads + 2 * kv_heads)
    if rest:
        return None
    stride, start = (3 * head_dim, head_dim) if by_head else (None, heads * head_dim)
    bias = None if by_head else getattr(module, "q_bias", None)
    query = packed.projection(tree, stride=stride, bias=bias)
    sides = _Sides((child, child), query, packed.projection(tree, start=start, stride=stride))
    return _block(tree, name, module, sides, (heads, kv_heads, head_dim), packed.features)


_RECOGNISERS = (_multihead, _separate, _packed)


class _Sides(NamedTuple):
    """Queries and keys: the layers they come from, and their rows."""

    layers: tuple[str, str]
    query: Projection | None
    key: Projection | None


class _Matrix(NamedTuple):
    """A linear layer, or Conv1D of transformers, which stores its weight transposed."""

    layer: Any
    weight: Tensor
    transposed: bool

    @property
    def rows(self) -> int:
        return self.weight.shape[int(self.transposed)]

    @property
    def features(self) -> int:
        return self.weight.shape[int(not self.transposed)]

    def projection(
        self, tree: Tree, start: int = 0, stride: int | None = None, bias: object = None
    ) -> Projection | None:
        """Return which rows; ``None`` for a weight or a bias that is no parameter."""
        weight = tree.parameter(self.weight)
        own = getattr(self.layer, "bias", None)
        chosen = own if own is not None else bias
        named = tree.parameter(chosen)
        if weight is None or (chosen is not None and named is None):
            return None
        return Projection(
            weight=weight,
            start=start,
            stride=stride,
            transposed=self.transposed,
            bias=named,
            bias_start=None if own is not None or bias is None else 0,
        )


def _matrix(layer: object) -> _Matrix | None:
    """Return a layer as a matrix; ``None`` for one that computes something else."""
    layer = getattr(layer, "_orig_mod", layer)
    if isinstance(layer, nn.Linear):
        return _Matrix(layer, layer.weight, transposed=False)
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.dim() == 2:
        return _Matrix(layer, weight, transposed=True)
    return None


def _block(
    tree: Tree,
    name: str,
    module: nn.Module,
    sides: _Sides,
    counts: tuple[int, int, int],
    features: int | None,
) -> AttentionLayout | None:
    """Return the layout of a module whose projections are known."""
    heads, kv_heads, head_dim = counts
    plain = all(getattr(module, other, None) is None for other in _OTHERWISE)
    fits = stated(module, HEAD_DIM, config=False) in (None, head_dim) and heads % kv_heads == 0
    norms = _qk_norms(tree, module)
    if not (plain and fits) or norms is None or sides.query is None or sides.key is None:
        return None
    fed = None if features is None else norm_before(tree, name, *sides.layers, features)
    if _has_more(module):
        if norms != (None, None):
            return None
        fed = None
    return AttentionLayout(
        name=name,
        query=sides.query,
        key=sides.key,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=logit_scale(module, tree, head_dim),
        norm=None if fed is None else fed[0],
        dropout=0.0 if fed is None else fed[1],
        rope=is_rotated(module),
        q_norm=norms[0],
        k_norm=norms[1],
    )


_OWN = frozenset(
    {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"}
)
"""What torch's MultiheadAttention has beside its layers."""


def _has_more(module: nn.Module) -> bool:
    """Return whether logits may be more than q·k: a temperature, or a bias of positions.

    Parameters of the module itself, and tables, are taken for one; the bound would not hold.
    """
    own = any(name not in _OWN for name, _ in module.named_parameters(recurse=False))
    return own or any(isinstance(child, nn.Embedding) for child in module.modules())


def _qk_norms(tree: Tree, module: nn.Module) -> tuple[NormLayout | None, NormLayout | None] | None:
    """Return the QK-norms of a module; ``None`` if it has some that are not understood."""
    for names in _QK_NORMS:
        layers = [getattr(module, child, None) for child in names]
        if all(layer is None or isinstance(layer, nn.Identity) for layer in layers):
            continue
        query, key = (norm_layout(getattr(x, "_orig_mod", x), tree) for x in layers)
        return None if query is None or key is None else (query, key)
    return None, None
