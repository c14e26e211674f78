"""What is trained in the learning-rate benchmark, and how its learning rate falls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.learning_rate.model import GPT, Shape
from benchmarks.learning_rate.other_models import GatedConvolutions, Lstm, NeuralNgram
from stableopt.commands.demo.corpus import Corpus, load_corpus

VALIDATED = 128
"""Windows of the validation loss."""

CONTEXT = 64
"""Bytes that a model sees which is no GPT."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, the size of its batches and the length of its run.

    Attributes:
        shape: Of the GPT; not used with ``other``.
        other: Makes a model that is no GPT.
        batch: Windows of a batch.
        steps: Batches.
        warmup: Steps in which the learning rate rises to its peak.
    """

    shape: Shape = field(default_factory=Shape)
    other: Callable[[], nn.Module] | None = None
    batch: int = 16
    steps: int = 400
    warmup: int = 20

    @property
    def context(self) -> int:
        """Bytes of a window."""
        return self.shape.context if self.other is None else CONTEXT

    def build(self, seed: int, edit: Callable[[Shape], Shape] | None = None) -> nn.Module:
        """Return a new model; torch's random state stays as it is.

        Args:
            seed: Of its weights.
            edit: What a method changes about the shape of a GPT.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.other is not None:
                return self.other()
            return GPT(self.shape if edit is None else edit(self.shape))

    def factor(self, step: int, power: float = 1.0) -> float:
        """Return the learning rate of a step as a share of its peak.

        A linear rise over ``warmup`` steps, then a cosine down to 0.

        Args:
            step: From 0.
            power: Of the cosine.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        return (0.5 * (1.0 + math.cos(math.pi * done))) ** power

    def loss(self, model: nn.Module, step: int, seed: int, z_loss: float = 0.0) -> Tensor:
        """Return the cross-entropy of one batch, in nats per byte.

        Args:
            model: What is trained.
            step: Number of the batch.
            seed: Of the batches.
            z_loss: Weight of the mean squared log of the softmax's denominator.
        """
        text, target = _corpus().batch(step, seed=seed, size=self.batch, context=self.context)
        logits = model(text)
        loss = _cross_entropy(logits, target)
        if z_loss:
            loss = loss + z_loss * logits.logsumexp(-1).square().mean()
        return loss

    @torch.no_grad()
    def validate(self, model: nn.Module) -> float:
        """Return the mean cross-entropy of windows that are never trained on."""
        text, target = _corpus().validation_batch(size=VALIDATED, context=self.context)
        return float(_cross_entropy(model(text), target))

    def quick(self) -> Task:
        """Return the same in tiny: a run of it takes a fraction of a second."""
        shape = replace(self.shape, width=16, layers=1, heads=2, context=16)
        return replace(self, shape=shape, batch=4, steps=12, warmup=3)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


@cache
def _corpus() -> Corpus:
    return load_corpus()


LONG = "long"
MAIN = ("pre-LN", "no norm")
"""Those on which everything is compared."""

TASKS: dict[str, Task] = {
    "pre-LN": Task(),
    "no norm": Task(shape=Shape(norm="none", layers=4), batch=8, steps=250),
    "gpt2 init": Task(shape=Shape(init="gpt2")),
    "post-LN": Task(shape=Shape(norm="post")),
    "zero init": Task(shape=Shape(init="zero")),
    LONG: Task(steps=4800),
    "LSTM": Task(other=Lstm),
    "convolutions": Task(other=GatedConvolutions),
    "deep": Task(shape=Shape(width=80, layers=5, heads=5, context=48)),
    "n-gram": Task(other=NeuralNgram),
}
"""By name; ``"deep"`` and ``"n-gram"`` were never seen while anything was tuned."""
