"""Keep output logits under a bound by scaling the rows of the output layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from stableopt.errors import ConfigError, require_number
from stableopt.layouts import OutputHead, find_head, norm_values
from stableopt.transforms.by_name import ByName
from stableopt.transforms.evidence import signal_about
from stableopt.transforms.protocol import Change, Needs, Phase, Stateless
from stableopt.transforms.rounding import ROOM, aim
from stableopt.transforms.selection import NothingSelectedError, Select, selection
from stableopt.transforms.strictness import check_strictness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from stableopt.transforms.protocol import Moment, Site, Target

SIGNAL = "max_logit"
"""The signal of ``observe()`` with the largest output logit that was measured."""


@dataclass(frozen=True)
class LogitBound:
    r"""Scale the rows of the output layer whose logits may become larger than ``limit``.

    Behind a norm with gain γ and bias β no logit of class j is above
    :math:`\sqrt d\,\lVert w_j \circ \gamma \rVert + |w_j \cdot \beta + b_j|`, whatever the input;
    rows beyond the limit are scaled down to it, with their bias. That is far above what occurs:
    ``slack`` times the limit is what it is held against, and ``slack=1`` makes the limit a
    guarantee. With ``opt.observe(max_logit=…)`` the measured value is used instead, and the whole
    layer scaled; without a norm before the output layer that is the only way. Other rows stay as
    they are, bit for bit. To bound logits in the forward pass instead, use
    :func:`stableopt.functional.soft_clamp_logits`; to discourage them, ``z_loss``.

    Args:
        limit: Largest logit in magnitude, above 0.
        slack: How far above ``limit`` the bound from weights may be; at least 1.
        every: Updates from one look at the weights to the next; measured logits act at once.
        head: The output layer, as :class:`~stableopt.layouts.OutputHead`; looked up in ``model=``
            if not given.
        params: Patterns of the name of its weight.

    Raises:
        ConfigError: A value is out of range, a name is unknown, the shapes of a head do not fit,
            or no output layer is found that is trained, with its bias.

    Cost:
        Every ``every`` steps two reads of the output layer; a write where it acts.

    Reference:
        Wortsman et al., 2023, arXiv:2309.14322 (output logit divergence).

    Example:
        >>> LogitBound(50.0).slack
        3.0
    """

    limit: float
    slack: float = 3.0
    every: int = 10
    head: OutputHead | None = None
    params: Select = None

    phase: ClassVar[Phase] = Phase.WEIGHT
    metric: ClassVar[str] = "output_logit"
    routine: ClassVar[bool] = False
    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        require_number("limit", self.limit, 1e30, "the largest output logit")
        check_strictness(self.slack, self.every)
        if self.head is not None and not isinstance(self.head, OutputHead):
            raise ConfigError(f"head={self.head!r} must be a stableopt.layouts.OutputHead, or None")
        object.__setattr__(self, "params", selection("params", self.params))

    def bind(self, site: Site) -> _LogitBound:
        """Find the output layer of ``site``."""
        head = self.head
        if head is None and site.model is not None:
            head = find_head(site.model)
        names = ByName(site)
        wanted = [] if head is None else _scaled_names(head)
        if self.head is not None:
            for name in wanted:
                if name not in names.trained:
                    raise names.unknown("head", name)
        chosen = {target.name for target in site.targets}
        # What is frozen is never written: a row cannot be scaled without its bias.
        if head is None or head.weight not in chosen or not set(wanted) <= set(names.trained):
            raise NothingSelectedError(
                f"transforms has {self!r}, which finds no output layer that is trained: give "
                "model=, or head= by the name of its weight"
            )
        _check(head, names)
        return _LogitBound(self, head, names)


class _LogitBound(Stateless):
    def __init__(self, options: LogitBound, head: OutputHead, names: ByName) -> None:
        self._options = options
        self._head = head
        self._names = names
        self.targets: list[Target] = [names.trained[name] for name in _scaled_names(head)]

    def act(self, moment: Moment) -> Sequence[Change]:
        """Scale in place; see :class:`LogitBound`."""
        weight = moment.parameter(self.targets[0])
        signal, name = moment.signals.get(SIGNAL), self._head.weight
        ends = [signal_about(signal, name, largest=largest) for largest in (True, False)]
        if measured := [abs(end) for end in ends if end is not None]:
            return self._scale_all(moment, weight, max(measured))
        if moment.step % self._options.every or self._head.norm is None:
            return ()
        limit = self._options.limit * self._options.slack
        bounds = self._bounds(moment, weight)
        beyond = torch.isfinite(bounds) & (bounds > limit * (1 + ROOM))
        if not bool(beyond.any()):
            return ()
        share = torch.where(beyond, self._aim(limit, moment) / bounds, torch.ones_like(bounds))
        worst = float(torch.where(beyond, bounds, torch.zeros_like(bounds)).max())
        self._scale(moment, share)
        return [Change(self._head.weight, worst, limit)]

    def _scale_all(self, moment: Moment, weight: Tensor, measured: float) -> Sequence[Change]:
        limit = self._options.limit
        if not limit * (1 + ROOM) < measured < math.inf:
            return ()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        share = torch.full_like(weight[:, 0], self._aim(limit, moment) / measured, dtype=dtype)
        self._scale(moment, share)
        return [Change(self._head.weight, measured, limit)]

    def _scale(self, moment: Moment, share: Tensor) -> None:
        for target in self.targets:
            parameter = moment.parameter(target)
            # Factors in float32 at least, so that a product is rounded once.
            factors = share.to(parameter.device)
            parameter.mul_(factors[:, None] if parameter.dim() > 1 else factors)

    def _aim(self, limit: float, moment: Moment) -> float:
        return min(aim(limit, moment.parameter(target)) for target in self.targets)

    def _bounds(self, moment: Moment, weight: Tensor) -> Tensor:
        """Return the largest logit of every class that the weights allow, ``(classes,)``."""
        norm = self._head.norm
        if norm is None:
            return weight.new_full((len(weight),), torch.nan)
        names = [name for name in (norm.gain, norm.bias, self._head.bias) if name is not None]
        tensors = self._names.parameters(names, moment)
        gain, shift = norm_values(norm, tensors)
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        folded = wide if gain is None else wide * gain.to(wide)
        if norm.centred:
            folded = folded - folded.mean(dim=1, keepdim=True)  # x̂ sums to zero
        bounds = torch.linalg.vector_norm(folded, dim=1) * math.sqrt(norm.features)
        offset = torch.zeros_like(bounds) if shift is None else wide @ shift.to(wide)
        if self._head.bias is not None:
            offset = offset + tensors[self._head.bias].detach().to(wide)
        allowed: Tensor = bounds + offset.abs()
        return allowed


def _scaled_names(head: OutputHead) -> list[str]:
    return [head.weight, *([head.bias] if head.bias is not None else [])]


def _check(head: OutputHead, names: ByName) -> None:
    """Refuse a head that does not fit the tensors it names.

    Raises:
        ConfigError: It does not.
    """
    norm = head.norm
    of_norm = [] if norm is None else [n for n in (norm.gain, norm.bias) if n is not None]
    tensors = names.parameters([*_scaled_names(head), *of_norm])
    weight = tensors[head.weight]
    if weight.dim() != 2:
        raise ConfigError(
            f"head: {head.weight} {tuple(weight.shape)} must be a matrix (classes, d): name the "
            "weight of the output layer"
        )
    classes, features = weight.shape
    if norm is not None and norm.features != features:
        raise ConfigError(
            f"head: norm.features={norm.features} must be the {features} inputs of {head.weight}: "
            "name the norm that feeds it, or none"
        )
    sizes = {**dict.fromkeys(of_norm, features), **dict.fromkeys(_scaled_names(head)[1:], classes)}
    for name, size in sizes.items():
        if name not in tensors:
            raise names.unknown("head", name)
        if tensors[name].shape != (size,):
            raise ConfigError(
                f"head: {name} {tuple(tensors[name].shape)} must have {size} entries, to fit "
                f"{head.weight} {tuple(weight.shape)}"
            )
