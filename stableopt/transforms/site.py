"""The parameters of an optimizer by name."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stableopt.errors import ConfigError
from stableopt.runtime.names import parameter_names, without_wrappers
from stableopt.runtime.storage import has_data
from stableopt.runtime.words import listed
from stableopt.transforms.protocol import Target
from stableopt.transforms.selection import Select, selection


class Site:
    """The parameters that a transform may act on.

    Args:
        optimizer: Has them.
        model: Gives names.

    Attributes:
        model: The model, if it was given.
        targets: The parameters that ``params=`` selects and that are trained: neither frozen nor
            without a shape.
        trained: All parameters of the optimizer that are trained, by name.
        lazy: How many parameters have no shape yet.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        self._optimizer = optimizer
        self.model = model
        names = _unique(parameter_names(optimizer, model))
        every = [Target(name, place) for place, name in names.items()]
        self._shaped = [target for target in every if has_data(self.parameter(target))]
        self.lazy = len(every) - len(self._shaped)
        self.targets = self._trained(self._shaped)
        self.trained = {target.name: target for target in self.targets}

    def _trained(self, targets: Iterable[Target]) -> list[Target]:
        return [target for target in targets if self.parameter(target).requires_grad]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer."""
        return self._optimizer.param_groups

    def parameter(self, target: Target) -> Tensor:
        """Return the parameter as it is now."""
        group, index = target.place
        found: Tensor = self.groups[group]["params"][index]
        return found

    def named(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return parameters of the optimizer or the model by name, without names not found."""
        wanted = list(names)
        found = {n: self.parameter(self.trained[n]) for n in wanted if n in self.trained}
        missing = set(wanted) - set(found)
        if missing and self.model is not None:
            for name, parameter in self.model.named_parameters(remove_duplicate=False):
                if without_wrappers(name) in missing:
                    found[without_wrappers(name)] = parameter
        return found

    def names(self) -> list[str]:
        """Return the names of all parameters of the optimizer and the model, trained ones first."""
        every = () if self.model is None else (name for name, _ in self.model.named_parameters())
        return list(dict.fromkeys([*self.trained, *map(without_wrappers, every)]))

    def unknown(self, option: str, name: str) -> ConfigError:
        """Return the error for a name that no parameter of the optimizer has."""
        return ConfigError(
            f"{option}: {name!r} is no parameter of the optimizer: the names are "
            f"{listed(list(self.trained), 8)}; give model= for names instead of positions"
        )

    def part(self, params: Select, group: int | None) -> Site:
        """Return the site of a transform.

        Args:
            params: Of the transform.
            group: Number of the parameter group that it was given with, if any.

        Raises:
            ConfigError: A pattern matches nothing.
        """
        inside = [target for target in self._shaped if group in (None, target.place[0])]
        chosen = selection("params", params).among(inside, self.model)
        part = copy.copy(self)
        part.targets = self._trained(chosen)
        return part


def _unique(names: Mapping[tuple[int, int], str]) -> dict[tuple[int, int], str]:
    """Return names of which no two are the same: they are keys in the memory of transforms."""
    seen: set[str] = set()
    found = {}
    for (group, index), name in names.items():
        found[group, index] = f"{name} ({group}.{index})" if name in seen else name
        seen.add(name)
    return found
