"""Sensors around a real optimizer: schedule, reproducibility, rollback, failures, responses."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

from stableopt import ConfigError, Guard, StableOptimizer, presets
from stableopt.functional import row_spectrum, spectral_norm
from stableopt.health.spectra.drift import LEARNED
from stableopt.health.spectra.tiers import TIERS
from stableopt.sensors import (
    Measurement,
    Result,
    SampledSpectrum,
    Sampler,
    Sensors,
    SpectralNorm,
)
from stableopt.types import RiskLevel, Standing
from tests.sensors.runs import (
    DENSE,
    Net,
    assert_same,
    build,
    collapsed,
    stand_still,
    steps_read,
    train,
    values,
)


class TestReadings:
    def test_they_are_those_of_the_weights_at_that_step(self):
        model, opt = build()
        for step in range(4):
            weight = model.first.weight.detach().clone()
            train(model, opt, 1, first=step)
            reading = opt.readings["first.weight"]["spectral_norm"]
            assert reading.step == step
            exact = spectral_norm(weight).sigma.item()
            assert reading.value == pytest.approx(exact, rel=1e-3)
            rank = opt.readings["first.weight"]["effective_rank"].value
            assert rank == pytest.approx(row_spectrum(weight, None).effective_rank.item())

    def test_matrices_are_measured_and_nothing_else(self):
        model, opt = build()
        train(model, opt, 1)
        names = {"first", "second", "conv", "table", "head"}
        assert set(opt.readings) == {f"{name}.weight" for name in names}
        assert set(opt.readings["conv.weight"]) == {*SpectralNorm.metrics, *SampledSpectrum.metrics}

    def test_without_sensors_nothing_is_known(self):
        for sensors in ((), Sensors(use=())):
            model, opt = build(sensors=sensors)
            train(model, opt, 3)
            assert opt.readings == {}
            assert opt.risk is None
            assert opt.summary()["sensors"] is False

    def test_before_the_first_step_nothing_is_known(self):
        _, opt = build()
        assert opt.readings == {}
        assert opt.risk is None

    def test_the_default_set(self):
        model, opt = build(sensors=None)
        train(model, opt, 3)
        assert opt.summary()["sensors"]["use"] == ["SpectralNorm()", "SampledSpectrum(rows=128)"]
        assert opt.risk is RiskLevel.LEARNING

    def test_a_tied_weight_counts_once_and_a_frozen_one_too(self):
        model = Net()
        model.twin = nn.Linear(20, 32)
        model.twin.weight = model.first.weight
        model.second.weight.requires_grad_(False)
        model, opt = build(model=model)
        train(model, opt, 2)
        assert len(opt.readings) == 5
        assert "second.weight" in opt.readings

    def test_parameters_that_are_added_later_are_measured(self):
        model, opt = build()
        train(model, opt, 2)
        late = nn.Parameter(torch.randn(20, 20))
        opt.optimizer.add_param_group({"params": [late]})
        train(model, opt, 2, first=2)
        assert "1.0" in opt.readings

    def test_output_layers_have_no_absolute_limit(self):
        class Tied(nn.Module):
            def __init__(self, head):
                super().__init__()
                self.table = nn.Embedding(50, 32)
                self.places = nn.Embedding(20, 32)
                self.inner = nn.Linear(32, 32)
                self.last = nn.Linear(32, 50) if head else nn.Linear(32, 32)

        for head, exempt in ((False, {"table", "last"}), (True, {"last"})):
            model = Tied(head)
            with torch.no_grad():
                for name in ("table", "places", "inner", "last"):
                    weight = getattr(model, name).weight
                    weight.copy_(collapsed(weight, 1e-3))
            opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
            stand_still(opt)
            unjudged = {
                name.split(".")[0]
                for name, found in opt.readings.items()
                if found["relative_rank"].standing is Standing.UNJUDGED
            }
            assert unjudged == exempt

    @pytest.mark.parametrize("heads", [None, ("output.*",)])
    @pytest.mark.parametrize("name", ["position_embeddings", "wpe", "pos_embed"])
    def test_learned_positions_are_smooth_and_healthy(self, name, heads):
        """As in published encoders: a smooth curve through a few dimensions."""
        torch.manual_seed(0)
        at = torch.linspace(0, 3, 64)[:, None]
        waves = torch.cat([f(k * at) for k in (1, 2) for f in (torch.sin, torch.cos)], dim=1)
        model = nn.ModuleDict({name: nn.Embedding(64, 32), "inner": nn.Linear(32, 32)})
        with torch.no_grad():
            model[name].weight.mul_(1e-3)[:, :4] += waves
        sensors = Sensors(sampler=DENSE.sampler, budget=None, heads=heads)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        opt = StableOptimizer(sgd, model=model, sensors=sensors)
        stand_still(opt, 2)
        reading = opt.readings[f"{name}.weight"]["relative_rank"]
        assert reading.value < TIERS["relative_rank"].danger
        assert reading.standing is Standing.UNJUDGED
        assert opt.risk in (RiskLevel.LEARNING, RiskLevel.STABLE)
        assert f"{name}.weight" in opt.summary()["sensors"]["unjudged"]

    def test_another_shape_under_the_same_name_is_another_weight(self):
        model, opt = build(guard=False)
        train(model, opt, 40)
        model.table = nn.Embedding(50, 18)
        with torch.no_grad():
            model.table.weight.mul_(30)
        group = opt.optimizer.param_groups[0]["params"]
        place = next(i for i, p in enumerate(group) if p.shape == (40, 18))
        opt.optimizer.state.pop(group[place])
        group[place] = model.table.weight
        train(model, opt, 4, first=40)
        assert opt.ledger == ()

    def test_patterns_choose(self):
        model, opt = build(sensors=Sensors(params=("sec*.weight", "table*")))
        train(model, opt, 1)
        assert set(opt.readings) == {"second.weight", "table.weight"}
        model, opt = build(sensors=Sensors(params="first*"))
        train(model, opt, 1)
        assert set(opt.readings) == {"first.weight"}

    def test_a_pattern_that_matches_nothing_is_an_error(self):
        with pytest.raises(ConfigError, match=r"params='frist\*' matches no parameter.*first"):
            build(sensors=Sensors(params="frist*"))

    def test_autocast_and_defaults_of_the_user_change_no_reading(self):
        _, opt = build()
        stand_still(opt, 3)
        expected = values(opt)
        _, opt = build()
        stand_still(opt)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                stand_still(opt, 2)
        finally:
            torch.set_default_dtype(torch.float32)
        assert_same(values(opt), expected)


class TestSchedule:
    def test_dense_until_the_courses_are_known_then_in_turn(self):
        model, opt = build(sensors=Sensors(sampler=Sampler(ratio=1 / 4), budget=None))
        seen = train(model, opt, 250)
        for name in opt.readings:
            read = steps_read(seen, name)
            gaps = {b - a for a, b in pairwise(read)}
            assert max(gaps) <= 40
            learned = [step for step in read if step < 40 * LEARNED]
            assert len(learned) >= LEARNED

    def test_another_seed_reads_other_rows(self):
        seen = []
        for seed in (0, 1):
            model = nn.Linear(16, 200)
            with torch.no_grad():
                model.weight.copy_(torch.randn(200, 16, generator=torch.Generator().manual_seed(3)))
            inner = torch.optim.SGD(model.parameters(), lr=0.1)
            opt = StableOptimizer(inner, sensors=Sensors(sampler=Sampler(seed=seed)))
            stand_still(opt)
            seen.append(opt.readings["0.0"]["effective_rank"].value)
        assert seen[0] != seen[1]

    def test_a_skipped_step_is_not_measured_twice(self):
        model, opt = build()
        train(model, opt, 3)
        before = values(opt)
        for _ in range(2):
            stand_still(opt, value=math.nan)
            after = values(opt)
        assert {step for _, step in after.values()} == {3}
        assert {step for _, step in before.values()} == {2}
        seen = train(model, opt, 1, first=3)[-1]
        assert {step for _, step in seen.values()} == {3}

    def test_sensors_that_are_too_slow_are_postponed_and_that_is_said_once(self, caplog):
        caplog.set_level(logging.INFO, "stableopt")
        sensors = Sensors(sampler=Sampler(ratio=1, every=1), budget=1e-9)
        model, opt = build(sensors=sensors)
        opt._loop.sensing._governor.charge(1e3)
        train(model, opt, 5)
        assert opt.summary()["sensors"]["postponed"] >= 5
        assert opt.readings == {}
        assert opt.risk is None
        said = [r.message for r in caplog.records if "budget=1e-09" in r.message]
        assert len(said) == 1

    def test_what_is_acted_upon_is_not_postponed(self, caplog):
        sensors = Sensors(sampler=Sampler(ratio=1, every=1), budget=1e-9)
        model, opt = build(sensors=sensors, guard=Guard(act_on_risk=True))
        opt._loop.sensing._governor.charge(1e3)
        seen = train(model, opt, 5)
        assert steps_read(seen) == [0, 1, 2, 3, 4]
        assert opt.summary()["sensors"]["postponed"] == 0
        assert len([r for r in caplog.records if "are acted on" in r.message]) == 1


SLOW = Sensors(sampler=Sampler(ratio=1 / 4, every=3), budget=None)


class TestReproducibility:
    @pytest.mark.parametrize("cut", [1, 2, 3, 8, 9, 10, 29])
    @pytest.mark.parametrize("guard", [None, False])
    def test_a_resumed_run_reads_the_same(self, cut, guard):
        model, opt = build(sensors=SLOW, guard=guard)
        whole = train(model, opt, 45)
        model, opt = build(sensors=SLOW, guard=guard)
        train(model, opt, cut)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        model, opt = build(sensors=SLOW, guard=guard)
        opt.load_state_dict(saved["opt"])  # before the weights, as some trainers do
        model.load_state_dict(saved["model"])
        rest = train(model, opt, 45 - cut, first=cut)
        for left, right in zip(rest, whole[cut:], strict=True):
            assert_same(left, right)

    def test_a_checkpoint_after_a_skip_does_not_measure_twice(self):
        model, opt = build(sensors=DENSE)
        train(model, opt, 12)
        stand_still(opt, value=math.nan)
        expected = opt._loop.sensing.state_dict()
        saved = copy.deepcopy(opt.state_dict())
        weights = copy.deepcopy(model.state_dict())
        model, opt = build(sensors=DENSE)
        model.load_state_dict(weights)
        opt.load_state_dict(saved)
        stand_still(opt, value=math.nan)
        assert opt._loop.sensing.state_dict()["monitor"] == expected["monitor"]

    def test_a_checkpoint_of_other_sensors_keeps_what_fits(self):
        model, opt = build()
        train(model, opt, 5)
        state = opt.state_dict()
        model, other = build(sensors=presets.gradience()["sensors"])
        other.load_state_dict(state)
        assert other.risk is None
        train(model, other, 1)
        model, back = build()
        back.load_state_dict(other.state_dict())
        train(model, back, 1)
        assert back.readings["first.weight"]["relative_rank"].defined

    def test_a_bare_checkpoint_begins_anew(self):
        model, opt = build()
        train(model, opt, 5)
        bare = opt.optimizer.state_dict()
        opt.load_state_dict(bare)
        assert opt.readings == {}
        train(model, opt, 1)
        assert opt.readings

    def test_readings_go_back_with_the_weights(self):
        model, opt = build(sensors=SLOW, guard=Guard(every=10, confirm=1))
        first = train(model, opt, 25)
        opt.rollback("to see the same again")
        opt.zero_grad()
        opt.step()
        to = opt.verdict.rollback.to_step
        assert to == 20
        again = train(model, opt, 5, first=to)
        for left, right in zip(again, first[to:], strict=True):
            assert_same(left, right)

    def test_copies_and_pickles_go_on_by_themselves(self):
        model, opt = build(sensors=SLOW)
        train(model, opt, 9)
        for clone in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
            twin, other = clone((model, opt))
            left = train(twin, other, 7, first=9)
            kept_model, kept = copy.deepcopy((model, opt))
            right = train(kept_model, kept, 7, first=9)
            for a, b in zip(left, right, strict=True):
                assert_same(a, b)

    @pytest.mark.parametrize(
        "broken",
        [
            3,
            {"turn": 1},
            {"turn": -1, "measured": 0, "memories": {}, "monitor": {}},
            {"turn": 1, "measured": 0, "memories": {"spectral_norm": {"w": 3}}, "monitor": {}},
            {"turn": 1, "measured": 0, "memories": {}, "monitor": {"weights": {"w": 1}}},
        ],
    )
    def test_a_broken_checkpoint_is_refused_before_anything_moves(self, broken):
        model, opt = build()
        train(model, opt, 3)
        before = values(opt)
        state = opt.state_dict()
        state["stableopt"] = {**state["stableopt"], "sensors": broken}
        with pytest.raises(ConfigError, match="is not what state_dict"):
            opt.load_state_dict(state)
        assert_same(values(opt), before)


class Failing:
    """A sensor that fails in a given method."""

    metrics = ("broken",)
    on_suspicion = False

    def __init__(self, where):
        self.where = where

    def start(self, visit):
        if self.where == "start":
            raise RuntimeError("no such kernel")
        return Measurement((torch.ones(2),), self.finish)

    def finish(self, sent):
        if self.where == "finish":
            raise ValueError("no such number")
        return Result({"something else": 1.0})


class TestFailures:
    @pytest.mark.parametrize("where", ["start", "finish", "metrics"])
    def test_a_sensor_that_fails_is_undefined_and_told_once(self, where, caplog):
        use = (Failing(where), SpectralNorm())
        model, opt = build(sensors=Sensors(use=use, sampler=Sampler(1, 1), budget=None))
        train(model, opt, 5)
        for found in opt.readings.values():
            assert found["broken"].standing is Standing.UNDEFINED
            assert not found["broken"].defined
            assert found["spectral_norm"].defined
        assert len([r for r in caplog.records if "failed on" in r.message]) == 1
        assert opt.summary()["steps"] == 5

    def test_a_run_about_which_nothing_is_known_has_no_risk(self):
        model, opt = build(sensors=[Failing("start")])
        train(model, opt, 3)
        assert opt.risk is None
        assert opt.summary()["sensors"]["undefined"] == len(opt.readings) == 5

    def test_an_interrupt_is_no_failure(self):
        class Interrupted(Failing):
            def start(self, visit):
                raise KeyboardInterrupt

        model, opt = build(sensors=[Interrupted("start")])
        with pytest.raises(KeyboardInterrupt):
            train(model, opt, 1)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("guard", [None, False])
    def test_a_weight_that_is_not_finite_is_never_healthy(self, value, guard):
        model, opt = build(guard=guard)
        train(model, opt, 3)
        with torch.no_grad():
            model.second.weight[3, 4] = value
        stand_still(opt, 2)
        if guard is False:
            assert opt.risk is RiskLevel.INSTABILITY
            assert opt.ledger[-1].findings[0].where == ("second.weight",)
        else:
            assert opt.summary()["rollbacks"] == 1
            stand_still(opt, 2)
            assert opt.risk is RiskLevel.LEARNING

    def test_what_was_never_finite_is_meant_to_be_so(self):
        model = Net()
        with torch.no_grad():
            model.table.weight[3] = -math.inf
        model, opt = build(model=model, guard=Guard(act_on_risk=True))
        stand_still(opt, 12)
        assert opt.ledger == ()
        found = opt.readings["table.weight"]["spectral_norm"]
        assert found.standing is Standing.UNDEFINED
        assert opt.risk is RiskLevel.STABLE

    def test_zero_is_undefined_and_no_reason_for_anything(self):
        model = Net()
        nn.init.zeros_(model.second.weight)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        opt = StableOptimizer(inner, model=model, sensors=DENSE)
        stand_still(opt, 30)
        found = opt.readings["second.weight"]
        assert found["spectral_norm"].value == 0.0
        assert found["relative_rank"].standing is Standing.UNDEFINED
        assert opt.ledger == ()


class Odd(Failing):
    """A sensor whose metrics are none."""

    def __init__(self, metrics):
        super().__init__("start")
        self.metrics = metrics


def test_an_answer_needs_somebody_to_ask():
    with pytest.raises(ConfigError, match="act_on_risk=True needs sensors"):
        build(sensors=(), guard=Guard(act_on_risk=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use": "spectral"}, "use='spectral' must be a list of sensors"),
        ({"use": [SpectralNorm]}, "which is no sensor"),
        ({"use": [SpectralNorm(), SpectralNorm()]}, "two sensors of 'spectral_norm'"),
        ({"sampler": 3}, "sampler=3 must be a Sampler"),
        ({"params": []}, r"params=\[\] must be a list of name patterns"),
        ({"params": [3]}, r"params=\[3\] must be a list of name patterns"),
        ({"budget": 0}, "budget=0 must be a number above 0"),
        ({"budget": 1.5}, "budget=1.5 must be a number above 0"),
        ({"budget": True}, "budget=True must be"),
        ({"use": [Odd(())]}, r"metrics=\(\): they must be a tuple of names"),
        ({"use": [Odd("mine")]}, "metrics='mine': they must be a tuple of names"),
        ({"risk": "kappa"}, "risk='kappa' must be"),
        ({"risk": "kappa_tilde"}, "add KappaTilde"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        Sensors(**options)


@pytest.mark.parametrize("sensors", ["all", 3])
def test_bad_sensors(sensors):
    with pytest.raises(ConfigError, match=f"sensors={sensors!r} must be a list of sensors"):
        build(sensors=sensors)


def test_logging_is_left_alone():
    assert logging.getLogger("stableopt").level == logging.NOTSET
