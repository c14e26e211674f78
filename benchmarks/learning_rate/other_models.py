"""The models of the learning-rate benchmark that are no transformers: bytes in, logits out."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.learning_rate.model import BYTES


class Lstm(nn.Module):
    """A two-layer LSTM."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BYTES, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, BYTES)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of the next byte, ``(batch, context, 256)``."""
        return self.head(self.lstm(self.tokens(text))[0])


class GatedConvolutions(nn.Module):
    """Causal convolutions whose dilation doubles, each gated, around a residual stream."""

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BYTES, width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(layers)
        )
        self.head = nn.Linear(width, BYTES)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of the next byte, ``(batch, context, 256)``."""
        x = self.tokens(text).mT
        for i, convolution in enumerate(self.convolutions):
            value, gate = convolution(functional.pad(x, (2**i, 0))).chunk(2, dim=1)
            x = x + value * gate.sigmoid()
        return self.head(x.mT)


class NeuralNgram(nn.Module):
    """A perceptron on the embeddings of the last bytes (Bengio et al. 2003)."""

    def __init__(self, order: int = 8, width: int = 32, hidden: int = 256) -> None:
        super().__init__()
        self.order = order
        self.tokens = nn.Embedding(BYTES, width)
        self.first = nn.Linear(order * width, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, BYTES)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of the next byte, ``(batch, context, 256)``; 0 precedes the text."""
        windows = functional.pad(text, (self.order - 1, 0)).unfold(1, self.order, 1)
        x = rearrange(self.tokens(windows), "b t n d -> b t (n d)")
        return self.head(self.second(self.first(x).tanh()).tanh())
