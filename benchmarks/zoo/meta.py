"""Gradients that do not come from loss.backward(): of inner loops, and of functions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import Clusters, mlp

Weights = dict[str, Tensor]


def _waves(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return what each task's own copy of a small network makes of its samples."""
    *inner, (weight, bias) = zip(weights[::2], weights[1::2], strict=True)
    for w, b in inner:
        x = (x @ w + b).tanh()
    return x @ weight + bias


@training("squared error after adaptation", at_most=0.3)
def maml(run: Run) -> float:
    """MAML on sine waves: the gradient goes through three inner steps on each of eight tasks."""
    widths = (1, 32, 32, 1)
    model = nn.ParameterList()
    for inputs, outputs in pairwise(widths):
        model.append(torch.randn(inputs, outputs) / inputs**0.5)
        model.append(torch.randn(1, outputs))
    optimizer = run.wrap(torch.optim.Adam(model.parameters(), 2e-3), model)

    def loss_of(tasks: int) -> Tensor:
        height, phase = 0.5 + 2 * run.rand(tasks, 1, 1), torch.pi * run.rand(tasks, 1, 1)
        x = 6 * run.rand(tasks, 20, 1) - 3
        y = height * (x - phase).sin()
        (seen, new), (known, wanted) = x.chunk(2, dim=1), y.chunk(2, dim=1)
        weights = [p.expand(tasks, *p.shape) for p in model]
        for _ in range(3):
            # A sum over tasks, so that each has the slope of its own mean.
            error = (_waves(weights, seen) - known).square().mean((1, 2)).sum()
            slopes = torch.autograd.grad(error, weights, create_graph=True)
            weights = [w - 0.05 * s for w, s in zip(weights, slopes, strict=True)]
        return functional.mse_loss(_waves(weights, new), wanted)

    for _ in range(350):
        run.step(optimizer, loss_of(8))
    return float(loss_of(1000).detach())


@training("loss on new samples", at_most=0.5)
def clipped_samples(run: Run) -> float:
    """torch.func: each sample has its gradient clipped, and the noisy mean is assigned by hand."""
    clusters, size, bound = Clusters(run, 12, spread=0.8), 32, 1.0
    model = mlp(16, 48, 12)
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 3e-3), model)

    def loss_of(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    each = vmap(grad_and_value(loss_of), (None, 0, 0))
    for _ in range(500):
        x, y = clusters.draw(size)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        slopes, losses = each(weights, x, y)
        norms = torch.stack([s.flatten(1).norm(dim=1) for s in slopes.values()]).norm(dim=0)
        factors = (bound / norms).clamp_max(1.0)
        for name, parameter in model.named_parameters():
            mean = torch.einsum("n,n...->...", factors, slopes[name]) / size
            parameter.grad = mean + 0.002 * torch.randn_like(mean)
        optimizer.observe(loss=losses.mean())
        optimizer.step()
    return clusters.validate(model)
