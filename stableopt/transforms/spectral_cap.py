"""Bring the largest singular values of a weight back under a bound, or flatten its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stableopt.errors import ConfigError, require_number
from stableopt.functional import (
    as_matrix,
    exact_cap,
    fast_cap,
    row_spectrum,
    soft_cap,
    spectral_norm,
)
from stableopt.functional.spectral_norm import bidiagonalize, scaled_product, unit_noise
from stableopt.health.spectra.drift import LAWS
from stableopt.sensors.registry import METRICS
from stableopt.transforms.protocol import Change, Found, Needs, Phase
from stableopt.transforms.selection import Select, selection
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.transforms.watch import Watch, metrics_of
from stableopt.transforms.weights import ROOM, aim, has_matrix, write_matrix
from stableopt.triggers.conditions import Limit, Trigger, above, check_trigger

MODES = ("fast", "exact", "soft")

FALLS = frozenset(
    {
        "condition_number",
        "relative_condition",
        "kappa_p10",
        "relative_kappa_p10",
        "redundancy",
        "kappa_tilde",
        "assr_condition_number",
    }
)
"""Metrics of sensors that fall where large singular values do and small ones do not."""

RISES = frozenset({"stable_rank", "effective_rank", "relative_rank", "fiedler", "relative_fiedler"})
"""Those that rise, in the end: the Fiedler values of rows in clusters fall at first."""

_SEED = 24_680
_BASIS = 24
"""Lanczos steps for the subspace that is capped at once."""


@dataclass(frozen=True)
class SpectralCap:
    r"""Cap the spectral norm of a weight once a reading says that it is too large.

    Acts once per reading: what it did is measured at the next visit before it acts again.

    - ``"fast"``: caps the singular values that 24 Lanczos steps find; where more of them are
      above the limit, and for matrices that have no more, as ``"exact"``.
    - ``"exact"``: the nearest matrix of that spectral norm.
    - ``"soft"``: one cubic step towards equal singular values,
      :math:`W - \beta / \sigma_1^2\, W W^\top W`. The norm falls by β ≤ 1/3 at most, so it takes
      some readings.
    - ``"soft"`` without a limit, for triggers such as ``below("relative_rank", 0.45)``: the same
      step, scaled back to the Frobenius norm that the weight had. With every reading the
      condition number falls and the effective rank rises; σ₁ does not rise, and the
      Frobenius norm stays. It cannot give a weight directions that it does not have, and leaves one
      alone whose singular values are all equal or zero. Trigger it by a rank: the Fiedler value of
      rows in clusters falls with the first readings, and is back only after 4 to 10.

    A convolution is capped as the matrix ``(out, in·kh·kw)``. The state of the optimizer is left
    alone: moments are averages of gradients, which forget within ``1/(1-β)`` steps that the
    weight was another one.

    Args:
        limit: Largest spectral norm, above 0; may be left out for ``"soft"`` with a trigger.
        mode: ``"fast"``, ``"exact"`` or ``"soft"``.
        when: A trigger, or its text; ``spectral_norm > limit`` if not given.
        params: Patterns of parameter names, or :func:`~stableopt.transforms.layers`; everything
            of two dimensions or more if not given.

    Raises:
        ConfigError: A value is out of range, there is neither a limit nor a trigger, or the
            trigger is on a metric that no cap moves its way.

    Cost:
        Nothing until it triggers. Then ``"fast"`` 200 m n flops, ``"exact"`` an eigendecomposition
        in float64, ``"soft"`` ``4 m n min(m, n)`` flops, and some reads of the weight that measure
        its norm before and after.

    Reference:
        Björck & Bowie 1971 (soft); Yoshida & Miyato, "Spectral Norm Regularization", 2017,
        arXiv:1705.10941 (why); :mod:`stableopt.functional.caps`.

    Example:
        >>> SpectralCap(4.0).when
        Limit(metric='spectral_norm', limit=4.0, is_upper=True, release=4.0, fixed=None)
    """

    limit: float | None = None
    mode: str = "fast"
    when: Trigger | str | None = None
    params: Select = None

    phase: ClassVar[Phase] = Phase.WEIGHT
    routine: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode={self.mode!r} must be one of {', '.join(MODES)}")
        object.__setattr__(self, "params", selection("params", self.params))
        if self.limit is not None:
            require_number("limit", self.limit, 1e30, "the largest spectral norm")
        elif self.mode != "soft" or self.when is None:
            raise ConfigError(
                "limit=None leaves SpectralCap without a bound: give the largest spectral norm, or "
                "mode='soft' and a trigger, e.g. when=below('relative_rank', 0.45)"
            )
        given = self.when if self.when is not None else above("spectral_norm", self.limit or 1.0)
        object.__setattr__(self, "when", check_trigger("when", given))
        self._check_moves()

    def _check_moves(self) -> None:
        for leaf in self.trigger.leaves():
            is_upper = leaf.is_upper if isinstance(leaf, Limit) else LAWS[leaf.metric].sign > 0
            flattened = leaf.metric in (FALLS if is_upper else RISES)
            capped = leaf.metric == "spectral_norm" and is_upper and self.limit is not None
            if leaf.metric in METRICS and not (flattened or capped):
                way = "fall" if is_upper else "rise"
                raise ConfigError(
                    f"when={self.when} cannot work: {leaf.metric} does not {way} where the largest "
                    f"singular values of a weight are {'capped' if self.limit else 'flattened'}; "
                    "turn the trigger round, or give a limit for a trigger on spectral_norm"
                )

    @property
    def metric(self) -> str:
        """The spectral norm; without a limit the effective rank (of a sample of the rows)."""
        return "effective_rank" if self.limit is None else "spectral_norm"

    @property
    def trigger(self) -> Trigger:
        """The trigger."""
        return check_trigger("when", self.when)

    @property
    def needs(self) -> Needs:
        """The readings of its trigger."""
        return Needs(metrics=metrics_of(self.trigger))

    def find(self, site: Site) -> Found:
        """Cap the weights of ``site`` that are matrices."""
        return Found([target for target in site.targets if has_matrix(site.parameter(target))])

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Cap in place."""
        watch = Watch(self.trigger, view, memory)
        triggered = [t for t in found.targets if watch.fresh(t) is not None]
        changes = (self._change(target.name, view.parameter(target)) for target in triggered)
        return [change for change in changes if change is not None]

    def _change(self, name: str, weight: Tensor) -> Change | None:
        matrix = as_matrix(weight)
        sigma = _norm(matrix)
        if not 0 < sigma < float("inf"):
            return None  # zero, or not finite: there is nothing to cap
        limit = self.limit
        if limit is None:
            capped = flattened(matrix, sigma)
        else:
            capped = self._capped(matrix, sigma, weight, limit)
        if capped is None or capped is matrix:
            return None
        before = _rank(weight) if limit is None else sigma
        write_matrix(weight, capped)
        after = _rank(weight) if limit is None else _norm(weight)
        return Change(name, before, after)

    def _capped(self, matrix: Tensor, sigma: float, weight: Tensor, limit: float) -> Tensor | None:
        if not sigma > limit * (1 + ROOM):
            return None
        bound = aim(limit, weight)
        if self.mode == "soft":
            return soft_cap(matrix, sigma, min(1 / 3, 1 - bound / sigma))
        if self.mode == "fast" and min(matrix.shape) > _BASIS:
            capped = fast_cap(matrix, bound, leading_subspace(matrix), only_above=limit)
            if float(spectral_norm(capped).sigma) <= limit * (1 + ROOM):
                return capped
        return exact_cap(matrix, bound, only_above=limit)


