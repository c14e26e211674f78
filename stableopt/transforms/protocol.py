"""What a transform is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from stableopt.types import GradientNorms


@runtime_checkable
class GradientTransform(Protocol):
    """Changes gradients in place, after the step was judged and before it is taken."""

    def transform_gradients(self, parameters: Sequence[Tensor], gradients: GradientNorms) -> None:
        """Change ``p.grad`` of ``parameters`` in place.

        Args:
            parameters: Every parameter that has a gradient, in the optimizer's order.
            gradients: Their norms as they were when the step was judged; all finite.
        """
