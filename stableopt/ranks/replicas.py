"""Copies of the same weights on several ranks, compared bit by bit."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from stableopt.ranks.words import spoken
from stableopt.runtime.bit_sum import bit_sum
from stableopt.runtime.family import state_of
from stableopt.runtime.names import parameter_names
from stableopt.runtime.portions import in_portions
from stableopt.runtime.positions import positions
from stableopt.runtime.shards import copies, is_sharded, local, place
from stableopt.runtime.storage import is_plain
from stableopt.runtime.words import count, listed
from stableopt.types import Finding, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from stableopt.ranks.group import Ranks
    from stableopt.runtime.positions import Position


class Copy(NamedTuple):
    """What identifies the copies of one tensor.

    Attributes:
        name: Of the parameter.
        key: Of an entry of its state; empty for the parameter itself.
        kind: Shape and dtype, and which part of a sharded tensor it is.
    """

    name: str
    key: str
    kind: str


class Replicas:
    """Finds out which tensors several ranks hold copies of, and compares them.

    Tensors of the same name, shape and dtype that begin with the same bits, have changed since and
    are still the same were updated alike: they are copies, as :class:`DistributedDataParallel`
    keeps them. Where copies differ afterwards, memory or a calculation has failed on one of the
    ranks. Tensors that differ as soon as they change (experts, local SGD, optimizers with random
    updates) are no copies, and are left alone. If most weights have parted, the ranks train apart:
    that is logged once, and they count as no copies from then on.

    Args:
        optimizer: The inner optimizer.
        model: Has the names.
        ranks: Those that may hold copies.
        period: Calls in which everything is compared once.

    Attributes:
        copies: How many tensors are known to be copies.

    Cost:
        One read of weights and state, and one gather of a checksum, per ``period`` steps, and as
        much with every snapshot. Nothing on a single rank, or where no rank holds what another one
        does.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module | None, ranks: Ranks, period: int
    ) -> None:
        self._optimizer = optimizer
        self._model = model
        self._ranks = ranks
        self._period = period
        self.forget()

    def forget(self) -> None:
        """Start from scratch: there may be other weights in the same places."""
        self._known: dict[Copy, int] = {}
        self._changed: set[Copy] = set()
        self._own: set[Copy] = set()
        self._waiting: list[list[tuple[Copy, Tensor]]] = []
        self._sums: dict[Copy, Tensor] = {}
        self._begun = False
        self._found: tuple[Finding, ...] = ()
        self._told: set[Copy] = set()
        self._holders: dict[Copy, int] = {}
        self._ranks_of: dict[Copy, tuple[int, ...]] = {}
        self._alone = self._met = False

    def restart(self) -> None:
        """Drop the comparison in progress: the weights were restored."""
        self._waiting, self._sums, self._begun, self._found = [], {}, False, ()
        self._told = set()

    @property
    def copies(self) -> int:
        """How many tensors are known to be copies."""
        return len(self._changed)

    def holders(self) -> dict[Position, int]:
        """Return on how many ranks each parameter is; known after the first comparison."""
        names = parameter_names(self._optimizer, self._model)
        found = {}
        for at, parameter in positions(self._optimizer).items():
            part = local(parameter)
            known = self._holders.get(Copy(names[at], "", _kind(parameter, part)), 1)
            found[at] = copies(parameter) if is_sharded(parameter) else known
        return found

    def step(self) -> tuple[Finding, ...]:
        """Add up the bits of one part; compare all of them once per period.

        Every rank calls this in every step.
        """
        if not self._ranks.several or self._alone:
            return ()
        found, self._found = self._found, ()
        if not self._waiting:
            due, self._begun = self._begun, True
            sums, self._sums = self._sums, {}
            self._waiting = in_portions(list(self._tensors()), self._period)
            if due and not found:
                found = self._compare(sums)
        for copy, tensor in self._waiting.pop():
            self._sums[copy] = bit_sum(tensor)
        return found

    def parts(self) -> bool:
        """Compare everything now, before a snapshot is taken.

        Returns:
            Whether copies differ; the finding is returned by the next :meth:`step`.
        """
        if not self._ranks.several or self._alone:
            return False
        self._found = self._compare({c: bit_sum(tensor) for c, tensor in self._tensors()})
        return any(finding.scope is Scope.STATE for finding in self._found)

    def _compare(self, sums: Mapping[Copy, Tensor]) -> tuple[Finding, ...]:
        mine = _on_host(sums)
        briefs = self._ranks.gather(self._brief(mine), "the comparison of replicas")
        if _are_alike(briefs):
            for copy, bits in mine.items():
                self._note(copy, bits)
            return ()
        # Where weights are averaged now and then, those that were looked at earlier may differ by
        # right: what is there now decides.
        now = {copy: bit_sum(tensor) for copy, tensor in self._tensors()}
        everything = {
            tuple(copy): (bits, copy in self._changed) for copy, bits in _on_host(now).items()
        }
        return self.judge(self._ranks.gather(everything, "the comparison of single replicas"))

    def _brief(self, mine: Mapping[Copy, int]) -> dict[tuple[int, ...], int] | None:
        """Return a checksum for all copies of the same ranks; ``None`` if some are not known."""
        if not self._met:
            return None
        together: dict[tuple[int, ...], list[int]] = {}
        for copy, bits in mine.items():
            if copy not in self._ranks_of:
                return None
            if copy not in self._own and len(self._ranks_of[copy]) > 1:
                together.setdefault(self._ranks_of[copy], []).append(bits)
        return {
            ranks: zlib.crc32(struct.pack(f"{len(bits)}q", *bits))
            for ranks, bits in together.items()
        }

    def _note(self, copy: Copy, bits: int) -> None:
        """Remember copies that are alike."""
        shared = copy not in self._own and len(self._ranks_of[copy]) > 1
        if shared and self._known.setdefault(copy, bits) != bits:
            self._changed.add(copy)

    def judge(
        self, everybody: Sequence[Mapping[tuple[str, ...], tuple[int, bool]]]
    ) -> tuple[Finding, ...]:
        """Return a finding if copies differ, given the bits that every rank has.

        Args:
            everybody: By copy, its bits, and whether it has changed alike before.
        """
        self._met = True
        held: dict[Copy, dict[int, int]] = {}
        for rank, mine in enumerate(everybody):
            for key, (bits, changed) in mine.items():
                copy = Copy(*key)
                held.setdefault(copy, {})[rank] = bits
                if changed:
                    self._changed.add(copy)
        self._ranks_of = {copy: tuple(by_rank) for copy, by_rank in held.items()}
        self._alone = all(len(by_rank) < 2 for by_rank in held.values())
        self._own |= self._told  # training went on with them
        self._changed -= self._told
        parted: dict[Copy, dict[int, int]] = {}
        for copy, by_rank in held.items():
            if copy in self._own or len(by_rank) < 2:
                continue
            alike = Counter(by_rank.values())
            self._holders[copy] = alike[by_rank.get(self._ranks.rank, 0)]
            if len(alike) == 1:
                self._note(copy, next(iter(alike)))
            elif copy in self._changed:
                parted[copy] = by_rank
            else:
                self._own.add(copy)
        return self._parted(parted)

    def _parted(self, parted: Mapping[Copy, Mapping[int, int]]) -> tuple[Finding, ...]:
        if not parted:
            return ()
        names = tuple(dict.fromkeys(copy.name for copy in parted))
        shared = [copy for copy, ranks in self._ranks_of.items() if len(ranks) > 1]
        apart = {copy.name for copy in shared if copy in self._own or copy in parted}
        if len(apart) > max(1, len({copy.name for copy in shared}) / 2):
            self._own.update(shared)
            self._changed.clear()
            message = (
                f"{count(len(names), 'weight')} ({listed(names)}), or their moments, were the same "
                "on several ranks, and are no longer: their gradients are not averaged; if that is "
                "on purpose, let each rank decide for itself with StableOptimizer(group=False)"
            )
            return (self._finding(message, names, "warn"),)
        self._told = set(parted)
        message = (
            f"the copies of {_what(parted)} differ: {_odd(parted)} (if the ranks train apart on "
            "purpose: StableOptimizer(group=False))"
        )
        return (self._finding(message, names, None),)

    def _finding(self, message: str, names: tuple[str, ...], response: str | None) -> Finding:
        return Finding(
            kind="diverged_replicas",
            message=message,
            scope=Scope.STATE if response is None else Scope.NOTICE,
            where=names,
            response=response,
        )

    def _tensors(self) -> Iterator[tuple[Copy, Tensor]]:
        """Yield every tensor that may have copies on other ranks."""
        names = parameter_names(self._optimizer, self._model)
        for at, parameter in positions(self._optimizer).items():
            if is_sharded(parameter) and copies(parameter) == 1:
                continue  # each rank has a part of its own
            state = state_of(self._optimizer, parameter)
            for key, tensor in {"": parameter, **state}.items():
                part = local(tensor) if isinstance(tensor, torch.Tensor) else None
                if part is not None and is_plain(part) and part.numel():
                    yield Copy(names[at], str(key), _kind(tensor, part)), part.detach()

    def __getstate__(self) -> dict[str, object]:
        """Let copies and pickles start from scratch."""
        new = Replicas(self._optimizer, self._model, self._ranks, self._period)
        return new.__dict__


