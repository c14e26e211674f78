"""Sequences: of lengths that jump, with states that stay, and without a label now and then."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import Chain, mlp

_IGNORED = -100


class _Adder(nn.Module):
    """A GRU that reads numbers and marks, and says the sum of the two that are marked."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 20, batch_first=True), nn.Linear(20, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, read from the last state."""
        return self.head(self.rnn(x)[0][:, -1])[:, 0]


@training("squared error at length 24, by the variance", at_most=0.3)
def curriculum(run: Run) -> float:
    """A GRU that adds two numbers: the sequences become longer in jumps, 4, 8, 16, 24."""
    model = _Adder()
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0.0), model)

    def loss_of(length: int, size: int) -> Tensor:
        numbers, marks = run.rand(size, length), torch.zeros(size, length)
        marks.scatter_(1, run.rand(size, length).topk(2, dim=1).indices, 1.0)
        said = model(torch.stack([numbers, marks], dim=2))
        return functional.mse_loss(said, (numbers * marks).sum(1))

    for step in range(700):
        length = (4, 8, 16, 24)[min(step // 200, 3)]
        run.step(optimizer, loss_of(length, 16))
    with torch.no_grad():
        return float(loss_of(24, 2048)) * 6


@training("CTC loss on new sequences, per symbol", at_most=0.5)
def ctc(run: Run) -> float:
    """CTC on frames of unknown length, with a few inputs that are too short and count as zero."""
    symbols, width = 6, 12
    looks = torch.randn(symbols, width, generator=run.world)
    model = nn.Sequential(
        nn.Conv1d(width, 32, 3, padding=1), nn.Tanh(), nn.Conv1d(32, symbols + 1, 3, padding=1)
    )
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 4e-3), model)

    def loss_of(size: int, cut: float = 0.0) -> Tensor:
        labels = run.randint(symbols, size, 6)
        times = 2 + run.randint(4, size, 6)
        lengths = times.sum(1)
        frames = torch.zeros(size, int(lengths.max()), width)
        for i in range(size):
            frames[i, : lengths[i]] = looks[labels[i].repeat_interleave(times[i])]
        frames += 0.4 * run.randn(*frames.shape)
        lengths = torch.where(run.rand(size) < cut, torch.tensor(4), lengths)
        said = model(frames.transpose(1, 2)).permute(2, 0, 1).log_softmax(2)
        full = torch.full((size,), 6)
        # Symbol 0 is the blank.
        return functional.ctc_loss(said, labels + 1, lengths, full, zero_infinity=True)

    for _ in range(500):
        run.step(optimizer, loss_of(8, cut=0.03))
    with torch.no_grad():
        return float(loss_of(512))


class _Reader(nn.Module):
    """A GRU on symbols that begins where it is told to."""

    def __init__(self, symbols: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, symbols)

    def forward(self, text: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what may follow every symbol, and the state after the last."""
        seen, state = self.rnn(self.embedding(text), state)
        return self.head(seen), state


@training("loss on new text", at_most=1.9)
def carried_state(run: Run) -> float:
    """A GRU whose state is carried from batch to batch, and now and then begins anew."""
    chain, rows, length = Chain(run), 8, 12
    model = _Reader(chain.symbols)
    optimizer = run.wrap(torch.optim.SGD(model.parameters(), 0.3, momentum=0.9), model)

    def loss_of(last: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        text = torch.cat([last[:, None], chain.draw(len(last), length, last)], dim=1)
        said, state = model(text[:, :-1], state)
        loss = functional.cross_entropy(said.flatten(0, 1), text[:, 1:].flatten())
        return loss, text[:, -1], state.detach()

    last, state = run.randint(chain.symbols, rows), None
    for step in range(500):
        if step % 120 == 119:  # the end of a book
            last, state = run.randint(chain.symbols, rows), None
        loss, last, state = loss_of(last, state)
        run.step(optimizer, loss)
    with torch.no_grad():
        return float(loss_of(run.randint(chain.symbols, 1024), None)[0])


@training("loss on all questions", at_most=0.2)
def ignored_labels(run: Run) -> float:
    """Micro-batches of answers, one in 40 without any: its loss is 0/0, its gradient zero."""
    answers = torch.randperm(64, generator=run.world)
    model = nn.Sequential(nn.Embedding(64, 16), mlp(16, 32, 64))
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 3e-3), model)
    for _ in range(400):
        optimizer.zero_grad()
        for _ in range(4):
            asked = run.randint(64, 16)
            labels = answers[asked].clone()
            labels[run.rand(16) < 0.5] = _IGNORED
            if run.chance(1 / 40):
                labels[:] = _IGNORED
            loss = functional.cross_entropy(model(asked), labels, ignore_index=_IGNORED)
            (loss / 4).backward()
            optimizer.observe(loss=loss)
        optimizer.step()
    with torch.no_grad():
        return float(functional.cross_entropy(model(torch.arange(64)), answers))


class _Rotary(nn.Module):
    """Attention with rotary positions, whose tables are made anew for a longer sequence."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.half, self.known = width // 2, 0
        self.grow(8)

    def grow(self, length: int) -> None:
        """Make tables for sequences of this length."""
        rates = 100.0 ** -(torch.arange(self.half) / self.half)
        angles = torch.outer(torch.arange(length).float(), rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.known = length

    def forward(self, x: Tensor) -> Tensor:
        """Return what every place makes of itself and the places before it."""
        length = x.shape[1]
        if length > self.known:
            self.grow(length)
        q, k, v = self.qkv(x).chunk(3, dim=2)
        q, k = self._turn(q, length), self._turn(k, length)
        return self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True))

    def _turn(self, x: Tensor, length: int) -> Tensor:
        left, right = x.chunk(2, dim=2)
        return x * self.cos[:length] + torch.cat([-right, left], dim=2) * self.sin[:length]


class _Repeater(nn.Module):
    """A small transformer: one layer of attention, and one behind it."""

    def __init__(self, symbols: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.norm, self.attention = nn.LayerNorm(width), _Rotary(width)
        self.behind = nn.Sequential(nn.LayerNorm(width), mlp(width, 64, width, activation=nn.GELU))
        self.head = nn.Linear(width, symbols)

    def forward(self, text: Tensor) -> Tensor:
        """Return what may follow every symbol."""
        x = self.embedding(text)
        x = x + self.attention(self.norm(x))
        return self.head(x + self.behind(x))


@training("loss on new text of length 64", at_most=0.6)
def rotary_cache(run: Run) -> float:
    """A transformer whose rotary tables are registered anew when a longer sequence comes."""
    symbols = 12
    model = _Repeater(symbols)
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 4e-3), model)

    def loss_of(size: int, length: int) -> Tensor:
        # What comes is what came three symbols before, with a change in one of eight.
        text = run.randint(symbols, size, 3).repeat(1, length // 3 + 1)[:, : length + 1]
        change = run.rand(*text.shape) < 0.02
        text = torch.where(change, run.randint(symbols, *text.shape), text)
        said = model(text[:, :-1])[:, 3:]
        return functional.cross_entropy(said.flatten(0, 1), text[:, 4:].flatten())

    for step in range(600):
        longest = 12 if step < 200 else 24 if step < 400 else 64
        length = longest if run.chance(0.1) else 8
        run.step(optimizer, loss_of(16, length))
    with torch.no_grad():
        return float(loss_of(512, 64))
