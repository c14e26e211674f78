"""What the closed-loop benchmark trains: a byte-level GPT, and adapters of one that is frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.learning_rate.model import GPT, Shape
from stableopt.commands.demo.corpus import Corpus, load_corpus

VALIDATED = 128
"""Windows of the validation loss."""

_WARMUP = 20


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long a run is, and when it is driven.

    Attributes:
        shape: Of the GPT.
        batch: Windows of a batch.
        steps: Of a run.
        begin: First update that is driven.
        end: First update that is not any more.
        haste: How many times the drive acts in an update.
        pretrained: Updates of the model that adapters are added to; they see what follows.
        lr: After the warm-up; it stays, so that the run could go on for ever.
    """

    shape: Shape = field(default_factory=lambda: Shape(width=48, context=32))
    batch: int = 8
    steps: int = 300
    begin: int = 60
    end: int = 220
    haste: int = 1
    pretrained: int = 400
    lr: float = 2e-3

    def drives(self, step: int) -> bool:
        """Tell whether the update after ``step`` others is driven."""
        return self.begin <= step < self.end

    def lr_at(self, step: int) -> float:
        """Return the learning rate of the update after ``step`` others."""
        return self.lr * min(1.0, (step + 1) / _WARMUP)


COURSE = Course()
QUICK = Course(
    shape=Shape(width=32, layers=1, heads=2, context=16),
    batch=4,
    steps=60,
    begin=10,
    end=45,
    haste=6,
    pretrained=20,
)
"""A run of it takes less than a second."""


class Adapted(nn.Module):
    """A frozen linear layer and what an adapter of low rank adds to it.

    Attributes:
        scaling: Factor on the product of the adapter's factors.
    """

    def __init__(self, layer: nn.Linear, rank: int = 4, scaling: float = 2.0) -> None:
        super().__init__()
        self.layer = layer
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(…, in)`` to ``(…, out)``."""
        added: Tensor = self.lora_B(self.lora_A(x)) * self.scaling
        return self.layer(x) + added


def new_gpt(course: Course, seed: int) -> GPT:
    """Return a new model; torch's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(course.shape)


def adapted_gpt(course: Course, seed: int) -> GPT:
    """Return a trained and frozen model with fresh adapters; the same seed gives the same one."""
    model = new_gpt(course, seed)
    model.load_state_dict(_pretrained(course, seed))
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            block.attention.qkv = Adapted(block.attention.qkv)
            block.up = Adapted(block.up)
    return model


@cache
def _pretrained(course: Course, seed: int) -> dict[str, Tensor]:
    model = new_gpt(course, seed)
    optimizer = adamw(model)
    for step in range(course.pretrained):
        optimizer.param_groups[0]["lr"] = course.lr_at(step)
        optimizer.zero_grad()
        loss_of(model, course, step, seed).backward()
        optimizer.step()
    return model.state_dict()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that everything is trained with."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)


def loss_of(model: nn.Module, course: Course, step: int, seed: int) -> Tensor:
    """Return the cross-entropy of the batch of one step, in nats per byte.

    Args:
        model: What is trained.
        course: The size of the batch.
        step: Number of the batch.
        seed: Of the batches.
    """
    size, context = course.batch, course.shape.context
    return _cross_entropy(model, *_corpus().batch(step, seed=seed, size=size, context=context))


@torch.no_grad()
def validate(model: nn.Module, course: Course) -> float:
    """Return the mean cross-entropy of windows that are never trained on."""
    windows = _corpus().validation_batch(size=VALIDATED, context=course.shape.context)
    return float(_cross_entropy(model, *windows))


def _cross_entropy(model: nn.Module, text: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(model(text).flatten(0, 1), target.flatten())


@cache
def _corpus() -> Corpus:
    return load_corpus()
