"""Findings, and verdicts on a step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(str, Enum):
    """What was done in a call of ``step()``."""

    TAKE = "take"
    """The inner optimizer took its step."""
    SKIP = "skip"
    """The batch was skipped: nothing changed, not even a step counter."""
    ROLL_BACK = "roll_back"
    """A snapshot was restored: the run is where it was some steps ago."""
    STOP = "stop"
    """The newest verified snapshot was restored, and the run ends with ``DivergenceError``."""


class Scope(str, Enum):
    """What a finding is about, which decides how it can be undone."""

    BATCH = "batch"
    """The batch cannot be used; skipping it is enough."""
    SPIKE = "spike"
    """The batch is unlike those before it, which is no fault in itself."""
    RULE = "rule"
    """A signal is outside the limits of a rule, which has the response."""
    NOTICE = "notice"
    """Training can go on; the finding is logged."""
    RISK = "risk"
    """Weights are leaving the range in which training is healthy; smaller steps may undo it."""
    STATE = "state"
    """Weights, optimizer state or buffers hold a fault; only an older snapshot has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault that a detector found in a step.

    Attributes:
        kind: ``"nonfinite_"`` before ``"loss"``, ``"gradient"``, ``"weight"``, ``"state"``,
            ``"buffer"`` or ``"tracked"``; ``"huge_weight"``, ``"huge_state"``, ``"huge_buffer"``;
            ``"jumped_weight"``; ``"moment_bound"``, ``"negative_moment"``, ``"vanished_state"``;
            ``"diverged_replicas"``; ``"nonfinite_frozen"``, ``"changed_frozen"``,
            ``"stalled_weight"``, ``"large_update"``;
            ``"loss_spike"``, ``"gradient_spike"``, ``"first_gradient"``; ``"risk_warning"``,
            ``"risk_danger"``, ``"risk_instability"``; ``"rule"``.
        message: The finding as a sentence.
        scope: What it is about.
        where: Names of the parameters concerned, in the optimizer's order.
        value: The number at fault, where there is one.
        response: What a rule asks for; ``None`` for the response in the guard's table.
        usual: For a spike, the gradient norm that taming scales it down to.
        group: For a spike of one parameter group, its number.
    """

    kind: str
    message: str
    scope: Scope = Scope.BATCH
    where: tuple[str, ...] = ()
    value: float | None = None
    response: str | None = None
    usual: float | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Which snapshot was restored, and how the run goes on.

    Attributes:
        from_step: Steps taken so far when it was decided.
        to_step: The step of the snapshot that was restored.
        attempt: Number of the rollback in its episode, from 1; 0 if the user asked for it.
        lr_scale: Factor on every learning rate from here on.
        restores_rng: Whether random states are restored as well, so that a fault that does not
            recur leaves no trace at all.
        left_behind: Names of tracked objects that raised while they were restored.
    """

    from_step: int
    to_step: int
    attempt: int
    lr_scale: float
    restores_rng: bool
    left_behind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was decided about a step, and why.

    Attributes:
        action: What was done.
        reason: Why, as a sentence; empty for a healthy step.
        findings: What the detectors found.
        rollback: For ``ROLL_BACK``, and for ``STOP`` if there was a snapshot to restore.
        backs_off: Whether the learning rate is lowered from this step on, without a rollback.
        baseline_reset: Whether spikes are accepted as the new normal from here on.
        tames: Whether the gradients are scaled down to their usual norm before the step.
    """

    action: Action
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    rollback: Rollback | None = None
    backs_off: bool = False
    baseline_reset: bool = False
    tames: bool = False


class Response(str, Enum):
    """What can be done about a finding, the mildest first."""

    WARN = "warn"
    """The step is taken, and the finding logged."""
    TAME = "tame"
    """The step is taken with gradients that are scaled down to the largest recent norm; or, for
    the first gradient, the moments that the optimizer keeps of it are scaled down."""
    BACK_OFF = "back_off"
    """The step is taken, and learning rates are lowered by ``lr_backoff`` from there on."""
    SKIP = "skip"
    """The batch is skipped; at most ``max_skips`` in a row."""
    ROLL_BACK = "roll_back"
    """A snapshot is restored."""
    STOP = "stop"
    """The newest verified snapshot is restored, and the run ends with ``DivergenceError``."""

    @property
    def rank(self) -> int:
        """0 for ``WARN`` to 5 for ``STOP``: of several findings the highest counts."""
        return list(Response).index(self)
