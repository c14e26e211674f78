"""Evaluate a trigger for parameters, with hysteresis kept in the memory of a transform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stableopt.transforms.protocol import Target
    from stableopt.transforms.view import StepView
    from stableopt.triggers.conditions import Trigger


class Watch:
    """Evaluates a trigger for each parameter once per reading.

    Args:
        trigger: The trigger.
        view: The step.
        memory: Of the transform. ``"held"`` has the conditions that hold and ``"severity"`` the
            newest severity, both by the name of the parameter.
    """

    def __init__(self, trigger: Trigger, view: StepView, memory: dict[str, Any]) -> None:
        self._trigger = trigger
        self._view = view
        self._metrics = metrics_of(trigger)
        self._held: dict[str, list[str]] = memory.setdefault("held", {})
        self._severity: dict[str, float] = memory.setdefault("severity", {})

    def fresh(self, target: Target) -> float | None:
        """Return the severity if a new reading triggers, else ``None``.

        A condition that was read before is not new because another metric has been read since.
        """
        severity = self.lasting(target)
        return severity if self._has_new_reading(target) else None

    def lasting(self, target: Target) -> float | None:
        """Return the severity as of the newest reading, ``None`` where it does not trigger."""
        if self._view.is_fresh(target, self._metrics):
            held = set(self._held.pop(target.name, ()))
            severity = self._trigger.severity(self._view.evidence(target), held)
            self._severity.pop(target.name, None)
            if severity is not None:
                self._severity[target.name] = severity
            if held:
                self._held[target.name] = sorted(held)
        return self._severity.get(target.name)

    def _has_new_reading(self, target: Target) -> bool:
        """Return whether a condition that holds was read just now."""
        evidence = self._view.evidence(target)
        held = self._held.get(target.name, ())
        return any(
            self._view.is_fresh(target, (leaf.metric,))
            and leaf.severity(evidence, set(held)) is not None
            for leaf in self._trigger.leaves()
        )


def metrics_of(trigger: Trigger) -> tuple[str, ...]:
    """Return the metrics that a trigger reads, each once."""
    return tuple(dict.fromkeys(leaf.metric for leaf in trigger.leaves()))
