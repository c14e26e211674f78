"""A risk is logged, and acted upon where options ask for it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stableopt import DivergenceError, Guard, StableOptimizer, presets
from stableopt.sensors import ConditionNumber, SampledSpectrum, Sampler, Sensors, SpectralNorm
from stableopt.telemetry import JsonLines, read_events
from stableopt.types import Action, RiskLevel, Scope
from tests.sensors.runs import Net, Sick, collapsed, stand_still


class TestRisk:
    def test_it_is_told_and_nothing_is_done_about_it(self, caplog):
        run = Sick()
        run.steps(12)
        opt = run.steps(2, share=0.01)
        assert opt.risk is RiskLevel.DANGER
        (event,) = opt.ledger
        assert not event.intervened
        assert event.action is Action.TAKE
        assert event.risk is RiskLevel.DANGER
        assert event.findings[0].scope is Scope.RISK
        assert event.findings[0].where == ("first.weight",)
        assert "first.weight: relative_rank" in event.reason
        summary = opt.summary()
        assert summary["sensors"]["risk"] == "danger"
        assert summary["lr_scale"] == 1.0
        assert summary["baseline_resets"] == summary["back_offs"] == summary["skips"] == 0
        assert summary["integrity"] == "OK"
        assert any("the risk rises to danger" in record.message for record in caplog.records)

    def test_a_weight_that_becomes_zero_is_a_danger(self):
        run = Sick()
        run.steps(12)
        run.sound["first.weight"].zero_()
        opt = run.steps(2)
        assert opt.risk is RiskLevel.DANGER
        assert opt.ledger[0].findings[0].where == ("first.weight",)
        assert "relative_rank is not defined any more" in opt.ledger[0].reason
        run.steps(10)
        assert opt.risk is RiskLevel.DANGER

    def test_it_falls_again_and_rises_again(self):
        run = Sick()
        run.steps(12)
        run.steps(3, share=0.01)
        assert run.steps(10).risk is RiskLevel.STABLE
        assert run.steps(2, share=0.01).risk is RiskLevel.DANGER
        assert len(run.opt.ledger) == 2

    def test_suspects_get_the_exact_tier_and_others_do_not(self):
        model = Net()
        inner = torch.optim.SGD(model.parameters(), lr=1e-12)
        use = (SampledSpectrum(), ConditionNumber())
        sensors = Sensors(use=use, sampler=Sampler(1, 1), budget=None)
        opt = StableOptimizer(inner, model=model, sensors=sensors)
        stand_still(opt, 3)
        assert "condition_number" not in opt.readings["first.weight"]
        with torch.no_grad():
            model.first.weight.copy_(collapsed(model.first.weight, 0.01))
        stand_still(opt, 3)
        assert opt.readings["first.weight"]["condition_number"].value > 50
        assert "condition_number" not in opt.readings["second.weight"]

    def test_telemetry_has_the_readings_and_a_burst_once_it_rises(self, tmp_path):
        run = Sick(telemetry=JsonLines(tmp_path, every=1000))
        run.opt._loop.sensing.options = Sensors(budget=None)
        run.steps(100)
        run.steps(80, share=0.01)
        run.opt.close()
        records = list(read_events(tmp_path / "telemetry.jsonl"))
        steps = [record["step"] for record in records]
        assert steps[:11] == [1, *range(10, 101, 10)]
        rise = next(r["step"] for r in records if r.get("risk") == "danger")
        assert set(range(rise, rise + 20)) <= set(steps)
        assert rise + 21 not in steps
        first = records[0]["readings"]["first.weight"]
        assert first["step"] == 0
        assert set(first) == {"step", *SpectralNorm.metrics, *SampledSpectrum.metrics}


class TestResponses:
    """``Guard(act_on_risk=True)``: each of Gradience's responses really happens."""

    def guard(self, **options):
        return Guard(**{"every": 50, "confirm": 2, "act_on_risk": True, **options})

    def test_a_warning_takes_a_snapshot(self):
        run = Sick(guard=self.guard())
        run.steps(12)
        opt = run.steps(2, share=0.15)
        assert opt.risk is RiskLevel.WARNING
        taken = [snapshot["step"] for snapshot in opt.summary()["snapshots"]["steps"]]
        assert 14 in taken
        assert opt.summary()["lr_scale"] == 1.0

    def test_a_danger_lowers_the_learning_rate_until_it_is_over(self):
        run = Sick(guard=self.guard(lr_recovery=10))
        run.steps(12)
        opt = run.steps(2, share=0.01)
        assert opt.risk is RiskLevel.DANGER
        assert opt.summary()["lr_scale"] == 0.5
        (event,) = opt.ledger
        assert event.intervened
        assert event.backs_off
        assert "learning rate times 0.5" in event.reason
        assert opt.summary()["back_offs"] == 1
        assert 14 in [snapshot["step"] for snapshot in opt.summary()["snapshots"]["steps"]]
        run.steps(20, share=0.01)
        assert opt.summary()["lr_scale"] == 0.5, "it came back while the danger lasted"
        run.steps(20)
        assert opt.summary()["lr_scale"] == 1.0

    def test_dangers_that_come_again_and_again_lower_it_so_far_and_no_further(self):
        run = Sick(guard=self.guard(lr_recovery=None, max_rollbacks=2))
        run.steps(12)
        for _ in range(4):
            run.steps(3, share=0.01)
            run.steps(12)
        assert run.opt.summary()["lr_scale"] == 0.25
        assert run.opt.summary()["back_offs"] == 2
        assert "at its lowest already" in run.opt.ledger[-1].reason

    def test_a_snapshot_of_a_danger_is_not_trusted(self):
        run = Sick(guard=self.guard())
        run.steps(12)
        opt = run.steps(20, share=0.01)
        trusted = [s["step"] for s in opt.summary()["snapshots"]["steps"] if s["verified"]]
        assert trusted == [0]

    def test_an_instability_goes_back_with_a_lower_learning_rate(self):
        run = Sick(names=("first.weight", "second.weight"), guard=self.guard(every=5))
        run.steps(12)
        opt = run.steps(2, share=0.01)
        assert opt.verdict.action is Action.ROLL_BACK
        assert opt.verdict.rollback.to_step == 10
        assert opt.verdict.rollback.lr_scale == 0.5
        assert not opt.verdict.rollback.restores_rng
        assert torch.equal(run.model.first.weight, run.sound["first.weight"])
        assert opt.risk is RiskLevel.LEARNING
        assert opt.summary()["integrity"] == "OK"

    def test_an_instability_that_only_comes_again_stops_the_run(self):
        run = Sick(names=("first.weight", "second.weight"), guard=self.guard(every=5))
        run.steps(12)
        with pytest.raises(DivergenceError, match="rollbacks did not help"):
            run.collapse_again_and_again()
        assert run.opt.summary()["rollbacks"] == 3
        assert torch.equal(run.model.first.weight, run.sound["first.weight"])

    def test_a_danger_that_rises_with_a_bad_batch_is_answered_after_it(self):
        run = Sick(guard=self.guard())
        run.steps(12)
        run.steps(1, share=0.01)
        stand_still(run.opt, value=math.nan)
        assert run.opt.verdict.action is Action.SKIP
        assert run.opt.summary()["lr_scale"] == 1.0
        stand_still(run.opt)
        assert run.opt.verdict.backs_off
        assert run.opt.summary()["lr_scale"] == 0.5

    def test_without_it_nothing_of_that_happens(self):
        run = Sick(names=("first.weight", "second.weight"), guard=self.guard(act_on_risk=False))
        run.steps(12)
        opt = run.steps(30, share=0.01)
        assert opt.risk is RiskLevel.INSTABILITY
        assert opt.summary()["rollbacks"] == opt.summary()["back_offs"] == 0
        assert not any(event.intervened for event in opt.ledger)


