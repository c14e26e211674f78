"""What an optimizer changes in its own options and attributes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stableopt.runtime.family import family, numbers
from stableopt.runtime.tree import tree_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    @contextmanager
    def watch(self, optimizer: Optimizer) -> Iterator[None]:
        """Compare before and after a step."""
        groups = [group for member in family(optimizer) for group in member.param_groups]
        before = [(dict(group), _versions(group)) for group in groups]
        counted = numbers(optimizer)
        yield
        for (old, versions), group in zip(before, groups, strict=True):
            for key, value in group.items():
                if value is not old.get(key, old):
                    self.moved.add(key)
            if versions and versions != _versions(group):
                self.moved |= {key for key, v in _versions(group).items() if v != versions.get(key)}
        now = numbers(optimizer)
        self.numbers |= {name for name, _ in now.items() ^ counted.items()}


def _versions(group: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Return what moves when a tensor of an option is written to, or exchanged in its container."""
    return {
        key: [(id(tensor), tensor._version) for tensor in tree_tensors(value)]
        for key, value in group.items()
        if key != "params" and isinstance(value, (Tensor, list, tuple, dict))
    }
