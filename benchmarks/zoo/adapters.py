"""Models of which a part is frozen: adapters, and layers that thaw one by one."""

from __future__ import annotations

import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import Clusters, mlp

_CLASSES, _WIDTH = 12, 48


def _pretrained(clusters: Clusters) -> nn.Sequential:
    """Return a classifier that was trained on other labels of the same samples."""
    model = mlp(16, _WIDTH, _WIDTH, _CLASSES)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(100):  # not what is judged: no wrapper
        x, y = clusters.draw(32)
        adam.zero_grad()
        functional.cross_entropy(model(x), y // 4).backward()
        adam.step()
    return model


class _LoRA(nn.Module):
    """A frozen base, and beside its first layers a product of two matrices that begins at 0."""

    def __init__(self, base: nn.Sequential, rank: int = 4) -> None:
        super().__init__()
        self.base = base[:-1].requires_grad_(False)
        self.a = nn.Linear(16, rank, bias=False)
        self.b = nn.Linear(rank, _WIDTH, bias=False)
        self.head = nn.Linear(_WIDTH, _CLASSES)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.base(x) + self.b(self.a(x)))


@training("loss on new samples", at_most=0.6)
def offloaded_base(run: Run) -> float:
    """An adapter on a frozen, offloaded base: between two passes it is on the meta device."""
    clusters = Clusters(run, _CLASSES, spread=0.8)
    model = _LoRA(_pretrained(clusters))
    cpu_offload(model.base, execution_device=torch.device("cpu"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = run.wrap(torch.optim.AdamW(trained, 3e-3), model)
    for _ in range(400):
        run.step(optimizer, clusters.loss(model, 16))
    return clusters.validate(model)


@training("loss on new samples", at_most=0.6)
def unfreezing(run: Run) -> float:
    """Layers that thaw from the last to the first, each a parameter group that is added then."""
    clusters = Clusters(run, _CLASSES, spread=0.8)
    model = _pretrained(clusters).requires_grad_(False)
    model[-1] = nn.Linear(_WIDTH, _CLASSES)
    optimizer = run.wrap(torch.optim.AdamW(model[-1].parameters(), 3e-3), model)
    thaws = {200: model[2], 400: model[0]}
    for step in range(700):
        if step in thaws:
            layer = thaws[step].requires_grad_(True)
            optimizer.add_param_group({"params": list(layer.parameters()), "lr": 1e-3})
        run.step(optimizer, clusters.loss(model, 16))
    return clusters.validate(model)
