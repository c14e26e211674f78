"""A transform that may find nothing to act on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stableopt.transforms.protocol import Change, Found, Needs, Phase, Transform
    from stableopt.transforms.selection import Select
    from stableopt.transforms.site import Site
    from stableopt.transforms.view import StepView


@dataclass(frozen=True)
class WhereFound:
    """Leave a transform out, without an error, where it finds no parameter to act on.

    For options that are written before the model is known, such as presets. What is left out is
    logged.

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
    params: Select = field(init=False, compare=False)
    phase: Phase = field(init=False, compare=False)
    metric: str = field(init=False, compare=False)
    routine: bool = field(init=False, compare=False)
    needs: Needs = field(init=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("params", "phase", "metric", "routine", "needs"):
            object.__setattr__(self, name, getattr(self.transform, name))

    def find(self, site: Site) -> Found:
        """Return what the transform finds."""
        return self.transform.find(site)

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Apply the transform."""
        return self.transform.act(view, found, memory)

    def __repr__(self) -> str:
        return repr(self.transform)
