"""Run one training scenario with a bare or a wrapped optimizer, and keep all it leaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.optim.swa_utils import SWALR

from stableopt import (
    AdaptiveWeightDecay,
    ClipGradNorm,
    Guard,
    LogitBound,
    LoRANormClamp,
    MaxNorm,
    QKClip,
    SpectralCap,
    StableOptimizer,
    UpdateCap,
)
from stableopt.sensors import ConditionNumber, SampledSpectrum, Sampler, Sensors, SpectralNorm
from stableopt.transforms import WhereFound
from stableopt.update.closures import requires_closure
from tests.contract.specs import Spec

STEPS = 20

Wrap = Callable[[Optimizer, nn.Module], Optimizer]


def bare(inner: Optimizer, model: nn.Module) -> Optimizer:
    return inner


def wrapped(inner: Optimizer, model: nn.Module) -> Optimizer:
    return StableOptimizer(inner, model=model)


def guarded(inner: Optimizer, model: nn.Module) -> Optimizer:
    """Snapshots every few steps, the detectors of spikes, all sensors and transforms in every step.

    The bounds of the transforms are such that nothing fires.
    """
    sensors = Sensors(
        use=(SpectralNorm(), SampledSpectrum(rows=4), ConditionNumber(always=True)),
        sampler=Sampler(ratio=1, every=1),
        budget=None,
    )
    transforms = (
        ClipGradNorm(1e20),
        AdaptiveWeightDecay(when="spectral_norm > 1e20"),
        UpdateCap(1e20),
        MaxNorm(1e20),
        SpectralCap(1e20),
        WhereFound(QKClip(1e20, every=1)),
        WhereFound(LogitBound(1e20, every=1)),
        WhereFound(LoRANormClamp(1e20)),
    )
    return StableOptimizer(
        inner, model=model, sensors=sensors, guard=Guard(every=3), transforms=transforms
    )


def lagged(inner: Optimizer, model: nn.Module) -> Optimizer:
    """Every step taken at once, and judged at the next call."""
    sync = "exact" if requires_closure(inner) else "lagged"
    return StableOptimizer(inner, model=model, guard=Guard(every=3, sync=sync))


WRAPS: dict[str, Wrap] = {"wrapped": wrapped, "guarded": guarded, "lagged": lagged}
"""How the suite wraps; a later feature is switched on here and meets every promise."""


def _cycles_momentum(opt: Optimizer) -> bool:
    return "momentum" in opt.defaults or "betas" in opt.defaults


SCHEDULERS: dict[str, Callable[[Optimizer, float], Any]] = {
    "none": lambda opt, lr: None,
    "LambdaLR": lambda opt, lr: lr_scheduler.LambdaLR(opt, lambda n: 0.9**n),
    "MultiplicativeLR": lambda opt, lr: lr_scheduler.MultiplicativeLR(opt, lambda n: 0.9),
    "StepLR": lambda opt, lr: lr_scheduler.StepLR(opt, 3, 0.5),
    "MultiStepLR": lambda opt, lr: lr_scheduler.MultiStepLR(opt, [3, 9], 0.5),
    "ConstantLR": lambda opt, lr: lr_scheduler.ConstantLR(opt, 0.5, 4),
    "LinearLR": lambda opt, lr: lr_scheduler.LinearLR(opt, 0.1, 1.0, 8),
    "ExponentialLR": lambda opt, lr: lr_scheduler.ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt, lr: lr_scheduler.PolynomialLR(opt, STEPS, 2.0),
    "CosineAnnealingLR": lambda opt, lr: lr_scheduler.CosineAnnealingLR(opt, STEPS),
    "CosineAnnealingWarmRestarts": lambda opt, lr: lr_scheduler.CosineAnnealingWarmRestarts(opt, 7),
    "CyclicLR": lambda opt, lr: lr_scheduler.CyclicLR(
        opt, lr / 10, lr, step_size_up=3, cycle_momentum=_cycles_momentum(opt)
    ),
    "OneCycleLR": lambda opt, lr: lr_scheduler.OneCycleLR(
        opt, lr, total_steps=STEPS + 1, cycle_momentum=_cycles_momentum(opt)
    ),
    "ReduceLROnPlateau": lambda opt, lr: lr_scheduler.ReduceLROnPlateau(opt, patience=1),
    "SequentialLR": lambda opt, lr: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.LinearLR(opt, 0.1, 1.0, 5), lr_scheduler.ExponentialLR(opt, 0.9)],
        milestones=[5],
    ),
    "ChainedScheduler": lambda opt, lr: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.5, 4), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "SWALR": lambda opt, lr: SWALR(opt, lr / 2, anneal_epochs=5),
}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What a training loop does around ``step()``."""

    spec: Spec
    variant: str = "default"
    tensor_lr: bool = False
    scheduler: str = "none"
    scheduler_on: str = "wrapper"
    closure: bool = False
    accumulate: int = 1
    grad_none: bool = False
    add_group: str = "no"
    named: bool = False
    dtype: str = "float32"
    hooks: str = "none"


@dataclass
class Trace:
    """Everything that a run leaves, to be compared bit by bit."""

    params: list[Tensor] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    state: Any = None
    grads: list[Tensor | None] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    lrs: list[Any] = field(default_factory=list)
    rng: Any = None
    moved: list[bool] = field(default_factory=list)
    hooks: dict[str, int] = field(default_factory=dict)


