"""A curriculum that waits for stability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, require_int

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stableopt.optimizer import StableOptimizer


class StabilityGate:
    """Raises a level while a run is stable, and holds it, or lowers it, while it is not.

    For what becomes harder in the course of a training run: lengths of sequences, augmentation,
    steps of recursion. Call :meth:`update` after every ``opt.step()``, and set the difficulty by
    :attr:`level`. Track it (``opt.track(gate=gate)``) to have a rollback restore the level.

    Args:
        optimizer: Its :attr:`~stableopt.StableOptimizer.is_stable` is read.
        every: Calls that a level lasts for, at least.
        highest: The last level, at least 1; the first is 0.
        retreats: Whether the level is also lowered, after ``every`` calls without stability.

    Raises:
        ConfigError: A value is out of range.

    Attributes:
        level: From 0 to ``highest``.

    Cost:
        None.

    Example:
        >>> import torch, stableopt
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> guard = stableopt.Guard(cooldown=3)
        >>> opt = stableopt.StableOptimizer(torch.optim.SGD([w], lr=0.1), guard=guard)
        >>> gate = stableopt.StabilityGate(opt, every=5, highest=2)
        >>> levels = []
        >>> for _ in range(12):
        ...     w.grad = torch.ones(2)
        ...     opt.step()
        ...     levels.append(gate.update())
        >>> levels
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    """

    def __init__(
        self,
        optimizer: StableOptimizer,
        *,
        every: int = 100,
        highest: int = 1,
        retreats: bool = False,
    ) -> None:
        if not hasattr(optimizer, "is_stable"):
            raise ConfigError(
                f"optimizer={type(optimizer).__name__} object must be a StableOptimizer, which "
                "says whether the run is stable: wrap it first"
            )
        require_int("every", every, 1, "calls that a level lasts for, at least")
        require_int("highest", highest, 1, "the last level")
        if not isinstance(retreats, bool):
            raise ConfigError(f"retreats={retreats!r} must be True or False")
        self._optimizer = optimizer
        self._every = every
        self._highest = highest
        self._retreats = retreats
        self._since = self._unstable = 0
        self.level = 0

    def update(self) -> int:
        """Count a step, and return the level from here on; call it after every step."""
        stable = self._optimizer.is_stable
        self._since += 1
        self._unstable = 0 if stable else self._unstable + 1
        if stable and self._since >= self._every:
            self._move(min(self._highest, self.level + 1))
        elif self._retreats and self._unstable >= self._every:
            self._move(max(0, self.level - 1))
        return self.level

    def _move(self, level: int) -> None:
        if level != self.level:
            self.level, self._since, self._unstable = level, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the level, for how long it has lasted, and for how long without stability."""
        return {"level": self.level, "since": self._since, "unstable": self._unstable}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them; a level above ``highest`` becomes ``highest``.

        Raises:
            ConfigError: It is not what :meth:`state_dict` returns; nothing has changed then.
        """
        try:
            level, since, unstable = (int(state[key]) for key in ("level", "since", "unstable"))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"state={state!r} must be what state_dict() of a StabilityGate returned: give that"
            ) from error
        require_int("level", level, 0, "that of a state_dict()")
        self.level = min(level, self._highest)
        self._since, self._unstable = since, unstable
