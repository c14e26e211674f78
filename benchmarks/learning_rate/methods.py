"""The methods of the learning-rate benchmark, each with one configuration for every task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.learning_rate.model import Shape
from benchmarks.learning_rate.rivals import AdaGC, Clip, Gate, Nothing, SkipSpikes, ZClip
from stableopt import StableOptimizer, presets

BASELINE, SCHEDULED, ROBUST = "AdamW + clip", "√-cosine", "robust"
"""What everything is compared with, what of it is schedule, and what the targets are for."""

BETAS, DECAY = (0.9, 0.95), 0.1
"""Of AdamW and its variants; the decay is decoupled, and that of all parameters."""

LION_BETAS, SGD_DECAY = (0.9, 0.99), 1e-4


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a model is trained.

    Attributes:
        optimizer: Makes the optimizer of a model, the learning rate given.
        gate: Makes what stands between backward and step.
        edit: What is changed about the model, where it is a GPT.
        z_loss: Weight of the z-loss.
        power: Of the cosine of the schedule.
        recovers: Whether training may go on after a loss that is not finite.
        robust: Whether it is ours.
    """

    optimizer: Callable[[nn.Module, float], Optimizer]
    gate: Callable[[], Gate] = Clip
    edit: Callable[[Shape], Shape] | None = None
    z_loss: float = 0.0
    power: float = 1.0
    recovers: bool = False
    robust: bool = False


def frozen() -> tuple[str, str]:
    """Return what ``presets.robust()`` is, and a hash of that."""
    text = repr(presets.robust())
    return text, hashlib.sha256(text.encode()).hexdigest()[:16]


def _adamw(model: nn.Module, lr: float) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=BETAS, weight_decay=DECAY)


def _stable_adamw(model: nn.Module, lr: float) -> Optimizer:
    from pytorch_optimizer import StableAdamW  # needed by those who train, not by the tables

    return StableAdamW(model.parameters(), lr=lr, betas=BETAS, weight_decay=DECAY)


def _stable_spam(model: nn.Module, lr: float) -> Optimizer:
    from pytorch_optimizer import StableSPAM

    return StableSPAM(model.parameters(), lr=lr, betas=BETAS, weight_decay=DECAY)


def _lion(model: nn.Module, lr: float) -> Optimizer:
    from pytorch_optimizer import Lion

    return Lion(model.parameters(), lr=lr, betas=LION_BETAS, weight_decay=DECAY)


def _sgd(model: nn.Module, lr: float) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=SGD_DECAY)


def _robust(inner: Callable[[nn.Module, float], Optimizer]) -> Method:
    def make(model: nn.Module, lr: float) -> Optimizer:
        options: dict[str, Any] = presets.robust()
        return StableOptimizer(inner(model, lr), model=model, **options)

    # It clips by itself.
    return Method(optimizer=make, gate=Nothing, recovers=True, robust=True)


METHODS: dict[str, Method] = {
    BASELINE: Method(optimizer=_adamw),
    SCHEDULED: Method(optimizer=_adamw, power=0.5),
    "z-loss": Method(optimizer=_adamw, z_loss=1e-4),
    "qk-norm": Method(optimizer=_adamw, edit=lambda shape: replace(shape, qk_norm=True)),
    "StableAdamW": Method(optimizer=_stable_adamw, gate=Nothing),
    "6σ skip": Method(optimizer=_adamw, gate=SkipSpikes, recovers=True),
    "ZClip": Method(optimizer=_adamw, gate=ZClip),
    "AdaGC": Method(optimizer=_adamw, gate=AdaGC),
    "StableSPAM": Method(optimizer=_stable_spam, gate=Nothing),
    ROBUST: _robust(_adamw),
    "Lion + clip": Method(optimizer=_lion),
    "Lion, robust": _robust(_lion),
    "SGD + clip": Method(optimizer=_sgd),
    "SGD, robust": _robust(_sgd),
}
"""By name; the first ten train with AdamW or one of its variants."""

COMPARED = tuple(METHODS)[:10]
INNER = tuple(METHODS)[10:]
"""Those with other inner optimizers."""
