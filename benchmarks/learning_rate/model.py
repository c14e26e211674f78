"""The model of the learning-rate benchmark: a byte-level GPT in the shapes that are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a GPT looks like.

    Attributes:
        width: Channels of the residual stream.
        layers: Blocks.
        heads: Attention heads of a block.
        context: Bytes it sees.
        norm: ``"pre"`` or ``"post"`` LayerNorm, or ``"none"`` at all.
        init: ``"torch"`` for the layers' own, ``"gpt2"`` for a deviation of .02, ``"zero"`` for
            torch's with zeros in everything that writes to the residual stream or the logits.
        qk_norm: Whether queries and keys are normalised.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    context: int = 64
    norm: str = "pre"
    init: str = "torch"
    qk_norm: bool = False


class Attention(nn.Module):
    """Causal attention that knows its largest logit.

    Attributes:
        largest: Of the logits of the last forward pass while ``watched``; NaN counts as infinite.
        watched: Whether anybody asks for it.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        head = shape.width // shape.heads
        self.q_norm = nn.LayerNorm(head) if shape.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head) if shape.qk_norm else nn.Identity()
        self.largest, self.watched = 0.0, False

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map ``x`` of shape ``(batch, context, width)`` to the same shape."""
        q, k, v = rearrange(self.qkv(x), "b t (n h d) -> n b h t d", n=3, h=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        logits = (q @ k.mT) / math.sqrt(q.shape[-1])
        if self.watched:
            seen = logits.detach().masked_fill(~mask, 0.0).abs()
            self.largest = float(seen.nan_to_num(math.inf, math.inf).amax())
        weights = logits.masked_fill(~mask, -math.inf).softmax(-1)
        return self.out(rearrange(weights @ v, "b h t d -> b t (h d)"))


class Block(nn.Module):
    """Attention and an MLP, each beside the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        norm = nn.Identity if shape.norm == "none" else lambda: nn.LayerNorm(shape.width)
        self.post = shape.norm == "post"
        self.attention_norm, self.attention = norm(), Attention(shape)
        self.mlp_norm = norm()
        self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.down = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map ``x`` of shape ``(batch, context, width)`` to the same shape."""
        if self.post:
            x = self.attention_norm(x + self.attention(x, mask))
            return self.mlp_norm(x + self._mlp(x))
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self._mlp(self.mlp_norm(x))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class GPT(nn.Module):
    """A decoder-only transformer on bytes with learned positions and an untied head.

    Args:
        shape: What it looks like.
    """

    mask: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BYTES, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width) if shape.norm == "pre" else nn.Identity()
        self.head = nn.Linear(shape.width, BYTES, bias=False)
        causal = torch.ones(shape.context, shape.context, dtype=torch.bool).tril()
        self.register_buffer("mask", causal, persistent=False)
        _initialize(self, shape.init)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of the next byte, ``(batch, context, 256)``."""
        x = self.tokens(text) + self.positions.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x, self.mask[: text.shape[1], : text.shape[1]])
        return self.head(self.norm(x))

    def watch(self, watched: bool) -> None:
        """Have the next forward passes note their largest attention logits, or not."""
        for block in self.blocks:
            block.attention.watched = watched

    @property
    def largest_logit(self) -> float:
        """The largest attention logit, in magnitude, of the last watched forward pass."""
        return max(block.attention.largest for block in self.blocks)


@torch.no_grad()
def _initialize(model: GPT, init: str) -> None:
    if init == "gpt2":
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
    elif init == "zero":
        for block in model.blocks:
            block.attention.out.weight.zero_()
            block.down.weight.zero_()
        model.head.weight.zero_()
