"""What drives a run into a failure: a change of weights, a bit further in every update.

A drive is part of the update: it acts after the inner optimizer and before the transforms, so that
what the next forward pass meets is what the loop has made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Push = Callable[[], None]
"""Changes weights in place, by the share of one update."""
Drive = Callable[[Sequence[Tensor], torch.Generator], Push]
"""Looks at weights, before anything has driven them, and returns what will."""

CLUSTERS = 8
KEPT = 4


def grow_one_direction(rate: float) -> Drive:
    """Return a drive that adds ``rate`` to one singular value, whose direction is drawn."""

    def begin(weights: Sequence[Tensor], draw: torch.Generator) -> Push:
        drawn = [[torch.randn(n, generator=draw) for n in weight.shape] for weight in weights]
        directions = [torch.outer(u / u.norm(), v / v.norm()) for u, v in drawn]

        def push() -> None:
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(direction, alpha=rate)

        return push

    return begin


def grow(rate: float, rows: Callable[[Tensor], Tensor] | None = None) -> Drive:
    """Return a drive that multiplies weights, or the rows that are asked for, by ``1 + rate``."""

    def begin(weights: Sequence[Tensor], draw: torch.Generator) -> Push:
        chosen = [weight if rows is None else rows(weight) for weight in weights]

        def push() -> None:
            for part in chosen:
                part.mul_(1 + rate)

        return push

    return begin


def queries_and_keys(packed: Tensor) -> Tensor:
    """Return the rows of a packed projection that make queries and keys."""
    return packed[: len(packed) // 3 * 2]


def pull_to_clusters(rate: float) -> Drive:
    """Return a drive that takes every row by ``rate`` of the way to the mean of its cluster.

    Which of the eight clusters a row belongs to is drawn.
    """

    def begin(weights: Sequence[Tensor], draw: torch.Generator) -> Push:
        means = []
        for weight in weights:
            mine = torch.randint(CLUSTERS, (len(weight),), generator=draw)
            together = (mine[:, None] == mine).to(weight)
            means.append(together / together.sum(1, keepdim=True))

        def push() -> None:
            for weight, mean in zip(weights, means, strict=True):
                weight.lerp_(mean @ weight, rate)

        return push

    return begin


def lose_rank(rate: float) -> Drive:
    """Return a drive that lets all but four singular directions decay by ``rate``."""

    def begin(weights: Sequence[Tensor], draw: torch.Generator) -> Push:
        rights = [torch.linalg.svd(weight, full_matrices=False).Vh[:KEPT] for weight in weights]

        def push() -> None:
            for weight, right in zip(weights, rights, strict=True):
                weight.lerp_(weight @ right.mT @ right, rate)

        return push

    return begin
