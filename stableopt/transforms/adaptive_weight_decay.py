"""Decay a weight harder the worse a reading says that it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stableopt.errors import ConfigError, require_number
from stableopt.sensors.registry import METRICS
from stableopt.transforms.protocol import Change, Found, Needs, Phase, Target
from stableopt.transforms.selection import Select, selection
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.transforms.watch import Watch, metrics_of
from stableopt.transforms.weights import has_matrix
from stableopt.triggers.conditions import Leaf, Limit, Trigger, check_trigger

SCALED = frozenset({"spectral_norm"})
"""Metrics of sensors that fall when a weight is scaled down. No other one does."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveWeightDecay:
    r"""Decay a weight while a trigger holds, the harder the worse it is.

    :math:`\lambda = \text{base} \cdot (1 + \text{gain} \cdot s)`, where s is the severity of the
    trigger, from 0 to 1. Coupled (the default), the gradient becomes :math:`g + 2 \lambda W`, that
    of the penalty :math:`\lambda \lVert W \rVert_F^2`; an adaptive optimizer then divides it by
    the size of its gradients. Decoupled, the weight itself decays by the share
    :math:`\eta \lambda` per step, whatever the optimizer. A share too small to survive rounding
    is saved up until it does: ``W·(1 - 3e-4·2e-5)`` is ``W``, bit for bit, in float32.

    A uniform decay scales all singular values alike: it moves the spectral norm, and no condition
    number, no effective rank and no Fiedler value. A trigger on one of these is refused, with
    the transform that moves it.

    Args:
        when: A trigger, or its text, on ``spectral_norm`` or on a signal of ``observe()``.
        base: λ at severity 0; per unit of the learning rate when decoupled.
        gain: How much harder at severity 1.
        decoupled: Whether the weight decays instead of its gradient being changed.
        hold: Whether it acts in every step until a reading says otherwise, or once per reading.
        published: Accept every trigger: for the reproduction of ASSR, which decays weights for
            their condition number (:func:`stableopt.presets.assr`).
        params: Patterns of parameter names, or :func:`~stableopt.transforms.layers`; everything
            that the sensors visit if not given.

    Raises:
        ConfigError: A value is out of range, or the decay does not move what triggers it.

    Cost:
        Where it acts, one read of the weight and one read and write of its gradient; decoupled
        one read and write of the weight every so many steps.

    Reference:
        ASSR, "Auto-Calibrated Spectral Regularization" (the actuator); Loshchilov & Hutter,
        "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101.

    Example:
        >>> decay = AdaptiveWeightDecay(when="spectral_norm > 10", base=1e-4)
        >>> decay.needs.metrics
        ('spectral_norm',)
    """

    when: Trigger | str
    base: float = 2e-5
    gain: float = 10.0
    decoupled: bool = False
    hold: bool = True
    published: bool = False
    params: Select = None

    metric: ClassVar[str] = "weight_decay"
    routine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "when", check_trigger("when", self.when))
        object.__setattr__(self, "params", selection("params", self.params))
        require_number("base", self.base, 1.0, "the decay at severity 0")
        if self.gain != 0:
            require_number("gain", self.gain, 1e6, "how much harder to decay at severity 1")
        for name in ("decoupled", "hold", "published"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be True or False")
        if not self.published:
            self._check_moves()

    def _check_moves(self) -> None:
        for leaf in self.trigger.leaves():
            is_upper = not isinstance(leaf, Limit) or leaf.is_upper
            if leaf.metric in METRICS and not (leaf.metric in SCALED and is_upper):
                raise ConfigError(
                    f"when={self.when} cannot work: a decay scales all singular values alike, and "
                    f"{leaf.metric} does not {'fall' if is_upper else 'rise'}; {_instead(leaf)}"
                )

    @property
    def trigger(self) -> Trigger:
        """The trigger."""
        return check_trigger("when", self.when)

    @property
    def phase(self) -> Phase:
        """Before the step when coupled, after it when decoupled."""
        return Phase.WEIGHT if self.decoupled else Phase.GRADIENT

    @property
    def needs(self) -> Needs:
        """The readings of its trigger, and the learning rate."""
        return Needs(metrics=metrics_of(self.trigger), lr=self.decoupled)

    def find(self, site: Site) -> Found:
        """Decay the weights of ``site``."""
        named = selection("params", self.params).names is not None
        return Found([t for t in site.targets if named or has_matrix(site.parameter(t))])

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Decay gradients or weights in place; ``memory["owed"]`` holds shares too small so far."""
        watch = Watch(self.trigger, view, memory)
        owed = memory.setdefault("owed", {})
        changes = []
        for target in found.targets:
            severity = watch.lasting(target) if self.hold else watch.fresh(target)
            if severity is None:
                continue
            rate = self.base * (1 + self.gain * severity)
            if self.decoupled:
                _shrink(view, target, rate, owed)
            elif not _pull(view, target, rate):
                continue
            changes.append(Change(target.name, 0.0, rate))
        return changes


def _instead(leaf: Leaf) -> str:
    if leaf.metric in SCALED:
        return f"use above({leaf.metric!r}, …), or no decay"
    return "use SpectralCap(mode='soft', when=…) instead"


def smallest_share(weight: Tensor) -> float:
    """Return the smallest share to shrink a weight by that rounding leaves right within 0.5%.

    3% for bfloat16, whose numbers are .8% apart.
    """
    return min(0.03, 256 * torch.finfo(weight.dtype).eps)


def _shrink(view: StepView, target: Target, rate: float, owed: dict[str, float]) -> None:
    """Decay a weight, or add the share to what is saved up for it."""
    weight, lr = view.parameter(target), view.lr(target)
    share = owed.get(target.name, 0.0) + rate * (1.0 if lr is None else lr)
    if share >= smallest_share(weight):
        weight.mul_(math.exp(-share))
        share = 0.0
    owed[target.name] = share


def _pull(view: StepView, target: Target, rate: float) -> bool:
    """Add the gradient of the penalty; return whether there is a gradient that takes it."""
    gradient = view.gradient(target)
    if gradient is None or gradient.layout is not torch.strided:
        return False
    gradient.add_(view.parameter(target).to(gradient.dtype), alpha=2 * rate)
    return True
