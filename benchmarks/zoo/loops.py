"""Loops that do something else between two steps than the plain one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import Clusters, mlp
from stableopt import StableOptimizer

_CLASSES = 12


@training("loss on new samples", at_most=0.6)
def warm_restarts(run: Run) -> float:
    """SGD with momentum and warm restarts, at each of which the learning rate jumps up from 0."""
    clusters = Clusters(run, _CLASSES, spread=0.9)
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, _CLASSES))
    optimizer = run.wrap(torch.optim.SGD(model.parameters(), 0.2, momentum=0.9), model)
    schedule = CosineAnnealingWarmRestarts(optimizer, 60, 2)
    optimizer.track(scheduler=schedule)
    for _ in range(900):  # restarts after 60, 180 and 420 steps, and ends with a cycle
        run.step(optimizer, clusters.loss(model, 16))
        schedule.step()
    return clusters.validate(model)


@training("loss on new samples", at_most=0.6)
def uneven_accumulation(run: Run) -> float:
    """Gradients of sums, accumulated over one to six micro-batches of one to forty samples."""
    clusters = Clusters(run, _CLASSES, spread=0.9)
    model = mlp(16, 64, _CLASSES)
    optimizer = run.wrap(torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9), model)
    for _ in range(500):
        optimizer.zero_grad()
        for _ in range(1 + int(run.randint(6))):
            x, y = clusters.draw(1 + int(40 * run.rand() ** 3))
            loss = functional.cross_entropy(model(x), y, reduction="sum")
            loss.backward()
            optimizer.observe(loss=loss)
        optimizer.step()
    return clusters.validate(model)


@training("loss on new samples", at_most=0.6)
def scaler_overflows(run: Run) -> float:
    """fp16 with a loss scale that doubles until it overflows, and model.zero_grad()."""
    clusters = Clusters(run, _CLASSES, spread=0.9)
    model = mlp(16, 64, 64, _CLASSES, activation=nn.GELU)
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 3e-3), model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=40)
    optimizer.track(scaler=scaler)
    for _ in range(800):
        x, y = clusters.draw(16)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        optimizer.observe(loss=loss)
        scaler.step(optimizer)
        scaler.update()
        model.zero_grad()
    return clusters.validate(model)


@training("loss on new samples", at_most=0.6)
def step_in_backward(run: Run) -> float:
    """An optimizer for each parameter, stepped by a hook as soon as its gradient is there."""
    clusters = Clusters(run, _CLASSES, spread=0.9)
    model = mlp(16, 64, 64, _CLASSES)

    def own(parameter: Tensor) -> StableOptimizer:
        return run.wrap(torch.optim.AdamW([parameter], 2e-3), model)

    def steps(optimizer: StableOptimizer) -> Callable[[Tensor], None]:
        def step(_: Tensor) -> None:
            optimizer.step()
            optimizer.zero_grad()

        return step

    optimizers = []
    for parameter in model.parameters():
        optimizers.append(own(parameter))
        parameter.register_post_accumulate_grad_hook(steps(optimizers[-1]))
    for _ in range(500):
        loss = clusters.loss(model, 16)
        for optimizer in optimizers:
            optimizer.observe(loss=loss)
        loss.backward()
    return clusters.validate(model)
