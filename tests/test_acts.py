"""What transforms did: in events, the ledger, summaries and telemetry; and when they do nothing."""

from __future__ import annotations

import json
import logging
import math
import random

import pytest
import torch
from torch import nn

from stableopt import (
    Action,
    AdaptiveWeightDecay,
    ClipGradNorm,
    Event,
    Guard,
    MaxNorm,
    StableOptimizer,
    UpdateCap,
)
from stableopt.sensors import Sampler, Sensors, SpectralNorm
from stableopt.telemetry import read_events
from stableopt.transforms import Change, Found, Needs, Phase
from stableopt.transforms.chain import QUIET
from stableopt.types import Act
from tests.contract.bits import assert_same


def act(**given):
    known = {"metric": "norm", "where": (), "before": (4.0,), "after": (1.0,), "routine": True}
    return Act(**{"transform": "Some", **known, **given})


class TestAct:
    def test_it_tells_of_the_one_changed_most(self):
        several = act(where=("a", "b", "c"), before=(4.0, 90.0, 2.0), after=(3.0, 9.0, 2.0))
        assert several.worst == 1
        assert several.sentence() == "Some moves the norm of b from 90 to 9, and of 2 more"
        assert several.to_dict() == {
            "transform": "Some",
            "metric": "norm",
            "count": 3,
            "worst": "b",
            "before": 90.0,
            "after": 9.0,
        }

    def test_of_one_and_of_all_at_once(self):
        assert act(where=("a",)).sentence() == "Some moves the norm of a from 4 to 1"
        assert act().sentence() == "Some moves the norm from 4 to 1"
        assert act().to_dict()["worst"] is None

    @pytest.mark.parametrize(
        ("before", "after", "worst"),
        [
            ((1.0, 1.0), (2.0, 3.0), 1),
            ((8.0, 1.0), (1.0, 8.1), 1),
            ((0.0, 1.0), (0.0, 1.1), 1),
            ((-1.0, 1.0), (1.0, 1.1), 0),
        ],
    )
    def test_much_is_relative(self, before, after, worst):
        assert act(where=("a", "b"), before=before, after=after).worst == worst


class TestEvent:
    def event(self, *acts, action=Action.TAKE):
        return Event(call=1, step=1, action=action, acts=acts)

    def test_what_is_routine_is_no_intervention(self):
        assert not self.event(act()).intervened
        assert not self.event(act(again=True)).intervened
        assert self.event(act(), act(routine=False)).intervened

    def test_there_is_something_to_say_unless_it_was_said(self):
        assert self.event().routine
        assert self.event(act(again=True)).routine
        assert not self.event(act()).routine
        assert not self.event(act(again=True), act()).routine

    def test_it_is_plain_data(self):
        told = self.event(act(where=("a",)), act(routine=False)).to_dict()
        assert [known["worst"] for known in told["acts"]] == ["a", None]
        assert "acts" not in self.event().to_dict()
        json.dumps(told)


def make(*transforms, lr=1.0, **options):
    weight = nn.Parameter(torch.ones(4, 4))
    options = {"sensors": (), **options}
    opt = StableOptimizer(torch.optim.SGD([weight], lr=lr), transforms=transforms, **options)
    return weight, opt


def step(opt, grad=1e-3, **signals):
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, grad)
    opt.observe(**signals)
    opt.step()


