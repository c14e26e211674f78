"""AGREE: from what this rank knows of a step to what all ranks know."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from stableopt.errors import RanksError
from stableopt.functional import widest_real
from stableopt.ranks.message import Said, clock_of, pack, unpack
from stableopt.ranks.words import merged
from stableopt.sensors.gradients import groups_per_norm
from stableopt.types import GradientNorms, Observation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch.optim import Optimizer

    from stableopt.guard.policy import Policy
    from stableopt.ranks.group import Ranks
    from stableopt.ranks.message import Agreed
    from stableopt.runtime.positions import Position
    from stableopt.snapshots.keeper import Keeper
    from stableopt.telemetry.ledger import Ledger
    from stableopt.transforms.chain import Transforming
    from stableopt.triggers.rule_book import RuleBook
    from stableopt.types import Finding


class Known(NamedTuple):
    """What all ranks know.

    Attributes:
        observation: Loss, gradient norms and signals of all ranks.
        flags: What at least one rank has set.
    """

    observation: Observation
    flags: Collection[str]


class Agreement:
    """Sums what decides over all ranks, and gathers in words what is wrong.

    On a single rank it returns what it is given.

    Args:
        optimizer: The inner optimizer.
        ranks: Those that take one verdict.
        ledger: Has the clocks.
        policy: Has the counts that have to be the same on all ranks.
        keeper: Has the snapshots, which have to be of the same steps.
        rules: Read signals.
        transforms: Read signals, too.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        ranks: Ranks,
        ledger: Ledger,
        policy: Policy,
        keeper: Keeper,
        rules: RuleBook,
        transforms: Transforming,
    ) -> None:
        self._optimizer = optimizer
        self.ranks = ranks
        self._ledger = ledger
        self._policy = policy
        self._keeper = keeper
        self._rules = rules
        self._transforms = transforms
        self._copies = ranks.size
        self._whole = True

    def __call__(self, observation: Observation, flags: Mapping[str, Any]) -> Known:
        """Return what all ranks know of a step.

        Args:
            observation: What this one knows.
            flags: Of :class:`~stableopt.ranks.message.Said`.

        Raises:
            RanksError: A rank is missing, or they are out of step.
        """
        if not self.ranks.several:
            return Known(observation, {name for name, is_set in flags.items() if is_set})
        call = self._ledger.calls + 1
        signals, largest = observation.signals, self._transforms.largest
        names = sorted((self._rules.signals | self._transforms.signals) - largest)
        numbers = {name: _number(signals.get(name)) for name in names}
        many = {
            name: signals[name]
            for name in largest.union(names)
            if name in signals and numbers.get(name) is None
        }
        said = Said(
            **flags,
            many=bool(many),
            loss=observation.loss,
            **self._gradients(observation.gradients),
            signals=numbers,
            clock=clock_of(call, self._ledger.steps, asdict(self._policy), self._slots()),
        )
        total = self.ranks.sum(pack(said), f"call {call} of step()")
        agreed = unpack(total, self.ranks.size, names)
        if not agreed.in_step:
            self._explain(call)
        signals = {**signals, **agreed.signals}
        if "many" in agreed.flags:
            signals |= self._gathered(many)
        norms = self._agreed_norms(observation.gradients, agreed)
        known = Observation(loss=agreed.loss, gradients=norms, signals=signals)
        return Known(known, agreed.flags)

    def _agreed_norms(self, mine: GradientNorms | None, agreed: Agreed) -> GradientNorms | None:
        """Return the norms of this rank with the global ones of all ranks."""
        if agreed.norm is None:
            return None
        total = torch.tensor(agreed.norm, dtype=widest_real(torch.device("cpu")))
        if mine is None:
            mine = GradientNorms(owners=(), values=(), norms=(), total=total, total_value=0.0)
        if self._whole:
            total = mine.total  # the bits of torch, where every rank has all gradients
        width = groups_per_norm(self._optimizer.param_groups)
        groups = {slot * width: norm for slot, norm in agreed.groups.items() if norm}
        return replace(
            mine,
            total=total.to(mine.total),
            total_value=agreed.norm,
            groups=groups if len(groups) > 1 else {},
        )

    def _gathered(self, mine: Mapping[str, Any]) -> dict[str, Any]:
        """Return signals of many values: of those for transforms the largest of each, else all."""
        found: dict[str, dict[str, Any]] = {}
        everybody = self.ranks.gather(_on_host(mine), "the exchange of signals")
        for rank, theirs in enumerate(everybody):
            for name, value in theirs.items():
                found.setdefault(name, {})[f"rank {rank}"] = value
        of_transforms = self._transforms.signals | self._transforms.largest
        return {
            name: largest_of(list(values.values())) if name in of_transforms else values
            for name, values in found.items()
        }

    def _slots(self) -> list[tuple[int, str]]:
        return [(slot.step, slot.state.value) for slot in self._keeper.ring.slots]

    def share(self, holders: Mapping[Position, int]) -> dict[tuple[int, int], float] | None:
        """Find out how gradients add up over the ranks.

        Args:
            holders: On how many ranks each parameter is.

        Returns:
            Factors on their norms; ``None`` where all are on as many ranks.
        """
        counts = set(holders.values())
        self._whole = counts <= {self.ranks.size}
        self._copies = counts.pop() if len(counts) == 1 else 1
        if not counts:
            return None
        return {(at.group, at.place): count**-0.5 for at, count in holders.items()}

    def _gradients(self, norms: GradientNorms | None) -> dict[str, Any]:
        """Return squares, each divided by the number of ranks that have the same gradient."""
        if norms is None:
            return {}
        width, copies = groups_per_norm(self._optimizer.param_groups), self._copies
        groups = {number // width: norm**2 / copies for number, norm in norms.groups.items()}
        return {"square": norms.total_value**2 / copies, "groups": groups}

    def norms(self, mine: GradientNorms | None) -> GradientNorms | None:
        """Return norms that were measured again, as all ranks see them; all call it at once."""
        if not self.ranks.several or self._whole:
            return mine
        said = Said(**self._gradients(mine))
        total = self.ranks.sum(pack(said), "the norm of changed gradients")
        return self._agreed_norms(mine, unpack(total, self.ranks.size, ()))

    def words(self, *mine: tuple[Finding, ...]) -> tuple[tuple[Finding, ...], ...]:
        """Return what all ranks have found, list by list; every rank calls it at once."""
        if not self.ranks.several:
            return mine
        everybody = self.ranks.gather(mine, "the exchange of what was found")
        return tuple(merged(lists) for lists in zip(*everybody, strict=True))

    def word(self, mine: str | None) -> str | None:
        """Return the text of the first rank that has one; every rank calls it at once."""
        return next(filter(None, self.ranks.gather(mine, "the exchange of a request")), None)

    def _explain(self, call: int) -> None:
        """Raise with the clocks of all ranks."""
        mine = (call, self._ledger.steps, self._slots())
        clocks = self.ranks.gather(mine, "the comparison of clocks")
        each = "; ".join(
            f"rank {rank} is at call {calls} after {steps} steps, with snapshots {held}"
            for rank, (calls, steps, held) in enumerate(clocks)
        )
        raise RanksError(
            f"the ranks are out of step: {each}. Each has to call step() as often as all others, "
            "and to load the same checkpoint"
        )


def largest_of(values: Sequence[Any]) -> Any:
    """Return the largest of each number in values of the same form; NaN if one is.

    Args:
        values: Numbers, tensors, or dicts of these, at least one. Of tensors of other shapes the
            largest number of all is returned.
    """
    if any(isinstance(value, dict) for value in values):
        dicts = [value for value in values if isinstance(value, dict)]
        keys = dict.fromkeys(key for value in dicts for key in value)
        return {key: largest_of([v[key] for v in dicts if key in v]) for key in keys}
    tensors = [torch.as_tensor(value) for value in values]
    if len({tensor.shape for tensor in tensors}) > 1:
        tensors = [tensor.max() for tensor in tensors]
    return torch.stack([tensor.double() for tensor in tensors]).amax(0)


def _on_host(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _on_host(item) for name, item in value.items()}
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _number(value: Any) -> float | None:
    """Return a signal if it is one number."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return value if isinstance(value, (int, float)) else None
