"""The parameters that cause a spike of the gradient norm."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from stableopt.functional import safe_norm
from stableopt.runtime.positions import Position
from stableopt.runtime.scalars import read_scalars

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stableopt.types import Finding, GradientNorms

EVERY = 8
"""Healthy steps between two reads of the norms of single gradients."""

DECAY = 0.9
"""Of the moving averages of these norms."""

SHARE = 0.9
"""Share of the unusual part of the squared norm that the named parameters have."""


class Blame:
    """Remembers the usual gradient norm of every parameter.

    The parameters to blame are the fewest whose squared norms, less their usual ones, make up 90%
    of the unusual part: a large layer is not named for being large.

    Cost:
        One read of the norms of single gradients in eight steps, and in a spike.
    """

    def __init__(self) -> None:
        self._usual: dict[tuple[int, int], float] = {}
        self._calls = 0

    def learn(self, gradients: GradientNorms | None) -> None:
        """Remember the gradients of a healthy step."""
        self._calls += 1
        if gradients is None or (self._calls - 1) % EVERY:
            return
        for owner, norm in zip(gradients.owners, read_scalars(gradients.norms), strict=True):
            if math.isfinite(norm):
                before = self._usual.get(owner, norm)
                self._usual[owner] = DECAY * before + (1 - DECAY) * norm

    def move(self, moved: Mapping[Position, Position]) -> None:
        """Follow parameters to their new places; forget those that were removed.

        Args:
            moved: New places by old ones.
        """
        usual = {Position(*owner): norm for owner, norm in self._usual.items()}
        self._usual = {moved[place]: norm for place, norm in usual.items() if place in moved}

    def name(
        self,
        findings: tuple[Finding, ...],
        gradients: GradientNorms,
        names: Mapping[tuple[int, int], str],
    ) -> tuple[Finding, ...]:
        """Return ``findings``, with the parameters that cause a spike of the gradient norm."""
        found = [(names[owner], times) for owner, times in self.blame(gradients) if owner in names]
        if not found:
            return findings
        where, times = tuple(name for name, _ in found), found[0][1]
        first = f" (x{times:.3g})" if math.isfinite(times) else ""
        most = f", most of it in {where[0]}{first}"
        if len(where) > 1:
            most += f" and {len(where) - 1} more"
        return tuple(
            replace(f, where=where, message=f.message + most) if f.kind == "gradient_spike" else f
            for f in findings
        )

    def blame(self, gradients: GradientNorms) -> list[tuple[tuple[int, int], float]]:
        """Return the parameters to blame, worst first, and each norm in units of its usual one."""
        excesses = []
        norms = read_scalars(gradients.norms)
        for owner, value, norm in zip(gradients.owners, gradients.values, norms, strict=True):
            now = norm if math.isfinite(norm) else safe_norm([value])
            usual = self._usual.get(owner, 0.0)
            if now > usual:
                excesses.append((math.sqrt(now - usual) * math.sqrt(now + usual), owner, now))
        excesses.sort(key=lambda found: -found[0])
        largest = excesses[0][0] if excesses else 0.0
        shares = [(excess / largest) ** 2 for excess, _, _ in excesses]
        named, left = [], SHARE * math.fsum(shares)
        for share, (_, owner, now) in zip(shares, excesses, strict=True):
            if left <= 0:
                break
            left -= share
            usual = self._usual.get(owner, 0.0)
            named.append((owner, now / usual if usual > 0 else math.inf))
        return named
