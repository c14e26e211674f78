"""Scalars come to the host as they are."""

from __future__ import annotations

import math

import torch

from stableopt.runtime.scalars import read_scalars


def test_numbers_and_tensors_of_any_kind():
    values = [1.5, torch.tensor(2), torch.tensor([[3.0]], dtype=torch.bfloat16), torch.tensor(4.0)]
    assert read_scalars(values) == [1.5, 2.0, 3.0, 4.0]
    assert math.isnan(read_scalars([torch.tensor(math.nan)])[0])
    assert read_scalars([]) == []


def test_values_of_another_device_come_in_one_transfer(monkeypatch):
    stacked = []
    real = torch.stack

    class Remote(torch.Tensor):
        """A tensor on the CPU that claims another device, in place of an accelerator."""

        @property
        def device(self):
            return torch.device("cuda")

    def stack(tensors):
        stacked.append(len(tensors))
        return real(tensors)

    monkeypatch.setattr(torch, "stack", stack)
    remote = [torch.tensor(v).as_subclass(Remote) for v in (2.0, 3.0)]
    assert read_scalars([1.0, remote[0], torch.tensor(5.0), remote[1]]) == [1.0, 2.0, 5.0, 3.0]
    assert stacked == [2]
