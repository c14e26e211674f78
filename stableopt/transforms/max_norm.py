"""Keep the norm of a weight, or of each of its rows, under a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stableopt.errors import ConfigError, require_number
from stableopt.functional import widest_real
from stableopt.transforms.protocol import Change, Found, Needs, Phase, Target
from stableopt.transforms.selection import Select, selection
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.transforms.weights import ROOM, aim, has_norm


@dataclass(frozen=True)
class MaxNorm:
    r"""Scale a weight so that its 2-norm is at most ``limit``.

    With ``dim`` the norm is taken over that dimension, and whatever is left is bounded by itself:
    ``dim=1`` bounds the incoming weights of each unit of an ``(out, in)`` matrix, as dropout nets
    do. What is under the bound stays as it is, bit for bit. The state of the optimizer is left
    alone.

    Args:
        limit: Largest norm, above 0.
        dim: A dimension or several to take the norm over; ``None`` for all.
        params: Patterns of parameter names, or :func:`~stableopt.transforms.layers`; everything
            of two dimensions or more if not given.

    Raises:
        ConfigError: A value is out of range, or a weight has no such dimension.

    Cost:
        One read of the weights per step, and a host synchronisation; a write where it acts.

    Reference:
        Srebro & Shraibman, "Rank, Trace-Norm and Max-Norm", 2005; Srivastava et al., "Dropout",
        2014.

    Example:
        >>> import torch, stableopt
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        >>> opt = stableopt.StableOptimizer(
        ...     torch.optim.SGD([w], lr=0.1), transforms=[stableopt.MaxNorm(1.0, dim=1)]
        ... )
        >>> w.grad = torch.zeros(2, 2)
        >>> opt.step()
        >>> w.detach()
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """

    limit: float
    dim: int | tuple[int, ...] | None = None
    params: Select = None

    phase: ClassVar[Phase] = Phase.WEIGHT
    metric: ClassVar[str] = "norm"
    routine: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        require_number("limit", self.limit, 1e30, "the largest norm")
        if self.dim is not None:
            given = [self.dim] if isinstance(self.dim, int) else self.dim
            is_dims = isinstance(given, (list, tuple)) and len(given) > 0
            if not is_dims or not all(type(d) is int for d in given):
                raise ConfigError(f"dim={self.dim!r} must be an int, a tuple, or None for all")
            object.__setattr__(self, "dim", tuple(given))
        object.__setattr__(self, "params", selection("params", self.params))

    def find(self, site: Site) -> Found:
        """Bound the parameters of ``site``."""
        named = selection("params", self.params).names is not None
        usable = [t for t in site.targets if has_norm(site.parameter(t))]
        chosen = [t for t in usable if named or site.parameter(t).dim() > 1]
        for target in chosen:
            self._check(target, site.parameter(target))
        return Found(chosen)

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Scale in place."""
        changes = (self._bound(t.name, view.parameter(t)) for t in found.targets)
        return [change for change in changes if change is not None]

    def _check(self, target: Target, weight: Tensor) -> None:
        dims = self.dim if isinstance(self.dim, tuple) else ()
        for dim in dims:
            if not -weight.dim() <= dim < weight.dim():
                raise ConfigError(
                    f"dim={dim} is no dimension of {target.name}, which has "
                    f"{weight.dim()}: name other params="
                )
        if len({dim % weight.dim() for dim in dims}) < len(dims):
            raise ConfigError(
                f"dim={self.dim} names a dimension of {target.name} twice: name it once"
            )

    def _bound(self, name: str, weight: Tensor) -> Change | None:
        limit = self.limit
        if weight.numel() == 0:
            return None
        norms = self._norms(weight)
        # A norm that is not finite is left for the guard to see.
        beyond = (norms > limit * (1 + ROOM)) & torch.isfinite(norms)
        if not bool(beyond.any()):
            return None
        share = torch.where(beyond, aim(limit, weight) / norms, torch.ones_like(norms))
        worst = float(torch.where(beyond, norms, torch.zeros_like(norms)).max())
        # In half precision the share itself must not be rounded.
        if _is_half(weight):
            weight.copy_(weight * share)
        else:
            weight.mul_(share.to(weight.real.dtype))
        return Change(name, worst, limit)

    def _norms(self, weight: Tensor) -> Tensor:
        """Return the norms over the chosen dimensions, also where their squares overflow."""
        wide = torch.float32 if _is_half(weight) else None
        norms: Tensor = torch.linalg.vector_norm(weight, dim=self.dim, keepdim=True, dtype=wide)
        norms = norms.to(widest_real(weight.device))
        if bool(torch.isfinite(norms).all()):
            return norms
        sizes = weight.abs().to(norms.dtype)
        largest = sizes.amax(dim=self.dim or tuple(range(weight.dim())), keepdim=True)
        rescaled = torch.linalg.vector_norm(sizes / largest, dim=self.dim, keepdim=True) * largest
        return torch.where(torch.isfinite(norms), norms, rescaled)


def _is_half(weight: Tensor) -> bool:
    return weight.dtype in (torch.float16, torch.bfloat16)
