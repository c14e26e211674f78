"""Is the run stable, and may a curriculum ask more of it?"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from stableopt import (
    ConfigError,
    Guard,
    QKClip,
    SignalRule,
    StabilityGate,
    StableOptimizer,
    UpdateCap,
)
from tests.sensors.runs import Sick


class Run:
    def __init__(self, *transforms, **options):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        guard = options.pop("guard", None)
        if guard is None:
            guard = Guard(**{"every": 5, "confirm": 2, "cooldown": 4, **options})
        self.opt = StableOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.01),
            model=self.model,
            sensors=(),
            guard=guard,
            transforms=transforms,
        )

    def steps(self, count, loss=None, **signals):
        found = []
        for _ in range(count):
            self.opt.zero_grad()
            self.model(torch.randn(4, 3)).pow(2).mean().backward()
            self.opt.observe(loss=loss, **signals)
            self.opt.step()
            found.append(self.opt.is_stable)
        return found


class TestIsStable:
    def test_it_takes_as_long_as_the_cooldown(self):
        assert Run().steps(6) == [False] * 3 + [True] * 3
        assert Run(cooldown=0).steps(2) == [True] * 2
        assert Run(guard=False).steps(51)[-2:] == [True, True]
        assert Run(guard=False).steps(49)[-1] is False

    def test_a_skip_ends_it_at_once(self):
        run = Run()
        run.steps(5)
        assert run.steps(1, loss=math.nan) == [False]
        assert run.steps(5) == [False] * 3 + [True] * 2

    def test_a_rollback_ends_it_until_the_episode_is_over(self):
        run = Run()
        run.steps(12)
        with torch.no_grad():
            run.model.weight[0, 0] = math.nan
        assert run.steps(1) == [False]
        failed = run.opt.ledger[-1].rollback.from_step
        found = []
        while not (found and found[-1]):
            found += run.steps(1)
        assert run.opt._loop.recorder.ledger.steps >= failed + 4
        assert run.opt._loop.decider.calm

    def test_a_loss_that_is_not_finite_without_a_guard(self, tmp_path):
        model = nn.Linear(1, 1)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        opt = StableOptimizer(inner, guard=False, sensors=(), telemetry=tmp_path)
        for loss in (*[1.0] * 50, math.nan):
            opt.observe(loss=loss)
            stable = opt.is_stable
            opt.step()
        assert stable
        assert not opt.is_stable

    def test_a_rule_holds_it_as_long_as_it_holds(self):
        run = Run(rules=[SignalRule("accuracy < 0.5")])
        run.steps(5, accuracy=0.9)
        assert run.steps(1, accuracy=0.1) == [False]
        assert not any(run.steps(20))
        assert run.steps(5, accuracy=0.9) == [False] * 3 + [True] * 2

    def test_routine_transforms_do_not_count_and_others_do(self):
        capped = Run(UpdateCap(1e-6))
        assert capped.steps(5)[-1]
        assert capped.opt.summary()["transforms"][0]["changes"] > 0

    def test_transforms_that_act_though_healthy_training_does_not_ask_for_it(self):
        torch.manual_seed(0)
        model = nn.MultiheadAttention(4, 2)
        opt = StableOptimizer(
            torch.optim.SGD(model.parameters(), lr=1e-3),
            model=model,
            sensors=(),
            guard=Guard(cooldown=2),
            transforms=[QKClip(10.0)],
        )
        found = []
        for largest in (1.0, 1.0, 99.0, 1.0, 1.0):
            opt.zero_grad()
            model(*[torch.randn(3, 4)] * 3)[0].pow(2).mean().backward()
            opt.observe(max_attention_logit=largest)
            opt.step()
            found.append(opt.is_stable)
        assert found == [False, True, False, False, True]

    def test_a_risk_counts(self):
        sick = Sick(guard=Guard(every=50, confirm=2, cooldown=3))
        sick.steps(12)
        assert sick.opt.is_stable
        sick.steps(2, share=0.01)
        assert not sick.opt.is_stable

    def test_it_is_in_checkpoints_and_never_goes_back(self):
        run = Run()
        run.steps(5)
        other = Run()
        other.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))
        assert other.opt.is_stable
        other.opt.load_state_dict(run.opt.optimizer.state_dict())
        assert not other.opt.is_stable


class TestGate:
    def gate(self, run, **options):
        return StabilityGate(run.opt, **{"every": 3, "highest": 2, **options})

    def levels(self, run, gate, count, **signals):
        found = []
        for _ in range(count):
            run.steps(1, **signals)
            found.append(gate.update())
        return found

    def test_it_waits_for_stability_and_then_for_every_level(self):
        run = Run()
        gate = self.gate(run)
        assert self.levels(run, gate, 10) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]

    def test_it_holds_while_the_run_is_not_stable(self):
        run = Run()
        gate = self.gate(run)
        self.levels(run, gate, 4)
        assert self.levels(run, gate, 1, loss=math.nan) == [1]
        assert self.levels(run, gate, 5) == [1, 1, 1, 2, 2]

    def test_it_retreats_where_it_may(self):
        run = Run(rules=[SignalRule("accuracy < 0.5")])
        gate = self.gate(run, retreats=True)
        self.levels(run, gate, 7, accuracy=0.9)
        assert gate.level == 2
        assert self.levels(run, gate, 8, accuracy=0.1) == [2, 2, 1, 1, 1, 0, 0, 0]

    def test_one_bad_call_is_no_reason_to_retreat(self):
        run = Run()
        gate = self.gate(run, every=6, retreats=True)
        self.levels(run, gate, 20)
        assert self.levels(run, gate, 1, loss=math.nan) == [2]
        assert self.levels(run, gate, 8) == [2] * 8

    @pytest.mark.parametrize(
        "state",
        [
            {},
            None,
            {"level": "a", "since": 0, "unstable": 0},
            {"level": -3, "since": 0, "unstable": 0},
        ],
    )
    def test_a_state_that_is_none(self, state):
        gate = self.gate(Run())
        with pytest.raises(ConfigError, match=r"state_dict\(\)"):
            gate.load_state_dict(state)
        assert gate.level == 0

    def test_it_goes_back_with_the_weights_if_it_is_tracked(self):
        run = Run()
        gate = self.gate(run)
        run.opt.track(gate=gate)
        self.levels(run, gate, 5)
        run.opt.snapshot()
        self.levels(run, gate, 1)
        assert gate.level == 1
        self.levels(run, gate, 3)
        assert gate.level == 2
        run.opt.rollback()
        run.steps(1)
        assert gate.level == 1

    def test_state(self):
        run = Run()
        gate = self.gate(run)
        self.levels(run, gate, 8)
        other = self.gate(run, highest=1)
        other.load_state_dict(gate.state_dict())
        assert other.level == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"every": 0}, "every=0 must be an int of at least 1"),
            ({"highest": 0}, "highest=0 must be an int of at least 1"),
            ({"retreats": 1}, "retreats=1 must be True or False"),
        ],
    )
    def test_what_cannot_be(self, options, message):
        with pytest.raises(ConfigError, match=message):
            StabilityGate(Run().opt, **options)

    def test_a_bare_optimizer(self):
        with pytest.raises(ConfigError, match="must be a StableOptimizer"):
            StabilityGate(Run().opt.optimizer)
