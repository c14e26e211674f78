"""Spread work over a fixed number of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

K = TypeVar("K")


def in_portions(tensors: Sequence[tuple[K, Tensor]], count: int) -> list[list[tuple[K, Tensor]]]:
    """Split named tensors into ``count`` portions of about equal size, in their order."""
    quota = max(1, sum(tensor.numel() for _, tensor in tensors) / count)
    portions: list[list[tuple[K, Tensor]]] = [[] for _ in range(count)]
    spent = 0
    for name, tensor in tensors:
        portions[min(int(spent / quota), count - 1)].append((name, tensor))
        spent += tensor.numel()
    return portions
