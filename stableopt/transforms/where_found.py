"""A transform that may find nothing to act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stableopt.transforms.protocol import Actuator, Needs, Phase, Site, Transform
    from stableopt.transforms.selection import Select


@dataclass(frozen=True)
class WhereFound:
    """Have a transform act where there is something to act on, and not mind if there is not.

    For options that are written before the model is known, such as presets: what finds no
    parameter is left out, with a note in the log instead of an error.

    Args:
        transform: The transform.

    Example:
        >>> import torch, stableopt
        >>> from stableopt.transforms import QKClip, WhereFound
        >>> model = torch.nn.Linear(2, 2)
        >>> adamw = torch.optim.AdamW(model.parameters())
        >>> opt = stableopt.StableOptimizer(
        ...     adamw, model=model, transforms=[WhereFound(QKClip(100.0))]
        ... )
        >>> opt.summary()["transforms"]
        []
    """

    transform: Transform

    @property
    def params(self) -> Select:
        """Those of the transform."""
        return self.transform.params

    @property
    def phase(self) -> Phase:
        """That of the transform."""
        return self.transform.phase

    @property
    def metric(self) -> str:
        """That of the transform."""
        return self.transform.metric

    @property
    def routine(self) -> bool:
        """That of the transform."""
        return self.transform.routine

    @property
    def needs(self) -> Needs:
        """Those of the transform."""
        return self.transform.needs

    def bind(self, site: Site) -> Actuator:
        """Bind the transform."""
        return self.transform.bind(site)

    def __repr__(self) -> str:
        return repr(self.transform)
