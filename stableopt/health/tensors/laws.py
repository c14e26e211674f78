"""What must hold between the moments of an optimizer, whatever the gradients were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer

FIRST, SECOND = "exp_avg", "exp_avg_sq"

_SLACK = 4.0
"""Factor on the squared bound: for rounding in bfloat16, and for betas that moved."""

_SMALLEST = 1e-18
"""Magnitude below which the square of a first moment is lost to underflow."""

_ADAMS = (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.SparseAdam)
_OF_ADAM = frozenset({SECOND, "max_exp_avg_sq"})
_OF_TORCH = _OF_ADAM | {"square_avg", "acc_delta", "sum", "row_var", "col_var", "variance"}

POWERS: Mapping[str, int] = {
    **dict.fromkeys((FIRST, "exp_inf", "grad_avg"), 1),
    **dict.fromkeys((SECOND, "max_exp_avg_sq", "square_avg", "sum"), 2),
    **dict.fromkeys(("row_var", "col_var", "variance"), 2),
}
"""The power of the gradients with which entries of the state grow."""

_NEVER = "never"
"""For a sum of squares, which does not decay, in place of an option."""


class MomentLaws:
    """The laws of one optimizer.

    Adam and its relatives average the gradient and its square with fixed weights, so that by
    the Cauchy-Schwarz inequality, element by element and for any gradients::

        m² ≤ c² v,    c² = (1 - β₁)² / ((1 - β₂) (1 - β₁² / β₂))

    (c = 7.27 for β = (0.9, 0.999)). It is undefined for β₁² ≥ β₂. A flipped bit of m and a v
    that was zeroed break it at once. Where a schedule moves the betas, the extremes seen so
    far are what the inequality needs.

    Args:
        optimizer: Of the state. The bound holds only for torch's Adam, AdamW, NAdam, RAdam and
            SparseAdam: others use the same names for other things.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.has_bound = isinstance(optimizer, _ADAMS)
        self.of_torch = type(optimizer).__module__.startswith("torch.optim")
        self.nonnegative = _OF_TORCH if self.of_torch else _OF_ADAM
        self._seen: dict[int, tuple[float, float, float, float]] = {}
        self._decays = _decays_of(optimizer)
        self._lowest: dict[tuple[int, str], float] = {}

    def decay(self, group: int, key: str) -> float | None:
        """Return the smallest factor by which one update can shrink an average or sum of squares.

        Args:
            group: Its number.
            key: Of the entry of the state.

        Returns:
            The smallest that was seen; ``None`` if the entry obeys no such law.
        """
        option = self._decays.get(key)
        if option is None:
            return None
        now = 1.0 if option is _NEVER else self._optimizer.param_groups[group].get(option)
        if isinstance(now, (tuple, list)):
            now = now[1]
        if not isinstance(now, float):
            return None
        lowest = self._lowest[group, key] = min(now, self._lowest.get((group, key), 1.0))
        return lowest

    def bound(self, group: int, dtype: torch.dtype = torch.float32) -> tuple[float, float] | None:
        """Return c², and the m² below which the bound is not checked.

        Args:
            group: Its number.
            dtype: Of the second moments: squares below its smallest number, 6e-8 in float16, are
                lost in them.

        Returns:
            ``None`` where there is no such bound.
        """
        options = self._optimizer.param_groups[group]
        betas, eps = options.get("betas"), options.get("eps")
        if not self.has_bound or not isinstance(betas, (tuple, list)):
            return None
        first, second = betas[0], betas[1]
        if not (isinstance(first, float) and isinstance(second, float)):
            return None  # tensors: reading them would make the host wait
        low1, high1, low2, high2 = self._seen.get(group, (first, first, second, second))
        seen = min(low1, first), max(high1, first), min(low2, second), max(high2, second)
        self._seen[group] = low1, high1, low2, high2 = seen
        if high1**2 >= low2 or high2 >= 1.0:
            return None
        squared = (1 - low1) ** 2 / ((1 - high2) * (1 - high1**2 / low2))
        smallest = max(eps if isinstance(eps, float) else 0.0, _SMALLEST)
        limits = torch.finfo(dtype)
        lost = limits.smallest_normal * limits.eps / (1 - high2)
        return _SLACK * squared, max(smallest**2, _SLACK * squared * lost)


def remembers(optimizer: Optimizer) -> bool:
    """Return whether the state holds squares of gradients, or their largest magnitudes."""
    squares = {key for key, power in POWERS.items() if power == 2} | {"exp_inf"}
    return any(squares & state.keys() for state in optimizer.state.values())


def _decays_of(optimizer: Optimizer) -> Mapping[str, str]:
    """Return the option with the decay rate of each average or sum of squares.

    A maximum over steps has none: one step restores it.
    """
    if isinstance(optimizer, _ADAMS):
        return {SECOND: "betas"}
    known: dict[type[Optimizer], Mapping[str, str]] = {
        torch.optim.Adagrad: {"sum": _NEVER},
        torch.optim.RMSprop: {"square_avg": "alpha"},
        torch.optim.Adadelta: {"square_avg": "rho", "acc_delta": "rho"},
    }
    return next((keys for kind, keys in known.items() if isinstance(optimizer, kind)), {})
