"""The ranks that take one verdict, and the calls in which they exchange what they know."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from stableopt.errors import ConfigError, RanksError
from stableopt.ranks.words import spoken

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.distributed import ProcessGroup

T = TypeVar("T")

_GRACE = 1.0
"""Seconds in which other ranks that wait as well can say so, before the missing ones are named."""


class Ranks:
    """The ranks that take one verdict.

    They speak over a gloo group of their own, which is made at the first step, because process
    groups may be made after the optimizer. What decides is one sum per step; everything else is
    exchanged only where something is wrong, a snapshot is taken, or replicas are compared.

    A call is made on a condition that is the same on every rank: an option, the number of the step,
    or what a call before it returned. It is never made on what one rank sees alone.

    Args:
        given: The group whose ranks decide together; ``None`` for all ranks of the job, ``False``
            for this rank alone.

    Attributes:
        size: How many they are; 1 until :meth:`join`, and where there is no process group.
        rank: The number of this one in the group.
        on_host: How many of them share this host, and its memory.
        sums: Calls of :meth:`sum` and of what is made of it.
        gathers: Calls of :meth:`gather`.

    Raises:
        ConfigError: ``given`` is none of these, or this rank is not in it.
    """

    def __init__(self, given: ProcessGroup | bool | None = None) -> None:
        self._given = given
        self._group: ProcessGroup | None = None
        self._joined = False
        self.size, self.rank, self.on_host = 1, 0, 1
        self.sums = self.gathers = 0
        if given is not None and given is not False:
            _check_group(given)

    @property
    def joined(self) -> bool:
        """Whether :meth:`join` was called."""
        return self._joined

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @property
    def alone(self) -> bool:
        """Whether this rank decides for itself, whatever others there are."""
        return self._given is False

    @property
    def writes(self) -> bool:
        """Whether this is the first rank of those that record one run."""
        if self.alone:
            return True
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(self._parent()) == 0
        return os.environ.get("RANK", "0") == "0"

    def expected(self) -> int:
        """Return how many ranks :meth:`join` would find now; makes no call."""
        distributed = torch.distributed
        if self._given is False or not distributed.is_available():
            return 1
        if not distributed.is_initialized():
            return 1
        return distributed.get_world_size(self._parent())

    def join(self) -> bool:
        """Make the group, in the first call; return whether it was made in this one."""
        if self._joined:
            return False
        self._joined = True
        if self.expected() == 1:
            return False
        distributed, parent = torch.distributed, self._parent()
        self.rank = distributed.get_rank(parent)
        members = distributed.get_process_group_ranks(parent or distributed.group.WORLD)
        self._group = self._ask(
            lambda: distributed.new_group(
                members,
                timeout=_timeout(parent or distributed.group.WORLD),
                backend="gloo",
                use_local_synchronization=True,
                group_desc="stableopt",
            ),
            "the first step",
        )
        self.size = len(members)
        hosts = self.gather(platform.node(), "the first step")
        self.on_host = hosts.count(platform.node())
        return True

    def _parent(self) -> ProcessGroup | None:
        return self._given if isinstance(self._given, torch.distributed.ProcessGroup) else None

    def summary(self) -> dict[str, int]:
        """Return how many ranks there are, and how often they spoke, as plain values."""
        return {"size": self.size, "rank": self.rank, "sums": self.sums, "gathers": self.gathers}

    # calls: every rank makes them in the same order

    def sum(self, numbers: Sequence[float], what: str) -> list[float]:
        """Return the sums over all ranks, the same bits on each.

        Args:
            numbers: As many on every rank. One that is NaN makes the sum NaN.
            what: What it is for, in the error.

        Raises:
            RanksError: Another rank did not make this call in time, or has ended.
        """
        if not self.several:
            return list(numbers)
        self.sums += 1
        total = torch.tensor(list(numbers), dtype=torch.float64)
        self._ask(lambda: torch.distributed.all_reduce(total, group=self._group), what)
        return total.tolist()

    def any(self, flag: bool, what: str) -> bool:
        """Return whether ``flag`` is set on any rank."""
        return self.sum([float(flag)], what)[0] > 0

    def least(self, number: int, what: str) -> int:
        """Return the smallest number of all ranks."""
        return min(self.gather(number, what))

    def gather(self, item: T, what: str) -> list[T]:
        """Return what every rank has, in the order of the ranks.

        Args:
            item: Plain data.
            what: What it is for, in the error.
        """
        if not self.several:
            return [item]
        self.gathers += 1
        items: list[Any] = [None] * self.size
        self._ask(lambda: torch.distributed.all_gather_object(items, item, group=self._group), what)
        return items

    def _ask(self, call: Callable[[], T], what: str) -> T:
        began = time.monotonic()
        try:
            return call()
        except (RuntimeError, ValueError) as error:
            waited = time.monotonic() - began
            raise RanksError(self._explain(what, waited), str(error)) from error

    def _explain(self, what: str, waited: float) -> str:
        """Say which ranks did not come, as far as those that wait can find out."""
        missing = self._missing()
        who = spoken(missing) if missing else "other ranks"
        return (
            f"rank {self.rank} waited {waited:.0f} s for {who} in {what}: each "
            "rank has to call step() as often as all others, and one that has ended with an error "
            "ends the run; if it is a process that cannot be reached, set GLOO_SOCKET_IFNAME to "
            "the network interface that joins the hosts"
        )

    def _missing(self) -> list[int]:
        """Return the ranks that do not wait as this one does."""
        found: list[int] = []
        with suppress(Exception):
            store = torch.distributed.distributed_c10d._get_default_store()
            keys = [f"stableopt/waits/{self.sums}/{self.gathers}/{r}" for r in range(self.size)]
            store.set(keys[self.rank], "1")
            time.sleep(_GRACE)
            found = [rank for rank, key in enumerate(keys) if not store.check([key])]
        return found

    def __deepcopy__(self, memo: dict[int, object]) -> Ranks:
        """Return ranks that join a group of their own at their first step."""
        return Ranks(self._given)

    def __getstate__(self) -> dict[str, object]:
        """Give pickles no group: they join one of all ranks at their first step."""
        given = self._given if self._given is False else None
        return {**Ranks(given).__dict__}


def _check_group(given: object) -> None:
    distributed = torch.distributed
    if not distributed.is_available() or not isinstance(given, distributed.ProcessGroup):
        raise ConfigError(
            f"group={given!r} must be a torch.distributed.ProcessGroup that this rank is in, None "
            "for all ranks, or False for this rank alone"
        )


def _timeout(group: ProcessGroup | None) -> timedelta:
    """Return how long calls of a group wait."""
    for device in getattr(group, "_device_types", ()):
        with suppress(Exception):
            options = group._get_backend(device).options  # type: ignore[union-attr]
            return timedelta(seconds=options._timeout.total_seconds())
    return torch.distributed.default_pg_timeout
