"""The ways to step a model on a GPU that are compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from stableopt import Guard, StableOptimizer
from stableopt.commands.demo.model import GPT, ModelOptions


class Loop:
    """One model, and one way to step it.

    Args:
        way: A key of :data:`WAYS`.
        options: The shape of the model.
        batch: Sequences in a batch.
        device: Where.
    """

    def __init__(self, way: str, options: ModelOptions, batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        torch._dynamo.reset()
        self.device = device
        self.model = GPT(options).to(device)
        shape = (batch, options.context)
        self._text = torch.randint(256, shape, device=device)
        self._targets = self._text.roll(-1, dims=1)
        self._stable: StableOptimizer | None = None
        self._step = WAYS[way](self)

    def inner(self, *, fused: bool, capturable: bool = False) -> torch.optim.AdamW:
        """Return the AdamW that every way steps."""
        on_gpu = capturable and self.device.type == "cuda"
        lr = torch.tensor(3e-4, device=self.device if on_gpu else None) if capturable else 3e-4
        kernel = {"fused": True} if fused else {"foreach": True} if not capturable else {}
        return torch.optim.AdamW(
            self.model.parameters(), lr=lr, capturable=on_gpu, betas=(0.9, 0.95), **kernel
        )

    def wrap(self, inner: torch.optim.Optimizer, **options: Any) -> StableOptimizer:
        """Return the wrapper, and remember it."""
        self._stable = StableOptimizer(inner, model=self.model, **options)
        return self._stable

    def forward_backward(self) -> Tensor:
        """Return the loss of a batch; the gradients are there."""
        for parameter in self.model.parameters():
            parameter.grad = None
        mixed = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else None
        with mixed or nullcontext():
            loss = self.model.loss(self._text, self._targets)
        loss.backward()
        return loss

    def step(self) -> None:
        """Take the step."""
        self._step()

    def train(self, steps: int) -> float:
        """Train, and return the seconds that it took."""
        synchronize(self.device)
        begun = perf_counter()
        for _ in range(steps):
            self.forward_backward()
            self.step()
        synchronize(self.device)
        return perf_counter() - begun

    @property
    def interventions(self) -> int:
        """How often the guard did anything."""
        return 0 if self._stable is None else len(self._stable.ledger)


def _bare_compiled(loop: Loop) -> Callable[[], Any]:
    optimizer = loop.inner(fused=False, capturable=True)
    step = inspect.unwrap(type(optimizer).step)

    @torch.compile(fullgraph=True, dynamic=False)
    def update() -> None:
        with torch.no_grad():
            step(optimizer)

    return update


def _traced(loop: Loop) -> Callable[[], Any]:
    opt = loop.wrap(loop.inner(fused=False, capturable=True))
    step = torch.compile(opt.step, fullgraph=True)

    def settled() -> None:
        step()
        opt.summary()  # a call that is not compiled: what was is accounted for

    return settled


WAYS: dict[str, Callable[[Loop], Callable[[], Any]]] = {
    "bare, foreach": lambda loop: loop.inner(fused=False).step,
    "guard and sensors, foreach": lambda loop: loop.wrap(loop.inner(fused=False)).step,
    "bare, fused": lambda loop: loop.inner(fused=True).step,
    "guard, fused": lambda loop: loop.wrap(loop.inner(fused=True), sensors=()).step,
    "guard and sensors, fused": lambda loop: loop.wrap(loop.inner(fused=True)).step,
    "guard and sensors, fused, sync=lagged": lambda loop: (
        loop.wrap(loop.inner(fused=True), guard=Guard(sync="lagged")).step
    ),
    "bare, compiled": _bare_compiled,
    "guard and sensors, compile=True": lambda loop: (
        loop.wrap(loop.inner(fused=False), compile=True).step
    ),
    "guard and sensors, compile=reduce-overhead": lambda loop: (
        loop.wrap(loop.inner(fused=False), compile={"mode": "reduce-overhead"}).step
    ),
    "guard and sensors, compile=True, sync=lagged": lambda loop: (
        loop.wrap(loop.inner(fused=False), compile=True, guard=Guard(sync="lagged")).step
    ),
    "guard and sensors, torch.compile(step)": _traced,
}
"""Each is compared with the nearest bare one above it."""


def synchronize(device: torch.device) -> None:
    """Wait for the device, if that is a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
