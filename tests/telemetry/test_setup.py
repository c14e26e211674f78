"""What a run was set up with, flat."""

from __future__ import annotations

import torch

from stableopt import MaxNorm, SpectralCap, SpectralNormalization, StableOptimizer
from stableopt.telemetry.setup import flat_setup, hyperparameters, uses_spectral_norm
from tests.telemetry.runs import make


def test_options_of_groups_are_there_where_they_differ():
    opt, _ = make(None)
    found = hyperparameters(opt.optimizer)
    assert (found["lr"], found["betas"], found["weight_decay"]) == (1e-3, [0.9, 0.999], 0.01)
    assert found["groups"] == {"1": {"lr": 2e-3}}
    assert opt.summary()["hyperparameters"] == found


def test_a_schedule_does_not_change_what_the_learning_rate_was():
    w = torch.nn.Parameter(torch.ones(1))
    sgd = torch.optim.SGD([w], lr=torch.tensor(0.5), momentum=0.9)
    torch.optim.lr_scheduler.LinearLR(sgd, start_factor=0.1)
    found = hyperparameters(sgd)
    assert found["lr"] == 0.5
    assert "groups" not in found


def test_everything_is_one_level_of_plain_values():
    setup = flat_setup(make(None)[0].summary())
    assert setup["optimizer"] == "AdamW"
    assert setup["groups/1/lr"] == 2e-3
    assert setup["spectral_norm"] is True
    assert setup["guard/max_skips"] == 6
    assert setup["transforms/1"].startswith("SpectralNormalization(bound=3.0")
    assert setup["sensors/0"] == "SpectralNorm()"
    assert not any(isinstance(value, dict) and value for value in setup.values())


def test_a_bare_setup():
    w = torch.nn.Parameter(torch.ones(2, 2))
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), guard=False, sensors=())
    setup = flat_setup(opt.summary())
    assert setup["guard"] is False
    assert setup["spectral_norm"] is False
    assert not any(name.startswith(("sensors", "transforms")) for name in setup)


def test_which_transforms_bound_the_spectral_norm():
    w = torch.nn.Parameter(torch.ones(4, 4))
    for transform, bounds in [
        (SpectralNormalization(1.0), True),
        (SpectralCap(1.0), True),
        (MaxNorm(1.0), False),
    ]:
        opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), transforms=[transform])
        assert uses_spectral_norm(opt.summary()) is bounds
