"""Keep output logits under a bound by scaling the rows of the output layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stableopt.errors import ConfigError, require_number
from stableopt.layouts import NormLayout, OutputHead, find_head, norm_values
from stableopt.transforms.evidence import signal_about
from stableopt.transforms.protocol import Change, Found, Needs, Phase
from stableopt.transforms.selection import NothingSelectedError, Select, selection
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.transforms.weights import ROOM, aim, check_strictness

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
    needs: ClassVar[Needs] = Needs(signals=(SIGNAL,))

    def __post_init__(self) -> None:
        require_number("limit", self.limit, 1e30, "the largest output logit")
        check_strictness(self.slack, self.every)
        if self.head is not None and not isinstance(self.head, OutputHead):
            raise ConfigError(f"head={self.head!r} must be a stableopt.layouts.OutputHead, or None")
        object.__setattr__(self, "params", selection("params", self.params))

    def find(self, site: Site) -> Found:
        """Find the output layer of ``site``."""
        head = self.head
        if head is None and site.model is not None:
            head = find_head(site.model)
        wanted = [] if head is None else _scaled_names(head)
        if self.head is not None:
            for name in wanted:
                if name not in site.trained:
                    raise site.unknown("head", name)
        chosen = {target.name for target in site.targets}
        # What is frozen is never written: a row cannot be scaled without its bias.
        if head is None or head.weight not in chosen or not set(wanted) <= set(site.trained):
            raise NothingSelectedError(
                f"transforms has {self!r}, which finds no output layer that is trained: give "
                "model=, or head= by the name of its weight"
            )
        _check(head, site)
        return Found([site.trained[name] for name in wanted], head)

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Scale in place."""
        head: OutputHead = found.parts
        parameters = [view.parameter(target) for target in found.targets]
        signal = view.signals.get(SIGNAL)
        ends = [signal_about(signal, head.weight, largest=largest) for largest in (True, False)]
        if measured := [abs(end) for end in ends if end is not None]:
            return self._scale_all(head, parameters, max(measured))
        if view.step % self.every or head.norm is None:
            return ()
        limit = self.limit * self.slack
        bounds = _bounds(head, head.norm, view, parameters[0])
        beyond = torch.isfinite(bounds) & (bounds > limit * (1 + ROOM))
        if not bool(beyond.any()):
            return ()
        share = torch.where(beyond, _aim(limit, parameters) / bounds, torch.ones_like(bounds))
        worst = float(torch.where(beyond, bounds, torch.zeros_like(bounds)).max())
        _scale(parameters, share)
        return [Change(head.weight, worst, limit)]

    def _scale_all(
        self, head: OutputHead, parameters: Sequence[Tensor], measured: float
    ) -> Sequence[Change]:
        if not self.limit * (1 + ROOM) < measured < math.inf:
            return ()
        weight = parameters[0]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        share = torch.full_like(weight[:, 0], _aim(self.limit, parameters) / measured, dtype=dtype)
        _scale(parameters, share)
        return [Change(head.weight, measured, self.limit)]


def _scale(parameters: Sequence[Tensor], share: Tensor) -> None:
    """Scale the rows of a weight, and its bias."""
    for parameter in parameters:
        # Factors in float32 at least, so that a product is rounded once.
        factors = share.to(parameter.device)
        parameter.mul_(factors[:, None] if parameter.dim() > 1 else factors)


def _aim(limit: float, parameters: Sequence[Tensor]) -> float:
    return min(aim(limit, parameter) for parameter in parameters)


def _bounds(head: OutputHead, norm: NormLayout, view: StepView, weight: Tensor) -> Tensor:
    """Return the largest logit of every class that the weights allow, ``(classes,)``."""
    names = [name for name in (norm.gain, norm.bias, head.bias) if name is not None]
    tensors = view.named(names)
    gain, shift = norm_values(norm, tensors)
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    folded = wide if gain is None else wide * gain.to(wide)
    if norm.centred:
        folded = folded - folded.mean(dim=1, keepdim=True)  # x̂ sums to zero
    bounds = torch.linalg.vector_norm(folded, dim=1) * math.sqrt(norm.features)
    offset = torch.zeros_like(bounds) if shift is None else wide @ shift.to(wide)
    if head.bias is not None:
        offset = offset + tensors[head.bias].detach().to(wide)
    allowed: Tensor = bounds + offset.abs()
    return allowed


def _scaled_names(head: OutputHead) -> list[str]:
    return [head.weight, *([head.bias] if head.bias is not None else [])]


def _check(head: OutputHead, site: Site) -> None:
    """Check that a head fits the tensors it names.

    Raises:
        ConfigError: It does not.
    """
    norm = head.norm
    of_norm = [] if norm is None else [n for n in (norm.gain, norm.bias) if n is not None]
    tensors = site.named([*_scaled_names(head), *of_norm])
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
            raise site.unknown("head", name)
        if tensors[name].shape != (size,):
            raise ConfigError(
                f"head: {name} {tuple(tensors[name].shape)} must have {size} entries, to fit "
                f"{head.weight} {tuple(weight.shape)}"
            )
