"""Spikes are flagged, and a flagged value never becomes normal."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stableopt import Action, Guard, StableOptimizer
from stableopt.health.steps.baseline import ALIKE, MEMORY, WARMUP, WINDOW, Baseline
from stableopt.health.steps.spikes import SpikeDetector
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

    def test_the_third_of_a_run_is_one_too_and_the_fourth_is_data(self):
        detector = learned([1.0 + 0.1 * (n % 5) for n in range(WINDOW)], "norm")
        for number in range(1, 6):
            found = detector.judge(seen(norm=1000.0))
            assert bool(found) == (number <= 3)
            if found:
                said = "after this one, values like it are taken for data"
                assert (said in found[0].message) == (number == 3)
                detector.note_spike()
            for _ in range(200):
                detector.learn(seen(norm=1.0))
        assert detector.judge(seen(norm=1e5)) != (), "what lies much further out is one"

    def test_what_was_flagged_is_forgotten_unless_it_comes_again(self):
        detector = learned([1.0 + 0.1 * (n % 5) for n in range(WINDOW)], "norm")
        for _ in range(ALIKE):
            assert detector.judge(seen(norm=1000.0)) != ()
            detector.note_spike()
        for _ in range(3):  # rare, and data
            for _ in range(MEMORY - 10):
                detector.learn(seen(norm=1.0))
            assert detector.judge(seen(norm=1000.0)) == ()
            detector.learn(seen(norm=1000.0))
        for _ in range(MEMORY + 1):
            detector.learn(seen(norm=1.0))
        assert detector.judge(seen(norm=1000.0)) != ()

    def test_what_it_is_brought_down_to_is_the_largest_of_late(self):
        detector = learned([1.0 + 0.1 * (n % 5) for n in range(WINDOW)], "norm")
        (finding,) = detector.judge(seen(norm=1000.0))
        assert finding.usual == pytest.approx(1.4)

    def test_in_warm_up_a_hundredfold_norm_is_one(self):
        detector = learned([1.0, 3.0, 2.0, 9.0, 4.0], "norm")
        assert detector.judge(seen(norm=800.0)) == ()
        assert detector.judge(seen(norm=1000.0)) != ()
        detector.note_spike()
        assert detector.judge(seen(norm=1000.0)) == (), "a second one is how it begins"

    @pytest.mark.parametrize("before", range(1, 6))
    def test_it_is_one_from_the_second_step_on(self, before):
        detector = learned([1.0, 3.0, 2.0, 9.0, 4.0][:before], "norm")
        (finding,) = detector.judge(seen(norm=9000.0))
        assert finding.usual == pytest.approx(max([1.0, 3.0, 2.0, 9.0, 4.0][:before]))

    def test_a_loss_that_rises_explains_one_of_the_first(self):
        """A student that begins as a copy of its teacher: everything grows from nothing."""
        detector = SpikeDetector(6.0, 6.0)
        for size in (1e-6, 1e-3, 1e-1, 1.0):
            assert detector.judge(seen(loss=size**2, norm=size)) == ()
            detector.learn(seen(loss=size**2, norm=size))
        assert learned([1e-6], "norm").judge(seen(loss=1.0, norm=1.0)) != (), "none was told before"


class TestTheFirstGradient:
    def test_it_was_out_if_two_more_are_a_hundredth(self):
        detector = learned([1000.0, 1.0], "norm")
        assert detector.first_was_out(seen(norm=3.0)).kind == "first_gradient"
        assert detector.first_was_out(seen(norm=3.0)) is None, "it is told once"

    @pytest.mark.parametrize("norms", [(1000.0, 1.0, 20.0), (1000.0, 20.0, 1.0), (90.0, 0.9, 1.0)])
    def test_it_was_not(self, norms):
        detector = learned(norms[:2], "norm")
        assert detector.first_was_out(seen(norm=norms[2])) is None

    def test_later_nobody_asks(self):
        detector = learned([1000.0, 1.0, 1.0], "norm")
        assert detector.first_was_out(seen(norm=1.0)) is None

    @pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Adamax])
    def test_what_is_remembered_of_it_is_scaled(self, make):
        """From then on it trains as if the first gradient had been like the others."""
        w, opt = thousandfold_first(make)
        assert [(event.call, event.tames) for event in opt.ledger] == [(3, True)]
        assert "the first gradient norm was 1000" in opt.ledger[0].reason
        assert "what is remembered of it is scaled by 0.001" in opt.ledger[0].reason
        usual, _ = thousandfold_first(make, first=1.0)
        bare = make([torch.nn.Parameter(torch.ones(1))], lr=1e-3)
        (other,) = bare.param_groups[0]["params"]
        for step in range(20):
            other.grad = torch.full((1,), 1.0 if step else 1000.0)
            bare.step()
        assert abs(w - usual) < 0.2 * abs(1 - usual)
        assert abs(other - usual) > 0.5 * abs(1 - usual)

    @pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Rprop])
    def test_what_remembers_none_goes_on(self, make):
        _, opt = thousandfold_first(make)
        assert opt.ledger == ()

    def test_a_warning_can_be_asked_for(self):
        _, opt = thousandfold_first(torch.optim.AdamW, responses={"first_gradient": "warn"})
        assert [(event.call, event.intervened) for event in opt.ledger] == [(3, False)]

    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.filterwarnings("ignore:sync='lagged'")
    def test_where_steps_are_judged_late(self, fused):
        def make(params, lr):
            return torch.optim.AdamW(params, lr=lr, fused=fused)

        w, opt = thousandfold_first(make, sync="lagged")
        usual, _ = thousandfold_first(make, first=1.0)
        assert [event.tames for event in opt.ledger] == [True]
        assert abs(w - usual) < 0.2 * abs(1 - usual)


def thousandfold_first(make, first=1000.0, **guard):
    w = torch.nn.Parameter(torch.ones(1))
    opt = StableOptimizer(make([w], lr=1e-3), sensors=(), guard=Guard(**guard))
    for step in range(20):
        w.grad = torch.full((1,), 1.0 if step else first)
        opt.step()
    opt.summary()
    return w.detach(), opt


class TestGradientOfNothing:
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
    again = Baseline.from_state(baseline.state_dict())
    assert again.state_dict() == baseline.state_dict()
    assert again.score(1e31, 1.0) == baseline.score(1e31, 1.0)


def spiking(batches, then=(), lr=1.0, **options):
    """Feed losses, and gradients if given, through an optimizer whose weights count its steps."""
    w = torch.nn.Parameter(torch.zeros(1))
    opt = StableOptimizer(torch.optim.SGD([w], lr=lr), sensors=(), guard=Guard(**options))
    for loss, norm in [*((loss, 1.0) for loss in batches), *then]:
        w.grad = torch.full((1,), -norm)
        opt.observe(loss=loss)
        opt.step()
    return w, opt


def test_a_loss_spike_with_a_usual_gradient_is_told_and_changes_nothing():
    w, opt = spiking([*noisy(2.0, 0.01), 9.0, 2.0, 2.0])
    assert [(event.action, event.tames) for event in opt.ledger] == [(Action.TAKE, False)]
    assert not opt.ledger[0].intervened
    assert w.item() == WINDOW + 3
    assert opt.summary()["integrity"] == "OK"


def test_a_gradient_spike_is_tamed_and_the_next_one_is_not():
    w, opt = spiking([2.0] * WINDOW, then=[(2.0, 1000.0), (2.0, 1.0)])
    (event,) = opt.ledger
    assert (event.action, event.tames, event.intervened) == (Action.TAKE, True, True)
    assert "the gradients are scaled by 0.001 to a norm of 1" in event.reason
    assert event.grad_norm == 1000.0
    assert w.item() == pytest.approx(WINDOW + 2, rel=1e-5)
    assert opt.summary()["tamed"] == 1


def test_the_gradient_of_a_loss_spike_does_not_stand_out():
    w, opt = spiking([*noisy(2.0, 0.01)], then=[(9.0, 20.0)])
    (event,) = opt.ledger
    assert [finding.kind for finding in event.findings] == ["loss_spike"]
    assert event.tames
    assert w.item() == pytest.approx(WINDOW + 3, rel=1e-5), "three times as large as usual is none"


def test_a_tamed_batch_leaves_no_statistics():
    """What is a thousand times too large is so in the features, too."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.01), model=model)
    for step in range(60):
        before = {name: value.clone() for name, value in model[0].named_buffers()}
        x = torch.randn(16, 4) * (1000.0 if step == 59 else 1.0)
        loss = (model(x) - x[:, :1]).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.observe(loss=loss)
        opt.step()
    assert opt.verdict.tames
    assert all(torch.equal(value, before[name]) for name, value in model[0].named_buffers())


