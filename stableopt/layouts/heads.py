"""Find the output head of a model, and the norm that feeds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from stableopt.layouts.attention import NormLayout, require_names
from stableopt.layouts.dataflow import feeding_norm, returned_layer
from stableopt.layouts.norms import norm_layout
from stableopt.layouts.tree import Tree, join


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHead:
    """The last layer of a model, by the names of its parameters.

    Attributes:
        weight: Name of the weight, ``(classes, d)``; that of the embedding if both are one.
        bias: Name of the bias, or ``None``.
        norm: What normalises its input; ``None`` if that is not known.
        tied: Whether the weight is an embedding, too.

    Raises:
        ConfigError: The weight has no name.

    Example:
        >>> OutputHead(weight="lm_head.weight").tied
        False
    """

    weight: str
    bias: str | None = None
    norm: NormLayout | None = None
    tied: bool = False

    def __post_init__(self) -> None:
        require_names(weight=self.weight)


def find_head(model: nn.Module) -> OutputHead | None:
    """Find the layer that makes the logits.

    In this order: what a model of transformers calls its output embeddings; the linear layer
    (or the embedding, applied with ``F.linear``) whose output ``forward`` is seen to return; the
    last layer that has parameters, if it is linear.

    Args:
        model: Any model, compiled or not.

    Returns:
        ``None`` if there is none, or it is not certain which: write an :class:`OutputHead`
        by hand then.

    Cost:
        Once: a walk over the modules, and the source of some.

    Example:
        >>> head = find_head(nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 9)))
        >>> head.weight, head.norm.gain
        ('2.weight', '1.weight')
    """
    tree = Tree(model)
    found = _call_of_head(tree)
    if found is None:
        return None
    outer, path = found
    layer = tree.get(join(outer, path.removesuffix(".weight")))
    by_hand = path.endswith(".weight")
    if not isinstance(layer, nn.Linear) and not (by_hand and isinstance(layer, nn.Embedding)):
        return None
    weight = tree.parameter(layer.weight)
    if weight is None:
        return None
    tables = [module for _, module in tree.items() if isinstance(module, nn.Embedding)]
    return OutputHead(
        weight=weight,
        bias=None if by_hand else tree.parameter(layer.bias),
        norm=_norm_before(tree, outer, path, layer.weight.shape[1]),
        tied=any(layer.weight is table.weight for table in tables),
    )


def _call_of_head(tree: Tree) -> tuple[str, str] | None:
    """Return the module that calls the head, and the path of the head in it."""
    root = tree.get("")
    returned = returned_layer(tree, "")
    stated: Callable[[], object] | None = getattr(root, "get_output_embeddings", None)
    if stated is not None:
        head = stated()
        if returned is not None and tree.get(join(*returned)) is head:
            return returned
        return next((tree.parent(name) for name, m in tree.items() if m is head), None)
    if returned is not None:
        return returned
    own = [
        (name, module)
        for name, module in tree.items()
        if any(True for _ in module.parameters(recurse=False))
    ]
    return tree.parent(own[-1][0]) if own and isinstance(own[-1][1], nn.Linear) else None


def _norm_before(tree: Tree, outer: str, path: str, features: int) -> NormLayout | None:
    """Return the norm before the head, if nothing else lies between."""
    found = feeding_norm(tree, outer, [(path, 0, "input")])
    layout = None if found is None or found[1] else norm_layout(tree.get(found[0]), tree)
    return layout if layout is not None and layout.features == features else None
