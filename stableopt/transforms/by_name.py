"""Parameters by the names that layouts give them, trained or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stableopt.errors import ConfigError
from stableopt.runtime.names import without_wrappers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from stableopt.transforms.protocol import Moment, Site


class ByName:
    """Looks parameters up by name.

    Args:
        site: The parameters of an optimizer, and the model for those that it does not train.

    Attributes:
        trained: Those of the optimizer.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self.trained = {target.name: target for target in site.everything}

    def known(self) -> list[str]:
        """Return the names of all parameters, those that are trained first."""
        model = self._site.model
        every = () if model is None else (name for name, _ in model.named_parameters())
        return list(dict.fromkeys([*self.trained, *map(without_wrappers, every)]))

    def unknown(self, option: str, name: str) -> ConfigError:
        """Build the error for a name that is not among those of the optimizer."""
        names = list(self.trained)
        return ConfigError(
            f"{option}: {name!r} is no parameter of the optimizer: the names are "
            f"{', '.join(names[:8])}{', …' if len(names) > 8 else ''}; give model= for names "
            "instead of positions"
        )

    def parameters(self, names: Iterable[str], moment: Moment | None = None) -> dict[str, Tensor]:
        """Return the parameters of those names, without those that do not exist.

        Args:
            names: Which.
            moment: As of when; as of now if not given.
        """
        source = self._site if moment is None else moment
        wanted = list(names)
        found = {n: source.parameter(self.trained[n]) for n in wanted if n in self.trained}
        missing = set(wanted) - set(found)
        if missing and self._site.model is not None:
            for name, parameter in self._site.model.named_parameters(remove_duplicate=False):
                if without_wrappers(name) in missing:
                    found[without_wrappers(name)] = parameter
        return found
