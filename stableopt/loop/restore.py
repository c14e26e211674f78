"""ACT: keep snapshots and buffers, and restore them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from stableopt.errors import ConfigError
from stableopt.health.advice import beyond_reach, vanishing_eps
from stableopt.runtime.once import warn_once
from stableopt.runtime.shards import reshard
from stableopt.snapshots.tracked import forgive_overflow
from stableopt.types import Action, Verdict

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from stableopt.health.judge import Judge
    from stableopt.loop.checkpoint import Register
    from stableopt.loop.decide import Decider
    from stableopt.ranks.replicas import Replicas
    from stableopt.snapshots.buffers import BufferShadow
    from stableopt.snapshots.keeper import Keeper
    from stableopt.snapshots.tracked import Tracked
    from stableopt.types import Rollback
    from stableopt.update.option_watch import OptionWatch

logger = logging.getLogger("stableopt")


class Restorer:
    """Restores everything that a step moves.

    Args:
        optimizer: The inner optimizer.
        register: What is remembered, and restored together with the weights.
        judge: Looks at what is copied before it is copied.
        keeper: The snapshots.
        buffers: The model's buffers; ``None`` without a model.
        tracked: What the user wants restored as well.
        options: What the optimizer changes in its own options.
        replicas: Compares the copies of weights on other ranks.
        model: May have weights that were gathered from other ranks.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        register: Register,
        judge: Judge,
        keeper: Keeper,
        buffers: BufferShadow | None,
        tracked: Tracked,
        options: OptionWatch,
        replicas: Replicas,
        model: nn.Module | None,
    ) -> None:
        self._optimizer = optimizer
        self._register = register
        self._judge = judge
        self._options = options
        self._replicas = replicas
        self._model = model
        self.keeper = keeper
        self.buffers = buffers
        self.tracked = tracked
        self.has_scaler = False
        self._said: set[object] = set()
        self.warn_of_limits()

    @property
    def begun(self) -> bool:
        """Whether what training begins with has been looked at, and can be restored."""
        return self._judge.accepted

    def begin(self, step: int) -> None:
        """Make sure that what is there after ``step`` steps can be restored."""
        if self.begun:
            return
        self._judge.accept()
        self.keeper.begin(step, self._register.remembered)

    def adapt(self) -> None:
        """Make room for parameters that have come since the last call, or were replaced."""
        if not self._judge.has_same_parameters():
            self.keeper.adapt(self._judge.meet())
            self.warn_of_limits()

    def go_back(self, verdict: Verdict, step: int, decider: Decider) -> Verdict:
        """Restore the snapshot that ``verdict`` names; return what was done in the end.

        A snapshot with a fault in it is given up, and the policy asked again.
        """
        goes_back, given_up = verdict.rollback is not None, 0
        while verdict.rollback is not None:
            numbers = self._options.numbers
            restored = self.keeper.restore(verdict.rollback, self._restores, numbers)
            if restored is not None:
                self._register.restore(restored.baselines)
                reshard(self._model)
                self._judge.restart()
                self._replicas.restart()
                for scaler in self.tracked.scalers:
                    forgive_overflow(scaler)
                return _with(verdict, verdict.rollback, restored.left_behind)
            verdict, given_up = decider.decide(verdict.findings, step), given_up + 1
        if given_up and verdict.reason:
            several = "s were" if given_up > 1 else " was"
            lost = f"{given_up} snapshot{several} found damaged and given up"
            verdict = replace(verdict, reason=f"{verdict.reason} ({lost})")
        if goes_back and verdict.action is Action.TAKE:
            # opt.rollback() asked for it, and no snapshot is left.
            reason = "no snapshot is left for the rollback that was asked for; the batch is skipped"
            return replace(verdict, action=Action.SKIP, reason=reason)
        return verdict

    def keep_buffers(self, verdict: Verdict) -> None:
        """Copy the buffers of a step that was taken, or restore them if it was left out.

        A batch that was tamed has no more influence on running statistics than on weights.
        """
        if self.buffers is None or verdict.rollback is not None:
            return
        if verdict.action is Action.TAKE and not verdict.tames:
            self.buffers.taken()
        else:
            self.buffers.left_out()

    def keep_buffers_if(self, sound: Tensor) -> None:
        """Do the same for a step whose fate is known on the device alone."""
        if self.buffers is not None:
            self.buffers.taken_if(sound)

    def after(self, step: int, *, now: bool) -> bool:
        """Take a snapshot if one is due; return whether a fault has kept it from that.

        Args:
            step: Steps taken so far.
            now: Whether one is taken though it is not due.
        """
        found = self.keeper.after(step, self._register.remembered, now=now)
        if self.keeper.taken > 1:
            self._warn_untracked()
        return found

    def is_damaged(self) -> bool:
        """Return whether weights, state or buffers hold a fault."""
        return bool(self._judge.damage())

    def accept(self) -> None:
        """Start again with what is there now: a checkpoint was loaded."""
        if self.buffers is not None:
            self.buffers.refresh()
        self.keeper.forget()
        self._judge.forget()
        self._replicas.forget()

    def require_snapshots(self, what: str) -> None:
        """Refuse a request that needs snapshots where there are none.

        Raises:
            ConfigError: ``Guard.slots`` is 0.
        """
        if not self.keeper.ring.slots:
            raise ConfigError(f"slots=0 leaves {what} nothing to work with: use Guard(slots=3)")

    def warn_of_limits(self) -> None:
        """Warn of what no snapshot holds, and of options that cannot work, once each."""
        for sentence in (*beyond_reach(self._optimizer), *vanishing_eps(self._optimizer)):
            warn_once(self._said, sentence, sentence)

    def _restores(self, option: str) -> bool:
        return self.tracked.has_scheduler or option in self._options.moved

    def _warn_untracked(self) -> None:
        """Warn once of what a rollback would leave as it is, where that can be known."""
        if "untracked" in self._said:
            return
        self._said.add("untracked")
        self.warn_of_limits()
        scheduled = any("initial_lr" in group for group in self._optimizer.param_groups)
        missing = {
            "scheduler": scheduled and not self.tracked.has_scheduler,
            "scaler": self.has_scaler and not self.tracked.scalers,
        }
        names = [n for n, lacks in missing.items() if lacks and n not in self.tracked.declined]
        if names:
            logger.warning(
                "there seems to be a %s that is not tracked: a rollback leaves it as it is; "
                "call opt.track(%s) to have it restored together with the weights",
                " and a ".join(names),
                ", ".join(f"{name}={name}" for name in names),
            )

    def __getstate__(self) -> dict[str, object]:
        """Let copies warn again of what is not tracked: they track nothing."""
        return {**self.__dict__, "_said": self._said - {"untracked"}}


def _with(verdict: Verdict, rollback: Rollback, left_behind: tuple[str, ...]) -> Verdict:
    """Return ``verdict`` with the names of what was not restored."""
    if not left_behind:
        return verdict
    names = ", ".join(left_behind)
    reason = f"{verdict.reason}; {names} raised and was NOT restored (see the log)"
    return replace(verdict, reason=reason, rollback=replace(rollback, left_behind=left_behind))
