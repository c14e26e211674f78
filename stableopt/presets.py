"""Options that belong together, as keyword arguments of ``StableOptimizer``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from stableopt.guard import Guard
from stableopt.sensors import AssrConditionNumber, AssrFiedler, KappaTilde, Sampler, Sensors
from stableopt.transforms import (
    AdaptiveWeightDecay,
    ClipGradNorm,
    QKClip,
    UpdateCap,
    WhereFound,
    layers,
)
from stableopt.triggers.conditions import above, below


def gradience(directory: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the options of Gradience, as far as its document describes them.

    A snapshot every 100 steps, at most three rollbacks until it helps, the learning rate halved
    when one was not enough, weights of at most 10⁶ in magnitude, telemetry of every tenth
    step; κ̃ of every weight every 50 steps, and a risk level from its slope. A level that rises
    is answered: ``WARNING`` by a burst of telemetry and a snapshot, ``DANGER`` by these and half
    the learning rate, ``INSTABILITY`` by a rollback, and a stop once rollbacks do not help.
    The idea is theirs; some of it is done differently here:

    - A snapshot is trusted only once training has stayed healthy for some steps beyond it
      (:attr:`Guard.confirm <stableopt.Guard>`), so that no fault is restored together with it.
    - What is restored is everything that a step moves: optimizer state, random states and,
      with ``model=``, buffers; with :meth:`~stableopt.StableOptimizer.track` also the
      schedule. The first rollback leaves the learning rate as it is, because a transient
      fault needs nothing more; those after it lower it.
    - κ̃ never sees σ_min, so it is no proxy of a condition number; its slope shows
      whether one direction comes to dominate. Its estimate is warm, and the slope that of the
      mean of ln κ̃ per step (:class:`stableopt.health.spectra.kappa_slope.KappaSlope`): the document
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


def robust() -> dict[str, Any]:
    """Return the options with which the learning rate stops being a way to fail.

    Gradients are clipped to a norm of 1, no step of a tensor is longer than 2% of what counts as
    its norm (:class:`~stableopt.UpdateCap` says what does for small and for large ones), and
    heads whose weights allow attention logits beyond 100 are scaled down, where attention is found
    in ``model=``. Then a learning rate that is ten or a hundred times too large trains a small
    transformer like the best one. It is not free of consequences where nothing is wrong: the cap
    acts in the first steps of most runs. ``make learning-rate`` says what it is worth, where it
    fails, and how much of it is a change of schedule.

    Returns:
        ``transforms``.

    Example:
        >>> import torch
        >>> from stableopt import StableOptimizer, presets
        >>> model = torch.nn.Linear(2, 2)
        >>> adamw = torch.optim.AdamW(model.parameters(), lr=0.1)
        >>> opt = StableOptimizer(adamw, model=model, **presets.robust())
        >>> [known["parameters"] for known in opt.summary()["transforms"]]
        [2, 2]
    """
    clip = WhereFound(QKClip(limit=100.0, slack=1.0))
    return {"transforms": (ClipGradNorm(1.0), UpdateCap(0.02), clip)}


def assr() -> dict[str, Any]:
    """Return the options of ASSR as its document has them: a reproduction, for comparison.

    A tenth of the linear layers, drawn at random every ten steps, is measured with the formulas
    of the document. Where its Fiedler value is below 0.05 or its condition number above 1000 the
    penalty ``λ ‖W‖²`` joins the gradient of that step, with λ from 2e-5 to 22e-5. Needs ``model=``
    for the layer types. The idea of a loop from spectra to the optimizer is theirs; two things
    differ, and more should:

    - It acts. A ``TrainerCallback`` adds the gradient in ``on_step_end``, where it has been zeroed
      already; a transform adds it before the step.
    - A decay scales all singular values alike: it cannot move a condition number, and it moves
      that Fiedler value, which grows with ‖W‖², further below its floor. Every other transform
      here moves what triggers it: :class:`~stableopt.transforms.SpectralCap` does.

    Returns:
        ``sensors`` and ``transforms``.

    Example:
        >>> import torch
        >>> from stableopt import StableOptimizer, presets
        >>> model = torch.nn.Linear(2, 2)
        >>> adamw = torch.optim.AdamW(model.parameters())
        >>> opt = StableOptimizer(adamw, model=model, **presets.assr())
        >>> opt.summary()["transforms"][0]["parameters"]
        1
    """
    sensors = Sensors(
        use=(AssrFiedler(), AssrConditionNumber()),
        sampler=Sampler(ratio=0.1, every=10, order="random"),
    )
    decay = AdaptiveWeightDecay(
        when=below("assr_fiedler", 0.05) | above("assr_condition_number", 1000.0, severity=1.0),
        base=2e-5,
        gain=10.0,
        hold=False,
        published=True,
        params=layers("Linear"),
    )
    return {"sensors": sensors, "transforms": (decay,)}


PRESETS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "assr": assr,
    "gradience": gradience,
    "robust": robust,
}
"""What ``from_config`` knows by name."""
