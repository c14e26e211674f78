"""A loop of accelerate that survives a poisoned batch and resumes where it was saved.

Wrap the optimizer before ``prepare``; keep the wrapper to tell it the loss. Run it:
``python examples/accelerate_loop.py``.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stableopt import ClipGradNorm, StableOptimizer
from stableopt.testing import poison_batch

set_seed(0)
accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
x = torch.rand(4096, 8) * 2 - 1
data = TensorDataset(x, torch.sin(3 * x).sum(dim=1, keepdim=True))
model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 1))
opt = StableOptimizer(
    torch.optim.AdamW(model.parameters(), lr=3e-3), model=model, transforms=[ClipGradNorm(1.0)]
)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=128)
net, prepared, loader, schedule = accelerator.prepare(
    model, opt, DataLoader(data, batch_size=32, shuffle=True), schedule
)
opt.track(scheduler=schedule, scaler=accelerator.scaler)  # a scaler with fp16 only


def epoch(poisoned: int | None = None) -> float:
    """Train for an epoch and return the last loss."""
    for number, batch in enumerate(loader):
        if number == poisoned:
            batch = poison_batch(batch)
        with accelerator.accumulate(net):
            loss = nn.functional.mse_loss(net(batch[0]), batch[1])
            accelerator.backward(loss)
            opt.observe(loss=loss)  # every micro-batch; the mean is judged
            prepared.step()
            schedule.step()
            prepared.zero_grad()
    return loss.item()


print(f"epoch 1 loss {epoch():.3f}")
checkpoint = "runs/accelerate"
accelerator.save_state(checkpoint)
print(f"epoch 2 loss {epoch(poisoned=41):.3f}")
for event in opt.ledger:
    if event.intervened:
        print(f"call {event.call}: {event.action.value}, because {event.reason}")
accelerator.load_state(checkpoint)
print("back at step", opt.summary()["steps"])
print(f"epoch 2 again, without the bad batch: loss {epoch():.3f}")
print("integrity", opt.summary()["integrity"])
