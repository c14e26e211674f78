"""Train with a fault on one rank, and without it: both must end with the same bits."""

from __future__ import annotations

import logging
import math
import warnings

import torch
from torch.nn import functional as F

from stableopt import Guard, StableOptimizer
from tests.ranks.nets import Loader, build, digest, is_last, local

AT, UPDATES, EVERY = 46, 70, 10

SKIPPED = ("input", "gradient", "loss")
"""Faults of a batch: the run without them leaves it out."""

FAULTS = (*SKIPPED, "weight", "second_moment", "first_moment", "lost_moment", "flip", "sign")

GUARD = {"responses": {"nonfinite_loss": "skip"}, "every": EVERY}


class Average:
    """A moving average of the weights, in parts where they are."""

    def __init__(self, model):
        self.weights = list(model.parameters())
        self.values = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def update(self):
        """Follow the weights."""
        for value, weight in zip(self.values, self.weights, strict=True):
            value.lerp_(weight, 0.1)

    def state_dict(self):
        """Return the values."""
        return {str(i): value for i, value in enumerate(self.values)}

    @torch.no_grad()
    def load_state_dict(self, state):
        """Set the values."""
        for i, value in enumerate(self.values):
            value.copy_(state[str(i)])


def train(rank, mode, kernels, fault, *, guarded, updates=UPDATES, **options):
    """Return the digest, the actions, the reasons, and whether tensors stayed in place."""
    model, inner = build(mode, kernels)
    torch.manual_seed(77 + rank * (mode != "tp"))
    loader, opt = Loader(rank, mode), inner
    if guarded:
        options = {"sensors": (), "guard": Guard(**GUARD), **options}
        opt = StableOptimizer(inner, model=model, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 2 * updates)
    average = Average(model)
    if guarded:
        opt.track(dataloader=loader, schedule=schedule, average=average)
    places = [local(p).data_ptr() for p in model.parameters()]
    actions, reasons, done, taken = [], [], False, 0
    while (opt.summary()["steps"] if guarded else taken) < updates:
        number, x, y = loader.next()
        if not guarded and fault in SKIPPED and number == AT:
            F.dropout(torch.zeros(x.shape), 0.2)  # its forward pass drew this noise
            continue
        now = guarded and fault is not None and number == AT and not done
        done |= now
        here = now and is_last()
        if here and fault == "input":
            x[0, 0] = math.nan
        opt.zero_grad()
        x = F.dropout(x, 0.2)
        if mode == "ddp_no_sync":
            with model.no_sync():
                F.mse_loss(model(x[:6]), y[:6]).backward()
            x, y = x[6:], y[6:]
        out = model(x)
        if here and fault == "gradient":
            out.register_hook(lambda g: g * math.nan)
        loss = F.mse_loss(out, y)
        loss.backward()
        if here:
            damage(fault, model, inner)
        if guarded:
            opt.observe(loss=math.nan if here and fault == "loss" else float(loss.detach()))
        opt.step()
        taken += 1
        if not guarded or opt.verdict.action.value != "skip":
            schedule.step()
            average.update()
        if guarded:
            actions.append(opt.verdict.action.value)
            reasons += [opt.verdict.reason] if opt.verdict.reason else []
    moved = places != [local(p).data_ptr() for p in model.parameters()]
    ranks = opt.summary()["ranks"] if guarded else None
    return digest(model, inner, average.values), actions, reasons, moved, ranks


@torch.no_grad()
def damage(fault, model, inner):
    """Put a fault into one element of a weight or its moments."""
    weight = [p for p in model.parameters() if p.dim() > 1][1]
    values, state = local(weight.data).view(-1), inner.state[weight]
    if fault == "weight":
        values[3] = math.nan
    elif fault == "flip":
        values[3] = values[3] * 1.0000005 + 1e-6
    elif fault == "sign":
        values[3] = -values[3]
    elif fault == "second_moment":
        local(state["exp_avg_sq"]).view(-1)[3] = math.inf
    elif fault == "lost_moment":
        for key in ("exp_avg", "exp_avg_sq"):
            local(state[key]).zero_()
    elif fault == "first_moment":
        local(state["exp_avg"]).view(-1)[3] = 1e8


def exact(rank, mode, kernels, faults):
    """Return, for every fault, what the guarded and the bare run have come to."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    return {
        fault: (
            train(rank, mode, kernels, fault, guarded=True),
            train(rank, mode, kernels, fault, guarded=False)[0],
        )
        for fault in faults
    }
