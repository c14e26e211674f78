"""The few things that travel between rooms: observation, finding, verdict, event."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


class Action(str, Enum):
    """What became of a call of ``step()``."""

    TAKE = "take"
    """The inner optimizer took its step."""
    SKIP = "skip"
    """This batch never happened: nothing moved, not even a step counter."""
    ROLL_BACK = "roll_back"
    """A snapshot was restored: the run is where it was some updates ago."""
    STOP = "stop"
    """The newest verified snapshot was restored, and the run ends with ``DivergenceError``."""


class Scope(str, Enum):
    """What a finding is held against, and so what undoes it."""

    BATCH = "batch"
    """The batch cannot be used; leaving it out is enough."""
    SPIKE = "spike"
    """The batch is unlike those before it, which is no fault in itself."""
    RULE = "rule"
    """A signal is not as the user wants it; a rule says what follows."""
    NOTICE = "notice"
    """Training goes on with it, but somebody should know."""
    RISK = "risk"
    """Weights are leaving the range in which training is healthy; smaller steps may undo it."""
    STATE = "state"
    """Weights, optimizer state or buffers hold a fault; only a snapshot is without it."""


class Standing(str, Enum):
    """What a single reading says about a weight, by its shape alone."""

    UNDEFINED = "undefined"
    """There is no such number: a zero matrix, a NaN, too few rows, a sensor that failed."""
    UNJUDGED = "unjudged"
    """A number that no tier is known for."""
    HEALTHY = "healthy"
    WARNING = "warning"
    DANGER = "danger"


class RiskLevel(str, Enum):
    """How much a run is in danger of spectral collapse; see :mod:`stableopt.health.risk`."""

    STABLE = "stable"
    """Every weight is in its healthy range, and spectra hardly move."""
    LEARNING = "learning"
    """Every weight is in its healthy range, and spectra move: training at work."""
    WARNING = "warning"
    """A weight has left the range that is healthy for its shape, or its own recent course."""
    DANGER = "danger"
    """A weight is where healthy training was never seen, for its shape."""
    INSTABILITY = "instability"
    """Several weights at once are in danger, or one is not finite."""

    @property
    def rank(self) -> int:
        """0 for ``STABLE`` to 4 for ``INSTABILITY``."""
        return list(RiskLevel).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number that a sensor has read from one weight.

    Attributes:
        name: Of the parameter.
        metric: What was measured; the documentation lists every metric.
        value: NaN where it is undefined.
        step: Updates behind the weight when it was read.
        standing: What it says by itself.
    """

    name: str
    metric: str
    value: float
    step: int
    standing: Standing = Standing.UNJUDGED

    @property
    def defined(self) -> bool:
        """Whether there is such a number."""
        return not math.isnan(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A metric of a weight that has left its own course.

    Attributes:
        name: Of the parameter.
        metric: What was measured.
        value: What was read.
        step: Updates behind the weight when it was read.
        expected: What its past predicts.
        limit: Beyond which it is a drift.
        confirmed: Whether the reading before it was one, too.
    """

    name: str
    metric: str
    value: float
    step: int
    expected: float
    limit: float
    confirmed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientNorms:
    """The 2-norm of every gradient of one step, measured once and shared.

    Attributes:
        owners: ``(group, index)`` of each parameter that has a gradient.
        values: The stored values of each gradient (coalesced, if sparse).
        norms: The norm of each, 0-dim, in its own dtype; may overflow to Inf.
        total: The global norm, 0-dim; never overflowed while the gradients are finite.
        total_value: ``total`` on the host.
        nonfinite: Positions in ``owners`` whose gradients hold a NaN or an Inf.
        groups: The norm of each parameter group on the host, by its number; of many groups that
            of some neighbours together, by the number of the first. Empty where there is one group.
    """

    owners: Sequence[tuple[int, int]]
    values: Sequence[Tensor]
    norms: Sequence[Tensor]
    total: Tensor
    total_value: float
    nonfinite: Sequence[int] = ()
    groups: Mapping[int, float] = field(default_factory=dict)

    def of_group(self, number: int) -> GradientNorms:
        """Return the part that belongs to one entry of ``groups``."""
        after = min((n for n in self.groups if n > number), default=math.inf)
        members = [i for i, (group, _) in enumerate(self.owners) if number <= group < after]
        return replace(
            self,
            owners=[self.owners[i] for i in members],
            values=[self.values[i] for i in members],
            norms=[self.norms[i] for i in members],
            total_value=self.groups[number],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What is known about a step before it is judged.

    Attributes:
        loss: Mean of the losses observed for this step; ``None`` if nobody told.
        gradients: Norm of every gradient; ``None`` if nothing asked for them.
        signals: Everything else that was passed to ``observe()``.
    """

    loss: float | None = None
    gradients: GradientNorms | None = None
    signals: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a detector holds against a step.

    Attributes:
        kind: ``"nonfinite_"`` before ``"loss"``, ``"gradient"``, ``"weight"``, ``"state"``,
            ``"buffer"`` or ``"tracked"``; ``"huge_weight"``, ``"huge_state"``, ``"huge_buffer"``;
            ``"jumped_weight"``; ``"moment_bound"``, ``"negative_moment"``, ``"vanished_state"``;
            ``"nonfinite_frozen"``, ``"changed_frozen"``, ``"stalled_weight"``, ``"large_update"``;
            ``"loss_spike"``, ``"gradient_spike"``, ``"first_gradient"``; ``"risk_warning"``,
            ``"risk_danger"``, ``"risk_instability"``; ``"rule"``.
        message: The finding as a sentence.
        scope: What it is held against.
        where: Names of the parameters concerned, in the optimizer's order.
        value: The offending number, where there is one.
        response: What a rule asks for; ``None`` where the guard's table has the answer.
        usual: For a spike, the gradient norm that taming brings it down to.
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
    """Where a run went back to, and how it goes on.

    Attributes:
        from_step: Updates taken before.
        to_step: Updates behind the snapshot that was restored.
        attempt: Which rollback of its episode it is, from 1; 0 if the user asked for it.
        lr_scale: Factor on every learning rate from here on.
        restores_rng: Whether random states go back as well, so that a fault that does not
            recur leaves no trace at all.
        left_behind: Names of tracked objects that raised instead of going back.
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
        backs_off: Whether the learning rate is lowered from this step on, without going back.
        baseline_reset: Whether what looked like a spike is taken for the new normal from here on.
        tames: Whether the gradients are scaled down to what is usual before the step is taken.
    """

    action: Action
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    rollback: Rollback | None = None
    backs_off: bool = False
    baseline_reset: bool = False
    tames: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What a transform did in one step.

    Attributes:
        transform: Its name.
        metric: What it moves.
        where: Names of the parameters; empty if it concerns all of them at once.
        before: The metric of each before it acted.
        after: And after.
        routine: Whether that is what it does in healthy training, too, and no intervention.
        again: Whether it has acted a short while ago already, and is no news.
    """

    transform: str
    metric: str
    where: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    routine: bool
    again: bool = False

    @property
    def worst(self) -> int:
        """The position of the parameter that was changed most."""
        moved = [(abs(b - a) / (abs(b) + abs(a) or 1.0), abs(b - a)) for b, a in self._pairs()]
        return max(range(len(moved)), key=moved.__getitem__)

    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.before, self.after, strict=True))

    def tell(self) -> str:
        """Return it as a sentence."""
        before, after = self._pairs()[self.worst]
        name = f" of {self.where[self.worst]}" if self.where else ""
        others = len(self.before) - 1
        more = f", and of {others} more" if others else ""
        return (
            f"{self.transform} moves the {self.metric}{name} from {before:.4g} to {after:.4g}{more}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return how many parameters were changed, and the one changed most."""
        before, after = self._pairs()[self.worst]
        return {
            "transform": self.transform,
            "metric": self.metric,
            "count": len(self.before),
            "worst": self.where[self.worst] if self.where else None,
            "before": before,
            "after": after,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The record of one call of ``step()``: plain numbers and strings only.

    Attributes:
        call: Number of this call of ``step()``, from 1; never goes back.
        step: Updates behind the weights after this call; goes back with a rollback.
        action: What was done.
        reason: Why, as a sentence; empty for a healthy step.
        findings: What the detectors found.
        rollback: Where the run went back to, if it did.
        backs_off: Whether the learning rate was lowered, without going back.
        tames: Whether the gradients were scaled down to what is usual before the step.
        baseline_reset: Whether what looked like spikes is taken for data from here on.
        lr_scale: Our factor on the learning rates; 1 unless a rollback has lowered it.
        loss: The observed loss.
        grad_norm: Global 2-norm of the gradients before any clipping of ours.
        lr: Learning rate of each parameter group, without our factor.
        signals: What else was observed; tensors as mean, min and max.
        readings: What the sensors read from the weights as they were before this call.
        risk: The level they say the run is at; ``None`` while nothing is known.
        acts: What transforms did.
        time: Seconds since the epoch.
    """

    call: int
    step: int
    action: Action
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    rollback: Rollback | None = None
    backs_off: bool = False
    tames: bool = False
    baseline_reset: bool = False
    lr_scale: float = 1.0
    loss: float | None = None
    grad_norm: float | None = None
    lr: tuple[float, ...] = ()
    signals: Mapping[str, Any] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    risk: RiskLevel | None = None
    acts: tuple[Act, ...] = ()
    time: float = 0.0

    @property
    def intervened(self) -> bool:
        """Whether the step was anything but simply taken.

        A reset of baselines counts, and a transform that acted though healthy training does not
        call for it; what is only told does not.
        """
        moved = self.action is not Action.TAKE or self.backs_off or self.tames
        moved = moved or self.baseline_reset or any(not act.routine for act in self.acts)
        told = (Scope.RISK, Scope.NOTICE, Scope.SPIKE)
        return moved or any(finding.scope not in told for finding in self.findings)

    @property
    def routine(self) -> bool:
        """Whether there is nothing to say about the step: nobody intervened, nothing is new."""
        told = any(not act.again for act in self.acts)
        return self.action is Action.TAKE and not self.findings and not told

    def to_dict(self) -> dict[str, Any]:
        """Return the event as a dict of plain values, empty fields left out."""
        record: dict[str, Any] = {
            "event": "step",
            "time": round(self.time, 3),
            "call": self.call,
            "step": self.step,
            "action": self.action.value,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr[0] if len(self.lr) == 1 else list(self.lr),
        }
        if self.reason:
            record["reason"] = self.reason
        if self.findings:
            record["findings"] = [
                {"kind": f.kind, "message": f.message, "where": list(f.where), "value": f.value}
                for f in self.findings
            ]
        if self.rollback is not None:
            record["rollback"] = asdict(self.rollback)
        if self.backs_off:
            record["backs_off"] = True
        if self.tames:
            record["tames"] = True
        if self.baseline_reset:
            record["baseline_reset"] = True
        if self.lr_scale != 1.0:
            record["lr_scale"] = self.lr_scale
        if self.signals:
            record["signals"] = dict(self.signals)
        if self.risk is not None:
            record["risk"] = self.risk.value
        if self.acts:
            record["acts"] = [act.to_dict() for act in self.acts]
        if self.readings:
            record["readings"] = _by_name(self.readings)
        return record


def _by_name(readings: Sequence[Reading]) -> dict[str, dict[str, float]]:
    """Return readings as ``{weight: {"step": …, metric: value, …}}``, six digits each."""
    found: dict[str, dict[str, float]] = {}
    for reading in readings:
        values = found.setdefault(reading.name, {"step": reading.step})
        values[reading.metric] = float(f"{reading.value:.6g}")
    return found
