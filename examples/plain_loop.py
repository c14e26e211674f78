"""A training loop that survives a poisoned batch and a flipped bit in a weight.

Run it: ``python examples/plain_loop.py``.
"""

from __future__ import annotations

import torch
from torch import nn

from stableopt import ClipGradNorm, StableOptimizer
from stableopt.testing import corrupt_weight, poison_batch

torch.manual_seed(0)
x = torch.rand(4096, 8) * 2 - 1
y = torch.sin(3 * x).sum(dim=1, keepdim=True)

model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 1))
opt = StableOptimizer(
    torch.optim.AdamW(model.parameters(), lr=3e-3),
    model=model,  # names in messages; BatchNorm's statistics are protected, too
    transforms=[ClipGradNorm(1.0)],  # shares the norm that the guard has measured
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=300)
opt.track(scheduler=scheduler)  # a rollback restores it together with the weights

for step in range(300):
    rows = torch.randint(len(x), (64,))
    batch = x[rows], y[rows]
    if step == 150:
        batch = poison_batch(batch)  # one NaN among 512 numbers: enough to kill a run
    if step == 220:
        corrupt_weight(opt, bit=30, model=model)  # finite, and of the order of 1e37
    opt.zero_grad()
    loss = nn.functional.mse_loss(model(batch[0]), batch[1])
    loss.backward()
    opt.observe(loss=loss)
    opt.step()
    scheduler.step()
    if step % 50 == 0 or opt.verdict.reason:
        print(f"step {step:3d}  loss {loss.item():.4f}  {opt.verdict.action.value}")

for event in opt.ledger:
    print(f"call {event.call}: {event.action.value}, because {event.reason}")
print("integrity", opt.summary()["integrity"])
