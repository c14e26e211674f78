"""Find the norm that feeds an attention block."""

from __future__ import annotations

import re

from torch import nn

from stableopt.layouts.attention import NormLayout
from stableopt.layouts.dataflow import feeding_norm
from stableopt.layouts.norms import norm_layout
from stableopt.layouts.tree import Tree, join

_LAST_NORM: dict[type, str] = {
    nn.TransformerEncoderLayer: "norm2",
    nn.TransformerDecoderLayer: "norm3",
}
"""What the post-LN layers of torch end with."""

_BERT_LAYER = re.compile(r"^(?P<model>.*?)encoder\.layer\.(?P<index>\d+)\.attention\.self$")


def norm_before(
    tree: Tree, name: str, query: str, key: str, features: int
) -> tuple[NormLayout, float] | None:
    """Return the norm whose output both projections see, and the dropout between.

    Args:
        tree: The model.
        name: Of the attention module.
        query: Path in it of the layer that makes the queries.
        key: Path in it of the layer that makes the keys.
        features: That the projections take.

    Returns:
        ``None`` where there is no such norm, or it is not certain.
    """
    found = _between_bert_layers(tree, name)
    if found is None:
        found = feeding_norm(tree, name, [(query, 0, "input"), (key, 0, "input")])
    return _layout(tree, found, features)


def norm_before_multihead(tree: Tree, name: str, features: int) -> tuple[NormLayout, float] | None:
    """Return it for :class:`torch.nn.MultiheadAttention`, whose callers give both inputs."""
    outside = tree.parent(name)
    if outside is None:
        return None
    outer, path = outside
    found = _in_torch_layer(tree, outer, path)
    if found is None:
        found = feeding_norm(tree, outer, [(path, 0, "query"), (path, 1, "key")])
    return _layout(tree, found, features)


def _layout(
    tree: Tree, found: tuple[str, float] | None, features: int
) -> tuple[NormLayout, float] | None:
    if found is None:
        return None
    name, dropout = found
    layout = norm_layout(tree.get(name), tree)
    return None if layout is None or layout.features != features else (layout, dropout)


def _in_torch_layer(tree: Tree, outer: str, path: str) -> tuple[str, float] | None:
    """Return the norm in a layer of torch, whose forward calls methods."""
    layer = tree.get(outer)
    if path != "self_attn" or type(layer) not in _LAST_NORM:
        return None
    if getattr(layer, "norm_first", False):
        return join(outer, "norm1"), 0.0
    stem, _, index = outer.rpartition(".")
    stack = tree.parent(stem)
    known = stack is not None and type(tree.get(stack[0])) in (
        nn.TransformerEncoder,
        nn.TransformerDecoder,
    )
    if not known or int(index) == 0:
        return None  # the input of the first one comes from the caller
    before = f"{stem}.{int(index) - 1}"
    last = _LAST_NORM.get(type(tree.get(before)))
    return None if last is None else (f"{before}.{last}", 0.0)


def _between_bert_layers(tree: Tree, name: str) -> tuple[str, float] | None:
    """Return the norm in BERT and similar: each layer ends with the norm for the next one."""
    match = _BERT_LAYER.match(name)
    if match is None:
        return None
    layer = f"{match['model']}encoder.layer.{match['index']}"
    post_norms = (f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm")
    if any(tree.get(norm) is None for norm in post_norms):
        return None
    if int(match["index"]) > 0:
        return f"{match['model']}encoder.layer.{int(match['index']) - 1}.output.LayerNorm", 0.0
    embeddings = f"{match['model']}embeddings"
    dropout = tree.get(f"{embeddings}.dropout")
    if tree.get(f"{embeddings}.LayerNorm") is None or not isinstance(dropout, nn.Dropout):
        return None
    return f"{embeddings}.LayerNorm", dropout.p
