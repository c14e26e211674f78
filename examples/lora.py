"""Fine-tune with LoRA adapters whose update is kept under a norm, group by group.

A base model has learned one function and is frozen; adapters learn another one at a learning
rate that is too large for them. Run it: ``python examples/lora.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stableopt import LoRANormClamp, StableOptimizer
from stableopt.functional import lora_delta_norm

LIMIT = 3.0


class Adapted(nn.Module):
    """A frozen linear layer, and what LoRA adds to it."""

    def __init__(self, base: nn.Linear, rank: int = 4, alpha: float = 8.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scaling = alpha / rank  # read by LoRANormClamp, as it is named in peft

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives together with its adapter."""
        return self.base(x) + self.scaling * (x @ self.lora_A.T) @ self.lora_B.T

    @property
    def delta(self) -> float:
        """The Frobenius norm of what the adapter adds to the weight."""
        return lora_delta_norm(self.lora_A, self.lora_B, scale=self.scaling).item()


def fine_tune(*, clamp: bool) -> None:
    """Train the adapters, and say how large they became."""
    torch.manual_seed(0)
    base = [nn.Linear(32, 64), nn.Linear(64, 32)]
    model = nn.Sequential(Adapted(base[0]), nn.GELU(), Adapted(base[1]))
    adapters = [p for p in model.parameters() if p.requires_grad]
    group: dict[str, object] = {"params": adapters, "lr": 1.0}
    if clamp:
        group["transforms"] = [LoRANormClamp(LIMIT)]  # for this parameter group alone
    opt = StableOptimizer(torch.optim.AdamW([group]), model=model)
    layers, largest = [layer for layer in model if isinstance(layer, Adapted)], 0.0
    for _ in range(200):
        x = torch.randn(64, 32)
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(x), torch.sin(2 * x))
        loss.backward()
        opt.observe(loss=loss)
        opt.step()
        largest = max(largest, *(layer.delta for layer in layers))
    print(
        f"{'clamped' if clamp else 'free':8s} loss {loss.item():.3f}, largest delta {largest:.2f}"
    )
    for event in opt.ledger:
        print(f"    step {event.step}: {event.reason}")


fine_tune(clamp=False)
fine_tune(clamp=True)
