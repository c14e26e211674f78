"""The result of an audit: reports, what was left out, and a verdict in one line."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stableopt.commands.audit.measure import WeightReport
from stableopt.runtime.version import __version__
from stableopt.runtime.words import count, listed
from stableopt.types import Standing

_ORDER = tuple(map(Standing, ("danger", "warning", "undefined", "healthy", "unjudged")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The result for one checkpoint.

    Attributes:
        path: The file.
        exact: Whether the exact tier was measured.
        reports: Of every matrix, and of each vector that is not finite or empty; in the order
            of the checkpoint.
        vectors: How many tensors of fewer than two dimensions are finite, and were only counted.
        optimizer_tensors: How many tensors of optimizer state were left out.
        integer_tensors: How many integer or boolean tensors were left out.
    """

    path: Path
    exact: bool
    reports: tuple[WeightReport, ...]
    vectors: int = 0
    optimizer_tensors: int = 0
    integer_tensors: int = 0

    @property
    def worst_first(self) -> list[WeightReport]:
        """The reports, those in danger first, and each kind by its relative rank."""
        return sorted(self.reports, key=_badness)

    @property
    def counts(self) -> Counter[Standing]:
        """How many reports there are of each standing."""
        return Counter(report.standing for report in self.reports)

    @property
    def standing(self) -> Standing:
        """The worst there is; ``UNJUDGED`` if nothing could be judged."""
        judged = (Standing.DANGER, Standing.WARNING, Standing.HEALTHY)
        return next((kind for kind in judged if self.counts[kind]), Standing.UNJUDGED)

    @property
    def verdict(self) -> str:
        """The result as one line."""
        standing, total = self.standing, count(len(self.reports), "weight")
        found = self.counts[standing]
        if standing in (Standing.DANGER, Standing.WARNING):
            names = [r.name for r in self.worst_first if r.standing is standing]
            return f"{standing.value.upper()}: {found} of {total}: {listed(names)}."
        if standing is Standing.HEALTHY:
            rest = len(self.reports) - found
            others = f"; {rest} could not be judged" if rest else ""
            return f"HEALTHY: {found} of {total}, nothing in danger{others}."
        return f"UNJUDGED: none of {total} could be judged, nothing is NaN or Inf."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, NaN and Inf among them."""
        return {
            "checkpoint": str(self.path),
            "standing": self.standing.value,
            "message": self.verdict,
            "exact": self.exact,
            "counts": {kind.value: self.counts[kind] for kind in _ORDER},
            "finite_vectors": self.vectors,
            "left_out": {"optimizer": self.optimizer_tensors, "integer": self.integer_tensors},
            "weights": [report.to_dict() for report in self.reports],
            "versions": {
                "stableopt": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


def _badness(report: WeightReport) -> tuple[int, bool, float]:
    rank = report.relative_rank
    undefined = rank != rank  # NaN, which no order is known for
    # What is not finite is worse than what is low in rank.
    return _ORDER.index(report.standing), not report.nonfinite, 0.0 if undefined else rank
