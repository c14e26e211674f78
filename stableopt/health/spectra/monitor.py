"""From readings to drifts, weights to visit again, and the risk of the run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stableopt.health.spectra.drift import DriftDetector
from stableopt.health.spectra.kappa_slope import KappaSlope
from stableopt.health.spectra.risk import Assessment, RiskJudge, SpectralRisk, WeightHealth
from stableopt.health.spectra.tiers import SMALLEST
from stableopt.types import Drift, Reading, RiskLevel, Standing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ANY_SIZE = frozenset({"spectral_norm"})
"""Metrics whose course is followed for weights of every size."""


class Monitor:
    """Keeps the readings of every weight, and assesses the run.

    Args:
        risk: What the level is read from: ``"spectral"`` or ``"kappa_tilde"``.
        spacing: Least number of steps between two visits of a course.

    Attributes:
        weights: The readings of every weight.
        assessment: The level of the run; ``None`` while nothing is known.
        suspects: Names of weights that should be visited again soon, because of their readings.
        corrected: The same, because a transform has changed them since.
        kind: What the level is read from.
    """

    def __init__(self, risk: str, spacing: int) -> None:
        self.weights: dict[str, WeightHealth] = {}
        self.assessment: Assessment | None = None
        self.suspects = set[str]()
        self.corrected = set[str]()
        self.kind = risk
        self._drift = DriftDetector(spacing)
        self._risk: RiskJudge = KappaSlope() if risk == "kappa_tilde" else SpectralRisk(self._drift)

    def learns(self, name: str, step: int) -> bool:
        """Return whether a weight should be visited now because its past is too short."""
        return name not in self.weights or self._drift.learns(name, step)

    def take(
        self, readings: Sequence[Reading], shapes: Mapping[str, tuple[int, int]], step: int
    ) -> None:
        """Judge the readings of one visit of some weights.

        Args:
            readings: All readings of the visit.
            shapes: Of the weights as matrices.
            step: Steps taken before the visit.
        """
        visited: dict[str, list[Reading]] = {}
        for reading in readings:
            visited.setdefault(reading.name, []).append(reading)
        for name, found in visited.items():
            if name in self.weights and self.weights[name].shape != shapes[name]:
                del self.weights[name]
                self._drift.forget(name)
            small = min(shapes[name]) < SMALLEST
            drifts = [
                self._drift.judge(name, r.metric, r.value, r.step)
                for r in found
                if not small or r.metric in ANY_SIZE
            ]
            flagged = [drift for drift in drifts if drift is not None]
            self._update(name, shapes[name], found, flagged)
        if visited:
            self.assessment = self._risk.assess(step, self.weights)

    def _update(
        self, name: str, shape: tuple[int, int], found: Sequence[Reading], drifts: Sequence[Drift]
    ) -> None:
        before = self.weights.get(name)
        known = {} if before is None else before.readings
        now = WeightHealth(
            readings={**known, **{reading.metric: reading for reading in found}},
            drifts=tuple(drift for drift in drifts if drift.confirmed),
            shape=shape,
        )
        self.weights[name] = now
        self.corrected.discard(name)
        worse = _rank(now) >= RiskLevel.WARNING.rank and _rank(now) > _rank(before)
        (self.suspects.add if drifts or worse else self.suspects.discard)(name)

    def altered(self, name: str) -> None:
        """Note that a transform has corrected a weight: it is visited again soon.

        Its courses start from scratch.
        """
        self._drift.forget(name)
        self.corrected.add(name)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "weights": {
                name: {
                    "readings": [
                        {"metric": r.metric, "value": r.value, "step": r.step}
                        | {"standing": r.standing.value}
                        for r in health.readings.values()
                    ],
                    "drifts": [asdict(drift) for drift in health.drifts],
                    "shape": health.shape,
                }
                for name, health in self.weights.items()
            },
            "suspects": sorted(self.suspects),
            "corrected": sorted(self.corrected),
            "courses": self._drift.state_dict(),
            "kind": self.kind,
            "risk": self._risk.state_dict(),
            "assessment": None if self.assessment is None else self.assessment.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint or a snapshot."""
        self.weights = {
            str(name): WeightHealth(
                readings={
                    known["metric"]: Reading(
                        **{**known, "name": name, "standing": Standing(known["standing"])}
                    )
                    for known in health["readings"]
                },
                drifts=tuple(Drift(**drift) for drift in health["drifts"]),
                shape=tuple(health["shape"]),
            )
            for name, health in state["weights"].items()
        }
        self.suspects = {str(name) for name in state["suspects"]}
        self.corrected = {str(name) for name in state.get("corrected", ())}
        self._drift.load_state_dict(state["courses"])
        if state["kind"] != self.kind:
            return  # a level of another kind starts from scratch
        self._risk.load_state_dict(state["risk"])
        held = state["assessment"]
        self.assessment = None if held is None else Assessment.from_state(held)


def _rank(health: WeightHealth | None) -> int:
    level = None if health is None else health.level
    return -1 if level is None else level.rank
