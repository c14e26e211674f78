"""The inner step as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from stableopt.update.closures import call_step
from stableopt.update.fused import found_inf, obeys_found_inf

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim import Optimizer


class Update(Protocol):
    """Takes a step of the inner optimizer."""

    @property
    def leaves_out(self) -> bool:
        """Whether the device can leave a step out, without the host knowing of it."""

    def take(self, closure: Callable[[], Any] | None = None, unless: Tensor | None = None) -> Any:
        """Take the step; return what the inner optimizer returns.

        Args:
            closure: For an optimizer that is given one.
            unless: A 0-dim bool tensor. Where it holds the device leaves the step out, if
                :attr:`leaves_out` and if there is no closure.
        """


class EagerUpdate:
    """Calls the inner step; fused kernels leave it out where ``found_inf`` says so.

    Args:
        optimizer: The inner optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def leaves_out(self) -> bool:
        """Whether all of its kernels are fused, and obey ``found_inf``."""
        return obeys_found_inf(self._optimizer)

    def take(self, closure: Callable[[], Any] | None = None, unless: Tensor | None = None) -> Any:
        """Take the step; see :class:`Update`."""
        if unless is None or closure is not None or not self.leaves_out:
            return call_step(self._optimizer, closure)
        with found_inf(self._optimizer, unless):
            return self._optimizer.step()
