"""Several tasks, experts or classes in one training: gradients of very different sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import Clusters, mlp

_INPUTS = 12
_DOMAINS = 8


class _TwoTasks(nn.Module):
    """One trunk; a head that classifies, and one whose answers are in raw units.

    Args:
        run: Its world draws what is right, its data the samples.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self.trunk = mlp(_INPUTS, 48, 48)
        self.classes, self.amount = nn.Linear(48, 6), nn.Linear(48, 1)
        self._teacher = torch.randn(_INPUTS, 6, generator=run.world)
        self._slope = torch.randn(_INPUTS, 1, generator=run.world)

    def loss(self, task: int, size: int = 32) -> Tensor:
        """Return the mean cross-entropy of task 0, or the squared error of task 1 in metres."""
        x = self._run.randn(size, _INPUTS)
        seen = self.trunk(x).tanh()
        if task == 0:
            return functional.cross_entropy(self.classes(seen), (x @ self._teacher).argmax(1))
        return functional.mse_loss(self.amount(seen), (x @ self._slope).tanh())

    @torch.no_grad()
    def validate(self) -> float:
        """Return the cross-entropy, plus the squared error as a share of the variance."""
        return float(self.loss(0, 8192) + self.loss(1, 8192) / 0.85)


def _alternate(run: Run, block: int) -> float:
    """Train both tasks in blocks of steps: the second one in millimetres, so to speak."""
    model = _TwoTasks(run)
    adam = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.98))
    optimizer = run.wrap(adam, model)
    for step in range(1200):
        task = step // block % 2
        run.step(optimizer, model.loss(task) * (1.0, 1000.0)[task])
    return model.validate()


@training("loss of both tasks", at_most=1.0)
def tasks_in_blocks(run: Run) -> float:
    """Two tasks in blocks of 50 steps, the gradient of one a thousand times that of the other."""
    return _alternate(run, 50)


@training("loss of both tasks", at_most=1.0)
def tasks_in_turns(run: Run) -> float:
    """The same two tasks, alternating with every step."""
    return _alternate(run, 1)


@training("mean relative error of the five tasks", at_most=0.6)
def rare_tasks(run: Run) -> float:
    """Five tasks drawn at random: the gradient of the rarest, one in 150, is 300 times as large."""
    scales = torch.tensor([1.0, 2.0, 5.0, 15.0, 30.0])
    weights = torch.tensor([0.6, 0.3, 0.07, 0.02, 0.007])
    slopes = torch.randn(5, _INPUTS, generator=run.world) / _INPUTS**0.5
    model = mlp(_INPUTS + 5, 64, 64, 1, activation=nn.GELU)
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.98)), model)

    def error(task: int, size: int) -> Tensor:
        x = run.randn(size, _INPUTS)
        mark = functional.one_hot(torch.full((size,), task), 5).float()
        wanted = scales[task] * (x @ slopes[task])
        return functional.mse_loss(model(torch.cat([x, mark], dim=1))[:, 0], wanted)

    for _ in range(1500):
        task = int(torch.multinomial(weights, 1, generator=run.data))
        run.step(optimizer, error(task, 32))
    with torch.no_grad():
        return float(sum(error(task, 4096) / scales[task] ** 2 for task in range(5)) / 5)


class _Experts(nn.Module):
    """A router that sends every sample to one of eight experts, by its most likely choice."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(_INPUTS, _DOMAINS, bias=False)
        self.experts = nn.ModuleList(mlp(_INPUTS, 16, 4) for _ in range(_DOMAINS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the answers, and how unevenly the work is spread."""
        share = self.router(x).softmax(1)
        weight, chosen = share.max(1)
        answers = torch.zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0]
            if len(mine):
                answers = answers.index_put((mine,), weight[mine, None] * expert(x[mine]))
        used = functional.one_hot(chosen, _DOMAINS).float().mean(0)
        return answers, _DOMAINS * (used * share.mean(0)).sum()


@training("loss on new samples of all domains", at_most=0.6)
def experts(run: Run) -> float:
    """Top-1 experts, a parameter group each, most of which a batch of one domain does not reach."""
    homes = 2 * torch.randn(_DOMAINS, _INPUTS, generator=run.world)
    maps = torch.randn(_DOMAINS, _INPUTS, 4, generator=run.world) / _INPUTS**0.5
    model = _Experts()
    groups = [{"params": list(part.parameters())} for part in (model.router, *model.experts)]
    optimizer = run.wrap(torch.optim.AdamW(groups, 5e-3), model)

    def loss_of(domain: int, size: int) -> tuple[Tensor, Tensor]:
        away = run.randn(size, _INPUTS)
        answers, uneven = model(homes[domain] + away)
        return functional.mse_loss(answers, away @ maps[domain]), uneven

    for _ in range(800):
        error, uneven = loss_of(int(run.randint(_DOMAINS)), 24)
        run.step(optimizer, error + 0.01 * uneven)
    with torch.no_grad():
        return float(sum(loss_of(d, 1024)[0] for d in range(_DOMAINS)) / _DOMAINS)


def _rare_class(run: Run, make: type[Optimizer], **options: float) -> float:
    """Tell apart what is one in two hundred, and return the loss by that of the base rate."""
    clusters = Clusters(run, 2, inputs=8, spread=1.6)
    model = mlp(8, 32, 2, activation=nn.ReLU)
    optimizer = run.wrap(make(model.parameters(), **options), model)

    def loss_of(size: int) -> Tensor:
        labels = (run.rand(size) < 0.005).long()
        return functional.cross_entropy(model(clusters.of(labels)), labels)

    for _ in range(1200):
        run.step(optimizer, loss_of(16))
    with torch.no_grad():
        return float(loss_of(100_000)) / 0.0315


@training("loss by that of the base rate", at_most=0.6)
def rare_class_sgd(run: Run) -> float:
    """One sample in 200 is of the other class, sixteen at a time, SGD with momentum."""
    return _rare_class(run, torch.optim.SGD, lr=0.05, momentum=0.9)


@training("loss by that of the base rate", at_most=0.6)
def rare_class_adam(run: Run) -> float:
    """One sample in 200 is of the other class, sixteen at a time, AdamW."""
    return _rare_class(run, torch.optim.AdamW, lr=2e-3)