class TestLedger:
    def test_a_routine_transform_is_told_once_in_an_episode(self, caplog):
        caplog.set_level(logging.INFO, "stableopt")
        _, opt = make(ClipGradNorm(1.0), lr=1e-9, guard=False)
        for grad in [1e-3, *[9.0] * 5, *[1e-3] * QUIET, *[9.0] * 2]:
            step(opt, grad)
        assert [event.call for event in opt.ledger] == [2, 7 + QUIET]
        assert opt.ledger[0].reason == "ClipGradNorm moves the grad_norm from 36 to 1"
        assert [r.levelname for r in caplog.records if "ClipGradNorm" in r.message] == ["INFO"] * 2

    def test_an_episode_goes_on_while_it_acts_often_enough(self):
        _, opt = make(ClipGradNorm(1.0), lr=1e-9, guard=False)
        for call in range(4 * QUIET):
            step(opt, 9.0 if call % QUIET == 0 else 1e-3)
        assert len(opt.ledger) == 1
        assert opt.summary()["transforms"][0]["steps"] == 4

    def test_every_transform_has_episodes_of_its_own(self):
        _, opt = make(ClipGradNorm(1.0), UpdateCap(1e-6), lr=1e-3)
        step(opt, 1e-1)
        step(opt, 9.0)
        step(opt, 9.0)
        assert [[a.transform for a in event.acts] for event in opt.ledger] == [
            ["UpdateCap"],
            ["ClipGradNorm", "UpdateCap"],
        ]
        assert opt.ledger[1].reason.startswith("ClipGradNorm moves")
        assert "UpdateCap" not in opt.ledger[1].reason

    def test_routine_is_no_intervention(self):
        _, opt = make(UpdateCap(1e-6), ClipGradNorm(1.0), MaxNorm(1.0))
        for _ in range(3):
            step(opt, 9.0)
        assert len(opt.ledger) == 1
        summary = opt.summary()
        assert not opt.ledger[0].intervened
        assert (summary["skips"], summary["rollbacks"], summary["integrity"]) == (0, 0, "OK")

    def test_what_is_not_routine_is_told_every_time(self):
        _, opt = make(Nudge())
        for _ in range(3):
            step(opt)
        assert [event.call for event in opt.ledger] == [1, 2, 3]
        assert all(event.intervened for event in opt.ledger)

    def test_the_step_that_is_taken_for_another_reason_tells_both(self):
        _, opt = make(ClipGradNorm(1.0), guard=False)
        step(opt, 9.0)
        (event,) = opt.ledger
        assert event.acts[0].before == (36.0,)
        assert event.grad_norm == 36.0


class Nudge:
    """Acts in every step, and says so for each parameter."""

    params = None
    phase = Phase.WEIGHT
    metric = "nudge"
    routine = False
    needs = Needs()

    def find(self, site):
        return Found(site.targets)

    def act(self, view, found, memory):
        return [Change(target.name, 1.0, 2.0) for target in found.targets]


class TestSummary:
    def test_it_counts_steps_and_parameters(self):
        weights = [nn.Parameter(torch.full((3, 3), size)) for size in (9.0, 9.0, 0.1)]
        inner = torch.optim.SGD(weights, lr=1e-3)
        opt = StableOptimizer(inner, transforms=[MaxNorm(1.0), ClipGradNorm(1.0)])
        step(opt, 0.1)
        with torch.no_grad():
            weights[2].fill_(5.0)
        step(opt, 0.1)
        step(opt, 9.0)
        norms, clip = opt.summary()["transforms"]
        assert norms == {
            "transform": "MaxNorm(limit=1.0, dim=None, params=None)",
            "parameters": 3,
            "steps": 2,
            "changes": 3,
            "newest": {
                "transform": "MaxNorm",
                "metric": "norm",
                "count": 1,
                "worst": "0.2",
                "before": pytest.approx(15.0, rel=1e-3),
                "after": 1.0,
            },
        }
        assert (clip["steps"], clip["changes"]) == (1, 1)
        assert clip["newest"]["worst"] is None

    def test_telemetry_has_the_acts(self, tmp_path):
        _, opt = make(MaxNorm(1.0), Nudge(), telemetry=tmp_path)
        for _ in range(3):
            step(opt)
        opt.close()
        events = [e for e in read_events(tmp_path / "telemetry.jsonl") if e.get("acts")]
        assert [a["transform"] for a in events[0]["acts"]] == ["MaxNorm", "Nudge"]
        assert events[0]["acts"][0]["worst"] == "0.0"
        assert events[0]["acts"][0]["before"] == pytest.approx(4.0, rel=1e-2)
        assert "MaxNorm moves the norm of 0.0" in events[0]["reason"]
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert [known["steps"] for known in summary["transforms"]] == [1, 3]

    def test_every_event_has_what_was_done_also_when_it_is_no_news(self, events):
        _, opt = make(ClipGradNorm(1.0), telemetry=events)
        for grad in (9.0, 9.0, 1e-3):
            step(opt, grad)
        opt.close()
        assert [[a.again for a in event.acts] for event in events.seen] == [[False], [True], []]


