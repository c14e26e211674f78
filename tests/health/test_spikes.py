"""Spikes: what stands out is flagged, and what was flagged never becomes normal."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stableopt import Action, Guard, StableOptimizer
from stableopt.health.spikes import WARMUP, WINDOW, Baseline, SpikeDetector
from stableopt.types import GradientNorms, Observation, Scope


def seen(loss=None, norm=None):
    gradients = None
    if norm is not None:
        total = torch.tensor(norm)
        gradients = GradientNorms(
            owners=[(0, 0)], values=[total], norms=[total], total=total, total_value=norm
        )
    return Observation(loss=loss, gradients=gradients)


def learned(values, what="loss"):
    detector = SpikeDetector(6.0, 6.0)
    for value in values:
        observation = seen(**{what: value})
        assert detector.judge(observation) == ()
        detector.learn(observation)
    return detector


def noisy(level, spread, count=WINDOW, seed=0):
    dice = random.Random(seed)
    return [level + spread * dice.gauss(0, 1) for _ in range(count)]


class TestLoss:
    def test_a_jump_is_a_spike(self):
        detector = learned(noisy(2.0, 0.02))
        (finding,) = detector.judge(seen(loss=3.0))
        assert (finding.kind, finding.scope, finding.value) == ("loss_spike", Scope.SPIKE, 3.0)
        assert finding.message.startswith("the loss is 3 where 1.99")

    def test_it_is_one_sided(self):
        assert learned(noisy(2.0, 0.02)).judge(seen(loss=0.1)) == ()

    def test_nothing_is_judged_before_there_is_a_baseline(self):
        detector = learned(noisy(2.0, 0.02, WARMUP - 1))
        assert detector.judge(seen(loss=1e9)) == ()

    def test_near_zero_nothing_is_a_spike(self):
        falling = [2.0 * 0.9**n for n in range(300)]
        detector = learned(falling)
        assert detector.judge(seen(loss=0.03)) == ()
        assert detector.judge(seen(loss=1.0)) != ()

    @pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
    def test_units_do_not_matter(self, scale):
        detector = learned([value * scale for value in noisy(2.0, 0.02)])
        assert detector.judge(seen(loss=2.05 * scale)) == ()
        assert detector.judge(seen(loss=3.0 * scale)) != ()

    def test_a_negative_loss_that_falls_without_end(self):
        learned([-1.0 * n for n in range(1000)])

    def test_a_constant_loss(self):
        assert learned([0.0] * 100).judge(seen(loss=0.0)) == ()
        assert learned([3.0] * 100).judge(seen(loss=3.1)) == ()

    def test_the_first_losses_of_a_run_do_not_blind_it(self):
        dice = random.Random(1)
        falling = [2.5 + 2.9 * 0.93**n + 0.05 * dice.gauss(0, 1) for n in range(200)]
        for step in (110, 130, 150):
            assert learned(falling[:step]).judge(seen(loss=6.7)) != ()

    def test_no_step_of_a_fast_start_is_a_spike(self):
        dice = random.Random(2)
        learned([2.5 + 2.9 * 0.93**n + 0.05 * dice.gauss(0, 1) for n in range(1000)])


class TestGradient:
    def test_a_thousandfold_norm_is_a_spike(self):
        detector = learned([1.0 + 0.1 * (n % 5) for n in range(WINDOW)], "norm")
        (finding,) = detector.judge(seen(norm=1000.0))
        assert finding.kind == "gradient_spike"
        assert detector.judge(seen(norm=8.0)) == ()

    def test_below_the_first_norms_nothing_is_a_spike(self):
        detector = learned([10.0 * 0.98**n for n in range(400)], "norm")
        assert detector.judge(seen(norm=5.0)) == ()
        assert detector.judge(seen(norm=200.0)) != ()

    def test_a_thousandfold_norm_is_one_every_time(self):
        detector = learned([1.0 + 0.1 * (n % 5) for n in range(WINDOW)], "norm")
        for _ in range(6):
            found = detector.judge(seen(norm=1000.0))
            assert found != ()
            detector.note_spike()
            detector.learn(seen(norm=1.0))

    def test_in_warm_up_a_hundredfold_norm_is_one(self):
        detector = learned([1.0, 3.0, 2.0, 9.0, 4.0], "norm")
        assert detector.judge(seen(norm=800.0)) == ()
        assert detector.judge(seen(norm=1000.0)) != ()
        assert learned([1.0, 3.0, 2.0, 9.0], "norm").judge(seen(norm=1000.0)) == ()

    def test_a_norm_of_zero_is_neither_judged_nor_learned(self):
        detector = learned([1.0] * WINDOW, "norm")
        assert detector.judge(seen(norm=0.0)) == ()
        detector.learn(seen(norm=0.0))
        assert detector.judge(seen(norm=1000.0)) != ()


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(
        st.floats(-1e30, 1e30, allow_nan=False).map(lambda v: v + 0.0), min_size=1, max_size=300
    )
)
def test_the_baseline_is_the_median_of_the_last_values(values):
    baseline = Baseline()
    for value in values:
        baseline.add(value)
    recent = sorted(values[-WINDOW:])
    assert baseline.median == recent[len(recent) // 2]
    again = Baseline()
    again.load_state_dict(baseline.state_dict())
    assert again.state_dict() == baseline.state_dict()
    assert again.score(1e31, 1.0) == baseline.score(1e31, 1.0)


def spiking(batches, **options):
    """Feed losses through a real optimizer whose weights count its steps."""
    w = torch.nn.Parameter(torch.zeros(1))
    opt = StableOptimizer(torch.optim.SGD([w], lr=1.0), guard=Guard(**options))
    for loss in batches:
        w.grad = torch.full((1,), -1.0)
        opt.observe(loss=loss)
        opt.step()
    return w, opt


def test_a_spike_is_skipped_and_the_next_batch_is_not():
    w, opt = spiking([*noisy(2.0, 0.01), 9.0, 2.0, 2.0])
    assert [event.action for event in opt.ledger] == [Action.SKIP]
    assert w.item() == WINDOW + 2
    assert opt.summary()["integrity"] == "OK"


def test_a_shift_is_never_rolled_back_and_becomes_the_new_normal():
    """Promise 3: flagged values never enter a baseline; it is emptied instead."""
    before, after = noisy(2.0, 0.01), noisy(9.0, 0.01, 100)
    w, opt = spiking([*before, *after], max_skips=4)
    actions = [event.action for event in opt.ledger]
    assert actions == [Action.SKIP] * 4 + [Action.TAKE]
    assert opt.ledger[-1].intervened
    assert "taken for the new normal" in opt.ledger[-1].reason
    assert opt.summary()["baseline_resets"] == 1
    assert opt.summary()["rollbacks"] == 0
    assert w.item() == len(before) + len(after) - 4


def test_a_flagged_value_does_not_enter_the_baseline():
    _, opt = spiking([*noisy(2.0, 0.01), 9.0, 9.5, 2.0])
    assert opt.summary()["skips"] == 2
    remembered = opt.state_dict()["stableopt"]["baselines"]["loss"]
    assert max(remembered["recent"]) < 3.0
    assert remembered["alone"] == [[WINDOW + 1, 9.5]]


def test_what_has_stood_alone_twice_is_a_tail():
    """A rare class, a wrong label: skipping it for ever would keep it from being learned."""
    batches = noisy(2.0, 0.01)
    for _ in range(20):
        batches += [9.0, 2.0, 2.0]
    _, opt = spiking(batches)
    assert opt.summary()["skips"] == 2
    _, opt = spiking([*batches, 200.0])
    assert opt.summary()["skips"] == 3, "what lies much further out is a spike all the same"


@pytest.mark.parametrize("share", [0.005, 0.01])
def test_a_rare_class_is_learned(share):
    torch.manual_seed(0)
    count = 4000
    rare = torch.rand(count) < share
    x = torch.randn(count, 10) + rare[:, None] * 3.0
    model = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    opt = StableOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-3), model=model)
    for _ in range(1500):
        rows = torch.randint(count, (16,))
        loss = torch.nn.functional.cross_entropy(model(x[rows]), rare[rows].long())
        opt.zero_grad()
        loss.backward()
        opt.observe(loss=loss)
        opt.step()
    recall = model(x[rare]).argmax(1).float().mean()
    assert recall > 0.9
    assert opt.summary()["skips"] <= 4


def test_a_loss_that_is_not_finite_never_enters_a_baseline():
    batches = [*noisy(2.0, 0.01), math.nan, math.inf, 2.0]
    _, opt = spiking(batches)
    baselines = opt.state_dict()["stableopt"]["baselines"]
    assert all(math.isfinite(value) for value in baselines["loss"]["recent"])


@pytest.mark.parametrize("option", ["loss_spike", "gradient_spike"])
def test_either_can_be_switched_off(option):
    _, opt = spiking([*noisy(2.0, 0.01), 9.0], **{option: None})
    assert len(opt.ledger) == (0 if option == "loss_spike" else 1)


def test_baselines_go_back_with_the_weights():
    w = torch.nn.Parameter(torch.zeros(1))
    opt = StableOptimizer(torch.optim.SGD([w], lr=1.0), guard=Guard(every=10, confirm=2))
    baselines = {}
    for call, loss in enumerate(noisy(2.0, 0.01, 25)):
        w.grad = torch.full((1,), -1.0)
        opt.observe(loss=loss)
        if call == 24:
            w.data.fill_(math.nan)
        opt.step()
        baselines[call + 1] = opt.state_dict()["stableopt"]["baselines"]
    assert opt.verdict.rollback.to_step == 20
    assert baselines[25] == baselines[20] != baselines[24]


def test_baselines_survive_a_checkpoint():
    _, opt = spiking(noisy(2.0, 0.01))
    w = torch.nn.Parameter(torch.zeros(1))
    again = StableOptimizer(torch.optim.SGD([w], lr=1.0))
    again.load_state_dict(opt.state_dict())
    w.grad = torch.ones(1)
    again.observe(loss=9.0)
    again.step()
    assert again.verdict.action is Action.SKIP
