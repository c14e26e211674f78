"""What an optimizer changes in its own options and attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from stableopt.runtime.family import family, numbers
from stableopt.runtime.tree import tree_tensors
from stableopt.update.closures import has_hooks, steps_like_torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim import Optimizer


class OptionWatch:
    """Learns what an optimizer moves itself, inside its step, beside tensors.

    Options of its groups (the step count of a schedule-free optimizer) and numbers among its
    attributes are state then; what moves between steps (lr, betas, momentum) belongs to a scheduler
    or to the user.

    Attributes:
        moved: The names of such options.
        numbers: The names of such attributes.
    """

    def __init__(self) -> None:
        self.moved: set[str] = set()
        self.numbers: set[str] = set()

    def before(self, optimizer: Optimizer) -> Before | None:
        """Return what there is before a step; ``None`` where a step moves nothing of the kind."""
        if steps_like_torch(optimizer) and not has_hooks(optimizer):
            return None
        groups = [group for member in family(optimizer) for group in member.param_groups]
        options = [(dict(group), _versions(group)) for group in groups]
        return Before(groups, options, numbers(optimizer))

    def after(self, optimizer: Optimizer, before: Before | None) -> None:
        """Compare with what there was before the step."""
        if before is None:
            return
        for (old, versions), group in zip(before.options, before.groups, strict=True):
            for key, value in group.items():
                if value is not old.get(key, old):
                    self.moved.add(key)
            if versions and versions != _versions(group):
                self.moved |= {key for key, v in _versions(group).items() if v != versions.get(key)}
        now = numbers(optimizer)
        self.numbers |= {name for name, _ in now.items() ^ before.numbers.items()}


class Before(NamedTuple):
    """What an optimizer had before a step.

    Attributes:
        groups: The parameter groups of its family.
        options: A copy of each, and the versions of the tensors in it.
        numbers: Its attributes that are plain numbers.
    """

    groups: list[dict[str, Any]]
    options: list[tuple[dict[str, Any], dict[str, list[tuple[int, int]]]]]
    numbers: Mapping[Any, Any]


def _versions(group: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Return what moves when a tensor of an option is written to, or exchanged in its container."""
    return {
        key: [(id(tensor), tensor._version) for tensor in tree_tensors(value)]
        for key, value in group.items()
        if key != "params" and isinstance(value, (Tensor, list, tuple, dict))
    }