class TestSkipped:
    def test_nothing_is_done(self):
        transforms = (
            ClipGradNorm(0.1),
            AdaptiveWeightDecay(when="alarm > 1", base=0.5),
            MaxNorm(1.0),
            UpdateCap(1e-9),
        )
        weight, opt = make(*transforms)
        weight.grad = torch.ones(4, 4)
        weight.grad[0, 0] = math.nan
        gradient, state = weight.grad.clone(), opt._loop.transforms.state_dict()
        opt.observe(alarm=2.0)
        opt.step()
        assert opt.verdict.action is Action.SKIP
        assert_same(weight.grad, gradient)
        assert bool((weight == 1).all())
        assert opt.ledger[0].acts == ()
        assert [known["steps"] for known in opt.summary()["transforms"]] == [0] * 4
        assert_same(opt._loop.transforms.state_dict(), state)

    def test_what_a_line_search_did_before_it_was_undone_is_not_told(self):
        weight = nn.Parameter(torch.full((3,), 2.0))
        inner = torch.optim.LBFGS([weight], lr=1e-3)
        opt = StableOptimizer(inner, transforms=[ClipGradNorm(1e-3)])
        calls = []

        def closure():
            opt.zero_grad()
            calls.append(1)
            loss = (weight**2).sum() * (math.nan if len(calls) in (3, 4) else 1.0)
            loss.backward()
            return loss

        opt.step(closure)
        assert opt.verdict.action is Action.SKIP
        assert opt.ledger[0].acts == ()
        assert opt.summary()["transforms"][0]["steps"] == 0
        calls.extend([1] * 10)
        opt.step(closure)
        assert opt.verdict.action is Action.TAKE
        (told,) = opt.ledger[1].acts
        assert len(told.before) == 1
        assert opt.summary()["transforms"][0]["changes"] == 1

    def test_what_was_done_before_an_exception_is_not_told(self):
        class Fails(torch.optim.SGD):
            fails = True

            def step(self, closure=None):
                if self.fails:
                    raise KeyError("no")

        weight = nn.Parameter(torch.ones(4))
        inner = Fails([weight], lr=0.1)
        opt = StableOptimizer(inner, guard=False, sensors=(), transforms=[ClipGradNorm(1.0)])
        with pytest.raises(KeyError, match="no"):
            step(opt, 9.0)
        inner.fails = False
        step(opt, 1e-3)
        assert opt.ledger == ()
        assert opt.summary()["transforms"][0]["steps"] == 0

    @pytest.mark.parametrize("seed", range(4))
    def test_readings_are_news_until_a_step_is_taken_or_it_goes_back(self, seed, events):
        draw = random.Random(seed)
        sampler = Sampler(ratio=1, every=3)
        sensors = Sensors(use=(SpectralNorm(),), sampler=sampler, budget=None)
        decay = AdaptiveWeightDecay(when="spectral_norm > 1e-6", hold=False, base=1e-6)
        guard = Guard(every=2, max_skips=50, cooldown=0)
        _, opt = make(decay, lr=1e-6, sensors=sensors, guard=guard, telemetry=events)
        for _ in range(120):
            luck = draw.random()
            if luck < 0.1:
                opt.rollback()
            step(opt, math.nan if 0.1 <= luck < 0.4 else 1.0)
        opt.close()
        assert len(events.seen) == 120
        news, kinds = False, set()
        for event in events.seen:
            arrived = news
            news = news or bool(event.readings)
            if event.action is Action.TAKE:
                assert bool(event.acts) is news, event.call
                kinds.add((bool(event.readings), arrived))
            else:
                kinds.add((event.action, bool(event.readings)))
            if event.action is not Action.SKIP:
                news = False
        assert {(True, False), (False, False), (False, True)} <= kinds
        assert {(Action.SKIP, True), (Action.ROLL_BACK, True)} <= kinds
