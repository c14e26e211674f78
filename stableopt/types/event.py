"""The record of one call of ``step()``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from stableopt.types.reading import Reading, RiskLevel
from stableopt.types.verdict import Action, Finding, Rollback, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What a transform did in one step.

    Attributes:
        transform: Its name.
        metric: What it moves.
        where: Names of the parameters; empty if it concerns all of them at once.
        before: The metric of each before it acted.
        after: And after.
        routine: Whether it also does that in healthy training, and it is no intervention.
        again: Whether it already acted a short while ago.
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

    def sentence(self) -> str:
        """Return a sentence about it."""
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
        call: Number of this call of ``step()``, from 1; a rollback does not change it.
        step: Steps taken so far, this call included; a rollback restores it.
        action: What was done.
        reason: Why, as a sentence; empty for a healthy step.
        findings: What the detectors found.
        rollback: Which snapshot was restored, if one was.
        backs_off: Whether the learning rate was lowered, without a rollback.
        tames: Whether the gradients were scaled down to their usual norm before the step.
        baseline_reset: Whether spikes are accepted as the new normal from here on.
        lr_scale: The guard's factor on the learning rates; 1 unless it has lowered them.
        loss: The observed loss.
        grad_norm: Global 2-norm of the gradients before they were scaled down.
        lr: Learning rate of each parameter group, without ``lr_scale``.
        signals: What else was observed; tensors as mean, min and max.
        readings: What the sensors read from the weights as they were before this call.
        risk: The risk level of the run; ``None`` while nothing is known.
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
        """Whether anything was done besides taking the step.

        A reset of baselines counts, and so does a transform that acts only when something is wrong;
        a finding that is only logged does not.
        """
        moved = self.action is not Action.TAKE or self.backs_off or self.tames
        moved = moved or self.baseline_reset or any(not act.routine for act in self.acts)
        logged = (Scope.RISK, Scope.NOTICE, Scope.SPIKE)
        return moved or any(finding.scope not in logged for finding in self.findings)

    @property
    def routine(self) -> bool:
        """Whether the step was taken, and nothing was found or done for the first time."""
        new = any(not act.again for act in self.acts)
        return self.action is Action.TAKE and not self.findings and not new

    def to_dict(self) -> dict[str, Any]:
        """Return the event as a dict of plain values, empty fields left out."""
        findings = [
            {"kind": f.kind, "message": f.message, "where": list(f.where), "value": f.value}
            for f in self.findings
        ]
        optional = {
            "reason": self.reason,
            "findings": findings,
            "rollback": None if self.rollback is None else asdict(self.rollback),
            "backs_off": self.backs_off,
            "tames": self.tames,
            "baseline_reset": self.baseline_reset,
            "lr_scale": None if self.lr_scale == 1.0 else self.lr_scale,
            "signals": dict(self.signals),
            "risk": None if self.risk is None else self.risk.value,
            "acts": [act.to_dict() for act in self.acts],
            "readings": _by_name(self.readings),
        }
        return {
            "event": "step",
            "time": round(self.time, 3),
            "call": self.call,
            "step": self.step,
            "action": self.action.value,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr[0] if len(self.lr) == 1 else list(self.lr),
            **{name: value for name, value in optional.items() if value},
        }


def _by_name(readings: Sequence[Reading]) -> dict[str, dict[str, float]]:
    """Return readings as ``{weight: {"step": …, metric: value, …}}``, six digits each."""
    found: dict[str, dict[str, float]] = {}
    for reading in readings:
        values = found.setdefault(reading.name, {"step": reading.step})
        values[reading.metric] = float(f"{reading.value:.6g}")
    return found
