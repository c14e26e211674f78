"""The model and the data that the benchmarks train on: a small GPT and random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 1024
CONTEXT = 256


@dataclass(frozen=True, kw_only=True)
class Size:
    """The dimensions of a GPT.

    Attributes:
        width: Channels of the residual stream.
        layers: Blocks.
        heads: Attention heads of a block.
    """

    width: int
    layers: int
    heads: int


SIZES = {
    "tiny": Size(width=16, layers=1, heads=2),
    "1M": Size(width=128, layers=4, heads=4),
    "20M": Size(width=512, layers=6, heads=8),
}
"""The models by the name of their parameter count; ``tiny`` is for tests."""


class Block(nn.Module):
    """A pre-LN transformer block with causal attention.

    Args:
        size: Its dimensions.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.attention_norm = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.mlp_norm = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width, bias=False)
        self.down = nn.Linear(4 * size.width, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape ``(batch, context, width)`` to the same shape."""
        batch, context, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, context, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, context, width))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """A decoder-only transformer with learned positions and an untied head.

    Args:
        size: Its dimensions.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, size.width)
        self.positions = nn.Embedding(CONTEXT, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, VOCABULARY, bias=False)
        self.apply(_initialize)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, ``(batch, context, vocabulary)``."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)


def make_model(size: str, seed: int) -> GPT:
    """Return the GPT of that name; the same seed gives the same weights.

    Args:
        size: A key of :data:`SIZES`.
        seed: Of torch's global generator, which is put back afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(SIZES[size])


def make_batches(count: int, tokens: int, seed: int) -> list[Tensor]:
    """Return ``count`` batches of random token ids, ``(sequences, length)`` each.

    Args:
        count: How many.
        tokens: Tokens that one batch trains on; a multiple of the context, or below it.
        seed: The same seed gives the same batches.
    """
    length = min(tokens, CONTEXT)
    generator = torch.Generator().manual_seed(seed)
    shape = (tokens // length, length + 1)
    return [torch.randint(VOCABULARY, shape, generator=generator) for _ in range(count)]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the mean cross entropy of predicting each next token of ``batch``."""
    logits = model(batch[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())
