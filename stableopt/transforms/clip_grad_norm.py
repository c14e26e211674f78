"""Clip the global gradient norm, with the norm that was measured for the guard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stableopt.errors import require_number
from stableopt.functional import safe_norm, total_norm, widest_real
from stableopt.transforms.protocol import Change, Found, Needs, Phase
from stableopt.transforms.selection import Select, selection
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.types import GradientNorms


@dataclass(frozen=True)
class ClipGradNorm:
    r"""Scale all gradients so that their global 2-norm is at most ``max_norm``.

    :math:`g \leftarrow g \cdot \min(1, \text{max\_norm} / (\lVert g \rVert + 10^{-6}))`,
    the same numbers as :func:`torch.nn.utils.clip_grad_norm_`, bit for bit, at the price of
    the multiplication alone: the norm is the one the step was judged by. Unlike torch's,
    it survives finite gradients whose norm overflows, which torch multiplies by zero.

    Args:
        max_norm: The bound, above 0; ``math.inf`` never clips.
        params: Patterns of the names of the parameters that are clipped together, or
            :func:`~stableopt.transforms.layers`; all if not given. Give it twice, with other
            parameters, to clip them apart.

    Raises:
        ConfigError: ``max_norm`` is not a number above 0.

    Cost:
        One read and write of the gradients when it clips, nothing when it does not.

    Reference:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural
        networks", 2013, arXiv:1211.5063.

    Example:
        >>> import torch, stableopt
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> opt = stableopt.StableOptimizer(
        ...     torch.optim.SGD([w], lr=1.0), transforms=[stableopt.ClipGradNorm(1.0)]
        ... )
        >>> w.grad = torch.tensor([30.0, 40.0])
        >>> opt.step()
        >>> w.detach()
        tensor([-0.6000, -0.8000])
    """

    max_norm: float
    params: Select = None

    phase: ClassVar[Phase] = Phase.GRADIENT
    metric: ClassVar[str] = "grad_norm"
    routine: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        meaning = "the largest global gradient norm that may reach the optimizer"
        require_number("max_norm", self.max_norm, math.inf, meaning)
        object.__setattr__(self, "params", selection("params", self.params))

    def find(self, site: Site) -> Found:
        """Clip the parameters of ``site``."""
        return Found(site.targets, {target.place: target for target in site.targets})

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Clip in place."""
        norms, at = view.gradients, found.parts
        chosen = [] if norms is None else [i for i, place in enumerate(norms.owners) if place in at]
        if norms is None or not chosen:
            return ()
        total, value = norms.total, norms.total_value
        if len(chosen) < len(norms.owners):
            total, value = _norm_of(norms, chosen)
        # Well under the bound the coefficient is exactly 1: leave the gradients alone. The
        # margin keeps every rounding of the coefficient on torch's side.
        if value < 0.99 * self.max_norm - 1e-6:
            return ()
        parameters = [view.parameter(at[norms.owners[i]], whole=False) for i in chosen]
        torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, total)
        return [Change("", value, self.max_norm)] if value > self.max_norm else ()


def _norm_of(norms: GradientNorms, chosen: Sequence[int]) -> tuple[Tensor, float]:
    """Return the norm of some of the gradients, also where its square overflows."""
    total = total_norm([norms.norms[i] for i in chosen])
    value = float(total)
    if not math.isfinite(value):
        value = safe_norm([norms.values[i] for i in chosen])
        total = torch.tensor(value, device=total.device, dtype=widest_real(total.device))
    return total, value