def flattened(matrix: Tensor, sigma: float) -> Tensor | None:
    """Return ``matrix`` after one cubic step, with the Frobenius norm that it had.

    ``None`` where all singular values that are not zero are equal: no rank moves then.

    Args:
        matrix: ``(m, n)``, finite and not zero.
        sigma: Its spectral norm.
    """
    capped = soft_cap(matrix, sigma)
    before, after = torch.linalg.vector_norm(matrix), torch.linalg.vector_norm(capped)
    # A third at most is taken from anything, so σ₁ is not above what it was.
    return capped * (before / after) if bool(after > before * (2 / 3) * (1 + ROOM)) else None


def _norm(weight: Tensor) -> float:
    return float(spectral_norm(weight).sigma)


def _rank(weight: Tensor) -> float:
    return float(row_spectrum(weight).effective_rank)


def leading_subspace(matrix: Tensor) -> Tensor:
    """Return orthonormal rows ``(k, n)`` that the leading right singular vectors lie in."""
    product, _ = scaled_product(matrix)
    steps = min(_BASIS, *matrix.shape)
    # From another vector than any estimate of a norm starts from: one that began inside of the
    # subspace would not see what is outside.
    start = unit_noise(matrix, torch.Generator("cpu").manual_seed(_SEED))
    found = bidiagonalize(product, start, steps).rights
    # Where the space is used up the last rows are rounding: what is kept is orthonormal.
    basis: Tensor = torch.linalg.qr(found.mH).Q.mH
    return basis
