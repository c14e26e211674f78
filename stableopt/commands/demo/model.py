"""A byte-level GPT, small enough to learn something on two CPU cores in half a minute."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

_BYTES = 256
_INIT_STD = 0.02
_LONGEST_WAVE = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The shape of the GPT.

    Attributes:
        context: Bytes that it sees at once.
        width: Features of each; even, and a multiple of ``heads``.
        depth: Blocks.
        heads: Attention heads per block.
    """

    context: int = 128
    width: int = 128
    depth: int = 4
    heads: int = 4


class GPT(nn.Module):
    """A pre-LN transformer decoder over bytes, with tied input and output embeddings.

    Positions are a fixed table in a buffer that no checkpoint holds: what is damaged in it
    stays damaged, unless there is a copy elsewhere.

    Args:
        options: Its shape.

    Reference:
        Radford et al., "Language Models are Unsupervised Multitask Learners", 2019;
        Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762 (the positions).
    """

    positions: Tensor

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.bytes = nn.Embedding(_BYTES, options.width)
        table = _waves(options.context, options.width)
        self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.depth))
        self.norm = nn.LayerNorm(options.width)
        self._initialize(options.depth)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of the next byte, ``(batch, context, 256)``."""
        x = self.bytes(text) + self.positions[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.bytes.weight)

    def loss(self, text: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next byte, in nats."""
        return F.cross_entropy(self(text).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def _initialize(self, depth: int) -> None:
        """Draw weights so that the residual stream keeps its scale over all blocks."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith("output.weight")
                std = _INIT_STD / math.sqrt(2 * depth) if residual else _INIT_STD
                nn.init.normal_(parameter, std=std)


class Block(nn.Module):
    """Attention and a feed-forward network, each added to the residual stream."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(options.width)
        self.attention = Attention(options.width, options.heads)
        self.feedforward_norm = nn.LayerNorm(options.width)
        self.feedforward = FeedForward(options.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with what the block adds, ``(batch, context, width)``."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.feedforward(self.feedforward_norm(x))
        return out


class Attention(nn.Module):
    """Causal self-attention over several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position gathers from itself and those before it."""
        q, k, v = rearrange(
            self.qkv(x),
            "batch time (three head d) -> three batch head time d",
            three=3,
            head=self.heads,
        )
        gathered = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.output(rearrange(gathered, "batch head time d -> batch time (head d)"))
        return out


class FeedForward(nn.Sequential):
    """Two layers with a GELU between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, 4 * width, bias=False)
        self.gelu = nn.GELU()
        self.output = nn.Linear(4 * width, width, bias=False)


def _waves(count: int, width: int) -> Tensor:
    """Return sines and cosines of ``count`` positions, about as large as embeddings at first."""
    frequencies = _LONGEST_WAVE ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(count)[:, None] * frequencies
    return _INIT_STD * torch.cat([angles.sin(), angles.cos()], dim=1)