def test_skipping_can_be_asked_for():
    skip = {"loss_spike": "skip", "gradient_spike": "skip"}
    w, opt = spiking([*noisy(2.0, 0.01), 9.0, 2.0], responses=skip)
    assert [event.action for event in opt.ledger] == [Action.SKIP]
    assert w.item() == WINDOW + 1


@pytest.mark.parametrize("response", ["tame", "skip", "warn"])
def test_a_shift_is_never_rolled_back_and_is_data_soon(response):
    """Promise 3: flagged values never enter a baseline; losses that are alike are no faults."""
    before, after = noisy(2.0, 0.01), noisy(9.0, 0.01, 100)
    w, opt = spiking([*before, *after], responses={"loss_spike": response})
    assert [event.call for event in opt.ledger] == [97]
    assert "values like it are taken for data" in opt.ledger[-1].reason
    assert opt.summary()["rollbacks"] == opt.summary()["baseline_resets"] == 0
    assert w.item() == len(before) + len(after) - (response == "skip")


def test_a_flagged_value_does_not_enter_the_baseline():
    _, opt = spiking([*noisy(2.0, 0.01), 9.0, 90.0, 2.0])
    remembered = opt.state_dict()["stableopt"]["spikes"]["loss"]
    assert max(remembered["recent"]) < 3.0
    assert remembered["flagged"] == [[WINDOW, 9.0], [WINDOW, 90.0]]


