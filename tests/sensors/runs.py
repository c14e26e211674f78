"""Runs that are watched by sensors: trained, standing still, and collapsing."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from stableopt import StableOptimizer
from stableopt.sensors import Sampler, Sensors

DENSE = Sensors(sampler=Sampler(ratio=1, every=1), budget=None)
"""Everything at every step."""


class Net(nn.Module):
    """Matrices that are large enough to be judged, and parameters of every other kind."""

    def __init__(self, reverse=False):
        super().__init__()
        torch.manual_seed(0)
        parts = {
            "first": nn.Linear(20, 32),
            "second": nn.Linear(32, 24),
            "conv": nn.Conv1d(4, 20, 5),
            "norm": nn.LayerNorm(24),
            "table": nn.Embedding(40, 18),
            "head": nn.Linear(24, 2),
        }
        for name in reversed(parts) if reverse else parts:
            self.add_module(name, parts[name])
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, step):
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(16, 20, generator=draw)
        hidden = self.norm(self.second(torch.tanh(self.first(x))))
        rows = self.table(torch.randint(40, (16,), generator=draw))
        mixed = self.conv(hidden.view(16, 4, 6)).mean((1, 2))
        out = self.head(hidden).mean(1)
        return (out + hidden.mean(1) + rows.mean(1) + mixed - x[:, 0]).pow(2).mean() * self.scale


def build(sensors=DENSE, lr=1e-3, reverse=False, model=None, **options):
    model = Net(reverse) if model is None else model
    inner = torch.optim.AdamW(model.parameters(), lr=lr)
    return model, StableOptimizer(inner, model=model, sensors=sensors, **options)


def train(model, opt, steps, first=0):
    """Train; return what was read at every step."""
    seen = []
    for step in range(first, first + steps):
        opt.zero_grad()
        loss = model.loss(step)
        loss.backward()
        opt.observe(loss=loss.detach())
        opt.step()
        seen.append(values(opt))
    return seen


def stand_still(opt, steps=1, value=0.0, **signals):
    """Take steps that move nothing by themselves, each after ``observe(**signals)``."""
    for _ in range(steps):
        for group in opt.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, value)
        opt.observe(**signals)
        opt.step()


def values(opt):
    return {
        (name, metric): (reading.value, reading.step)
        for name, found in opt.readings.items()
        for metric, reading in found.items()
    }


def steps_read(seen, name="first.weight"):
    """Return at which age of the weights one of them was read."""
    found = [step[name, "spectral_norm"][1] for step in seen if (name, "spectral_norm") in step]
    return sorted(set(found))


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, (value, step) in left.items():
        assert right[key][1] == step, key
        assert right[key][0] == value or (math.isnan(value) and math.isnan(right[key][0])), key


def collapsed(weight, share):
    """Return ``weight`` with all but a few directions scaled down."""
    if share == 1:
        return weight
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    s[3:] *= share
    return (u * s) @ vh


class Sick:
    """A run whose weights are not trained but put where the test wants them."""

    def __init__(self, names=("first.weight",), **options):
        self.model = Net()
        self.names = names
        inner = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.opt = StableOptimizer(inner, model=self.model, sensors=DENSE, **options)
        self.sound = copy.deepcopy(self.model.state_dict())

    def steps(self, count, share=1.0):
        """Take steps with the weights collapsed to ``share``."""
        with torch.no_grad():
            for name in self.names:
                self.model.get_parameter(name).copy_(collapsed(self.sound[name], share))
        stand_still(self.opt, count)
        return self.opt

    def collapse_again_and_again(self):
        """Collapse the weights, whatever is done about it."""
        for _ in range(50):
            self.steps(2, share=0.01)
