"""SpectralNormalization: the bound holds after every step, and nothing under it moves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stableopt import SpectralNormalization, StableOptimizer
from stableopt.errors import ConfigError
from tests.contract.bits import assert_same
from tests.contract.scenario import copied
from tests.reference import spectra

ROUNDING = {
    torch.float64: 1e-5,
    torch.float32: 1e-5,
    torch.float16: 0.0,
    torch.bfloat16: 0.0,
}
"""How far above a bound rounding may leave a norm; in half precision it is aimed lower."""


def norm(weight):
    return spectra.spectral_norm(weight.detach().double().flatten(1).numpy())


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Linear(8, 40)
        self.second = nn.Linear(40, 5)
        self.to(dtype).to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.second(torch.tanh(self.first(torch.relu(self.conv(x)).mean((2, 3)))))

    def matrices(self):
        return [self.conv.weight, self.first.weight, self.second.weight]


def trained(model, opt, steps, after=lambda step: None):
    for step in range(steps):
        opt.zero_grad()
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(4, 3, 6, 6, generator=draw).to(model.conv.weight.dtype)
        (model(x) - 3 * torch.randn(4, 5, generator=draw)).pow(2).mean().backward()
        opt.step()
        after(step)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("bound", [0.05, 1.0])
def test_the_bound_holds_after_every_step(dtype, bound):
    model = Net(dtype)
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    opt = StableOptimizer(inner, sensors=(), transforms=[SpectralNormalization(bound)])

    def check(step):
        for weight in model.matrices():
            assert norm(weight) <= bound * (1 + ROUNDING[dtype])
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)

    trained(model, opt, 12, check)
    assert opt.summary()["transforms"][0]["changes"] > 12


def test_it_projects_every_few_steps():
    model = Net()
    inner = torch.optim.AdamW(model.parameters(), lr=3e-2)
    opt = StableOptimizer(inner, sensors=(), transforms=[SpectralNormalization(0.5, every=3)])
    over = []
    trained(model, opt, 9, lambda step: over.append(norm(model.first.weight) > 0.5 * (1 + 1e-5)))
    assert over == [True, True, False] * 3


def test_initial_weights_above_the_bound_are_projected_in_the_first_step():
    model = Net()
    with torch.no_grad():
        model.first.weight.mul_(1e6)
    inner = torch.optim.SGD(model.parameters(), lr=0.0)
    opt = StableOptimizer(inner, sensors=(), transforms=[SpectralNormalization(1e-3)])
    trained(model, opt, 1)
    assert norm(model.first.weight) <= 1e-3 * (1 + 1e-5)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_under_the_bound_a_run_is_the_bare_run_bit_for_bit(dtype):
    def run(transforms):
        model = Net(dtype)
        inner = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        opt = StableOptimizer(inner, sensors=(), transforms=transforms)
        trained(model, opt, 6)
        return copied(model.state_dict()), copied(inner.state_dict()["state"])

    # The Frobenius norms are above: that alone calls for nothing.
    largest = max(norm(weight) for weight in Net(dtype).matrices())
    assert max(float(weight.detach().norm()) for weight in Net(dtype).matrices()) > 1.3 * largest
    assert_same(run([SpectralNormalization(1.3 * largest)]), run([]))


@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_second_projection_changes_nothing(dtype):
    draw = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(30, 20, generator=draw).to(dtype))
    inner = torch.optim.SGD([weight], lr=0.1)
    opt = StableOptimizer(inner, sensors=(), transforms=[SpectralNormalization(2.0)])
    weight.grad = torch.zeros_like(weight)
    opt.step()
    once = weight.detach().clone()
    opt.step()
    assert_same(weight.detach(), once)
    assert opt.summary()["transforms"][0]["steps"] == 1


def test_smaller_singular_values_stay_where_a_parametrization_divides_them():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(30, 20), nn.Linear(30, 20)
    theirs.load_state_dict(ours.state_dict())
    before = torch.linalg.svdvals(ours.weight.detach())
    bound = float(before[5])
    opt = StableOptimizer(
        torch.optim.SGD(ours.parameters(), lr=0.0),
        sensors=(),
        transforms=[SpectralNormalization(bound)],
    )
    ours(torch.ones(2, 30)).sum().backward()
    opt.step()
    nn.utils.parametrizations.spectral_norm(theirs, n_power_iterations=50)
    for _ in range(5):
        theirs(torch.ones(2, 30))
    after = torch.linalg.svdvals(ours.weight.detach())
    assert norm(ours.weight) <= bound * (1 + 1e-5)
    assert norm(theirs.weight) == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(after, before.clamp(max=bound), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_left_alone(value):
    weight = nn.Parameter(torch.full((6, 6), 3.0))
    with torch.no_grad():
        weight[1, 2] = value
    before = weight.detach().clone()
    opt = StableOptimizer(
        torch.optim.SGD([weight], lr=0.0),
        sensors=(),
        guard=False,
        transforms=[SpectralNormalization()],
    )
    opt.step()
    assert_same(weight.detach(), before)
    assert opt.summary()["transforms"][0]["steps"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bound": 0.0}, "bound=0.0 must be a number above 0"),
        ({"bound": -1}, "bound=-1 must be a number above 0"),
        ({"bound": math.nan}, "bound=nan must be a number above 0"),
        ({"bound": math.inf}, r"bound=inf must be a number above 0 and at most 1e\+30"),
        ({"bound": None}, "bound=None must be a number above 0"),
        ({"every": 0}, "every=0 must be an int of at least 1: updates from one projection"),
        ({"every": 2.0}, "every=2.0 must be an int of at least 1"),
        ({"every": True}, "every=True must be an int of at least 1"),
        ({"params": ""}, "params='' must be name patterns"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        SpectralNormalization(**options)