def test_what_was_seen_is_a_tail():
    """A rare class, a wrong label, a sparse reward: training is made of it."""
    batches = noisy(2.0, 0.01)
    for _ in range(20):
        batches += [9.0, 2.0, 2.0]
    _, opt = spiking(batches)
    assert len(opt.ledger) == 1
    _, opt = spiking([*batches, 200.0])
    assert len(opt.ledger) == 2, "what lies much further out is a spike all the same"


def test_a_loss_that_is_data_explains_its_gradient():
    """Of one rare kind of batch only one is reported, and none is tamed twice."""
    rare = [(9.0, 1000.0), *[(2.0, 1.0)] * 50]
    w, opt = spiking(noisy(2.0, 0.01), then=rare * 4, lr=1e-3)
    (event,) = opt.ledger
    assert {finding.kind for finding in event.findings} == {"loss_spike", "gradient_spike"}
    assert event.reason.count("scaled") == 1
    assert w.item() == pytest.approx(3 * 1.0 + 1e-3 * (WINDOW + 201), rel=1e-3)
    _, opt = spiking(noisy(2.0, 0.01), then=[(2.0, 1000.0), *[(2.0, 1.0)] * 50] * 4, lr=1e-3)
    assert len(opt.ledger) == 3, "a loss as usual explains nothing"


def test_a_gradient_that_is_data_explains_its_loss():
    alone = [(2.0, 1000.0), *[(2.0, 1.0)] * 50]
    _, opt = spiking(noisy(2.0, 0.01), then=[*alone * 3, (9.0, 1000.0)], lr=1e-3)
    assert [len(event.findings) for event in opt.ledger] == [1, 1, 1]


def test_what_is_usual_is_never_less_than_at_the_beginning():
    """A model that has learned all but what is rare has next to no gradient."""
    fading = [(2.0, max(1e-6, 0.8**n)) for n in range(300)]
    w, opt = spiking([], then=[*fading, (2.0, 1000.0)])
    before = sum(norm for _, norm in fading)
    (event,) = opt.ledger
    first = sorted(norm for _, norm in fading[:32])[16]
    assert w.item() - before == pytest.approx(first, rel=1e-3)
    assert event.tames


def test_no_run_is_tamed_more_than_five_times_in_a_thousand_steps():
    """However its values climb: a thousand times as far out every time."""
    then = []
    for power in range(1, 13):
        then += [(2.0, 1000.0**power), *[(2.0, 1.0)] * 60]
    _, opt = spiking([2.0] * WINDOW, then=then, lr=0.0)
    tamed = [event.call for event in opt.ledger if event.tames]
    assert len(tamed) <= 5 + len(then) // 200
    resets = [event for event in opt.ledger if event.baseline_reset]
    assert resets
    assert "more than 5 spikes in 1,000 steps: accepted as the new normal" in resets[0].reason
    assert opt.summary()["baseline_resets"] == len(resets)


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
    assert opt.summary()["skips"] == 0
    assert opt.summary()["tamed"] <= 4


def test_a_loss_that_is_not_finite_never_enters_a_baseline():
    batches = [*noisy(2.0, 0.01), math.nan, math.inf, 2.0]
    _, opt = spiking(batches)
    baselines = opt.state_dict()["stableopt"]["spikes"]
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
        baselines[call + 1] = opt.state_dict()["stableopt"]["spikes"]
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
    assert [finding.kind for finding in again.verdict.findings] == ["loss_spike"]
