"""Keep what an adapter adds to a weight under a bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from stableopt.errors import ConfigError, require_number
from stableopt.functional import lora_delta_norm
from stableopt.layouts import LoraPair, find_lora_pairs
from stableopt.runtime.scalars import read_scalars
from stableopt.transforms.protocol import Change, Found, Needs, Phase
from stableopt.transforms.selection import NothingSelectedError, Select, selection
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.transforms.weights import ROOM, aim

_ORDS: Mapping[str, Literal["fro", "spectral"]] = {"frobenius": "fro", "spectral": "spectral"}


@dataclass(frozen=True)
class LoRANormClamp:
    r"""Scale B of each adapter so that :math:`\lVert s\,B A \rVert` is at most ``limit``.

    The norm of the product is computed from its factors; ``B A`` is never formed. B is scaled and
    A left alone, so that the subspace the adapter works in stays; a fresh adapter, whose B is
    zero, is left as it is. A may be frozen; a pair whose B is frozen is left out. The state of
    the optimizer is left alone. It bounds what the weights add; what a *sample* adds, as the
    output of a hypernetwork, is bounded in the forward pass by
    :func:`stableopt.functional.clamp_delta_norm`.

    Args:
        limit: Largest norm, above 0.
        norm: ``"frobenius"`` or ``"spectral"``.
        pairs: :class:`~stableopt.layouts.LoraPair` objects, or ``(a, b)`` or ``(a, b, scale)``
            by parameter names; those with the names of peft, and ``lora_A``/``lora_B``,
            ``lora_down``/``lora_up``, ``A``/``B`` if not given.
        params: Patterns of the names of B; all pairs if not given.

    Raises:
        ConfigError: A value is out of range, a name is unknown, or the shapes of a pair do not
            fit; without ``pairs=``, no pair is found.

    Cost:
        Per step a copy of the factors in float64 and ``2 r² (in + out)`` flops, and a host
        synchronisation; a write of B where it acts.

    Reference:
        Hu et al., "LoRA", 2021, arXiv:2106.09685.

    Example:
        >>> LoRANormClamp(3.0, pairs=[("q.A", "q.B", 2.0)]).pairs[0].scale
        2.0
    """

    limit: float
    norm: str = "frobenius"
    pairs: Sequence[LoraPair | tuple[Any, ...]] | None = None
    params: Select = None

    phase: ClassVar[Phase] = Phase.WEIGHT
    metric: ClassVar[str] = "lora_delta_norm"
    routine: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        require_number("limit", self.limit, 1e30, "the largest norm of an adapter's delta")
        if self.norm not in list(_ORDS):
            raise ConfigError(f"norm={self.norm!r} must be one of {', '.join(_ORDS)}")
        if self.pairs is not None:
            object.__setattr__(self, "pairs", _pairs(self.pairs))
        object.__setattr__(self, "params", selection("params", self.params))

    def find(self, site: Site) -> Found:
        """Find the pairs among the parameters of ``site``."""
        if self.pairs is None:
            known = find_lora_pairs(site.names(), site.model)
            pairs = [pair for pair in known if pair.b in site.trained]
        else:
            pairs = list(_pairs(self.pairs))
        factors = site.named(name for pair in pairs for name in (pair.a, pair.b))
        for pair in pairs:
            if pair.a not in factors or pair.b not in site.trained:
                raise site.unknown("pairs", pair.b if pair.a in factors else pair.a)
        chosen = {target.name for target in site.targets}
        found = [pair for pair in pairs if pair.b in chosen]
        for pair in found:
            _check(pair, factors[pair.a], factors[pair.b])
        if not found:
            raise NothingSelectedError(
                f"transforms has {self!r}, which finds no pair of LoRA factors among the "
                "parameters: give pairs=[(a, b), …] by their names, e.g. of "
                f"{', '.join(site.names()[:4])}"
            )
        return Found([site.trained[b] for b in dict.fromkeys(pair.b for pair in found)], found)

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Scale in place."""
        pairs: list[LoraPair] = found.parts
        limit, kind = self.limit, _ORDS[self.norm]
        given = view.named(name for pair in pairs for name in (pair.a, pair.b))
        # The second factor of a convolution has a kernel of one pixel: the same product.
        factors = {name: parameter.detach().flatten(1) for name, parameter in given.items()}
        norms = read_scalars(
            [
                lora_delta_norm(factors[pair.a], factors[pair.b], scale=pair.scale, ord=kind)
                for pair in pairs
            ]
        )
        largest: dict[str, float] = {}
        for pair, norm in zip(pairs, norms, strict=True):
            # A norm that is not finite is left for the guard to see.
            if norm > limit * (1 + ROOM) and math.isfinite(norm):
                # Pairs may share a B, which is scaled once.
                largest[pair.b] = max(norm, largest.get(pair.b, 0.0))
        for name, norm in largest.items():
            given[name].mul_(aim(limit, given[name]) / norm)
        return [Change(name, norm, limit) for name, norm in largest.items()]


def _pairs(given: object) -> tuple[LoraPair, ...]:
    found = []
    for item in given if isinstance(given, Iterable) and not isinstance(given, str) else [given]:
        if isinstance(item, LoraPair):
            found.append(item)
        elif isinstance(item, (tuple, list)) and len(item) in (2, 3):
            found.append(
                LoraPair(name=str(item[1]), **dict(zip(("a", "b", "scale"), item, strict=False)))
            )
        else:
            raise ConfigError(
                f"pairs has {item!r}, which is no pair of LoRA factors: give (a, b) or "
                "(a, b, scale) by the names of parameters"
            )
    return tuple(found)


def _check(pair: LoraPair, a: Tensor, b: Tensor) -> None:
    matrices = min(a.dim(), b.dim()) > 1 and 0 not in (a.numel(), b.numel())
    if not matrices or a.shape[0] != b.flatten(1).shape[1]:
        raise ConfigError(
            f"pairs: {pair.a} {tuple(a.shape)} and {pair.b} {tuple(b.shape)} must be (r, in) and "
            "(out, r), with the same r: give A first"
        )
    if a.shape[0] > a[0].numel() and len(b) < b[0].numel():
        raise ConfigError(
            f"pairs: {pair.a} {tuple(a.shape)} and {pair.b} {tuple(b.shape)} would have a rank of "
            f"{a.shape[0]}, more than both sides of the layer: A must be (r, in) and B (out, r); "
            "what is used as x @ A @ B has to be stored the other way round"
        )
    for name, factor in ((pair.a, a), (pair.b, b)):
        if not factor.is_floating_point():
            raise ConfigError(
                f"pairs: {name} has dtype={factor.dtype}, which must be real floating: leave it out"
            )