def _on_host(sums: Mapping[Copy, Tensor]) -> dict[Copy, int]:
    """Return checksums as numbers, with one transfer per device."""
    numbers = torch.stack([s.cpu() for s in sums.values()]).tolist() if sums else []
    return dict(zip(sums, numbers, strict=True))


def _are_alike(briefs: Sequence[Mapping[tuple[int, ...], int] | None]) -> bool:
    """Return whether the checksums of all ranks are the same where they hold the same copies."""
    known: dict[tuple[int, ...], int] = {}
    for brief in briefs:
        if brief is None:
            return False
        for ranks, checksum in brief.items():
            if known.setdefault(ranks, checksum) != checksum:
                return False
    return True


def _kind(tensor: Tensor, part: Tensor) -> str:
    return f"{tuple(part.shape)} {part.dtype} {place(tensor)}"


def _what(parted: Mapping[Copy, Mapping[int, int]]) -> str:
    return listed([f"{c.key} of {c.name}" if c.key else c.name for c in parted])


def _odd(parted: Mapping[Copy, Mapping[int, int]]) -> str:
    """Return which ranks differ from most others, where there is a majority."""
    odd: set[int] = set()
    for by_rank in parted.values():
        (bits, most), *_ = Counter(by_rank.values()).most_common(1)
        if 2 * most <= len(by_rank):
            return f"{spoken(by_rank)} disagree, and there is no majority"
        odd |= {rank for rank, own in by_rank.items() if own != bits}
    return f"{spoken(odd)} against all others"
