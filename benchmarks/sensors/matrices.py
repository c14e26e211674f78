"""The matrices that the sensors are held against: six kinds, two of them healthy, and real runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.workload import GPT, Size, loss_of
from stableopt.commands.demo.corpus import load_corpus
from stableopt.functional.rank import effective_rank_of

CLUSTERS = 8
CLUSTER_NOISE = 0.1
COLLAPSED = 1 / 5
TINY = 1e-7
"""The smallest singular value of a near-singular matrix, over the largest."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of matrix.

    Attributes:
        name: In results.
        title: In tables.
        sick: Whether a sensor should complain; ``None`` where that depends on the purpose.
        make: Returns one from its shape and a generator; ``None`` for trained ones.
    """

    name: str
    title: str
    sick: bool | None
    make: Callable[[int, int, torch.Generator], Tensor] | None


def _gaussian(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=draw) / columns**0.5


def _clustered(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    centres = _gaussian(CLUSTERS, columns, draw)
    mine = torch.randint(CLUSTERS, (rows,), generator=draw)
    return centres[mine] + CLUSTER_NOISE * _gaussian(rows, columns, draw)


def _duplicated(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    matrix = _gaussian(rows, columns, draw)
    order = torch.randperm(rows, generator=draw)
    half = rows // 2
    matrix[order[:half]] = matrix[order[half : 2 * half]]
    return matrix


def _collapsed(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    count = min(rows, columns)
    places = torch.linspace(0, 1, count, dtype=torch.float64)
    low, high = 0.0, 400.0
    for _ in range(60):
        middle = (low + high) / 2
        above = bool(effective_rank_of(torch.exp(-middle * places)) > COLLAPSED * count)
        low, high = (middle, high) if above else (low, middle)
    left = torch.linalg.qr(torch.randn(rows, count, generator=draw)).Q
    right = torch.linalg.qr(torch.randn(columns, count, generator=draw)).Q
    return (left * (2 * torch.exp(-high * places)).float()) @ right.T


def _near_singular(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    matrix = _gaussian(rows, columns, draw).double()
    lost = functional.normalize(torch.randn(columns, generator=draw, dtype=torch.float64), dim=0)
    image = matrix @ lost
    left = 1 - 2 * TINY / image.norm()  # a Gaussian of this scale has a norm of about 2
    return (matrix - left * torch.outer(image, lost)).float()


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="gaussian", title="Gaussian", sick=False, make=_gaussian),
        Kind(name="trained", title="trained", sick=False, make=None),
        Kind(name="clustered", title="8 clusters of rows", sick=True, make=_clustered),
        Kind(name="duplicated", title="half of the rows are copies", sick=True, make=_duplicated),
        Kind(name="collapsed", title="effective rank a fifth", sick=True, make=_collapsed),
        Kind(name="near-singular", title="one σ of 1e-7 σ₁", sick=None, make=_near_singular),
    )
}
"""The kinds by their names."""


def make_matrix(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    """Return a float32 matrix of a kind that is not trained.

    Args:
        kind: A key of :data:`KINDS`.
        rows: Of it.
        columns: Of it.
        seed: The same one gives the same matrix.
    """
    make = KINDS[kind].make
    if make is None:
        raise ValueError(f"kind={kind!r} is trained, not made")
    return make(rows, columns, torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A short training on the bytes of the interpreter's own standard library.

    Attributes:
        name: In results.
        build: Returns the model.
        loss: Returns the loss of the model on bytes ``(sequences, length + 1)``.
        sequences: Of one step.
        length: Of one of them.
        steps: How many.
        lr: After a linear warm-up of a tenth of the steps, constant.
        kept: Which weights serve as trained matrices, by name.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor], Tensor]
    sequences: int
    length: int
    steps: int
    lr: float
    kept: tuple[str, ...]


class ByteMlp(nn.Module):
    """Predicts a byte from the sixteen before it: three square layers with residuals.

    Args:
        width: Of the layers; a multiple of 16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, width // 16)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of the byte that follows each row of sixteen."""
        x = self.tokens(text).flatten(1)
        for layer in self.layers:
            x = x + functional.gelu(layer(x))
        return self.head(x)


def _next_byte(model: nn.Module, batch: Tensor) -> Tensor:
    return functional.cross_entropy(model(batch[:, :-1]), batch[:, -1])


def _gpt(width: int, *, layers: int, steps: int, sequences: int) -> Run:
    return Run(
        name=f"GPT of width {width}",
        build=lambda: GPT(Size(width=width, layers=layers, heads=4)),
        loss=loss_of,
        sequences=sequences,
        length=64,
        steps=steps,
        lr=2e-3,
        kept=(f"blocks.{layers - 1}.out.weight", f"blocks.{layers - 1}.up.weight"),
    )


RUNS = (
    _gpt(256, layers=2, steps=320, sequences=4),
    Run(
        name="MLP of width 512",
        build=lambda: ByteMlp(512),
        loss=_next_byte,
        sequences=128,
        length=16,
        steps=800,
        lr=1e-3,
        kept=("layers.1.weight",),
    ),
)
"""What is trained: about a minute together. Nothing of 1024 or more is trained that fast."""

QUICK_RUNS = (_gpt(64, layers=1, steps=20, sequences=2),)


def train(run: Run, seed: int, look: Callable[[nn.Module, int], None]) -> tuple[nn.Module, float]:
    """Train a model and return it, and its loss over the last steps.

    Args:
        run: Which.
        seed: Of weights and data.
        look: Called with the model and the number of updates behind it, after every one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = run.build()
    text = load_corpus().training
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    losses = []
    for step in range(run.steps):
        optimizer.param_groups[0]["lr"] = run.lr * min(1.0, (step + 1) / (run.steps / 10))
        starts = torch.randint(len(text) - run.length, (run.sequences,), generator=draw)
        batch = text[starts[:, None] + torch.arange(run.length + 1)].long()
        loss = run.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        look(model, step + 1)
    last = losses[-max(1, run.steps // 20) :]
    return model, sum(last) / len(last)
