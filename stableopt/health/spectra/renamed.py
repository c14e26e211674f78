"""The state of the sensors under other names of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def renamed(state: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a state of the sensors with other names for the weights.

    Args:
        state: With the keys of :meth:`Sensing.state_dict`.
        names: New names by old ones; others stay.
    """

    def keys(known: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): value for name, value in known.items()}

    def where(assessment: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if assessment is None:
            return None
        new = [names.get(name, name) for name in assessment["where"]]
        reason = assessment["reason"]
        for old, name in zip(assessment["where"][:1], new, strict=False):
            if reason.startswith(f"{old}:"):
                reason = name + reason[len(old) :]
            elif reason.endswith(f" {old}"):
                reason = reason[: -len(old)] + name
        return {**assessment, "where": new, "reason": reason}

    monitor, risk = state["monitor"], dict(state["monitor"]["risk"])
    if "held" in risk:
        risk["held"] = where(risk["held"])
    if "points" in risk:
        risk["points"] = [{**point, "values": keys(point["values"])} for point in risk["points"]]
    weights = {
        name: {
            **health,
            "drifts": [{**d, "name": names.get(d["name"], d["name"])} for d in health["drifts"]],
        }
        for name, health in keys(monitor["weights"]).items()
    }
    return {
        **state,
        "memories": {metric: keys(known) for metric, known in state["memories"].items()},
        "monitor": {
            **monitor,
            "weights": weights,
            "suspects": sorted(names.get(name, name) for name in monitor["suspects"]),
            "corrected": sorted(names.get(name, name) for name in monitor.get("corrected", ())),
            "courses": keys(monitor["courses"]),
            "risk": risk,
            "assessment": where(monitor["assessment"]),
        },
    }
