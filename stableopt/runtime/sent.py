"""Numbers that are copied to the host now, and read later."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stableopt.functional import widest_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stableopt.runtime.lane import Lane, Transfer


class Sent:
    """Scalars and tensors on their way to the host, after the work that computes them.

    Args:
        lane: Copies from an accelerator to pinned memory, without a wait.
        scalars: Python numbers and one-element real tensors, on any devices.
        tensors: Tensors that are not written to any more.

    Cost:
        One small copy per accelerator, and one per tensor on one.
    """

    def __init__(
        self, lane: Lane, scalars: Sequence[float | Tensor], tensors: Sequence[Tensor] = ()
    ) -> None:
        self._scalars = [0.0] * len(scalars)
        self._tensors = list(tensors)
        self._transfers: list[tuple[list[int], list[int], Transfer]] = []
        remote: dict[torch.device, tuple[list[int], list[int]]] = {}
        for i, value in enumerate(scalars):
            if isinstance(value, Tensor) and is_remote(value):
                remote.setdefault(value.device, ([], []))[0].append(i)
            else:
                self._scalars[i] = float(value)
        for i, tensor in enumerate(tensors):
            if is_remote(tensor):
                remote.setdefault(tensor.device, ([], []))[1].append(i)
        # Held until they are read, so that the allocator does not reuse their memory before.
        self._held = (tuple(scalars), tuple(tensors))
        for device, (some, others) in remote.items():
            transfer = lane.run(device, partial(self._gather, device, some, others))
            self._transfers.append((some, others, transfer))

    def _gather(self, device: torch.device, some: list[int], others: list[int]) -> list[Tensor]:
        scalars, tensors = self._held
        wide = widest_real(device)
        numbers = [torch.as_tensor(scalars[i]).detach().reshape(()).to(wide) for i in some]
        stacked = torch.stack(numbers) if numbers else torch.empty(0, device=device, dtype=wide)
        return [stacked, *(tensors[i] for i in others)]

    def wait(self) -> tuple[list[float], list[Tensor]]:
        """Return the scalars and the tensors, on the host."""
        for some, others, transfer in self._transfers:
            numbers, *found = transfer.wait()
            for i, number in zip(some, numbers.tolist(), strict=True):
                self._scalars[i] = number
            for i, tensor in zip(others, found, strict=True):
                self._tensors[i] = tensor
        self._transfers, self._held = [], ((), ())
        return self._scalars, self._tensors


def is_remote(tensor: Tensor) -> bool:
    """Return whether the host has to wait for the values of ``tensor``."""
    return tensor.device.type != "cpu"
