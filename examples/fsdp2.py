"""fully_shard (FSDP2): every rank judges its part, and all take one verdict.

Run it: ``torchrun --nproc-per-node 2 examples/fsdp2.py``. On GPUs use the backend ``nccl`` and a
mesh of ``"cuda"``; nothing else changes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from stableopt import StableOptimizer, presets
from stableopt.testing import corrupt_weight, poison_batch

dist.init_process_group("gloo")
rank, last = dist.get_rank(), dist.get_world_size() - 1
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
for layer in model:
    if isinstance(layer, nn.Linear):
        fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)

torch.manual_seed(rank)
x = torch.rand(4096, 8) * 2 - 1
y = torch.sin(3 * x).sum(dim=1, keepdim=True)
adamw = torch.optim.AdamW(model.parameters(), lr=3e-3)
opt = StableOptimizer(adamw, model=model, **presets.robust())  # clips, and caps updates

for step in range(300):
    rows = torch.randint(len(x), (64,))
    batch = x[rows], y[rows]
    if step == 150 and rank == last:
        batch = poison_batch(batch)
    if step == 220 and rank == last:
        corrupt_weight(opt, bit=30, model=model)  # in the part of this rank
    opt.zero_grad()
    loss = nn.functional.mse_loss(model(batch[0]), batch[1])
    loss.backward()
    opt.observe(loss=loss)
    opt.step()

if rank == 0:
    for event in opt.ledger:
        if event.intervened:
            print(f"call {event.call}: {event.action.value}, because {event.reason}")
    print("integrity", opt.summary()["integrity"])
    print("ranks", opt.summary()["ranks"]["size"], "risk", opt.risk.value)
opt.close()
dist.destroy_process_group()
