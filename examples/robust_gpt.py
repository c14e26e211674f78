"""Train a small GPT at a learning rate that is far too large, with and without ``robust()``.

Run it: ``python examples/robust_gpt.py`` (about 20 seconds on one core).
"""

from __future__ import annotations

import math

import torch

from stableopt import StableOptimizer, presets
from stableopt.commands.demo.corpus import load_corpus
from stableopt.commands.demo.model import GPT, ModelOptions

STEPS, WARMUP, CONTEXT = 150, 10, 64
corpus = load_corpus()  # the sources of Python's standard library


def train(lr: float, *, robust: bool) -> None:
    """Train with AdamW, and say how it ended."""
    torch.manual_seed(0)
    model = GPT(ModelOptions(context=CONTEXT, width=64, depth=2, heads=4))
    adamw = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    # model= lets it find queries and keys, and names the layers in what it tells.
    opt = StableOptimizer(adamw, model=model, **presets.robust()) if robust else adamw
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lr_factor)
    if isinstance(opt, StableOptimizer):
        opt.track(scheduler=schedule)  # a rollback restores it together with the weights
    for step in range(STEPS):
        text, targets = corpus.batch(step, seed=0, size=16, context=CONTEXT)
        opt.zero_grad()
        model.loss(text, targets).backward()
        if not robust:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # robust() clips as well
        opt.step()
        schedule.step()
    with torch.no_grad():
        loss = model.loss(*corpus.validation_batch(size=64, context=CONTEXT)).item()
    print(f"lr {lr:<6g} {'robust()' if robust else 'AdamW + clip':14s} validation loss {loss:.3f}")
    if isinstance(opt, StableOptimizer):
        for done in opt.summary()["transforms"]:
            print(f"    {done['transform'].split('(')[0]:14s} acted in {done['steps']} steps")


def lr_factor(step: int) -> float:
    """Rise for some steps, then fall along a cosine."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


for lr in (3e-3, 3e-1):
    train(lr, robust=False)
    train(lr, robust=True)
