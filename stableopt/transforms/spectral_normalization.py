"""Keep the spectral norm of weights under a bound in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stableopt.errors import require_int, require_number
from stableopt.functional import as_matrix
from stableopt.functional.caps import exact_cap_and_norm
from stableopt.transforms.protocol import Change, Found, Needs, Phase
from stableopt.transforms.selection import Select, selection
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.transforms.weights import aim, has_matrix, write_matrix


@dataclass(frozen=True)
class SpectralNormalization:
    r"""Project weights onto the matrices whose spectral norm is at most ``bound``.

    What :func:`torch.nn.utils.parametrizations.spectral_norm` is used for, as a constraint instead
    of a parametrization: the model is not edited, singular values below the bound stay as they
    are instead of being divided together with the largest, and the bound holds exactly instead of
    up to an estimate. The state of the optimizer is left alone.

    Args:
        bound: Largest spectral norm, above 0.
        every: Updates from one projection to the next; 1 so that the bound holds after every step.
            (The very first forward pass is the caller's: initialize below the bound.)
        params: Patterns of parameter names, or :func:`~stableopt.transforms.layers`; everything
            of two dimensions or more if not given. Embeddings and output layers are rarely meant.

    Raises:
        ConfigError: A value is out of range.

    Cost:
        Every ``every`` steps the Frobenius norm, and unless that is under the bound already a Gram
        matrix and its eigendecomposition in float64: some percent of a training step for widths of
        some hundred.

    Reference:
        Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018,
        arXiv:1802.05957; the projection: Sedghi et al. 2019, arXiv:1805.10408.

    Example:
        >>> import torch, stableopt
        >>> w = torch.nn.Parameter(torch.diag(torch.tensor([3.0, 0.5])))
        >>> opt = stableopt.StableOptimizer(
        ...     torch.optim.SGD([w], lr=0.1), transforms=[stableopt.SpectralNormalization(1.0)]
        ... )
        >>> w.grad = torch.zeros(2, 2)
        >>> opt.step()
        >>> w.diagonal().tolist()
        [1.0, 0.5]
    """

    bound: float = 1.0
    every: int = 1
    params: Select = None

    phase: ClassVar[Phase] = Phase.WEIGHT
    metric: ClassVar[str] = "spectral_norm"
    routine: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        require_number("bound", self.bound, 1e30, "the largest spectral norm")
        require_int("every", self.every, 1, "updates from one projection to the next")
        object.__setattr__(self, "params", selection("params", self.params))

    def find(self, site: Site) -> Found:
        """Project the weights of ``site`` that are matrices."""
        return Found([target for target in site.targets if has_matrix(site.parameter(target))])

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Project in place."""
        if view.step % self.every:
            return ()
        changes = (self._project(t.name, view.parameter(t)) for t in found.targets)
        return [change for change in changes if change is not None]

    def _project(self, name: str, weight: Tensor) -> Change | None:
        matrix, bound = as_matrix(weight), self.bound
        norm = float(torch.linalg.vector_norm(matrix))
        if norm <= bound or not bool(torch.isfinite(matrix).all()):
            return None
        capped, sigma = exact_cap_and_norm(matrix, aim(bound, weight), only_above=bound)
        if capped is matrix:
            return None
        write_matrix(weight, capped)
        return Change(name, float(sigma), bound)
