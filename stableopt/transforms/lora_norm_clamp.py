"""Keep what an adapter adds to a weight under a bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from stableopt.errors import ConfigError, require_number
from stableopt.functional import lora_delta_norm
from stableopt.layouts import LoraPair, find_lora_pairs
from stableopt.runtime.scalars import read_scalars
from stableopt.transforms.protocol import Change, Needs, Phase
from stableopt.transforms.rounding import ROOM, aim
from stableopt.transforms.selection import NothingSelectedError, Select, selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from stableopt.transforms.protocol import Moment, Site, Target

_ORDS: Mapping[str, Literal["fro", "spectral"]] = {"frobenius": "fro", "spectral": "spectral"}


@dataclass(frozen=True)
class LoRANormClamp:
    r"""Scale B of each adapter so that :math:`\lVert s\,B A \rVert` is at most ``limit``.

    The norm of the product is computed from its factors; ``B A`` is never formed. B is scaled and
    A left alone, so that the subspace the adapter works in stays; a fresh adapter, whose B is
    zero, is left as it is. The state of the optimizer is left alone. It bounds what the weights
    add; what a *sample* adds, as the output of a hypernetwork, is bounded in the forward pass by
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
        Hu et al., "LoRA", 2021, arXiv:2106.09685; Gekhman et al. and others observe growing
        deltas: measured in ``benchmarks/closed_loop.py``.

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
        if self.norm not in _ORDS:
            raise ConfigError(f"norm={self.norm!r} must be one of {', '.join(_ORDS)}")
        if self.pairs is not None:
            object.__setattr__(self, "pairs", _pairs(self.pairs))
        object.__setattr__(self, "params", selection("params", self.params))

    def bind(self, site: Site) -> _Clamp:
        """Find the pairs among the parameters of ``site``."""
        chosen = {target.name for target in site.targets}
        given = self.pairs
        names = [target.name for target in site.everything]
        pairs = find_lora_pairs(names, site.model) if given is None else _pairs(given)
        found = []
        for pair in pairs:
            a, b = site.named(pair.a), site.named(pair.b)
            if a is None or b is None:
                raise ConfigError(_unknown(pair.a if a is None else pair.b, names))
            _check(pair, site.parameter(a), site.parameter(b))
            if b.name in chosen:
                found.append(_Pair(pair, a, b))
        if not found:
            raise NothingSelectedError(
                f"transforms has {self!r}, which finds no pair of LoRA factors among the "
                f"parameters: give pairs=[(a, b), …] by their names, e.g. of {', '.join(names[:4])}"
            )
        return _Clamp(self, found)


class _Pair(NamedTuple):
    pair: LoraPair
    a: Target
    b: Target


class _Clamp:
    def __init__(self, options: LoRANormClamp, pairs: Sequence[_Pair]) -> None:
        self._options = options
        self._pairs = pairs
        self.targets = [pair.b for pair in pairs]

    def act(self, moment: Moment) -> Sequence[Change]:
        """Scale in place; see :class:`LoRANormClamp`."""
        limit, changes = self._options.limit, []
        norms = read_scalars([self._norm(moment, known) for known in self._pairs])
        for known, norm in zip(self._pairs, norms, strict=True):
            # A norm that is not finite is the guard's business: it must be seen.
            if norm > limit * (1 + ROOM) and math.isfinite(norm):
                b = moment.parameter(known.b)
                b.mul_(aim(limit, b) / norm)
                changes.append(Change(known.b.name, norm, limit))
        return changes

    def _norm(self, moment: Moment, known: _Pair) -> Tensor:
        a, b = moment.parameter(known.a).detach(), moment.parameter(known.b).detach()
        kind = _ORDS[self._options.norm]
        return lora_delta_norm(a, b, scale=known.pair.scale, ord=kind)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it remembers nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


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
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise ConfigError(
            f"pairs: {pair.a} {tuple(a.shape)} and {pair.b} {tuple(b.shape)} must be (r, in) and "
            "(out, r), with the same r"
        )


def _unknown(name: str, names: Sequence[str]) -> str:
    return (
        f"pairs: {name!r} is no parameter of the optimizer: the names are {', '.join(names[:8])}"
        f"{', …' if len(names) > 8 else ''}; give model= for names instead of positions"
    )
