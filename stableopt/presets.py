"""Options that belong together, as keyword arguments of ``StableOptimizer``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stableopt.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def gradience(directory: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the options of Gradience, as far as its document describes them.

    A snapshot every 100 steps, at most three rollbacks until it helps, the learning rate halved
    when one was not enough, weights of at most 10⁶ in magnitude, telemetry of every tenth
    step. We owe it the idea, and do some of it differently:

    - A snapshot is trusted only once training has stayed healthy for some steps beyond it
      (:attr:`Guard.confirm <stableopt.Guard>`), so that no fault is restored together with it.
    - What is restored is everything that a step moves: optimizer state, random states and,
      with ``model=``, buffers; with :meth:`~stableopt.StableOptimizer.track` also the
      schedule. The first rollback leaves the learning rate as it is, because a transient
      fault needs nothing more; those after it lower it.
    - The cost is measured: ``make bench``.
    - The risk levels that it reads from the slope of κ̃ are not here yet: they come with the
      spectral sensors.

    Args:
        directory: For ``telemetry.jsonl`` and ``summary.json``; no telemetry if not given.

    Returns:
        ``guard`` and ``telemetry``.

    Example:
        >>> import torch
        >>> from stableopt import StableOptimizer, presets
        >>> adamw = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
        >>> opt = StableOptimizer(adamw, **presets.gradience())
        >>> guard = opt.summary()["guard"]
        >>> guard["max_weight"]
        1000000.0
    """
    guard = Guard(every=100, max_rollbacks=3, lr_backoff=0.5, max_weight=1e6)
    # A directory, not a writer: nothing is opened before an optimizer is there to use it.
    return {"guard": guard, "telemetry": directory}


PRESETS: Mapping[str, Callable[[], dict[str, Any]]] = {"gradience": gradience}
"""What ``from_config`` knows by name."""