class TestGradience:
    def test_a_fast_start_and_a_factor_that_begins_at_zero_are_left_alone(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1))
        low = nn.Parameter(torch.zeros(32, 4))
        high = nn.Parameter(torch.randn(4, 32) / 6)
        inner = torch.optim.AdamW([*model.parameters(), low, high], lr=3e-3)
        opt = StableOptimizer(inner, model=model, **presets.gradience())
        draw = torch.Generator().manual_seed(1)
        for _ in range(700):
            x = torch.rand(64, 32, generator=draw) * 2 - 1
            opt.zero_grad()
            out = model(x + x @ low @ high)
            loss = (out - torch.sin(3 * x).sum(1, keepdim=True)).pow(2).mean()
            loss.backward()
            opt.observe(loss=loss.detach())
            opt.step()
        assert not any(event.intervened for event in opt.ledger)
        assert opt.risk in (RiskLevel.STABLE, RiskLevel.LEARNING)

    def train(self, growth, steps):
        torch.manual_seed(0)
        model = nn.Linear(256, 256, bias=False)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        opt = StableOptimizer(inner, model=model, **presets.gradience())
        u, s, vh = torch.linalg.svd(model.weight.detach())
        for step in range(steps):
            with torch.no_grad():
                s[0] *= math.exp(growth) if step > 300 else 1.0
                model.weight.copy_((u * s) @ vh)
            stand_still(opt)
        return opt

    def test_a_run_that_stands_still_is_stable(self):
        opt = self.train(0.0, 600)
        assert opt.risk is RiskLevel.STABLE
        assert opt.ledger == ()

    @pytest.mark.parametrize(
        ("growth", "level"), [(0.003, RiskLevel.WARNING), (0.0055, RiskLevel.DANGER)]
    )
    def test_a_direction_that_comes_to_dominate_is_answered(self, growth, level):
        opt = self.train(growth, 600)
        assert level in {event.risk for event in opt.ledger}
        assert opt.summary()["snapshots"]["taken"] > 3
        assert (opt.summary()["lr_scale"] < 1) == (level is RiskLevel.DANGER)
