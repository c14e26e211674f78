"""AdaptiveWeightDecay: how hard, on what, until when, and that small shares are not lost."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stableopt import (
    Action,
    AdaptiveWeightDecay,
    ClipGradNorm,
    ConfigError,
    Guard,
    MaxNorm,
    StableOptimizer,
    above,
    below,
    drift,
)
from stableopt.sensors import Sampler, Sensors, SpectralNorm
from tests.contract.bits import assert_same

ALWAYS = above("alarm", 1.0, severity=0.5)
"""At half of the largest severity once the signal is observed."""

SENSORS = Sensors(use=(SpectralNorm(),), sampler=Sampler(ratio=1, every=3), budget=None)


def decayed(parameters, make=torch.optim.SGD, lr=0.1, before=(), after=(), **options):
    given = {"when": ALWAYS, "base": 1e-3, "gain": 10.0, "params": "*"}
    wrapper = {"sensors": (), "guard": None}
    wrapper.update((k, options.pop(k)) for k in list(options) if k in ("sensors", "guard", "model"))
    decay = AdaptiveWeightDecay(**{**given, **options})
    return StableOptimizer(make(parameters, lr=lr), transforms=[*before, decay, *after], **wrapper)


def step(opt, grad=0.0, **signals):
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, grad)
    opt.observe(**signals)
    opt.step()


class TestCoupled:
    @settings(deadline=None, max_examples=40)
    @given(
        dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
        base=st.floats(1e-6, 1.0),
        gain=st.sampled_from([0, 1.0, 10.0]),
        severity=st.floats(0, 1),
        seed=st.integers(0, 99),
    )
    def test_the_gradient_becomes_that_of_the_penalty(self, dtype, base, gain, severity, seed):
        torch.manual_seed(seed)
        weight = nn.Parameter(torch.randn(3, 4).to(dtype))
        opt = decayed(
            [weight], base=base, gain=gain, when=above("alarm", 1.0, severity=severity), lr=0.0
        )
        gradient = torch.randn(3, 4).to(dtype)
        weight.grad = gradient.clone()
        opt.observe(alarm=2.0)
        opt.step()
        rate = base * (1 + gain * severity)
        old = weight.detach()
        assert_same(weight.grad, torch.add(gradient, old, alpha=2 * rate))
        exact = gradient.double() + 2 * rate * old.double()
        scale = gradient.double().abs() + 2 * rate * old.double().abs()
        # The rate, the product and the sum are rounded to half an eps each.
        error = (weight.grad.double() - exact).abs()
        assert bool((error <= 1.5 * scale * torch.finfo(dtype).eps).all())

    def test_it_is_the_gradient_that_autograd_gives_the_penalty(self):
        weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        opt = decayed([weight], lr=1.0)
        step(opt, alarm=2.0)
        twin = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        (6e-3 * twin.pow(2).sum()).backward()
        assert torch.allclose(weight.grad, twin.grad)

    def test_the_gradient_may_be_of_another_dtype_or_not_be_there(self):
        there, absent = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        opt = decayed([there, absent])
        there.grad = torch.zeros(2, 2)
        opt.observe(alarm=2.0)
        opt.step()
        assert there.grad.flatten().tolist() == pytest.approx([0.012] * 4)
        assert absent.grad is None
        assert opt.ledger[0].acts[0].where == ("0.0",)

    def test_complex(self):
        weight = nn.Parameter(torch.full((2, 2), 1 + 2j))
        opt = decayed([weight])
        step(opt, alarm=2.0)
        assert torch.allclose(weight.grad, torch.full((2, 2), 0.012 + 0.024j))

    def test_sparse_gradients_are_left_alone(self):
        table = nn.Embedding(5, 2, sparse=True)
        opt = decayed(table.parameters())
        table(torch.tensor([1, 3])).sum().backward()
        before = table.weight.grad.coalesce().values().clone()
        opt.observe(alarm=2.0)
        opt.step()
        assert_same(table.weight.grad.coalesce().values(), before)
        assert opt.ledger == ()

    def test_what_clips_after_it_clips_what_it_added(self):
        weight = nn.Parameter(torch.full((4, 4), 100.0))
        opt = decayed([weight], base=1.0, lr=1.0, after=[ClipGradNorm(0.5)])
        step(opt, alarm=2.0)
        assert float((weight.detach() - 100).norm()) == pytest.approx(0.5, rel=1e-4)

    def test_what_clips_before_it_does_not(self):
        weight = nn.Parameter(torch.full((4, 4), 1.0))
        opt = decayed([weight], base=1.0, lr=1.0, before=[ClipGradNorm(0.5)])
        step(opt, grad=10.0, alarm=2.0)
        assert weight.grad.flatten().tolist() == pytest.approx([12.125] * 16, rel=1e-4)

    def test_every_point_of_a_line_search_has_the_penalty(self):
        weight = nn.Parameter(torch.full((2, 2), 2.0))
        seen = []

        class Search(torch.optim.LBFGS):
            def step(self, closure):
                def noted():
                    loss = closure()
                    seen.append(weight.grad.clone())
                    return loss

                return super().step(noted)

        opt = decayed([weight], make=Search, lr=1e-3, base=1.0, gain=0, hold=False)

        def closure():
            opt.zero_grad()
            loss = weight.sum() * 3
            loss.backward()
            return loss

        opt.observe(alarm=2.0)
        opt.step(closure)
        assert len(seen) > 1
        assert min(float(gradient.min()) for gradient in seen) > 3.5


def reference(weight, rate, steps):
    """The decay in float64, step by step."""
    wide = weight.double()
    for _ in range(steps):
        wide = wide * (1 - rate)
    return wide


class TestDecoupled:
    @pytest.mark.parametrize(
        ("dtype", "lr", "steps", "error"),
        [
            (torch.float32, 3e-4, 4000, 2e-4),
            (torch.float64, 3e-4, 2000, 1e-6),
            (torch.bfloat16, 0.02, 4000, 0.05),
            (torch.float16, 0.02, 4000, 0.05),
        ],
    )
    def test_shares_below_rounding_are_not_lost(self, dtype, lr, steps, error):
        torch.manual_seed(0)
        start = torch.randn(20, 20).to(dtype)
        weight = nn.Parameter(start.clone())
        opt = decayed([weight], lr=lr, base=2e-3, gain=0, decoupled=True, guard=False)
        opt.observe(alarm=2.0)
        weight.grad = torch.zeros_like(weight)
        opt.step()
        for _ in range(steps - 1):
            opt.step()
        expected = reference(start, lr * 2e-3, steps)
        share = 1 - float(expected.norm() / start.double().norm())
        found = 1 - float(weight.detach().double().norm() / start.double().norm())
        one = min(0.03, 256 * torch.finfo(dtype).eps)  # what may still be saved up
        assert abs(found - share) <= one + error * share + 1e-7
        assert found > share / 2

    def test_one_share_is_below_rounding_and_thousands_are_not(self):
        weight = nn.Parameter(torch.ones(4, 4))
        opt = decayed([weight], lr=3e-4, base=2e-5, gain=0, decoupled=True, guard=False)
        weight.grad = torch.zeros(4, 4)
        opt.observe(alarm=2.0)
        opt.step()
        assert bool((weight == 1).all())
        (state,) = opt.state_dict()["stableopt"]["transforms"]["states"].values()
        assert state["owed"] == {"0.0": pytest.approx(6e-9)}
        opt.param_groups[0]["lr"] = 0.3
        for _ in range(6):
            opt.step()
        assert float(weight.detach()[0, 0]) == pytest.approx(1 - 3.6e-5, abs=6.1e-6)

    def test_it_is_added_to_the_decay_of_the_optimizer(self):
        def trained(decay):
            weight = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
            inner = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.2)
            when = AdaptiveWeightDecay(when=ALWAYS, base=0.3, gain=0, decoupled=True)
            opt = StableOptimizer(inner, sensors=(), transforms=[when] if decay else [])
            step(opt, alarm=2.0)
            return weight.detach(), inner.state_dict()

        (ours, state), (theirs, bare) = trained(True), trained(False)
        assert torch.allclose(theirs, torch.full_like(theirs, 0.98))
        assert torch.allclose(ours, theirs * math.exp(-0.03))
        assert_same(state, bare)

    def test_the_learning_rate_scales_it_and_so_does_the_backoff_of_the_guard(self):
        weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        opt = decayed([weight], lr=1.0, base=0.5, gain=0, decoupled=True)
        step(opt, alarm=2.0)
        assert float(weight.detach()[0, 0]) == pytest.approx(math.exp(-0.5))
        opt.param_groups[0]["lr"] = torch.tensor(0.1)
        step(opt, alarm=2.0)
        assert float(weight.detach()[0, 0]) == pytest.approx(math.exp(-0.55))
        opt._loop.decider.policy.lr_scale = 0.5
        step(opt, alarm=2.0)
        assert float(weight.detach()[0, 0]) == pytest.approx(math.exp(-0.575))

    def test_what_is_saved_up_is_in_the_checkpoint_and_goes_back(self):
        def make():
            weight = nn.Parameter(torch.ones(2, 2))
            guard = Guard(every=1, confirm=1)
            return weight, decayed(
                [weight], lr=1e-3, base=2e-3, gain=0, decoupled=True, guard=guard
            )

        weight, opt = make()
        for _ in range(10):
            step(opt, alarm=2.0)
        assert bool((weight == 1).all())
        buffer = io.BytesIO()
        torch.save(opt.state_dict(), buffer)
        buffer.seek(0)
        other, resumed = make()
        resumed.load_state_dict(torch.load(buffer, weights_only=True))
        for o in (opt, resumed):
            for _ in range(6):
                step(o, alarm=2.0)
        assert_same(other.detach(), weight.detach())
        assert float(other.detach()[0, 0]) < 1
        assert_same(resumed.state_dict(), opt.state_dict())

        states = {}
        for _ in range(4):
            step(opt, alarm=2.0)
            states[opt._loop.recorder.ledger.steps] = opt.state_dict()["stableopt"]["transforms"]
        opt.rollback()
        step(opt, alarm=2.0)
        assert opt.verdict.action is Action.ROLL_BACK
        back = opt.verdict.rollback.to_step
        assert back < max(states)
        assert_same(opt.state_dict()["stableopt"]["transforms"], states[back])
        assert states[back] != states[max(states)]


class TestWhen:
    def rates(self, opt, alarms):
        found = []
        for alarm in alarms:
            before = opt.summary()["transforms"][0]["steps"]
            step(opt, **({} if alarm is None else {"alarm": alarm}))
            found.append(opt.summary()["transforms"][0]["steps"] - before)
        return found

    def test_hold_until_a_reading_says_otherwise_or_once_per_reading(self):
        alarms = [None, 2.0, None, None, 0.5, None, 2.0, 2.0]
        weight = nn.Parameter(torch.ones(2, 2))
        assert self.rates(decayed([weight]), alarms) == [0, 1, 1, 1, 0, 0, 1, 1]
        assert self.rates(decayed([weight], hold=False), alarms) == [0, 1, 0, 0, 0, 0, 1, 1]

    @pytest.mark.parametrize(("hold", "acts"), [(True, 9), (False, 3)])
    def test_of_a_sensor(self, hold, acts):
        weight = nn.Parameter(torch.full((4, 4), 5.0))
        opt = decayed([weight], when="spectral_norm > 1", hold=hold, sensors=SENSORS, lr=1e-9)
        # Dense visits until the course is known come first.
        visits = 0
        for _ in range(40):
            step(opt)
        before = opt.summary()["transforms"][0]["steps"]
        seen = opt.readings["0.0"]["spectral_norm"].step
        for _ in range(9):
            step(opt)
            visits += opt.readings["0.0"]["spectral_norm"].step != seen
            seen = opt.readings["0.0"]["spectral_norm"].step
        assert visits == 3
        assert opt.summary()["transforms"][0]["steps"] - before == acts

    @pytest.mark.parametrize(
        ("when", "noise", "acts"),
        [
            ("spectral_norm > 1 | noise > 3", 0.0, 3),
            ("spectral_norm > 1 | noise > 3", 9.0, 9),
            ("spectral_norm > 99 | noise > 3", 9.0, 9),
            ("spectral_norm > 1 & noise > 3", 0.0, 0),
        ],
    )
    def test_once_per_reading_of_what_triggers(self, when, noise, acts):
        weight = nn.Parameter(torch.full((4, 4), 5.0))
        opt = decayed([weight], when=when, hold=False, sensors=SENSORS, lr=1e-9)
        for _ in range(40):
            step(opt)
        before = opt.summary()["transforms"][0]["steps"]
        for _ in range(9):
            step(opt, noise=noise)
        assert opt.summary()["transforms"][0]["steps"] - before == acts

    def test_the_weight_falls_until_the_trigger_lets_go(self):
        weight = nn.Parameter(torch.full((4, 4), 0.5))
        opt = decayed(
            [weight],
            when=above("spectral_norm", 1.5, release=1.0),
            base=0.5,
            decoupled=True,
            sensors=Sensors(use=(SpectralNorm(),), sampler=Sampler(ratio=1, every=1), budget=None),
        )
        for _ in range(200):
            step(opt)
        norm = float(torch.linalg.matrix_norm(weight.detach(), 2))
        assert 0.85 < norm <= 1.0
        assert opt.summary()["transforms"][0]["steps"] < 40

    def test_how_bad_it_is_decides_how_hard(self):
        weight = nn.Parameter(torch.ones(2, 2))
        opt = decayed([weight], when="alarm > 1", base=1e-2, gain=4.0)
        for alarm, severity in ((1.5, math.log(1.5)), (100.0, 1.0)):
            before = weight.detach().clone()
            step(opt, alarm=alarm)
            rate = 1e-2 * (1 + 4 * severity)
            assert torch.allclose(weight.grad, 2 * rate * before)
        assert opt.summary()["transforms"][0]["newest"]["after"] == pytest.approx(0.05)

    def test_a_signal_about_one_layer_moves_that_one_alone(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        opt = decayed(model.parameters(), model=model)
        step(opt, alarm={"0": 2.0, "1.weight": 0.5})
        assert opt.ledger[0].acts[0].where == ("0.weight", "0.bias")
        assert not model[1].weight.grad.any()

    def test_what_a_signal_does_not_speak_of_goes_on(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        opt = decayed(model.parameters(), model=model)
        step(opt, alarm=2.0)
        step(opt, alarm={"1": 0.5})
        assert bool(model[0].weight.grad.all())
        assert not model[1].weight.grad.any()

    def test_other_transforms_may_act_on_the_same_weights(self):
        weight = nn.Parameter(torch.full((2, 2), 8.0))
        opt = decayed([weight], decoupled=True, after=[MaxNorm(1.0)])
        step(opt, alarm=2.0)
        assert float(weight.detach().norm()) == pytest.approx(1.0)


OPTIONS = [
    ({"base": 0}, "^base=0 must be a number above 0 and at most 1: the decay at severity 0"),
    ({"base": -1e-5}, "^base=-1e-05 must be a number above 0"),
    ({"base": 1.5}, "^base=1.5 must be a number above 0 and at most 1"),
    ({"base": math.nan}, "^base=nan must be a number above 0"),
    ({"base": True}, "^base=True must be a number above 0"),
    ({"base": "1e-5"}, "^base='1e-5' must be a number above 0"),
    ({"gain": -1}, "^gain=-1 must be a number above 0 and at most 1e.06: how much harder"),
    ({"gain": math.inf}, "^gain=inf must be a number above 0"),
    ({"gain": None}, "^gain=None must be a number above 0"),
    ({"decoupled": 1}, "^decoupled=1 must be True or False"),
    ({"hold": None}, "^hold=None must be True or False"),
    ({"published": "yes"}, "^published='yes' must be True or False"),
    ({"when": None}, r"^when=None must be a trigger, e\.g\. above"),
    ({"when": "alarm >"}, "^when='alarm >' is no trigger"),
    ({"params": 3}, "^params=3 must be name patterns"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AdaptiveWeightDecay(**{"when": "alarm > 1", **options})


UNMOVED = [
    (above("condition_number", 100.0), "condition_number does not fall; use SpectralCap(mode="),
    (below("relative_rank", 0.4), "relative_rank does not rise; use SpectralCap(mode='soft'"),
    (below("fiedler", 0.4), "fiedler does not rise; use SpectralCap(mode='soft'"),
    (above("kappa_tilde", 9.0), "kappa_tilde does not fall; use SpectralCap"),
    (drift("effective_rank"), "effective_rank does not fall; use SpectralCap"),
    (below("spectral_norm", 1.0), "spectral_norm does not rise; use above('spectral_norm', "),
    ("spectral_norm > 1 | fiedler < 0.4", "fiedler does not rise"),
    (above("alarm", 1) & above("redundancy", 1), "redundancy does not fall"),
]


@pytest.mark.parametrize(("when", "message"), UNMOVED)
def test_a_trigger_that_a_decay_does_not_move_is_refused_with_what_does(when, message):
    with pytest.raises(ConfigError) as caught:
        AdaptiveWeightDecay(when=when)
    assert str(caught.value).startswith("when=")
    assert "cannot work: a decay scales all singular values alike" in str(caught.value)
    assert message in str(caught.value)
    assert AdaptiveWeightDecay(when=when, published=True).published


@pytest.mark.parametrize(
    "when", [above("spectral_norm", 1.0), drift("spectral_norm"), "alarm < 1", "a > 1 & b < 2"]
)
def test_a_trigger_that_it_moves_or_that_is_a_signal_is_fine(when):
    assert AdaptiveWeightDecay(when=when).needs.metrics
