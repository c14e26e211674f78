"""How many snapshots fit, and where."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stableopt.errors import ConfigError
from stableopt.runtime.shards import local
from stableopt.runtime.storage import has_data
from stableopt.runtime.words import size
from stableopt.snapshots.tree_copy import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim import Optimizer

    from stableopt.guard.options import Guard

logger = logging.getLogger("stableopt")

FEWEST = 2
"""Slots: one for a verified snapshot, one for the next to be written."""

HEADROOM = 0.9
"""Share of the free memory that snapshots may use."""

_TENSORS_PER_PARAMETER: Mapping[str, int] = {
    "ASGD": 1,
    "Adadelta": 2,
    "Adafactor": 1,
    "Adagrad": 1,
    "Muon": 1,
    "RMSprop": 1,
    "Rprop": 2,
    "SGD": 1,
}
"""State that torch's optimizers keep for a parameter; Adam and its relatives keep two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many snapshots there are, and where.

    Attributes:
        slots: How many there are.
        memory: On the parameters' device or in host memory.
        slot_bytes: The bytes of one of them.
    """

    slots: int
    memory: Memory
    slot_bytes: int

    @property
    def bytes(self) -> int:
        """The bytes of all of them, at most."""
        return self.slots * self.slot_bytes


def plan_memory(guard: Guard, slot_bytes: int, device: torch.device, *, sharing: int = 1) -> Plan:
    """Find a place for ``guard.slots`` snapshots, or for fewer of them.

    Args:
        guard: What was asked for.
        slot_bytes: The bytes of one snapshot.
        device: Of the parameters.
        sharing: Processes that share the memory of this host, and plan as this one does.

    Raises:
        ConfigError: Not even two of them fit.
    """
    choices = {
        "device": (Memory.SAME,),
        "host": (Memory.HOST,),
        "auto": (Memory.SAME,) if device.type == "cpu" else (Memory.SAME, Memory.HOST),
    }[guard.memory]
    fitting = {
        memory: _fitting(memory, guard.slots, slot_bytes, device, sharing) for memory in choices
    }
    memory = max(choices, key=lambda choice: fitting[choice])  # the first of the best
    slots = fitting[memory]
    if guard.slots and slots < FEWEST:
        raise ConfigError(
            f"slots={guard.slots}: two snapshots of {size(slot_bytes)} do not fit into the free "
            f"memory of the {' or the '.join(choice.value for choice in choices)}; free some, or "
            "use Guard(slots=0), which skips bad steps but cannot roll back"
        )
    if slots < guard.slots:
        logger.warning(
            "only %d of %d snapshots of %s each fit into the free memory, so no more are kept",
            slots,
            guard.slots,
            size(slot_bytes),
        )
    return Plan(slots=slots, memory=memory, slot_bytes=slot_bytes)


def estimate_bytes(optimizer: Optimizer, known: int) -> int:
    """Return the bytes of a snapshot once the optimizer has its state.

    Args:
        optimizer: Before or after its first step.
        known: The bytes of all that exists already.
    """
    if optimizer.state:
        return known
    per_parameter: int = _TENSORS_PER_PARAMETER.get(type(optimizer).__name__, 2)
    options: dict[str, Any] = optimizer.defaults
    if type(optimizer).__name__ == "SGD" and not options.get("momentum"):
        per_parameter = 0
    per_parameter += bool(options.get("amsgrad"))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    sizes: list[int] = [local(p).numel() * p.element_size() for p in params if has_data(p)]
    return known + per_parameter * sum(sizes)


def free_bytes(device: torch.device) -> int | None:
    """Return how many more bytes this process can allocate there; ``None`` if that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    return _free_host_bytes() if device.type == "cpu" else None


def _fitting(
    memory: Memory, wanted: int, slot_bytes: int, device: torch.device, sharing: int
) -> int:
    place = torch.device("cpu") if memory is Memory.HOST else device
    free = free_bytes(place)
    if free is None or slot_bytes == 0:
        return wanted
    if place.type == "cpu":
        free //= sharing
    return min(wanted, int(free * HEADROOM) // slot_bytes)


def _free_host_bytes() -> int | None:
    limits = [limit for limit in (_free_of_machine(), _free_of_container()) if limit is not None]
    return min(limits, default=None)


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return None


def _free_of_container() -> int | None:
    """Return what the memory limit of a container leaves (cgroup v2, then v1)."""
    files = (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    )
    for limit, used in files:
        try:
            return max(0, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue
    return None
