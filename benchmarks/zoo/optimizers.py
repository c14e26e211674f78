"""Optimizers that are unlike those of torch: in what they call, and in what they keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import Clusters, mlp

_CLASSES = 12
Closure = Callable[[], Any]


def _train(
    run: Run, make: Callable[[Any], Optimizer], steps: int, *, closure: bool = False
) -> float:
    """Train a classifier, and return its loss on new samples."""
    clusters = Clusters(run, _CLASSES, spread=0.9)
    model = mlp(16, 64, 64, _CLASSES)
    optimizer = run.wrap(make(model.parameters()), model)
    has_modes = hasattr(optimizer, "eval")
    if has_modes:
        optimizer.train()
    for _ in range(steps):
        x, y = clusters.draw(16)

        def evaluate(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            optimizer.observe(loss=evaluate())
            optimizer.step()
    if has_modes:
        optimizer.eval()
    return clusters.validate(model)


class SharpnessAware(Optimizer):
    """Steps along the gradient where the loss nearby is largest: two evaluations a step.

    Args:
        params: As of any optimizer.
        lr: Of SGD with momentum inside.
        rho: How far the second evaluation is from the first.
    """

    def __init__(self, params: Any, lr: float, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Evaluate here and there, and step."""
        if closure is None:
            raise RuntimeError("SharpnessAware needs a closure")
        with torch.enable_grad():
            loss = closure()
        parameters = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        before = [p.clone() for p in parameters]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm() + 1e-12
        for p in parameters:
            p.add_(p.grad, alpha=float(self.param_groups[0]["rho"] / norm))
        with torch.enable_grad():
            closure()
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
        self.base.step()
        return loss


class Lookahead(Optimizer):
    """Slow weights that follow an optimizer, and put it back to where they are every few steps.

    Args:
        optimizer: The fast one; it holds moments of its own.
        every: Of its steps.
        share: Of the way that the slow weights go.
    """

    def __init__(self, optimizer: Optimizer, every: int = 5, share: float = 0.5) -> None:
        self.optimizer, self.every, self.share = optimizer, every, share
        super().__init__(optimizer.param_groups, dict(optimizer.defaults))
        self.param_groups = optimizer.param_groups
        for group in self.param_groups:
            group["taken"] = 0
            for p in group["params"]:
                self.state[p]["slow"] = p.detach().clone()

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Have the fast one step, and follow it."""
        loss = self.optimizer.step(closure)
        for group in self.param_groups:
            group["taken"] += 1
            if group["taken"] % self.every == 0:
                for p in group["params"]:
                    p.copy_(self.state[p]["slow"].lerp_(p, self.share))
        return loss


class AdamW8bit(Optimizer):
    """AdamW whose moments are kept in eight bits, with a scale for every block of 64 values.

    Args:
        params: As of any optimizer.
        lr: The learning rate.
        betas: As of AdamW.
    """

    block = 64

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Unpack the moments, step, and pack them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[p], group["betas"]
        if not state:
            state["step"] = 0
            state["state1"], state["absmax1"] = self._pack(torch.zeros_like(p), 2, 127)
            state["state2"], state["absmax2"] = self._pack(torch.zeros_like(p), 4, 255)
        state["step"] += 1
        m = self._unpack(state["state1"], state["absmax1"], 2, 127, p).lerp_(p.grad, 1 - first)
        v = self._unpack(state["state2"], state["absmax2"], 4, 255, p)
        v.lerp_(p.grad.square(), 1 - second)
        size = (v / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.addcdiv_(m, size, value=-group["lr"] / (1 - first ** state["step"]))
        state["state1"], state["absmax1"] = self._pack(m, 2, 127)
        state["state2"], state["absmax2"] = self._pack(v, 4, 255)

    def _pack(self, x: Tensor, root: int, most: int) -> tuple[Tensor, Tensor]:
        """Return codes and scales; roots are rounded, so that small values are kept, too."""
        flat = functional.pad(x.flatten(), (0, -x.numel() % self.block)).view(-1, self.block)
        scale = flat.abs().amax(1, keepdim=True)
        codes = (flat.abs() / scale.clamp_min(1e-30)) ** (1 / root) * flat.sign() * most
        return codes.round().to(torch.int8 if most == 127 else torch.uint8), scale

    @staticmethod
    def _unpack(codes: Tensor, scale: Tensor, root: int, most: int, like: Tensor) -> Tensor:
        x = codes.float() / most
        flat = x.abs() ** root * x.sign() * scale
        return flat.flatten()[: like.numel()].view_as(like)


@training("loss on new samples", at_most=0.8)
def sharpness_aware(run: Run) -> float:
    """SAM: a step that needs its closure, though the signature says it is optional."""
    return _train(run, lambda p: SharpnessAware(p, 0.05), 500, closure=True)


@training("loss on new samples", at_most=0.6)
def schedule_free(run: Run) -> float:
    """Schedule-free AdamW, which trains at one point and is evaluated at another."""
    return _train(run, lambda p: AdamWScheduleFree(p, 5e-3, warmup_steps=20), 600)


@training("loss on new samples", at_most=0.6)
def lookahead(run: Run) -> float:
    """Lookahead around AdamW: an optimizer in an optimizer, and weights that are put back."""
    return _train(run, lambda p: Lookahead(torch.optim.AdamW(p, 3e-3)), 700)


@training("loss on new samples", at_most=0.6)
def eight_bit_moments(run: Run) -> float:
    """AdamW with moments of eight bits, in blocks with a scale each."""
    return _train(run, lambda p: AdamW8bit(p, 3e-3), 600)
