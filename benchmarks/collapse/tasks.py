"""What the collapse benchmark trains: a GPT, a convolutional net, an LSTM and an autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from benchmarks.common.workload import Block, Size
from stableopt.commands.demo.corpus import Corpus, load_corpus

BYTES = 256
_CALLS_PER_SEED = 2**24  # so that no two pairs of seed and step share a generator
_DATA_SEED = 2**40


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Attributes:
        lr: Peak of the learning rate, after a linear warm-up; a cosine to a tenth follows.
        clip: Bound on the gradient norm; ``None`` for none.
        momentum: Of SGD; ``None`` for AdamW.
        warmup: Updates of the warm-up.
        decays: Whether the cosine follows, or the rate stays.
    """

    lr: float
    clip: float | None = 1.0
    momentum: float | None = None
    warmup: int = 40
    decays: bool = True

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Return the bare optimizer."""
        if self.momentum is None:
            return torch.optim.AdamW(model.parameters(), lr=self.lr, betas=(0.9, 0.95))
        return torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=5e-4
        )

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of the update that follows ``step`` others."""
        warm = min(1.0, (step + 1) / self.warmup)
        done = max(0, step - self.warmup) / max(1, steps - self.warmup)
        return self.lr * warm * (0.55 + 0.45 * math.cos(math.pi * done) if self.decays else 1.0)


class _Text:
    """Windows of Python's own standard library, byte by byte."""

    @cached_property
    def _corpus(self) -> Corpus:
        return load_corpus()

    def loss(self, model: nn.Module, seed: int, step: int, *, quick: bool) -> Tensor:
        """Return the mean cross-entropy of the next byte."""
        size, context = (4, 32) if quick else (8, 64)
        inputs, targets = self._corpus.batch(step, seed=seed, size=size, context=context)
        return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


class Transformer(_Text):
    """A pre-LN transformer on bytes.

    Args:
        hot: Whether it is trained at twenty times the learning rate, without clipping.
    """

    def __init__(self, *, hot: bool = False) -> None:
        self._hot = hot

    def build(self, seed: int, *, quick: bool) -> nn.Module:
        """Return the model; the same seed gives the same weights. Seeds differ in size."""
        width, layers = (32, 1) if quick else ((64, 3), (96, 2), (64, 4))[seed % 3]
        return _seeded(seed, lambda: _Gpt(Size(width=width, layers=layers, heads=4)))

    def recipe(self, seed: int) -> Recipe:
        """Return how it is trained."""
        if self._hot:
            return Recipe(lr=(2e-2, 3e-2, 5e-2)[seed % 3], clip=None, decays=False)
        return Recipe(lr=(1e-3, 2e-3, 3e-3)[seed % 3])

    def role(self, name: str) -> str:
        """Return what a weight is."""
        if name.startswith(("tokens", "positions")):
            return "embedding"
        if name.startswith("head"):
            return "head"
        return "attention" if ".qkv." in name or ".out." in name else "mlp"


class _Gpt(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BYTES, size.width)
        self.positions = nn.Embedding(64, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, BYTES, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, text: Tensor) -> Any:
        x = self.tokens(text) + self.positions.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Recurrent(_Text):
    """A two-layer LSTM on bytes."""

    def build(self, seed: int, *, quick: bool) -> nn.Module:
        """Return the model; the same seed gives the same weights. Seeds differ in size."""
        width = 32 if quick else (64, 96, 80)[seed % 3]
        return _seeded(seed, lambda: _Lstm(width))

    def recipe(self, seed: int) -> Recipe:
        """Return how it is trained."""
        return Recipe(lr=(3e-3, 2e-3, 4e-3)[seed % 3])

    def role(self, name: str) -> str:
        """Return what a weight is."""
        return {"tokens": "embedding", "head": "head"}.get(name.split(".")[0], "recurrent")


class _Lstm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BYTES, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, BYTES)

    def forward(self, text: Tensor) -> Any:
        return self.head(self.lstm(self.tokens(text))[0])


