"""Names of parameters: from the model, from ``named_parameters``, else by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")
"""Prefixes that torch.compile, DDP and FSDP put before the name the user knows."""


def parameter_names(optimizer: Optimizer, model: nn.Module | None) -> dict[tuple[int, int], str]:
    """Return the name of every parameter by ``(group, index)``.

    The position is the key because trainers swap Parameter objects under an optimizer.

    Args:
        optimizer: The optimizer whose groups are named.
        model: Where names are looked up first; then the ``param_names`` that torch keeps for
            optimizers built from ``named_parameters()``; else ``"group.index"``.
    """
    known = {} if model is None else {id(p): n for n, p in model.named_parameters()}
    names = {}
    for g, group in enumerate(optimizer.param_groups):
        own = group.get("param_names")
        for i, parameter in enumerate(group["params"]):
            name = known.get(id(parameter)) or (own[i] if own else f"{g}.{i}")
            names[g, i] = without_wrappers(name)
    return names


def without_wrappers(name: str) -> str:
    """Return a name as the user knows it."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".").replace("._fsdp_wrapped_module.", ".")
