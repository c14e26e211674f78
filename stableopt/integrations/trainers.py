"""Code that the callbacks for trainers share."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from stableopt.config import reader
from stableopt.errors import ConfigError, unknown_name
from stableopt.optimizer import StableOptimizer
from stableopt.runtime.once import warn_once
from stableopt.types import RiskLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

GIVEN = frozenset({"self", "optimizer", "model"})
"""Arguments of ``StableOptimizer`` that a trainer provides."""


def stable_optimizer_of(optimizer: object) -> StableOptimizer | None:
    """Return the ``StableOptimizer`` that ``optimizer`` is or wraps, as accelerate does.

    Args:
        optimizer: Any object.

    Example:
        >>> import torch
        >>> opt = StableOptimizer(torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1))
        >>> stable_optimizer_of(opt) is opt
        True
        >>> print(stable_optimizer_of(opt.optimizer))
        None
    """
    seen = optimizer
    while seen is not None and not isinstance(seen, StableOptimizer):
        # The attribute of an instance only: a mock has attributes of any name.
        seen = vars(seen).get("optimizer") if isinstance(seen, Optimizer) else None
    return seen


def check_options(owner: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ``StableOptimizer`` that is built later, checked now.

    Args:
        owner: The class that takes them, for the message.
        options: Keyword arguments of :class:`~stableopt.StableOptimizer`.

    Raises:
        ConfigError: One of them is unknown, provided by the trainer, or out of range.
    """
    for name in GIVEN & options.keys():
        given = type(options[name]).__name__
        raise ConfigError(f"{name}={given} object is provided by the trainer: leave it out")
    known = inspect.signature(StableOptimizer.__init__).parameters.keys() - GIVEN
    for name in options:
        if name not in known:
            raise unknown_name(f"{owner} option", name, known)
    guard = reader.make_guard(options.get("guard"))
    reader.make_sensors(options.get("sensors"), guard)
    transforms = reader.make_transforms(options.get("transforms", ()))
    return {**options, "transforms": transforms} if "transforms" in options else dict(options)


class StableCallbackBase:
    """Base class of the callbacks for trainers.

    Args:
        log: Whether the logs of the trainer get ``stable/…``.
        rewind_schedule: Whether a rollback restores the learning rate schedule, too.
        options: Those of :class:`~stableopt.StableOptimizer`, but for ``optimizer`` and ``model``.

    Raises:
        ConfigError: An option is unknown or out of range.
    """

    def __init__(self, log: bool, rewind_schedule: bool, options: Mapping[str, Any]) -> None:
        self._options = check_options(type(self).__name__, options)
        self._logs = log
        self._rewind_schedule = rewind_schedule
        self._made: StableOptimizer | None = None
        self._mean = MeanLoss()
        self._said: set[object] = set()

    def _track(self, opt: StableOptimizer, scheduler: object, scaler: object) -> None:
        """Have rollbacks restore the scaler, and with ``rewind_schedule`` the schedule.

        A trainer stops after a number of batches, so a schedule that is restored would not reach
        its end. What the user tracks already is left as it is.
        """
        summary = opt.summary()
        if summary["guard"] is False:
            return
        wanted = {"scheduler": scheduler if self._rewind_schedule else None, "scaler": scaler}
        opt.track(**{name: item for name, item in wanted.items() if name not in summary["tracked"]})

    def _warn_clipped(self, option: str, value: float | None, instead: str) -> None:
        """Warn once that the trainer clips gradients itself."""
        if value:
            warn_once(
                self._said,
                "clipped",
                "%s=%g clips gradients before they are judged, which hides their spikes: %s and "
                "use transforms=[ClipGradNorm(%g)], which gives the same numbers and sees spikes",
                option,
                value,
                instead,
                value,
            )

    def _refuse_options(self, given: object) -> None:
        if given:
            raise ConfigError(
                f"options={given} must not be given if the optimizer is a StableOptimizer "
                "already: give them to that one"
            )


def options_on_top(chosen: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a trial merged with those of all trials.

    A transform replaces those that move the same metric; the others stay.

    Args:
        chosen: Of the trial, as :func:`check_options` returns them.
        known: Of all trials, likewise.

    Raises:
        ConfigError: Both have a guard: its defaults cannot be distinguished from given options.

    Example:
        >>> from stableopt import ClipGradNorm, UpdateCap
        >>> first, second = {"transforms": [ClipGradNorm(1.0)]}, {"transforms": [UpdateCap(0.1)]}
        >>> [type(t).__name__ for t in options_on_top(second, first)["transforms"]]
        ['ClipGradNorm', 'UpdateCap']
    """
    guards = [options.get("guard") for options in (known, chosen)]
    if None not in guards:
        raise ConfigError(
            f"guard={guards[0]!r} must not be given beside per_trial=, which returns a guard, too: "
            "give it there, as per_trial=lambda trial: suggest_stability(trial, guard=...), or "
            "leave it out there, as search=['spectral', 'decay', 'update_cap'] does"
        )
    merged = {**known, **chosen}
    if any(guard is not None for guard in guards):
        merged["guard"] = next(guard for guard in guards if guard is not None)
    if "transforms" in chosen:
        first = known.get("transforms", ())
        merged["transforms"] = reader.transforms_on_top(chosen["transforms"], first)
    return merged


def stability_metrics(opt: StableOptimizer) -> dict[str, float]:
    """Return the numbers of a run that a trainer logs, by their keys.

    Returns:
        ``stable/skips``, ``stable/tamed``, ``stable/rollbacks``, ``stable/step`` (steps taken and
        not undone) and ``stable/lr_scale``; ``stable/risk`` from 0 (stable) to 4 (instability)
        once it is known.

    Cost:
        One :meth:`~stableopt.StableOptimizer.summary`: below a millisecond.

    Example:
        >>> import torch
        >>> opt = StableOptimizer(torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1))
        >>> stability_metrics(opt)["stable/lr_scale"]
        1.0
    """
    summary = opt.summary()
    found = {f"stable/{name}": float(summary[name]) for name in ("skips", "tamed", "rollbacks")}
    found["stable/step"] = float(summary["steps"])
    found["stable/lr_scale"] = float(summary.get("lr_scale", 1.0))
    if isinstance(opt.risk, RiskLevel):
        found["stable/risk"] = float(opt.risk.rank)
    return found


class MeanLoss:
    """The mean of the losses since the last :meth:`take`, kept on their device.

    Losses that are not finite are included.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, loss: Tensor) -> None:
        """Add one loss; no host synchronisation."""
        wide = loss.detach().double() if loss.device.type != "mps" else loss.detach().float()
        self._sum = wide if self._sum is None else self._sum + wide
        self._count += 1

    def take(self) -> dict[str, float]:
        """Return the mean as ``stable/loss`` and reset it; empty if there was no loss."""
        total, count = self._sum, self._count
        self._sum, self._count = None, 0
        return {} if total is None else {"stable/loss": float(total) / count}
