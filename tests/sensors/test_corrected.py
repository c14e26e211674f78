"""A weight that was corrected after a reading is read again soon, and judged again."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from stableopt import SpectralCap, StableOptimizer
from stableopt.sensors import Sampler, Sensors, SpectralNorm

EVERY = 10


class Driven:
    """Eight weights, one of which grows in one direction at every step."""

    def __init__(self, growth=0.02):
        torch.manual_seed(0)
        self.weights = [nn.Parameter(torch.randn(24, 24) / 24) for _ in range(8)]
        left, _, right = torch.linalg.svd(self.weights[3].detach())
        self.push = growth * torch.outer(left[:, 0], right[0])
        self.opt = StableOptimizer(
            torch.optim.SGD(self.weights, lr=1.0),
            sensors=Sensors(
                use=(SpectralNorm(),), sampler=Sampler(ratio=1 / 8, every=EVERY), budget=None
            ),
            transforms=[SpectralCap(1.0)],
        )
        self.sizes = []

    def train(self, steps):
        """Return the steps at which the weight was capped."""
        acted = []
        for _ in range(steps):
            for weight in self.weights:
                weight.grad = torch.zeros_like(weight)
            self.weights[3].grad = -self.push
            known = len(self.opt.ledger)
            self.opt.step()
            self.sizes.append(torch.linalg.matrix_norm(self.weights[3].detach(), 2).item())
            acted += [len(self.sizes) for event in self.opt.ledger[known:] if event.acts]
        return acted


@pytest.fixture(scope="module")
def long_run():
    run = Driven()
    return run, run.train(1600)


def test_it_is_visited_out_of_turn(long_run):
    """In its turn it would be visited every 80 steps, and be 1.6 above the limit by then."""
    run, acted = long_run
    gaps = [b - a for a, b in pairwise(acted)]
    assert len(acted) > 100
    assert set(gaps) == {EVERY}
    assert max(run.sizes[acted[0] :]) <= 1.0 + (EVERY + 1) * 0.02 * 1.01


def test_its_course_begins_anew(long_run):
    """Whatever the corrections come to never is where the weight was headed."""
    run, _ = long_run
    detector = run.opt._loop.sensing._monitor._drift
    assert not any(detector._courses.get("0.3", {}).values())
    assert detector._courses["0.2"]["spectral_norm"].learned


def test_that_goes_into_checkpoints():
    first, second = Driven(), Driven()
    acted = []
    while not acted:
        acted = first.train(1)
    with torch.no_grad():
        for new, old in zip(second.weights, first.weights, strict=True):
            new.copy_(old)
    second.opt.load_state_dict(first.opt.state_dict())
    done = len(first.sizes)
    assert [call - done for call in first.train(3 * EVERY)] == second.train(3 * EVERY)
