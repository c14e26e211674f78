"""Compile the model and the update; lose a batch and a weight; count what was compiled.

Run it: ``python examples/compiled_loop.py`` (about a minute on one core, most of it the compiler).
"""

from __future__ import annotations

import torch
from torch._dynamo.utils import counters

from stableopt import Guard, StableOptimizer

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
forward = torch.compile(model)
# A learning rate that moves would be a new graph at every step: compile=True keeps it out of them.
opt = StableOptimizer(
    torch.optim.AdamW(model.parameters(), lr=3e-3),
    model=forward,
    guard=Guard(every=25),
    compile=True,
)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 200)
opt.track(scheduler=schedule)

for step in range(200):
    x = torch.randn(64, 16)
    target = x.sum(dim=1, keepdim=True)
    if step == 60:
        x[3, 7] = float("nan")
    if step == 120:
        model[0].weight.data[5, 2] = float("inf")
    loss = (forward(x) - target).pow(2).mean()
    opt.zero_grad()
    loss.backward()
    opt.observe(loss=loss)
    opt.step()
    schedule.step()
    if step == 30:
        graphs = counters["stats"]["unique_graphs"]

for event in opt.ledger:
    print(f"call {event.call}: {event.action.value}, because {event.reason}")
print(f"loss {loss.item():.4f}, compiled: {opt.summary()['compiled']}")
print(f"graphs since step 30: {counters['stats']['unique_graphs'] - graphs}")