class Tiny(nn.Module):
    """A few parameters of every shape; consumes torch, python and numpy randomness."""

    def __init__(self, kind: str, dtype: str) -> None:
        super().__init__()
        self.kind = kind
        bias = kind == "dense"
        if kind == "sparse":
            self.embedding = nn.Embedding(9, 4, sparse=True)
        else:
            self.first = nn.Linear(4, 5, bias=bias)
            self.second = nn.Linear(5, 3, bias=bias)
        if kind == "dense":
            self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))
        if dtype == "bfloat16":
            self.to(torch.bfloat16)
        if dtype == "complex64":
            self.spin = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def loss(self, step: int, use_all: bool = True) -> Tensor:
        noise = random.random() + float(np.random.rand())
        if self.kind == "sparse":
            rows = torch.tensor([step % 9, (step * 4) % 9, step % 9])
            return (self.embedding(rows) - noise).pow(2).mean()
        weight = self.first.weight
        x = torch.randn(6, 4).to(weight.dtype) + noise
        h = torch.dropout(torch.tanh(self.first(x)), 0.2, True)
        if use_all:
            h = self.second(h)
        out = h.float().pow(2).mean()
        if self.kind == "dense":
            out = out * (1 + self.gain.float() ** 2)
        if hasattr(self, "spin"):
            out = out + (self.spin * noise).abs().pow(2).sum()
        with torch.no_grad():
            self.seen += out
        return out


def run(
    scenario: Scenario,
    wrap: Wrap,
    steps: int = STEPS,
    ended: Callable[[Optimizer], None] = lambda opt: None,
) -> Trace:
    """Train for ``steps``, show the optimizer to ``ended``, and return what is left."""
    seed_everything(7)
    model = Tiny(scenario.spec.model, scenario.dtype)
    inner, late = build(scenario, model)
    opt = wrap(inner, model)
    if scenario.add_group == "early":
        opt.add_param_group(late)
    target = inner if scenario.scheduler_on == "inner" else opt
    scheduler = SCHEDULERS[scenario.scheduler](target, scenario.spec.lr)
    pointers = [p.data_ptr() for p in model.parameters()]
    trace = Trace()
    with counted_hooks(scenario.hooks, opt, trace.hooks):
        for step in range(steps):
            if scenario.add_group == "late" and step == 5:
                opt.add_param_group(late)
            trace.losses.append(_train_step(scenario, model, opt, step))
            trace.lrs.append([copied(g["lr"]) for g in opt.param_groups])
            if scenario.scheduler == "ReduceLROnPlateau":
                scheduler.step(float(trace.losses[-1]))
            elif scheduler is not None:
                scheduler.step()
    finish(trace, model, inner)
    ended(opt)
    trace.moved = [
        p.data_ptr() != before for p, before in zip(model.parameters(), pointers, strict=True)
    ]
    return trace


def build(scenario: Scenario, model: nn.Module) -> tuple[Optimizer, dict[str, Any]]:
    """Build the inner optimizer, and the group that is added later if one is."""
    spec = scenario.spec
    named = list(model.named_parameters())
    held_back = named.pop() if scenario.add_group != "no" else None
    params: Any = named if scenario.named else [p for _, p in named]
    lr: Any = torch.tensor(spec.lr) if scenario.tensor_lr else spec.lr
    inner = spec.make(params, lr=lr, **spec.variants[scenario.variant])
    late = {}
    if held_back is not None:
        late = {"params": [held_back if scenario.named else held_back[1]], "lr": spec.lr / 2}
        if scenario.tensor_lr:
            late["lr"] = torch.tensor(spec.lr / 2)
    return inner, late


def _train_step(scenario: Scenario, model: Tiny, opt: Optimizer, step: int) -> Any:
    use_all = not (scenario.grad_none and step % 2)

    def backward() -> Tensor:
        opt.zero_grad()
        total = torch.zeros(())
        for _ in range(scenario.accumulate):
            loss = model.loss(step, use_all) / scenario.accumulate
            loss.backward()
            total = total + loss.detach()
        return total

    if scenario.closure or scenario.spec.closure == "required":
        return copied(opt.step(backward))
    loss = backward()
    assert opt.step() is None
    return loss


@contextmanager
def counted_hooks(kind: str, opt: Optimizer, counts: dict[str, int]) -> Iterator[None]:
    """Count step hooks, registered on the optimizer or globally."""

    def count(name: str) -> Callable[..., None]:
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook

    handles = []
    if kind == "own":
        handles = [
            opt.register_step_pre_hook(count("pre")),
            opt.register_step_post_hook(count("post")),
        ]
    if kind == "global":
        handles = [
            register_optimizer_step_pre_hook(count("pre")),
            register_optimizer_step_post_hook(count("post")),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def finish(trace: Trace, model: nn.Module, inner: Optimizer) -> None:
    """Record where a run ended."""
    trace.params = [p.detach().clone() for p in model.parameters()]
    trace.buffers = [b.detach().clone() for b in model.buffers()]
    trace.state = copied(inner.state_dict())
    trace.grads = [None if p.grad is None else p.grad.detach().clone() for p in model.parameters()]
    trace.rng = rng_state()


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def rng_state() -> Any:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state(), random.getstate(), (kind, keys.tolist(), *rest)


def copied(value: Any) -> Any:
    """Deep-copy tensors out of a nested value."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(v) for v in value)
    return value
