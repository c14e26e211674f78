"""Where snapshots go, and how many, for every amount of free memory."""

from __future__ import annotations

import pytest
import torch

from stableopt import ConfigError, Guard
from stableopt.snapshots import memory
from stableopt.snapshots.memory import plan_memory
from stableopt.snapshots.tree_copy import Memory

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
SLOT = 1000


def room(monkeypatch, device, host):
    """Give the device and the host room for so many snapshots."""

    def free(place):
        slots = {"cuda": device, "cpu": host}[place.type]
        return None if slots is None else int(slots * SLOT / memory.HEADROOM) + 1

    monkeypatch.setattr(memory, "free_bytes", free)


@pytest.mark.parametrize(
    ("where", "device", "host", "slots", "memory"),
    [
        ("auto", 9, 9, 3, Memory.SAME),
        ("auto", 3, 0, 3, Memory.SAME),
        ("auto", 1, 9, 3, Memory.HOST),
        ("auto", 2, 9, 3, Memory.HOST),
        ("auto", 2, 2, 2, Memory.SAME),
        ("auto", 0, 2, 2, Memory.HOST),
        ("auto", None, 0, 3, Memory.SAME),
        ("device", 2, 9, 2, Memory.SAME),
        ("host", 9, 3, 3, Memory.HOST),
    ],
)
def test_the_first_place_that_has_most_room(monkeypatch, where, device, host, slots, memory):
    room(monkeypatch, device, host)
    plan = plan_memory(Guard(memory=where), SLOT, GPU)
    assert (plan.slots, plan.memory, plan.bytes) == (slots, memory, slots * SLOT)


@pytest.mark.parametrize(
    ("where", "device", "host"), [("auto", 1, 1), ("device", 1, 9), ("host", 9, 1)]
)
def test_two_must_fit(monkeypatch, where, device, host):
    room(monkeypatch, device, host)
    with pytest.raises(ConfigError, match=r"slots=3: two snapshots of .* do not fit"):
        plan_memory(Guard(memory=where), SLOT, GPU)
    assert plan_memory(Guard(memory=where, slots=0), SLOT, GPU).slots == 0


def test_without_an_accelerator_there_is_one_place(monkeypatch):
    room(monkeypatch, 0, 2)
    assert plan_memory(Guard(), SLOT, CPU).memory is Memory.SAME
    assert plan_memory(Guard(), 0, CPU).slots == 3
