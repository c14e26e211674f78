"""One way to compile a training loop, and what the compiler made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch._dynamo.utils import counters

from stableopt import StableOptimizer

LR = 1e-2

WARM = 10
"""Steps after which nothing should be compiled any more."""

OPTIMIZERS: dict[str, Callable[[Any, Any], optim.Optimizer]] = {
    "AdamW": optim.AdamW,
    "Adam": optim.Adam,
    "SGD": optim.SGD,
    "SGD, momentum": lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9),
    "Adagrad": optim.Adagrad,
    "RMSprop": optim.RMSprop,
    "NAdam": optim.NAdam,
    "Muon": optim.Muon,
    "Rprop": optim.Rprop,
    "Adadelta": optim.Adadelta,
    "Adamax": optim.Adamax,
    "RAdam": optim.RAdam,
    "ASGD": optim.ASGD,
    "Adafactor": optim.Adafactor,
    "AdamW, fused": lambda p, lr: optim.AdamW(p, lr=lr, fused=True),
}

RATES: dict[str, Callable[[optim.Optimizer, int], Any]] = {
    "constant": lambda opt, steps: None,
    "schedule": lambda opt, steps: optim.lr_scheduler.ExponentialLR(opt, 0.999),
    "tensor, schedule": lambda opt, steps: optim.lr_scheduler.ExponentialLR(opt, 0.999),
    "OneCycleLR": lambda opt, steps: optim.lr_scheduler.OneCycleLR(
        opt,
        LR,
        total_steps=steps + 1,
        cycle_momentum="betas" in opt.defaults or "momentum" in opt.defaults,
    ),
}
"""What becomes of the learning rate; OneCycleLR moves betas or momentum as well, if there are."""

MODES = ("update", "step", "model", "whole step")
"""``compile=True``, ``torch.compile(opt.step)``, ``torch.compile(model)``, forward to step."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What the compiler did in one run.

    Attributes:
        optimizer: A key of ``OPTIMIZERS``.
        rate: A key of ``RATES``.
        mode: One of ``MODES``.
        wrapped: Whether by us.
        graphs: How many were made.
        recompiled: How many of them after the warm-up.
        breaks: Graph breaks.
        skips: Whether the NaN in the middle of the run left everything as it was.
        error: Why the run did not finish; empty if it did.
    """

    optimizer: str
    rate: str
    mode: str
    wrapped: bool
    graphs: int
    recompiled: int
    breaks: int
    skips: bool
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


class Graphs:
    """A backend of ``torch.compile`` that runs what it is given, and counts it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Callable[..., Any], inputs: list[Tensor]) -> Callable[..., Any]:
        """Take a graph as it is."""
        self.count += 1
        return graph


def run_cell(optimizer: str, rate: str, mode: str, wrapped: bool, *, steps: int) -> Cell:
    """Train for ``steps``, with a NaN in the middle, and return what the compiler did.

    Args:
        optimizer: A key of ``OPTIMIZERS``.
        rate: A key of ``RATES``.
        mode: One of ``MODES``; ``"update"`` of the bare optimizer is its ``step``, compiled.
        wrapped: Whether by us.
        steps: More than twice ``WARM``.
    """
    torch._dynamo.reset()
    counters.clear()
    graphs, warm, skips, error = Graphs(), 0, False, ""
    try:
        loop = _Loop(optimizer, rate, mode, wrapped, steps, graphs)
        for step in range(steps):
            bad = step == steps // 2
            before = loop.everything() if bad else None
            loop.step(step, bad=bad)
            if bad:
                skips = _same(loop.everything(), before)
            if bad and not wrapped:
                loop.heal(before)
            if step == WARM:
                warm = graphs.count
    except Exception as failure:  # noqa: BLE001 - what torch cannot compile is a result, too
        error = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0]}"
    return Cell(
        optimizer=optimizer,
        rate=rate,
        mode=mode,
        wrapped=wrapped,
        graphs=graphs.count,
        recompiled=graphs.count - warm,
        breaks=sum(counters["graph_break"].values()),
        skips=skips,
        error=error,
    )


class _Loop:
    def __init__(
        self, optimizer: str, rate: str, mode: str, wrapped: bool, steps: int, graphs: Graphs
    ) -> None:
        torch.manual_seed(0)
        self._model = nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 2, bias=False)
        )
        lr = torch.tensor(LR) if rate.startswith("tensor") else LR
        self._inner = OPTIMIZERS[optimizer](self._model.parameters(), lr)
        self._opt: Any = self._inner
        if wrapped:
            compiles = {"backend": graphs} if mode == "update" else False
            self._opt = StableOptimizer(
                self._inner, model=self._model, sensors=(), compile=compiles
            )
        self._schedule = RATES[rate](self._opt, steps)
        self._forward: Any = self._model
        self._update: Any = self._opt.step
        self._train: Any = self._plain
        if mode == "step" or (mode == "update" and not wrapped):
            self._update = torch.compile(self._opt.step, backend=graphs)
        elif mode == "model":
            self._forward = torch.compile(self._model, backend=graphs)
        elif mode == "whole step":
            self._train = torch.compile(self._plain, backend=graphs)

    def _plain(self, x: Tensor) -> None:
        self._opt.zero_grad()
        self._forward(x).sub(1).pow(2).mean().backward()
        self._update()

    def step(self, step: int, *, bad: bool) -> None:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        self._train(x * math.nan if bad else x)
        if self._schedule is not None:
            self._schedule.step()

    def everything(self) -> list[Tensor]:
        if self._opt is not self._inner:
            self._opt.summary()  # accounts for what was compiled
        state = self._inner.state
        moments = [v for p in self._model.parameters() for v in state.get(p, {}).values()]
        tensors = [*self._model.parameters(), *(torch.as_tensor(v) for v in moments)]
        return [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def heal(self, before: list[Tensor] | None) -> None:
        """Put a bare run's tensors back, so that it goes on."""
        state = self._inner.state
        live = [*self._model.parameters()]
        live += [v for p in live for v in state.get(p, {}).values() if isinstance(v, torch.Tensor)]
        for tensor, old in zip(live, before or [], strict=False):
            tensor.copy_(old)


def _same(now: list[Tensor], before: list[Tensor] | None) -> bool:
    return before is not None and len(now) == len(before) and all(map(torch.equal, now, before))
