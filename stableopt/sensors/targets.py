"""Which parameters have a spectrum."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from stableopt.errors import ConfigError
from stableopt.runtime.names import parameter_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer


class Targets:
    """The weights that can be measured, by name.

    Everything of two dimensions or more that is dense, of a floating dtype and has its values
    here. A parameter that is tied counts once.

    Args:
        optimizer: Whose parameters they are.
        model: Gives names.
        params: Patterns of the names; ``None`` for all.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module | None, params: Sequence[str] | None
    ) -> None:
        self._optimizer = optimizer
        self._model = model
        self._params = params
        self._key: tuple[object, ...] = ()
        self._names: dict[str, tuple[int, int]] = {}

    def check(self) -> None:
        """Refuse patterns that match no parameter.

        Raises:
            ConfigError: One does not.
        """
        names = list(parameter_names(self._optimizer, self._model).values())
        for pattern in self._params or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"params={pattern!r} matches no parameter: the names are "
                    f"{', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
                )

    def weights(self) -> dict[str, Tensor]:
        """Return every weight, detached, as it is now."""
        groups = self._optimizer.param_groups
        key = tuple(id(p) for group in groups for p in group["params"])
        if key != self._key:
            self._key = key
            self._names = {
                name: place
                for place, name in parameter_names(self._optimizer, self._model).items()
                if self._params is None or any(fnmatchcase(name, p) for p in self._params)
            }
        found = {name: groups[g]["params"][i] for name, (g, i) in self._names.items()}
        return {name: p.detach() for name, p in found.items() if _has_spectrum(p)}


def _has_spectrum(parameter: Tensor) -> bool:
    if is_lazy(parameter) or parameter.dim() < 2 or parameter.layout is not torch.strided:
        return False
    if type(parameter.data) is not torch.Tensor or parameter.device.type == "meta":
        return False  # a subclass decides for itself what an operation means
    return parameter.numel() > 0 and (parameter.is_floating_point() or parameter.is_complex())
