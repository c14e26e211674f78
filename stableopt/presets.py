"""Options that belong together, as keyword arguments of ``StableOptimizer``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stableopt.guard import Guard
from stableopt.sensors import KappaTilde, Sampler, Sensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def gradience(directory: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the options of Gradience, as far as its document describes them.

    A snapshot every 100 steps, at most three rollbacks until it helps, the learning rate halved
    when one was not enough, weights of at most 10⁶ in magnitude, telemetry of every tenth
    step; κ̃ of every weight every 50 steps, and a risk level from its slope. A level that rises
    is answered: ``WARNING`` by a burst of telemetry and a snapshot, ``DANGER`` by these and half
    the learning rate, ``INSTABILITY`` by a rollback, and a stop once rollbacks do not help.
    We owe it the idea, and do some of it differently:

    - A snapshot is trusted only once training has stayed healthy for some steps beyond it
      (:attr:`Guard.confirm <stableopt.Guard>`), so that no fault is restored together with it.
    - What is restored is everything that a step moves: optimizer state, random states and,
      with ``model=``, buffers; with :meth:`~stableopt.StableOptimizer.track` also the
      schedule. The first rollback leaves the learning rate as it is, because a transient
      fault needs nothing more; those after it lower it.
    - κ̃ never sees σ_min, so it is no proxy of a condition number; what its slope tells is
      whether one direction comes to dominate. Its estimate is warm, and the slope that of the
      mean of ln κ̃ per step (:class:`stableopt.health.kappa_slope.KappaSlope`): the document
      gives no units, and a cold estimate alone moves by more than its limits.
    - The cost is measured: ``make bench``.

    Args:
        directory: For ``telemetry.jsonl`` and ``summary.json``; no telemetry if not given.

    Returns:
        ``guard``, ``sensors`` and ``telemetry``.

    Example:
        >>> import torch
        >>> from stableopt import StableOptimizer, presets
        >>> adamw = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
        >>> opt = StableOptimizer(adamw, **presets.gradience())
        >>> guard = opt.summary()["guard"]
        >>> guard["max_weight"]
        1000000.0
    """
    guard = Guard(every=100, max_rollbacks=3, lr_backoff=0.5, max_weight=1e6, act_on_risk=True)
    sampler = Sampler(ratio=1.0, every=50)
    sensors = Sensors(use=(KappaTilde(),), sampler=sampler, risk="kappa_tilde")
    # A directory, not a writer: nothing is opened before an optimizer is there to use it.
    return {"guard": guard, "sensors": sensors, "telemetry": directory}


PRESETS: Mapping[str, Callable[[], dict[str, Any]]] = {"gradience": gradience}
"""What ``from_config`` knows by name."""
