"""Embeddings, and students of a teacher: losses that are mostly, or at first, nothing."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import Clusters, mlp


@training("triplets of new samples that are violated", at_most=0.05)
def triplets(run: Run) -> float:
    """Triplet loss on eight triplets at a time: soon nearly all of them are empty."""
    clusters = Clusters(run, 24, spread=0.4)
    model = mlp(16, 48, 8, activation=nn.ReLU)
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 2e-3), model)

    def distances(size: int) -> tuple[Tensor, Tensor]:
        label = run.randint(clusters.classes, size)
        other = (label + 1 + run.randint(clusters.classes - 1, size)) % clusters.classes
        seen = model(clusters.of(torch.cat([label, label, other])))
        anchor, same, different = functional.normalize(seen, dim=1).chunk(3)
        return (anchor - same).square().sum(1), (anchor - different).square().sum(1)

    for _ in range(1200):
        near, far = distances(8)
        run.step(optimizer, (near - far + 0.3).clamp_min(0).mean())
    with torch.no_grad():
        near, far = distances(20_000)
    return float((near > far - 0.3).float().mean())


@training("loss on new pairs", at_most=0.06)
def contrastive_pairs(run: Run) -> float:
    """A siamese network with a hinge: pairs of different classes beyond the margin say nothing."""
    clusters = Clusters(run, 10, spread=0.5)
    model = mlp(16, 48, 8, activation=nn.ReLU)
    optimizer = run.wrap(torch.optim.SGD(model.parameters(), 0.03, momentum=0.9), model)

    def loss_of(size: int) -> Tensor:
        left, label = clusters.draw(size)
        same = run.rand(size) < 0.1
        other = torch.where(same, label, run.randint(clusters.classes, size))
        distance = (model(left) - model(clusters.of(other))).square().sum(1).add(1e-6).sqrt()
        pulled = distance.square()
        pushed = (1.0 - distance).clamp_min(0).square()
        return torch.where(other == label, pulled, pushed).mean()

    for _ in range(1000):
        run.step(optimizer, loss_of(8))
    with torch.no_grad():
        return float(loss_of(8192))


@training("loss on new pairs", at_most=1.0)
def info_nce(run: Run) -> float:
    """Two views of a thing and InfoNCE, with a temperature that is learned from 1 on."""
    shared = torch.randn(6, 16, generator=run.world)
    model = nn.ModuleDict({"left": mlp(16, 32, 8), "right": mlp(16, 32, 8)})
    model.register_parameter("scale", nn.Parameter(torch.zeros(())))
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0), model)

    def loss_of(size: int) -> Tensor:
        things = run.randn(size, 6) @ shared
        views = [things + 0.5 * run.randn(size, 16) for _ in range(2)]
        left = functional.normalize(model["left"](views[0]), dim=1)
        right = functional.normalize(model["right"](views[1]), dim=1)
        logits = left @ right.T * model.scale.exp().clamp_max(100.0)
        which = torch.arange(size)
        rows = functional.cross_entropy(logits, which)
        return (rows + functional.cross_entropy(logits.T, which)) / 2

    for _ in range(700):
        run.step(optimizer, loss_of(64))
    with torch.no_grad():
        return sum(float(loss_of(64)) for _ in range(50)) / 50


@training("divergence from its teacher on the other instrument", at_most=0.2)
def copy_of_the_teacher(run: Run) -> float:
    """A student that begins as its teacher, and follows it from one instrument to another."""
    clusters = Clusters(run, 8, spread=0.5)
    instrument = torch.randn(16, 16, generator=run.world) / 4
    teacher = mlp(16, 48, 48, 8)
    first = torch.optim.AdamW(teacher.parameters(), 3e-3)
    for _ in range(150):  # not what is judged: no wrapper
        first.zero_grad()
        clusters.loss(teacher, 32).backward()
        first.step()
    student = copy.deepcopy(teacher)
    optimizer = run.wrap(torch.optim.AdamW(student.parameters(), 2e-3), student)

    def divergence(size: int, share: float) -> Tensor:
        x, _ = clusters.draw(size)
        with torch.no_grad():
            wanted = teacher(x).log_softmax(1)
        said = student(x.lerp(x @ instrument, share)).log_softmax(1)
        return functional.kl_div(said, wanted, log_target=True, reduction="batchmean")

    for step in range(900):
        # Rises as the weight of a consistency loss does: from next to nothing to all of it.
        share = math.exp(-5 * (1 - min(1.0, step / 300)) ** 2) if step else 1e-5
        run.step(optimizer, divergence(16, share))
    with torch.no_grad():
        return float(divergence(8192, 1.0))


@training("loss of the teacher on new samples", at_most=1.0)
def mean_teacher(run: Run) -> float:
    """Few labels, and a student that agrees with its own moving average, kept in the model."""
    clusters = Clusters(run, 6, spread=1.1)
    student = mlp(16, 48, 6, activation=nn.ReLU)
    teacher = copy.deepcopy(student).requires_grad_(False)
    model = nn.ModuleDict({"student": student, "teacher": teacher})
    optimizer = run.wrap(torch.optim.AdamW(student.parameters(), 2e-3), model)
    labelled, labels = clusters.draw(48)
    for step in range(800):
        chosen = run.randint(len(labels), 8)
        x, _ = clusters.draw(32)
        views = [x + 0.3 * run.randn(*x.shape) for _ in range(2)]
        said = student(torch.cat([labelled[chosen], views[0]]))
        with torch.no_grad():
            wanted = teacher(views[1]).softmax(1)
        agreement = (said[8:].softmax(1) - wanted).square().sum(1).mean()
        weight = min(1.0, step / 300)
        run.step(optimizer, functional.cross_entropy(said[:8], labels[chosen]) + weight * agreement)
        with torch.no_grad():
            for kept, new in zip(teacher.parameters(), student.parameters(), strict=True):
                kept.lerp_(new, 0.03)
    return clusters.validate(teacher)
