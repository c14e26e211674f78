"""A trigger over many parameters: what holds for each, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stableopt.transforms.protocol import Moment, Target
    from stableopt.triggers.conditions import Trigger


class Watch:
    """Asks a trigger about each parameter once per reading, and remembers the answer.

    Args:
        trigger: What is asked.
    """

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger
        self._metrics = metrics_of(trigger)
        self._held: dict[str, set[str]] = {}
        self._severity: dict[str, float] = {}

    def fresh(self, moment: Moment, target: Target) -> float | None:
        """Return the severity if there is news that triggers, else ``None``.

        What one metric said before is no news because another one has been read since.
        """
        severity = self.lasting(moment, target)
        return severity if self._brings_news(moment, target) else None

    def lasting(self, moment: Moment, target: Target) -> float | None:
        """Return the severity as of the newest reading, ``None`` where it does not trigger."""
        if moment.is_fresh(target, self._metrics):
            self._ask(moment, target)
        return self._severity.get(target.name)

    def _ask(self, moment: Moment, target: Target) -> None:
        held = self._held.setdefault(target.name, set())
        severity = self._trigger.severity(moment.evidence(target), held)
        if severity is None:
            self._severity.pop(target.name, None)
        else:
            self._severity[target.name] = severity
        if not held:
            del self._held[target.name]

    def _brings_news(self, moment: Moment, target: Target) -> bool:
        """Tell whether a condition that holds was read just now."""
        evidence = moment.evidence(target)
        held = self._held.get(target.name, set())
        return any(
            moment.is_fresh(target, (leaf.metric,))
            and leaf.severity(evidence, set(held)) is not None
            for leaf in self._trigger.leaves()
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what holds, as plain data."""
        held = {name: sorted(leaves) for name, leaves in self._held.items()}
        return {"held": held, "severity": dict(self._severity)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it."""
        known = state.get("held", {})
        self._held = {str(name): {str(leaf) for leaf in leaves} for name, leaves in known.items()}
        severity = state.get("severity", {})
        self._severity = {str(name): float(value) for name, value in severity.items()}


def metrics_of(trigger: Trigger) -> tuple[str, ...]:
    """Return the metrics that a trigger reads, each once."""
    return tuple(dict.fromkeys(leaf.metric for leaf in trigger.leaves()))
