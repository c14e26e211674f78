"""The sensors of ASSR and Gradience as published: to compare with, and for their presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stableopt.functional import assr_condition_number, assr_fiedler
from stableopt.sensors.protocol import Measurement, Result, Visit
from stableopt.sensors.spectral_norm import SpectralNorm


@dataclass(frozen=True)
class AssrFiedler:
    """Reads ``assr_fiedler``: :func:`stableopt.functional.assr_fiedler`, as published.

    Cost:
        A full symmetric eigenvalue problem. On CUDA the host waits for it.
    """

    metrics: ClassVar[tuple[str, ...]] = ("assr_fiedler",)
    on_suspicion: ClassVar[bool] = False

    def start(self, visit: Visit) -> Measurement:
        """Compute the decomposition."""
        value = assr_fiedler(visit.weight)
        return Measurement((), lambda host: Result({"assr_fiedler": value}))


@dataclass(frozen=True)
class AssrConditionNumber:
    """Reads ``assr_condition_number``, as published.

    Cost:
        A full singular value decomposition. On CUDA the host waits for it.
    """

    metrics: ClassVar[tuple[str, ...]] = ("assr_condition_number",)
    on_suspicion: ClassVar[bool] = False

    def start(self, visit: Visit) -> Measurement:
        """Compute the decomposition."""
        value = assr_condition_number(visit.weight)
        return Measurement((), lambda host: Result({"assr_condition_number": value}))


@dataclass(frozen=True)
class KappaTilde:
    """Reads ``kappa_tilde``, as Gradience defines it, from a warm estimate of σ₁.

    Its definition leaves open how σ₁ is estimated. A cold one would move κ̃ by 5 to 20% from
    visit to visit, more than the slopes that its risk levels are read from.

    Cost:
        That of :class:`SpectralNorm`, whose estimate it makes for itself.
    """

    metrics: ClassVar[tuple[str, ...]] = ("kappa_tilde",)
    on_suspicion: ClassVar[bool] = False

    def start(self, visit: Visit) -> Measurement:
        """Queue the Lanczos steps."""
        inner = SpectralNorm().start(visit)
        rows, columns = visit.weight.shape[0], visit.weight[:1].numel()

        def finish(host: Sequence[Tensor]) -> Result:
            found = inner.finish(host)
            rank = found.values["stable_rank"]
            return Result({"kappa_tilde": 10 * (min(rows, columns) / rank) ** 0.5}, found.memory)

        return Measurement(inner.sent, finish)
