"""What the fault benchmark trains: a classifier and a small transformer, each within a second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.workload import Block, Size

_CALLS_PER_SEED = 2**24  # so that no two pairs of seed and call share a generator
_DATA_SEED = 2**40
_TRAINING, _VALIDATION = 6144, 1536
_AMPLE = 64 * _TRAINING
"""More than 1,500 updates see: nothing is learned by heart, and worse for it elsewhere."""

_CONTEXT, _WIDTH = 24, 32


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of an embedding that no batch ever touches.

    Attributes:
        name: The parameter.
        first: The first of them.
        count: How many.
        width: Elements of a row.
    """

    name: str
    first: int
    count: int
    width: int


class Classifier:
    """An embedding, an MLP with BatchNorm, and the classes of a teacher with 10% noise.

    Its tokens come from the first 48 of 64 rows of the embedding. After a shift the teacher is
    another one.

    Args:
        name: Of the task.
        training: Examples to train on.
    """

    untouched = Rows(name="tokens.weight", first=48, count=16, width=16)

    def __init__(self, name: str = "classifier", training: int = _TRAINING) -> None:
        self.name, self._training = name, training

    def build(self, seed: int) -> nn.Module:
        """Return the model; the same seed gives the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _ClassifierModel()

    def batch(self, seed: int, call: int, *, shifted: bool = False) -> Any:
        """Return tokens ``(32, 6)``, features ``(32, 16)`` and classes ``(32,)`` of one call."""
        generator = torch.Generator().manual_seed(seed * _CALLS_PER_SEED + call)
        chosen = torch.randint(self._training, (32,), generator=generator)
        return tuple(part[chosen] for part in self._examples(shifted))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        tokens, features, classes = batch
        return functional.cross_entropy(model(tokens, features), classes)

    @torch.no_grad()
    def validate(self, model: nn.Module, *, shifted: bool = False) -> float:
        """Return the mean cross-entropy of what is never trained on."""
        model.eval()
        loss = self.loss(model, tuple(part[self._training :] for part in self._examples(shifted)))
        model.train()
        return float(loss)

    @lru_cache(maxsize=4)  # noqa: B019 - tasks are there for good
    def _examples(self, shifted: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return all examples; those of another teacher after a shift."""
        draw = torch.Generator().manual_seed(_DATA_SEED + shifted)
        count = self._training + _VALIDATION
        tokens = torch.randint(self.untouched.first, (count, 6), generator=draw)
        features = torch.randn(count, 16, generator=draw)
        meaning = torch.randn(self.untouched.first, 8, generator=draw)
        teacher = torch.randn(16, 8, generator=draw)
        classes = (meaning[tokens].mean(1) * 2 + features @ teacher / 4).argmax(1)
        noise = torch.randint(8, (count,), generator=draw)
        noisy = torch.rand(count, generator=draw) < 0.1
        return tokens, features, torch.where(noisy, noise, classes)


class _ClassifierModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(64, 16)
        self.layers = nn.Sequential(
            nn.Linear(32, 48),
            nn.BatchNorm1d(48),
            nn.ReLU(),
            nn.Linear(48, 48),
            nn.BatchNorm1d(48),
            nn.ReLU(),
            nn.Linear(48, 8),
        )

    def forward(self, tokens: Tensor, features: Tensor) -> Any:
        return self.layers(torch.cat([self.tokens(tokens).mean(1), features], dim=1))


class Text:
    """A transformer of one block, and the text of a Markov chain over 48 symbols.

    Its symbols come from the first 48 of 64 rows of the embedding.

    Args:
        name: Of the task.
        training: Symbols to train on.
    """

    untouched = Rows(name="symbols.weight", first=48, count=16, width=_WIDTH)
    _successors = 4

    def __init__(self, name: str = "transformer", training: int = _TRAINING) -> None:
        self.name, self._training = name, training // _CONTEXT
        self._windows = self._training + _VALIDATION // _CONTEXT

    def build(self, seed: int) -> nn.Module:
        """Return the model; the same seed gives the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _TextModel()

    def batch(self, seed: int, call: int, *, shifted: bool = False) -> Any:
        """Return symbols and the symbols that follow them, ``(8, 24)`` each."""
        generator = torch.Generator().manual_seed(seed * _CALLS_PER_SEED + call)
        rows = torch.randint(self._training, (8,), generator=generator)
        text = self._text(shifted)[rows]
        return text[:, :-1], text[:, 1:]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy of the next symbol."""
        text, targets = batch
        return functional.cross_entropy(model(text).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def validate(self, model: nn.Module, *, shifted: bool = False) -> float:
        """Return the mean cross-entropy of the text that is never trained on."""
        text = self._text(shifted)[self._training :]
        return float(self.loss(model, (text[:, :-1], text[:, 1:])))

    @lru_cache(maxsize=4)  # noqa: B019
    def _text(self, shifted: bool) -> Tensor:
        """Return windows of text: of a symbol's four successors one comes half the time.

        After a shift the successors are others.
        """
        draw = torch.Generator().manual_seed(_DATA_SEED + shifted)
        symbols, successors = self.untouched.first, self._successors
        follows = torch.randint(symbols, (symbols, successors), generator=draw)
        now = torch.randint(symbols, (self._windows,), generator=draw)
        text = [now]
        for _ in range(_CONTEXT):
            pick = torch.randint(2 * successors - 2, (self._windows,), generator=draw)
            now = follows[now, (pick - successors + 2).clamp_min(0)]
            text.append(now)
        return torch.stack(text, dim=1)


class _TextModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Embedding(64, _WIDTH)
        self.positions = nn.Embedding(_CONTEXT, _WIDTH)
        self.block = Block(Size(width=_WIDTH, layers=1, heads=2))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, 64)
        for embedding in (self.symbols, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, text: Tensor) -> Any:
        x = self.symbols(text) + self.positions.weight[: text.shape[1]]
        return self.head(self.norm(self.block(x)))


AMPLE = ("classifier with ample data", "transformer with ample data")
"""The same with so many examples that none comes often, for long runs."""

_ALL: tuple[Classifier | Text, ...] = (
    Classifier(),
    Text(),
    Classifier(AMPLE[0], _AMPLE),
    Text(AMPLE[1], _AMPLE),
)
TASKS = {task.name: task for task in _ALL}
"""The tasks by their names."""
