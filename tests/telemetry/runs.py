"""A short run with every kind of event: what trackers are asked about afterwards."""

from __future__ import annotations

import math

import torch

from stableopt import ClipGradNorm, SpectralNormalization, StableOptimizer
from stableopt.telemetry.metrics import RunMetrics
from stableopt.testing import corrupt_weight

BAD_BATCH, BAD_WEIGHT, STEPS = 12, 25, 40


def make(telemetry):
    """Return an optimizer with two parameter groups, and its model."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    last = {"params": list(model[2].parameters()), "lr": 2e-3}
    opt = StableOptimizer(
        torch.optim.AdamW([{"params": list(model[0].parameters())}, last], lr=1e-3),
        model=model,
        transforms=[ClipGradNorm(10.0), SpectralNormalization(3.0)],
        telemetry=telemetry,
    )
    return opt, model


def train(telemetry, *, faults=True, steps=STEPS, close=True):
    """Train a tiny model, with a bad batch and a bad weight; return the optimizer and the model."""
    opt, model = make(telemetry)
    for step in range(steps):
        x = torch.randn(8, 16)
        if faults and step == BAD_BATCH:
            x[0, 0] = math.nan
        if faults and step == BAD_WEIGHT:
            corrupt_weight(opt, bit=30, model=model)
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        opt.observe(loss=loss, accuracy=step / 100, heads={"a": 1.0, "b": torch.ones(2)})
        opt.step()
    if close:
        opt.close()
    return opt, model


def weights(model):
    """Return copies of all parameters, as bits."""
    return [p.detach().clone().view(torch.int32) for p in model.parameters()]


def same(first, second):
    """Return whether two models have the same bits."""
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def rows(events, every=10):
    """Return what a tracker should hold of a run: ``{(name, call): value}``.

    Args:
        events: What a writer that takes every step has seen.
        every: How often the tracker wanted healthy ones.
    """
    metrics = RunMetrics()
    wanted = [e for e in events if not e.routine or e.readings or e.step % every == 0]
    return {(name, e.call): value for e in wanted for name, value in metrics.of(e).items()}