class Images:
    """A residual convolutional net with BatchNorm, and gratings of sixteen classes in noise.

    Eight directions and two frequencies; phase, contrast and colour are drawn.
    """

    def build(self, seed: int, *, quick: bool) -> nn.Module:
        """Return the model; the same seed gives the same weights. Seeds differ in size."""
        width = 16 if quick else (32, 40, 48)[seed % 3]
        return _seeded(seed, lambda: _ConvNet(width))

    def recipe(self, seed: int) -> Recipe:
        """Return how it is trained."""
        by_momentum = Recipe(lr=0.05, momentum=0.9, clip=None)
        return (by_momentum, Recipe(lr=2e-3, clip=None), by_momentum)[seed % 3]

    def loss(self, model: nn.Module, seed: int, step: int, *, quick: bool) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        draw = torch.Generator().manual_seed(_DATA_SEED + seed * _CALLS_PER_SEED + step)
        count, size = (16, 8) if quick else (32, 16)
        classes = torch.randint(16, (count,), generator=draw)
        angle = (classes % 8) * (math.pi / 8)
        frequency = torch.where(classes < 8, 0.9, 1.6)
        phase, contrast = torch.rand(2, count, generator=draw)
        color = torch.rand(count, 3, 1, 1, generator=draw) + 0.2
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        along = x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]
        waves = torch.sin(along * frequency[:, None, None] + 2 * math.pi * phase[:, None, None])
        signal = waves * (0.4 + contrast[:, None, None])
        noise = torch.randn(count, 3, size, size, generator=draw)
        return functional.cross_entropy(model(signal[:, None] * color + 0.7 * noise), classes)

    def role(self, name: str) -> str:
        """Return what a weight is."""
        return "head" if name.startswith("head") else "mlp" if "hidden" in name else "conv"


class _ConvNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        shapes = [(width, width), (width, 2 * width), (2 * width, 2 * width)]
        self.blocks = nn.ModuleList(_Residual(*shape) for shape in shapes)
        self.hidden = nn.Linear(2 * width, 64)
        self.head = nn.Linear(64, 16)

    def forward(self, images: Tensor) -> Any:
        x = functional.max_pool2d(functional.relu(self.stem_norm(self.stem(images))), 2)
        for block in self.blocks:
            x = block(x)
        return self.head(functional.relu(self.hidden(x.mean((2, 3)))))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Any:
        inner = functional.relu(self.first_norm(self.first(x)))
        straight = x if self.skip is None else self.skip(x)
        return functional.relu(straight + self.second_norm(self.second(inner)))


class Autoencoder:
    """A deep MLP that squeezes 96 observations of 12 hidden causes through 24 units."""

    def build(self, seed: int, *, quick: bool) -> nn.Module:
        """Return the model; the same seed gives the same weights. Seeds differ in size."""
        wide = 64 if quick else (128, 160, 192)[seed % 3]
        sizes = (96, wide, wide, 64, 24, 64, wide, wide, 96)

        def layers() -> nn.Module:
            steps = [nn.Sequential(nn.Linear(a, b), nn.GELU()) for a, b in pairwise(sizes[:-1])]
            return nn.Sequential(*steps, nn.Linear(wide, 96))

        return _seeded(seed, layers)

    def recipe(self, seed: int) -> Recipe:
        """Return how it is trained."""
        return Recipe(lr=(1e-3, 3e-3, 2e-3)[seed % 3], clip=None)

    def loss(self, model: nn.Module, seed: int, step: int, *, quick: bool) -> Tensor:
        """Return the mean squared error of a batch."""
        draw = torch.Generator().manual_seed(_DATA_SEED + seed * _CALLS_PER_SEED + step)
        causes = torch.randn(32 if quick else 128, 12, generator=draw)
        first, second = self._world
        seen = torch.tanh(causes @ first) @ second
        seen = seen + 0.1 * torch.randn(seen.shape, generator=draw)
        return functional.mse_loss(model(seen), seen)

    def role(self, name: str) -> str:
        """Return what a weight is."""
        return "mlp"

    @cached_property
    def _world(self) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(_DATA_SEED)
        first = torch.randn(12, 64, generator=draw) / math.sqrt(12)
        return first, torch.randn(64, 96, generator=draw) / math.sqrt(20)


def _seeded(seed: int, build: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = build()
        return module


TASKS: dict[str, Transformer | Images | Recurrent | Autoencoder] = {
    "gpt": Transformer(),
    "conv": Images(),
    "lstm": Recurrent(),
    "autoencoder": Autoencoder(),
    "hot": Transformer(hot=True),
}
"""The kinds of runs by their names; ``hot`` is the one that is not healthy."""

HEALTHY = tuple(name for name in TASKS if name != "hot")
