"""The warm spectral norm along a training, and how soon it sees what is new."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.common.figures import nearest_rank
from benchmarks.sensors.matrices import make_matrix
from benchmarks.sensors.rows import exact_norm, read
from stableopt.sensors import SpectralNorm

EVERY = 10
"""Steps between two visits while a weight is new."""

COVERAGE = 80
"""Steps between two visits later on."""

EARLY = 160
"""Steps that are the start of a training, when directions still change places."""

STEP = 1e-3
"""Relative size of a simulated update, ‖ΔW‖ / ‖W‖."""

SPIKE = 1.3
SEEN = 0.01
_PATIENCE = 20


class Follower:
    """Follows the weights of a model with the sensor, and with exact values beside it."""

    def __init__(self) -> None:
        self.errors: dict[int, list[float]] = {EVERY: [], COVERAGE: []}
        self.missed: list[tuple[str, int, float]] = []
        self._late: list[float] = []
        self._memories: dict[tuple[str, int], Tensor | None] = {}

    def look(self, model: nn.Module, step: int) -> None:
        """Visit every square or rectangular layer of ``model`` if that is due."""
        if step % EVERY:
            return
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and not name.startswith(("tokens", "positions", "head")):
                self.visit(name, weight.detach(), step)

    def visit(self, name: str, weight: Tensor, step: int) -> None:
        """Compare one reading, in both rhythms."""
        exact = None
        for every in self.errors:
            if step % every:
                continue
            exact = exact_norm(weight) if exact is None else exact
            draw = zlib.crc32(f"{name}:{step}".encode())
            known = self._memories.get((name, every))
            result, _ = read(SpectralNorm(), weight, draw=draw, memory=known)
            self._memories[name, every] = result.memory
            if known is not None:
                error = abs(result.values["spectral_norm"] / exact - 1)
                self.errors[every].append(error)
                if every == EVERY:
                    self._note(name, step, error)

    def _note(self, name: str, step: int, error: float) -> None:
        if error > SEEN:
            self.missed.append((name, step, error))
        if step > EARLY:
            self._late.append(error)

    def result(self) -> dict[str, Any]:
        """Return the quantiles of both rhythms, and those of the shorter one after the start."""
        found: dict[str, Any] = {str(n): quantiles(errors) for n, errors in self.errors.items()}
        return {**found, "late": quantiles(self._late), "above_1%": self.missed}


def quantiles(errors: Sequence[float]) -> dict[str, float] | None:
    """Return median, p99 (nearest rank) and maximum; ``None`` of nothing."""
    if not errors:
        return None
    return {
        "visits": len(errors),
        "p50": median(errors),
        "p99": nearest_rank(errors, 0.99),
        "max": max(errors),
    }


def simulate(size: int, visits: int, seed: int) -> dict[str, Any]:
    """Follow a Gaussian matrix that changes by Gaussian increments.

    Args:
        size: Rows and columns.
        visits: Of the shorter rhythm.
        seed: Of everything.
    """
    weight = make_matrix("gaussian", size, size, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    follower = Follower()
    scale = STEP * float(weight.norm()) / size * EVERY**0.5  # the sum of so many updates
    for visit in range(visits + 1):
        follower.visit("w", weight, visit * EVERY)
        weight = weight + scale * torch.randn(size, size, generator=draw)
    return {"size": size, **follower.result()}


def spike(size: int, draws: int, seed: int) -> dict[str, Any]:
    """Return the visits until a spike orthogonal to both known vectors is within 1%.

    Args:
        size: Rows and columns.
        draws: How many matrices.
        seed: Of everything.
    """
    visits = []
    for number in range(draws):
        weight = make_matrix("gaussian", size, size, seed + number)
        draw = torch.Generator().manual_seed(seed + 1000 + number)
        memory = None
        for visit in range(8):
            result, _ = read(SpectralNorm(), weight, draw=visit, memory=memory)
            memory = result.memory
        assert memory is not None
        known = result.values["spectral_norm"]
        left = normalize(weight @ memory, dim=0)
        u, w = torch.randn(2, size, generator=draw)
        u, w = normalize(u - (u @ left) * left, dim=0), normalize(w - (w @ memory) * memory, dim=0)
        struck = weight + SPIKE * known * torch.outer(u, w)
        exact, count = exact_norm(struck), 0
        while count < _PATIENCE:
            count += 1
            result, _ = read(SpectralNorm(), struck, draw=100 + count, memory=memory)
            memory = result.memory
            if result.values["spectral_norm"] > (1 - SEEN) * exact:
                break
        visits.append(count)
    return {"size": size, "draws": draws, "median": median(visits), "max": max(visits)}
