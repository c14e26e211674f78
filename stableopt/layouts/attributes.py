"""Read counts, scales and positions off an attention module."""

from __future__ import annotations

import inspect
import math
import re

from torch import nn

from stableopt.layouts.tree import Tree

HEADS = ("num_heads", "n_heads", "n_head", "heads", "num_attention_heads", "nhead")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads")
HEAD_DIM = ("head_dim", "attention_head_size", "head_size", "dim_head")
_SCALE = ("scaling", "scale", "softmax_scale")
_POSITIONS = re.compile(r"rotar|rotat|rope|freqs|cos\b|position_embeddings|pos_emb", re.IGNORECASE)
_SCALED = re.compile(r"sqrt|scal(?!ar)|\*\*\s*\(?-")


def stated(module: nn.Module, names: tuple[str, ...], config: bool = True) -> int | None:
    """Return the first count above 0 that a module has under one of the names.

    Args:
        module: An attention module.
        names: Of attributes: :data:`HEADS`, :data:`KEY_HEADS` or :data:`HEAD_DIM`.
        config: Whether the attributes of ``module.config`` count, too.

    Example:
        >>> stated(nn.MultiheadAttention(8, 2), HEADS)
        2
    """
    for owner in (module, getattr(module, "config", None)) if config else (module,):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def logit_scale(module: nn.Module, tree: Tree, head_dim: int) -> float:
    """Return the factor on q·k.

    What the module says; else ``1 / √head_dim``, unless its source has nothing that looks like
    a scale. Some rotary positions (YaRN) multiply queries and keys by a factor besides.
    """
    values = [getattr(module, name, None) for name in _SCALE]
    scales = [float(v) for v in values if isinstance(v, (int, float)) and v > 0 and v is not True]
    if scales:
        scale = scales[0]
    else:
        source = source_of(module)
        scale = head_dim**-0.5 if source is None or _SCALED.search(source) else 1.0
    stretch = max((_stretch(m) for _, m in tree.items()), default=1.0)
    return scale * stretch**2


def is_rotated(module: nn.Module) -> bool:
    """Return whether positions may rotate queries and keys; ``True`` where it is not known."""
    if any("rot" in name.lower() for name, _ in module.named_children()):
        return True
    source = source_of(module)
    return source is None or _POSITIONS.search(source) is not None


def source_of(module: nn.Module) -> str | None:
    """Return the source of a module's class; ``None`` if there is none."""
    try:
        return inspect.getsource(type(module))
    except (OSError, TypeError):
        return None


def _stretch(module: nn.Module) -> float:
    value = getattr(module, "attention_scaling", 1.0)
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return max(1.0, float(value)) if known else 1.0
