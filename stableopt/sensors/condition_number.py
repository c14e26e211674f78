"""The sensor of the exact condition number, for weights that are suspected already."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from stableopt.functional import condition_number, gaussian_condition_number
from stableopt.sensors.protocol import Measurement, Result, Visit


@dataclass(frozen=True, kw_only=True)
class ConditionNumber:
    """Reads ``condition_number`` and ``relative_condition``, exactly.

    No estimate by products alone finds σ_min, so this is a decomposition: for weights that
    another sensor suspects, unless ``always``. ``relative_condition`` is divided by the typical
    value of a Gaussian matrix of that shape: about 3.7 n for a healthy square one of size n.

    Attributes:
        always: Visit every weight in its turn.

    Cost:
        A QR decomposition in float64, and some dozens of triangular solutions: about half a
        second for 2048². On CUDA the host waits for it.
    """

    metrics: ClassVar[tuple[str, ...]] = ("condition_number", "relative_condition")

    always: bool = False

    @property
    def on_suspicion(self) -> bool:
        """Whether only suspected weights are visited."""
        return not self.always

    def start(self, visit: Visit) -> Measurement:
        """Compute the decomposition."""
        value = condition_number(visit.weight)
        rows = visit.weight.shape[0]
        columns = math.prod(visit.weight.shape[1:])
        typical = gaussian_condition_number(rows, columns) if rows and columns else math.nan
        sent = (torch.stack([value, value / typical]),)
        return Measurement(
            sent, lambda host: Result(dict(zip(self.metrics, host[0].tolist(), strict=True)))
        )
