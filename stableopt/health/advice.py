"""Warnings before training: state that no rollback restores, and an ``eps`` that vanishes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stableopt.runtime.family import family, unseen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer


def beyond_reach(optimizer: Optimizer) -> list[str]:
    """Return a warning for all state that no rollback restores."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [
        f"{type(member).__name__} keeps state in its attribute {what}, which stableopt cannot "
        "read: it is neither checked nor restored by a rollback; opt.track() takes anything with "
        "state_dict() and load_state_dict()"
        for member in family(optimizer)
        for what in unseen(member, trained)
    ]


def vanishing_eps(optimizer: Optimizer) -> Iterator[str]:
    """Yield a warning for every ``eps`` that is zero in the dtype of the weights."""
    seen = set()
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if not isinstance(eps, float) or eps == 0.0:
            continue
        dtypes = {
            p.dtype
            for p in group["params"]
            if p.is_floating_point() and p.requires_grad and not p.is_meta
        }
        for dtype in sorted(dtypes, key=str):
            lost = float(torch.tensor(eps, dtype=dtype)) == 0.0
            if lost and (eps, dtype) not in seen:
                seen.add((eps, dtype))
                yield (
                    f"eps={eps:g} of {type(optimizer).__name__} is 0 in {dtype}, the dtype of the "
                    "weights: small second moments vanish as well, and 0 / 0 is NaN. Keep the "
                    "weights in float32 (and use torch.autocast), or set eps=1e-4"
                )
