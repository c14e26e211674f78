"""Optimizers from outside torch: from packages, and with the kinds of state they keep."""

from __future__ import annotations

from typing import Any

import pytorch_optimizer
import schedulefree
import torch
from torch import Tensor
from torch.optim import Optimizer


class Quantized(Tensor):
    """A tensor subclass with 8-bit codes and a scale inside, as low-bit optimizers keep."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Quantized:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def of(cls, value: Tensor) -> Quantized:
        scale = value.abs().amax().clamp_min(1e-12) / 127
        return cls((value / scale).round().to(torch.int8), scale)

    def dequantize(self) -> Tensor:
        return self.codes.float() * self.scale

    def __repr__(self) -> str:
        return f"Quantized({self.dequantize()!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: Any) -> Quantized:
        return cls(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten.copy_.default:
            target, source = args[0], args[1]
            new = source if isinstance(source, Quantized) else cls.of(source)
            target.codes.copy_(new.codes)
            target.scale.copy_(new.scale)
            return target
        if func in (aten.clone.default, aten.detach.default, aten._to_copy.default):
            (q,) = args[:1]
            return cls(q.codes.clone(), q.scale.clone())
        plain = [a.dequantize() if isinstance(a, Quantized) else a for a in args]
        return func(*plain, **(kwargs or {}))


class LowBitMomentum(Optimizer):
    """SGD with an 8-bit momentum, a step count in Python, and a state rebound every step."""

    def __init__(self, params: Any, lr: Any = 1e-2) -> None:
        super().__init__(params, {"lr": lr, "seen": []})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["seen"] = [*group["seen"][-3:], float(group["lr"])]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = Quantized.of(torch.zeros_like(p))
                    state["history"] = {"steps": 0, "norms": []}
                momentum = state["momentum"].dequantize().mul_(0.9).add_(p.grad)
                state["momentum"] = Quantized.of(momentum)
                state["history"]["steps"] += 1
                state["history"]["norms"].append(p.grad.norm())
                p.sub_(momentum * group["lr"])
        return loss


class ScheduleFree(schedulefree.AdamWScheduleFree):
    """Schedule-free AdamW, put into train mode as its documentation asks."""

    def __init__(self, params: Any, lr: Any = 1e-2) -> None:
        super().__init__(params, lr=float(lr), foreach=False)
        self.train()


class Lion(pytorch_optimizer.Lion):
    """Lion of pytorch_optimizer."""


OPTIMIZERS = [(LowBitMomentum, "dense"), (ScheduleFree, "dense"), (Lion, "dense")]
