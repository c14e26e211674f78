"""Measure every gradient once; clipping, judging and telemetry share the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stableopt.functional import (
    all_finite,
    dense_values,
    safe_norm,
    tensor_norms,
    total_norm,
    widest_real,
)
from stableopt.runtime.scalars import read_scalars
from stableopt.runtime.shards import local
from stableopt.types import GradientNorms

MOST_GROUPS = 16
"""Norms that are looked at beside the global one; of more groups, neighbours share one."""


class GradientMeasurement(NamedTuple):
    """Norms that the device has, or will have, computed; nothing of it is on the host yet.

    Attributes:
        owners: ``(group, index)`` of each parameter that has a gradient.
        values: The stored values of each gradient.
        norms: The norm of each, 0-dim.
        total: The global norm, 0-dim.
        groups: The norm of each parameter group, as :class:`~stableopt.types.GradientNorms` has
            them.
    """

    owners: Sequence[tuple[int, int]]
    values: Sequence[Tensor]
    norms: Sequence[Tensor]
    total: Tensor
    groups: dict[int, Tensor]

    @property
    def scalars(self) -> list[Tensor]:
        """The numbers that :meth:`finish` needs read."""
        return [self.total, *self.groups.values()]

    def finish(self, numbers: Sequence[float]) -> GradientNorms:
        """Return the norms, given the numbers of ``scalars``.

        A norm that is not finite is confirmed element by element, because the norm of huge
        finite gradients overflows: only a NaN or an Inf in a gradient makes it ``nonfinite``.
        """
        total, total_value, *rest = self.total, *numbers
        nonfinite: list[int] = []
        if not math.isfinite(total_value):
            nonfinite = [
                i
                for i, (norm, value) in enumerate(zip(self.norms, self.values, strict=True))
                if not math.isfinite(float(norm)) and not all_finite(value)
            ]
            if not nonfinite:
                total_value = safe_norm(self.values)
                wide = widest_real(total.device)
                total = torch.tensor(total_value, device=total.device, dtype=wide)
        return GradientNorms(
            owners=self.owners,
            values=self.values,
            norms=self.norms,
            total=total,
            total_value=total_value,
            nonfinite=nonfinite,
            groups=dict(zip(self.groups, rest, strict=True)),
        )


def start_gradients(
    param_groups: Sequence[dict[str, Any]], shares: Mapping[tuple[int, int], float] | None = None
) -> GradientMeasurement | None:
    """Have the norm of every gradient computed; ``None`` where no parameter has a gradient.

    Args:
        param_groups: The groups of the inner optimizer.
        shares: Factors on the norms of single gradients, for all that is computed from them.

    Cost:
        One read of the gradients, and no host synchronisation.
    """
    owners, values = [], []
    for g, group in enumerate(param_groups):
        for i, parameter in enumerate(group["params"]):
            gradient = parameter.grad
            if gradient is not None and not gradient.is_meta:
                owners.append((g, i))
                values.append(dense_values(local(gradient)))
    if not values:
        return None
    norms = tensor_norms(values)
    if shares is not None:
        factors = [shares.get(owner, 1.0) for owner in owners]
        norms = [norm * factor for norm, factor in zip(norms, factors, strict=True)]
    several = owners[0][0] != owners[-1][0]
    groups = _group_totals(owners, norms, groups_per_norm(param_groups)) if several else {}
    return GradientMeasurement(owners, values, norms, total_norm(norms), groups)


def measure_gradients(
    param_groups: Sequence[dict[str, Any]],
    beside: Sequence[float | Tensor] = (),
    shares: Mapping[tuple[int, int], float] | None = None,
) -> tuple[GradientNorms | None, list[float]]:
    """Measure the norm of every gradient, and read other scalars in the same transfer.

    Args:
        param_groups: The groups of the inner optimizer.
        beside: One-element tensors or numbers to bring to the host as well (the loss).
        shares: As in :func:`start_gradients`.

    Returns:
        The norms, ``None`` where no parameter has a gradient, and ``beside`` as floats.

    Cost:
        One read of the gradients and one host synchronisation while all is finite. Call it under
        :func:`torch.no_grad`.
    """
    started = start_gradients(param_groups, shares)
    if started is None:
        return None, read_scalars(beside)
    scalars = started.scalars
    numbers = read_scalars([*scalars, *beside])
    return started.finish(numbers[: len(scalars)]), numbers[len(scalars) :]


def groups_per_norm(param_groups: Sequence[object]) -> int:
    """Return how many parameter groups that follow each other share one norm."""
    return -(-len(param_groups) // MOST_GROUPS)


def _group_totals(
    owners: Sequence[tuple[int, int]], norms: Sequence[Tensor], width: int
) -> dict[int, Tensor]:
    """Return the norm of every ``width`` groups, by the number of the first of them."""
    together: dict[int, list[Tensor]] = {}
    for (group, _), norm in zip(owners, norms, strict=True):
        together.setdefault(group - group % width, []).append(norm)
    return {number: total_norm(members) for number, members in together.items()}
