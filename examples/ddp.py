"""DistributedDataParallel: a NaN on one rank, and a flipped bit in one replica.

Run it: ``torchrun --nproc-per-node 2 examples/ddp.py``. On GPUs use the backend ``nccl``, and move
model and batches; nothing else changes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stableopt import ClipGradNorm, StableOptimizer
from stableopt.testing import corrupt_weight, poison_batch

dist.init_process_group("gloo")
rank, last = dist.get_rank(), dist.get_world_size() - 1
torch.manual_seed(rank)
x = torch.rand(4096, 8) * 2 - 1
y = torch.sin(3 * x).sum(dim=1, keepdim=True)

model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 1)))
opt = StableOptimizer(
    torch.optim.AdamW(model.parameters(), lr=3e-3),
    model=model,
    transforms=[ClipGradNorm(1.0)],
    telemetry="runs/ddp",  # the first rank writes; give every rank the same
)

for step in range(300):
    rows = torch.randint(len(x), (64,))
    batch = x[rows], y[rows]
    if step == 150 and rank == last:
        batch = poison_batch(batch)
    if step == 220 and rank == last:
        corrupt_weight(opt, bit=10, model=model)  # small: no detector of a single rank sees it
    opt.zero_grad()
    loss = nn.functional.mse_loss(model(batch[0]), batch[1])
    loss.backward()
    opt.observe(loss=loss)  # the mean over the ranks is judged
    opt.step()

if rank == 0:
    for event in opt.ledger:
        print(f"call {event.call}: {event.action.value}, because {event.reason}")
    print("integrity", opt.summary()["integrity"])
opt.close()
dist.destroy_process_group()
