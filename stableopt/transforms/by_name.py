"""Parameters by the names that layouts give them, trained or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
