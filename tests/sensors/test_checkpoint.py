"""What sensors remember, in checkpoints that are read under other names of the parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stableopt import StableOptimizer
from stableopt.sensors import KappaTilde, SampledSpectrum, Sampler, Sensors, SpectralNorm
from tests.contract.bits import assert_same
from tests.contract.scenario import copied

KINDS = {
    "spectral": {"use": (SpectralNorm(), SampledSpectrum())},
    "kappa": {"use": (KappaTilde(),), "risk": "kappa_tilde"},
}


class Run:
    def __init__(self, kind, named, with_model=False):
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(3)))
        params = self.model.named_parameters() if named else self.model.parameters()
        sensors = Sensors(**KINDS[kind], sampler=Sampler(ratio=0.5, every=2), budget=None)
        model = self.model if with_model else None
        self.opt = StableOptimizer(torch.optim.AdamW(params, lr=1e-2), model=model, sensors=sensors)

    def train(self, steps):
        for step in range(steps):
            x = torch.randn(8, 24, generator=torch.Generator().manual_seed(step))
            self.opt.zero_grad()
            self.model(x).square().mean().backward()
            with torch.no_grad():
                self.model[1].weight.mul_(0.9)  # something to tell of
            self.opt.step()
        return self


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [(True, False), (False, True)])
def test_names_may_be_others(kind, named):
    first = Run(kind, named[0]).train(40)
    state = copied(first.opt.state_dict())
    second = Run(kind, named[1])
    second.model.load_state_dict(first.model.state_dict())
    second.opt.load_state_dict(state)
    again = copied(second.opt.state_dict())
    assert_same(again["stableopt"], state["stableopt"])
    first.train(20)
    second.train(20)
    assert_same(
        copied(second.opt.state_dict())["stableopt"], copied(first.opt.state_dict())["stableopt"]
    )
    # Torch's load_state_dict takes over names that a checkpoint has, too.
    assert set(second.opt.readings) == {f"{i}.weight" for i in range(3)}


def test_what_a_model_calls_them_is_what_is_told():
    first = Run("spectral", named=False, with_model=True).train(40)
    state = copied(first.opt.state_dict())
    assert set(state["stableopt"]["sensors"]["monitor"]["weights"]) == {"0.0", "0.2", "0.4"}
    second = Run("spectral", named=False, with_model=True)
    second.opt.load_state_dict(state)
    assert set(second.opt.readings) == set(first.opt.readings) == {f"{i}.weight" for i in range(3)}
    (risk, other) = (opt._loop.sensing.assessment for opt in (first.opt, second.opt))
    assert risk == other


def test_a_checkpoint_by_names_is_read():
    """As versions before wrote them."""
    first = Run("spectral", named=True).train(40)
    state = copied(first.opt.state_dict())
    state["stableopt"]["sensors"] = first.opt._loop.sensing.state_dict()
    second = Run("spectral", named=True)
    second.opt.load_state_dict(state)
    assert set(second.opt.readings) == set(first.opt.readings)
