"""Find the pairs of low-rank factors of LoRA adapters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from stableopt.errors import ConfigError, require_number
from stableopt.layouts.tree import Tree

_NAMINGS = (
    ("lora_A", "lora_B"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("lora_a", "lora_b"),
    ("lora_down", "lora_up"),
    ("A", "B"),
)
"""What the factor that is applied first is called, and the other one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPair:
    """The two factors of an update ``ΔW = scale · B A``.

    ``A (r, in)`` is applied first, then ``B (out, r)``; those of an embedding are
    ``A (r, vocabulary)`` and ``B (dim, r)``: the same product.

    Attributes:
        name: Of the adapted layer, with the adapter's where it has one.
        a: Name of A.
        b: Name of B.
        scale: Of the product; alpha/r, or alpha/√r for rsLoRA.

    Raises:
        ConfigError: A name is empty, both are the same, or the scale is not above 0.

    Example:
        >>> LoraPair(name="q_proj", a="q_proj.lora_A", b="q_proj.lora_B", scale=2.0).scale
        2.0
    """

    name: str
    a: str
    b: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.a or not self.b or self.a == self.b:
            raise ConfigError(
                f"a={self.a!r} and b={self.b!r} must be the names of two parameters: the factors "
                "of one update"
            )
        require_number("scale", self.scale, math.inf, "the factor on the product of both")


def find_lora_pairs(names: Iterable[str], model: nn.Module | None = None) -> tuple[LoraPair, ...]:
    """Pair the low-rank factors among the names of parameters.

    Known are the names of peft (``….lora_A.default.weight``, ``….lora_embedding_A.default``),
    and ``lora_A``/``lora_B``, ``lora_a``/``lora_b``, ``lora_down``/``lora_up`` and ``A``/``B``,
    as parameters or as layers with a weight. A factor without its partner is left out.

    Args:
        names: As ``model.named_parameters()`` gives them, or an optimizer's.
        model: Gives the scale, from the ``scaling`` of an adapted layer: a number, or one for
            each adapter as in peft. 1.0 where there is none.

    Returns:
        The pairs, in the order of their A.

    Example:
        >>> names = ["h.0.lora_A.default.weight", "h.0.lora_B.default.weight", "h.0.weight"]
        >>> find_lora_pairs(names)[0].b
        'h.0.lora_B.default.weight'
    """
    given = list(names)
    known = set(given)
    tree = None if model is None else Tree(model)
    pairs = []
    for name in given:
        partner = _partner(name)
        if partner is not None and partner[0] in known:
            b, layer, adapter = partner
            pairs.append(
                LoraPair(
                    name=f"{layer}.{adapter}" if layer and adapter else layer or adapter or name,
                    a=name,
                    b=b,
                    scale=1.0 if tree is None else _scale(tree.get(layer), adapter),
                )
            )
    return tuple(pairs)


def _partner(name: str) -> tuple[str, str, str | None] | None:
    """Return the name of B, the adapted layer and the adapter of an A; ``None`` for no A."""
    parts = name.split(".")
    for first, second in _NAMINGS:
        if first not in parts:
            continue
        at = len(parts) - 1 - parts[::-1].index(first)
        rest = parts[at + 1 :]
        # lora_A, lora_A.weight, lora_A.default.weight, lora_embedding_A.default
        if len(rest) > 2 or rest[1:] not in ([], ["weight"]) or rest[-1:] == ["bias"]:
            return None
        adapter = rest[0] if rest and rest != ["weight"] else None
        return ".".join([*parts[:at], second, *rest]), ".".join(parts[:at]), adapter
    return None


def _scale(layer: nn.Module | None, adapter: str | None) -> float:
    """Return ``scaling``, or ``lora_alpha / r``; 1.0 where neither is a number above 0."""
    found = (getattr(layer, name, None) for name in ("scaling", "lora_alpha", "r"))
    value, alpha, rank = (x.get(adapter) if isinstance(x, dict) else x for x in found)
    if value is None and isinstance(alpha, (int, float)) and isinstance(rank, (int, float)):
        value = alpha / rank if rank else None
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    scale = abs(float(value or 0.0)) if is_number else 0.0
    return scale if 0 < scale < math.inf else 1.0
