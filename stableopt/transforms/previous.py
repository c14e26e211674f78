"""Copies of weights from before a step, in memory that is allocated once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stableopt.runtime.shards import local


class Previous:
    """Remembers weights as they are before a step.

    Attributes:
        copies: In the order of the weights.

    Cost:
        As many bytes as the weights have; one read and one write of them per step.
    """

    def __init__(self) -> None:
        self.copies: list[Tensor] = []

    def __getstate__(self) -> dict[str, list[Tensor]]:
        """Leave the copies out of copies and pickles: they are made in every step."""
        return {"copies": []}

    @torch.no_grad()
    def take(self, weights: Sequence[Tensor]) -> None:
        """Copy ``weights``, into the memory of the last copies where they fit."""
        live = [weight.detach() for weight in weights]
        fits = len(live) == len(self.copies) and all(map(_fits, self.copies, live))
        if not fits:
            self.copies = [weight.clone() for weight in live]
        elif live:
            torch._foreach_copy_([*map(local, self.copies)], [*map(local, live)])


def _fits(copy: Tensor, live: Tensor) -> bool:
    same_kind = copy.dtype == live.dtype and copy.device == live.device
    return same_kind and copy.shape == live.shape and copy.stride() == live.stride()
