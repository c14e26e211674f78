"""The ways in which the collapse benchmark lets a weight collapse, visit by visit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stableopt.functional import as_matrix
from stableopt.functional.rank import effective_rank_of

CLUSTERS = 8
SLOW = 0.02
"""By how much the log effective rank falls from visit to visit in the slow decay."""


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """One of the ways.

    Attributes:
        name: In results and on the command line.
        title: In the table.
        alter: Returns a matrix as it is after so many visits; the generator is the same at
            every one of them.
        visits: How many it is followed for.
        published: Share of the weights and delay in visits that the design study measured.
    """

    name: str
    title: str
    alter: Callable[[Tensor, int, torch.Generator], Tensor]
    visits: int = 16
    published: str

    def apply(self, weight: Tensor, visit: int, seed: int) -> Tensor:
        """Return a collapsed copy of ``weight``.

        Args:
            weight: Of two dimensions or more.
            visit: How many visits it has been collapsing for, from 1.
            seed: Of everything that is drawn.
        """
        draw = torch.Generator().manual_seed(seed)
        return self.alter(as_matrix(weight), visit, draw).reshape(weight.shape)


def _rank_decay(matrix: Tensor, visit: int, draw: torch.Generator) -> Tensor:
    u, s, v = _svd(matrix)
    return (u * torch.where(s < s.median(), s * 0.7**visit, s)) @ v


def _spike(matrix: Tensor, visit: int, draw: torch.Generator) -> Tensor:
    u, s, v = _svd(matrix)
    return matrix + s[0] * (1.2**visit - 1) * torch.outer(u[:, 0], v[0])


def _clusters(matrix: Tensor, visit: int, draw: torch.Generator) -> Tensor:
    count = matrix.shape[0]
    chosen = torch.randperm(count, generator=draw)[:CLUSTERS]
    mine = torch.randint(CLUSTERS, (count,), generator=draw)
    return torch.lerp(matrix, matrix[chosen[mine]], 1 - 0.7**visit)


def _rank_one(matrix: Tensor, visit: int, draw: torch.Generator) -> Tensor:
    u, v = (torch.randn(size, generator=draw) for size in matrix.shape)
    direction = torch.outer(u / u.norm(), v / v.norm())
    return torch.lerp(matrix, matrix.norm() * direction, 1 - 0.85**visit)


def _duplicates(matrix: Tensor, visit: int, draw: torch.Generator) -> Tensor:
    count = matrix.shape[0]
    order = torch.randperm(count, generator=draw)
    copied = min(round(0.1 * visit * count), count - 1)
    sources = torch.randint(2**31, (count,), generator=draw)[:copied] % (count - copied)
    altered = matrix.clone()
    altered[order[:copied]] = matrix[order[copied:][sources]]
    return altered


def _slow(matrix: Tensor, visit: int, draw: torch.Generator) -> Tensor:
    u, s, v = _svd(matrix)
    places = torch.linspace(0, 1, len(s))
    wanted = effective_rank_of(s).log() - SLOW * visit
    low, high = 0.0, 400.0
    for _ in range(40):
        middle = (low + high) / 2
        above = bool(effective_rank_of(s * torch.exp(-middle * places)).log() > wanted)
        low, high = (middle, high) if above else (low, middle)
    return (u * (s * torch.exp(-high * places))) @ v


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, v


COLLAPSES: dict[str, Collapse] = {
    collapse.name: collapse
    for collapse in (
        Collapse(
            name="rank-decay",
            title="rank decay: σ below the median x 0.7 per visit",
            alter=_rank_decay,
            published="18/18, 2",
        ),
        Collapse(name="spike", title="σ₁ x 1.2 per visit", alter=_spike, published="17/18, 3"),
        Collapse(
            name="clusters",
            title="rows pulled to 8 of them, 30% of the way per visit",
            alter=_clusters,
            published="18/18, 3",
        ),
        Collapse(
            name="rank-one",
            title="mixed with a matrix of rank 1, 15% per visit",
            alter=_rank_one,
            published="18/18, 3",
        ),
        Collapse(
            name="duplicates",
            title="10% more rows per visit copied from others",
            alter=_duplicates,
            published="15/18, 3",
        ),
        Collapse(
            name="slow",
            title="slow decay: effective rank -2% per visit",
            alter=_slow,
            visits=60,
            published="by the absolute limit",
        ),
    )
}
"""The ways by their names."""
