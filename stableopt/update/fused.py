"""Fused kernels that leave a step out where ``found_inf`` says so."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.optim import Optimizer


def obeys_found_inf(optimizer: Optimizer) -> bool:
    """Return whether the kernels of ``optimizer`` leave a step out where ``found_inf`` is set."""
    # Not by _step_supports_amp_scaling, which copies of torch's optimizers have lost.
    return type(optimizer) in _OBEY and all(group.get("fused") for group in optimizer.param_groups)


_OBEY = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


@contextmanager
def found_inf(optimizer: Optimizer, found: Tensor) -> Iterator[None]:
    """Have the next step do nothing if ``found`` holds; the host does not learn of it.

    It is what a gradient scaler tells to fused kernels, which do not move weights, moments or step
    counters then.

    Args:
        optimizer: One that :func:`obeys_found_inf`.
        found: A 0-dim bool tensor.
    """
    scaled: Any = optimizer
    scaled.grad_scale, scaled.found_inf = None, found.to(torch.float32)
    try:
        yield
    finally:
        del scaled.grad_scale, scaled.found_inf
