"""What several trainings are made of."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.harness import Run


def mlp(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Return linear layers of these widths, with an activation between any two."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


class Clusters:
    """Classes that are Gaussian clusters, moved through a fixed random layer.

    Args:
        run: Draws the samples, and its world the clusters.
        classes: How many.
        inputs: Width of a sample.
        spread: Of a cluster; the centres are a distance of some sqrt(2 · inputs) apart.
    """

    def __init__(self, run: Run, classes: int, inputs: int = 16, spread: float = 1.0) -> None:
        self._run, self._spread, self.classes = run, spread, classes
        self._centres = torch.randn(classes, inputs, generator=run.world)
        self._mixing = torch.randn(inputs, inputs, generator=run.world) / inputs**0.5

    def of(self, labels: Tensor) -> Tensor:
        """Draw one sample of each label."""
        centres = self._centres[labels]
        return (centres + self._spread * self._run.randn(*centres.shape)) @ self._mixing

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Draw samples and their labels."""
        labels = self._run.randint(self.classes, size)
        return self.of(labels), labels

    def loss(self, model: nn.Module, size: int) -> Tensor:
        """Return the mean cross-entropy of a classifier on new samples."""
        x, labels = self.draw(size)
        return functional.cross_entropy(model(x), labels)

    def validate(self, model: nn.Module) -> float:
        """Return the mean cross-entropy on many new samples, in evaluation mode."""
        model.eval()
        with torch.no_grad():
            return float(self.loss(model, 8192))


class Chain:
    """Text of a Markov chain: which symbol follows depends on the last one.

    Args:
        run: Draws the text, and its world the chain.
        symbols: How many.
        sharpness: The larger, the more certain what follows.
    """

    def __init__(self, run: Run, symbols: int = 16, sharpness: float = 2.0) -> None:
        self._run, self.symbols = run, symbols
        follows = torch.randn(symbols, symbols, generator=run.world)
        self._follows = (sharpness * follows).softmax(-1)

    def draw(self, rows: int, length: int, start: Tensor | None = None) -> Tensor:
        """Draw rows of text.

        Args:
            rows: How many.
            length: Of each.
            start: The symbols before the first ones; ``None`` for any.
        """
        last = self._run.randint(self.symbols, rows) if start is None else start
        text = []
        for _ in range(length):
            last = torch.multinomial(self._follows[last], 1, generator=self._run.data)[:, 0]
            text.append(last)
        return torch.stack(text, dim=1)
