"""Copy numbers to the host, with one transfer per device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stableopt.functional import widest_real

if TYPE_CHECKING:
    from collections.abc import Sequence


def read_scalars(values: Sequence[float | Tensor]) -> list[float]:
    """Return every value as a Python float.

    Args:
        values: Python numbers and one-element real tensors, on any devices.

    Cost:
        One host synchronisation per accelerator that holds a value; none for the CPU.
    """
    out = [0.0] * len(values)
    remote: dict[torch.device, dict[int, Tensor]] = {}
    for i, value in enumerate(values):
        if not isinstance(value, Tensor):
            out[i] = float(value)
        elif value.device.type == "cpu":
            out[i] = float(value.item())
        else:
            remote.setdefault(value.device, {})[i] = value.detach().reshape(())
    for device, members in remote.items():
        wide = widest_real(device)
        stacked = torch.stack([value.to(wide) for value in members.values()])
        for i, number in zip(members, stacked.tolist(), strict=True):
            out[i] = number
    return out
