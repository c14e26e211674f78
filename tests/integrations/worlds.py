"""Data and models that every trainer can train in a moment, from random weights."""

from __future__ import annotations

import math

import torch
from torch.utils.data import Dataset


class Regression(Dataset):
    """Sixteen samples; ``bad`` is one that holds a NaN."""

    def __init__(self, bad: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(16, 4, generator=generator)
        self.y = torch.randn(16, 1, generator=generator)
        if bad is not None:
            self.x[bad, 0] = math.nan

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


class Net(torch.nn.Module):
    """With running statistics, which a bad batch spoils before any optimizer is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.last = torch.nn.Linear(8, 1)

    def forward(self, x, y):
        out = self.last(torch.relu(self.norm(self.first(x))))
        return {"loss": (out - y).pow(2).mean(), "out": out}


class Tokens(Dataset):
    """Random sequences, each its own labels."""

    def __init__(self, count: int = 16, length: int = 12) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randint(0, 64, (count, length), generator=generator)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def tiny_llama():
    """Two layers of Llama with random weights."""
    import transformers

    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )


def finite(module: torch.nn.Module) -> bool:
    """Return whether every parameter and buffer is finite."""
    return all(bool(value.isfinite().all()) for value in module.state_dict().values())
