"""Models that become smaller in mid-run: rounded weights, pruned weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.optim import Optimizer

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import Clusters, mlp

_CLASSES = 12


class _Rounded(nn.Module):
    """A linear layer whose weights and inputs are rounded once a buffer says so."""

    enabled: Tensor
    largest: Tensor

    def __init__(self, inputs: int, outputs: int, levels: int = 3) -> None:
        super().__init__()
        self.linear, self.levels = nn.Linear(inputs, outputs), levels
        self.register_buffer("enabled", torch.zeros(1, dtype=torch.uint8))
        self.register_buffer("largest", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, and follow the largest input meanwhile."""
        if self.training:
            self.largest.lerp_(x.detach().abs().amax().view(1), 0.05)
        weight = self.linear.weight
        if self.enabled:
            x = self._round(x, self.largest)
            weight = self._round(weight, weight.detach().abs().amax(1, keepdim=True))
        return functional.linear(x, weight, self.linear.bias)

    def _round(self, x: Tensor, largest: Tensor) -> Tensor:
        scale = largest / self.levels + 1e-8
        rounded = (x / scale).round().clamp(-self.levels, self.levels) * scale
        return x + (rounded - x).detach()


def _train(
    run: Run, model: nn.Module, change: Callable[[int], None], make: Callable[[Any], Optimizer]
) -> float:
    """Train a classifier, change it before every step, and return its loss on new samples."""
    clusters = Clusters(run, _CLASSES, spread=0.8)
    optimizer = run.wrap(make(model.parameters()), model)
    for step in range(800):
        change(step)
        run.step(optimizer, clusters.loss(model, 16))
    return clusters.validate(model)


@training("loss on new samples, rounded", at_most=0.8)
def rounded_weights(run: Run) -> float:
    """Quantization-aware training: rounding to three bits begins in mid-run, through a buffer."""
    layers = [_Rounded(16, 64), nn.ReLU(), _Rounded(64, 64), nn.ReLU(), _Rounded(64, _CLASSES)]
    model = nn.Sequential(*layers)

    def change(step: int) -> None:
        if step == 400:
            for layer in model:
                if isinstance(layer, _Rounded):
                    layer.enabled.fill_(1)

    return _train(run, model, change, lambda p: torch.optim.AdamW(p, 3e-3))


@training("loss on new samples, pruned", at_most=0.8)
def pruned_weights(run: Run) -> float:
    """Magnitude pruning in mid-run: masks become buffers, and the weights change their names."""
    model = mlp(16, 64, 64, _CLASSES, activation=nn.ReLU)

    def change(step: int) -> None:
        if step in (300, 400, 500):
            for layer in model:
                if isinstance(layer, nn.Linear):
                    prune.l1_unstructured(layer, "weight", amount=0.5)

    return _train(run, model, change, lambda p: torch.optim.SGD(p, 0.03, momentum=0.9))
