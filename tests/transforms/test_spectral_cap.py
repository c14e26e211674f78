"""SpectralCap: acts once per reading, and moves the metric that triggered it."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from stableopt import SpectralCap, StableOptimizer
from stableopt.errors import ConfigError
from stableopt.sensors import SampledSpectrum, Sampler, Sensors, SpectralNorm
from stableopt.triggers import above, below
from tests.contract.bits import assert_same
from tests.contract.scenario import copied
from tests.reference import spectra
from tests.sensors.runs import collapsed, stand_still

ROUNDING = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-2,
}


def dense(*use, every=1):
    """Sensors that read everything every few steps."""
    used = use or (SpectralNorm(),)
    return Sensors(use=list(used), sampler=Sampler(every=every, ratio=1.0), budget=None)


def watched(weight, *transforms, sensors=None, lr=0.1):
    """Return a parameter and an optimizer that reads it at every step."""
    parameter = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    inner = torch.optim.SGD([parameter], lr=lr)
    sensors = dense() if sensors is None else sensors
    return parameter, StableOptimizer(inner, sensors=sensors, transforms=transforms)


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm(weight):
    return spectra.spectral_norm(weight.detach().double().flatten(1).numpy())


def acts(opt):
    return opt.summary()["transforms"][0]["steps"]


def readings(opt, metric, steps):
    """Take steps that move nothing; return what was read at each."""
    seen = []
    for _ in range(steps):
        stand_still(opt)
        seen.append(opt.readings["0.0"][metric].value if "0.0" in opt.readings else math.nan)
    return seen


class TestCap:
    @pytest.mark.parametrize("mode", ["fast", "exact"])
    @pytest.mark.parametrize("dtype", ROUNDING)
    @pytest.mark.parametrize("shape", [(48, 40), (30, 70), (12, 90), (1, 40), (20, 3, 3, 3)])
    def test_one_act_brings_the_norm_under_the_limit(self, mode, dtype, shape):
        weight = drawn(*shape, dtype=dtype)
        limit = 0.5 * norm(weight)
        parameter, opt = watched(weight, SpectralCap(limit, mode=mode))
        stand_still(opt, 6)
        assert acts(opt) == 1
        assert norm(parameter) <= limit * (1 + ROUNDING[dtype])
        assert norm(parameter) >= limit * (1 - 2 * ROUNDING[dtype])

    @pytest.mark.parametrize("mode", ["fast", "exact"])
    @pytest.mark.parametrize("shape", [(48, 40), (12, 90), (90, 12), (2, 2)])
    def test_it_becomes_the_nearest_matrix_of_that_norm(self, mode, shape):
        weight = drawn(*shape)
        values = spectra.singular_values(weight.numpy())
        limit = 0.9 * float(values[0])
        parameter, opt = watched(weight, SpectralCap(limit, mode=mode))
        stand_still(opt, 3)
        moved = float((parameter.detach() - weight).norm())
        assert moved <= math.sqrt((((values - limit).clip(0)) ** 2).sum()) * (1 + 1e-3) + 1e-4

    def test_more_large_values_than_the_subspace_holds(self):
        left, right = (torch.linalg.qr(drawn(60, 60, seed=seed)).Q for seed in (0, 1))
        weight = (left * torch.linspace(5, 2, 60)) @ right
        parameter, opt = watched(weight, SpectralCap(2.5))
        stand_still(opt, 3)
        expected = torch.linspace(5, 2, 60).clamp(max=2.5)
        found = torch.linalg.svdvals(parameter.detach())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
        assert acts(opt) == 1

    @pytest.mark.parametrize("mode", ["fast", "exact", "soft"])
    def test_memory_formats_are_kept(self, mode):
        weight = drawn(16, 4, 3, 3)
        limit = 0.8 * norm(weight)
        plain, first = watched(weight, SpectralCap(limit, mode=mode))
        last, second = watched(
            weight.to(memory_format=torch.channels_last), SpectralCap(limit, mode=mode)
        )
        stand_still(first, 3)
        stand_still(second, 3)
        assert last.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(plain.detach(), last.detach(), rtol=1e-6, atol=1e-7)
        assert acts(second) == 1

    @pytest.mark.parametrize("dtype", ROUNDING)
    @pytest.mark.parametrize("share", [0.9, 0.2])
    def test_the_soft_cap_takes_a_third_per_reading_at_most(self, dtype, share):
        weight = drawn(40, 32, dtype=dtype)
        limit = share * norm(weight)
        parameter, opt = watched(weight, SpectralCap(limit, mode="soft"))
        needed = math.ceil(math.log(share) / math.log(2 / 3))
        stand_still(opt, 1 + needed)
        assert norm(parameter) <= limit * (1 + ROUNDING[dtype])
        assert acts(opt) == needed
        stand_still(opt, 5)
        assert acts(opt) == needed

    @pytest.mark.parametrize("mode", ["fast", "exact", "soft"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_at_any_scale(self, mode, dtype):
        for scale in (1e-25, 1e25):
            weight = (drawn(30, 40) * scale).to(dtype)
            limit = 0.8 * norm(weight)
            parameter, opt = watched(weight, SpectralCap(limit, mode=mode))
            stand_still(opt, 4)
            assert norm(parameter) <= limit * (1 + ROUNDING[dtype])
            assert acts(opt) == 1


class TestWhenItActs:
    def test_once_per_reading_and_never_without_one(self):
        weight = drawn(40, 32)
        parameter, opt = watched(weight, SpectralCap(0.1, mode="soft"), sensors=dense(every=4))
        moved, read = [], [None]
        for _ in range(13):
            before = parameter.detach().clone()
            stand_still(opt)
            moved.append(not torch.equal(before, parameter.detach()))
            known = opt.readings.get("0.0", {}).get("spectral_norm")
            read.append(None if known is None else known.step)
        news = [now != last for last, now in itertools.pairwise(read)]
        assert moved == news
        assert 2 <= sum(moved) <= 9

    @pytest.mark.parametrize("mode", ["fast", "exact", "soft"])
    def test_a_run_that_never_triggers_is_the_bare_run_bit_for_bit(self, mode):
        def trained(transforms):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 20))
            inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
            opt = StableOptimizer(inner, model=model, sensors=dense(), transforms=transforms)
            for _ in range(8):
                opt.zero_grad()
                model(torch.randn(6, 20)).pow(2).mean().backward()
                opt.step()
            return copied(model.state_dict()), copied(opt.optimizer.state_dict()["state"])

        assert_same(trained([SpectralCap(50.0, mode=mode)]), trained([]))

    @pytest.mark.parametrize("mode", ["fast", "exact", "soft"])
    def test_nothing_else_is_touched(self, mode):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 32))
        with torch.no_grad():
            model[0].weight.mul_(20)
        bare = copy.deepcopy(model)
        places = [p.data_ptr() for p in model.parameters()]
        inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
        reference = torch.optim.AdamW(bare.parameters(), lr=1e-3)
        cap = SpectralCap(6.0, mode=mode)
        opt = StableOptimizer(inner, model=model, sensors=dense(), transforms=[cap])
        for net, optimizer in ((model, opt), (bare, reference)):
            net(torch.ones(4, 32)).pow(2).mean().backward()
            optimizer.step()
        assert norm(model[0].weight) < 0.9 * norm(bare[0].weight)
        for (name, mine), theirs in zip(model.named_parameters(), bare.parameters(), strict=True):
            assert_same(mine.grad, theirs.grad)
            if name != "0.weight":
                assert_same(mine.detach(), theirs.detach())
        assert_same(copied(inner.state_dict()["state"]), copied(reference.state_dict()["state"]))
        assert [p.data_ptr() for p in model.parameters()] == places
        assert acts(opt) == 1

    @pytest.mark.parametrize("mode", ["fast", "exact", "soft"])
    @pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
    def test_what_is_zero_or_not_finite_is_left_alone(self, mode, value):
        weight = drawn(30, 30) if value else torch.zeros(30, 30)
        weight[3, 4] = value
        parameter = nn.Parameter(weight.clone())
        opt = StableOptimizer(
            torch.optim.SGD([parameter], lr=0.0),
            sensors=dense(),
            guard=False,
            transforms=[SpectralCap(0.1, mode=mode, when=above("told", 1.0))],
        )
        for _ in range(3):
            opt.observe(told=2.0)
            parameter.grad = torch.zeros_like(parameter)
            opt.step()
        assert_same(parameter.detach(), weight)
        assert acts(opt) == 0

    def test_a_signal_may_trigger_it(self):
        parameter, opt = watched(drawn(30, 30), SpectralCap(1.0, when="told > 1"), sensors=())
        stand_still(opt)
        assert norm(parameter) > 1.1
        opt.observe(told=2.0)
        stand_still(opt)
        assert norm(parameter) <= 1 + 1e-4


class TestRank:
    @pytest.mark.parametrize("share", [0.1, 0.03, 0.01])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_soft_cap_raises_the_rank_that_triggered_it(self, share, dtype):
        weight = collapsed(drawn(64, 64), share).to(dtype)
        cap = SpectralCap(mode="soft", when=below("relative_rank", 0.45))
        parameter, opt = watched(weight, cap, sensors=dense(SampledSpectrum()))
        seen = readings(opt, "relative_rank", 12)
        assert seen[0] < 0.45 <= seen[-1]
        up_to = next(i for i, value in enumerate(seen) if value >= 0.45)
        assert seen[:up_to] == sorted(seen[:up_to])
        assert acts(opt) <= 7
        assert spectra.effective_rank(parameter.detach().double().numpy()) > 1.2 * (
            spectra.effective_rank(weight.double().numpy())
        )

    @pytest.mark.parametrize(("noise", "most"), [(0.3, 2), (0.1, 5), (0.03, 9)])
    def test_clusters_of_rows_get_their_rank_back(self, noise, most):
        cap = SpectralCap(mode="soft", when=below("relative_rank", 0.6))
        _, opt = watched(clusters(noise), cap, sensors=dense(SampledSpectrum()))
        seen = readings(opt, "relative_rank", most + 3)
        assert seen[0] < 0.6 <= seen[-1]
        assert acts(opt) <= most

    def test_flattening_leaves_the_layer_as_loud_as_it_was(self):
        weight, opt = watched(
            clusters(0.1),
            SpectralCap(mode="soft", when=below("relative_rank", 0.6)),
            sensors=dense(SampledSpectrum()),
        )
        size, sigma = weight.detach().norm().item(), norm(weight)
        for _ in range(3):
            stand_still(opt)

        assert acts(opt) == 3
        assert weight.detach().norm().item() == pytest.approx(size, rel=1e-5)
        assert norm(weight) <= sigma * (1 + 1e-6)
        ((act,),) = {event.acts for event in opt.ledger if event.step == 1}
        assert act.metric == "effective_rank"
        assert act.after[0] > act.before[0] * 1.05

    @pytest.mark.parametrize(("noise", "most"), [(0.3, 6), (0.1, 9), (0.03, 12)])
    def test_clusters_of_rows_come_together_after_some_readings(self, noise, most):
        cap = SpectralCap(mode="soft", when=below("relative_fiedler", 0.5))
        _, opt = watched(clusters(noise), cap, sensors=dense(SampledSpectrum()))
        seen = readings(opt, "relative_fiedler", most + 3)
        assert seen[0] < 0.5 <= seen[-1]
        assert acts(opt) <= most

    def test_a_rank_that_is_not_there_is_not_raised_by_shrinking_to_nothing(self):
        cap = SpectralCap(mode="soft", when=below("relative_rank", 0.6))
        parameter, opt = watched(clusters(0.0), cap, sensors=dense(SampledSpectrum()))
        readings(opt, "relative_rank", 30)
        assert acts(opt) <= 10
        values = torch.linalg.svdvals(parameter.detach())
        assert float(values[7]) > 0.99 * float(values[0])
        assert norm(parameter) > 0.01 * norm(clusters(0.0))


def clusters(noise, rows=64, columns=64, count=8):
    """Return rows around a few directions."""
    centres = drawn(count, columns)
    return centres[torch.arange(rows) % count] + noise * drawn(rows, columns, seed=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, "limit=0 must be a number above 0"),
        ({"limit": -2.0}, "limit=-2.0 must be a number above 0"),
        ({"limit": math.nan}, "limit=nan must be a number above 0"),
        ({"limit": math.inf}, "limit=inf must be a number above 0 and at most 1e"),
        ({"limit": "4"}, "limit='4' must be a number"),
        ({"limit": True}, "limit=True must be a number"),
        ({}, r"limit=None leaves SpectralCap without a bound: give the largest spectral norm"),
        ({"mode": "soft"}, "limit=None .* mode='soft' and a trigger"),
        ({"when": "kappa_p10 > 3"}, "limit=None .* mode='soft' and a trigger"),
        ({"limit": 1.0, "mode": "hard"}, "mode='hard' must be one of fast, exact, soft"),
        ({"limit": 1.0, "mode": ["fast"]}, "mode=.* must be one of fast, exact, soft"),
        ({"limit": 1.0, "when": 3}, "when=3 must be a trigger, e.g. above"),
        ({"limit": 1.0, "params": 3}, "params=3 must be name patterns"),
        ({"limit": 1.0, "params": []}, r"params=\[\] must be name patterns"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        SpectralCap(**options)


def test_vectors_are_not_capped():
    vector = nn.Parameter(torch.ones(3))
    with pytest.raises(ConfigError, match="finds no parameter that it can act on"):
        StableOptimizer(torch.optim.SGD([vector], lr=0.1), transforms=[SpectralCap(1.0)])
