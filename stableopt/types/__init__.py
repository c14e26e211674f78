"""Data that packages exchange: observation, finding, verdict, event."""

from stableopt.types.event import Act, Event
from stableopt.types.observation import GradientNorms, Observation
from stableopt.types.reading import FOLLOWED, Drift, Reading, RiskLevel, Standing
from stableopt.types.verdict import Action, Finding, Response, Rollback, Scope, Verdict

__all__ = [
    "FOLLOWED",
    "Act",
    "Action",
    "Drift",
    "Event",
    "Finding",
    "GradientNorms",
    "Observation",
    "Reading",
    "Response",
    "RiskLevel",
    "Rollback",
    "Scope",
    "Standing",
    "Verdict",
]
