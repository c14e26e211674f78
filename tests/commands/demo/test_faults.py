"""Every fault of the demo: what the guard does about it, and what becomes of it without."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from stableopt.commands.demo import scenario
from stableopt.commands.demo import train as training
from stableopt.commands.demo.curves import _call_of, _window
from stableopt.commands.demo.faults import KINDS, POISONED, Fault, Inject, Stage, announce_fault
from stableopt.commands.demo.inject import Injector, scars
from stableopt.commands.demo.model import GPT
from stableopt.commands.demo.options import DemoOptions
from stableopt.commands.demo.outcome import judge_outcome
from stableopt.commands.demo.train import Run
from stableopt.types import Action, Event, Rollback


@pytest.fixture
def train(corpus, tiny_recipe, recorder, tmp_path):
    """Train the tiny model with a fault in it."""

    def run(kind, *, at, steps, guard=True):
        fault = None if kind is None else Fault(kind=kind, at=at)
        recipe = tiny_recipe(steps=steps)
        return training.train(corpus, recipe, recorder, out=tmp_path, fault=fault, guard=guard)

    return run


def summary(demo, run=""):
    return json.loads((demo.out / run / "summary.json").read_text())


# The headline


def test_a_nan_in_a_weight_is_rolled_back_and_told(demo):
    result = demo("--steps", "140", "--at", "130")

    assert result.exit_code == 0, result.output
    assert "After step 130 one weight becomes NaN." in result.stdout
    assert re.search(r"injected after step 130: (\S+)\[\d+\]: \S+ becomes NaN", result.stdout)
    assert "call 131: roll_back: " in result.stdout
    assert re.search(r"guarded +140/140 .* taken 139  skipped 0  rolled back 1", result.stdout)
    assert re.search(r"guarded .* 0 +1 +OK +recovered", result.stdout)
    assert re.search(r"no guard .* nan .* COMPROMISED +died at step 131", result.stdout)
    assert "found      in step 131, 1 step later: the loss is nan; the weights of" in result.stdout
    undone = "undone     in step 131 rolled back from step 130 to step 100: 30 updates lost"
    assert undone in result.stdout
    assert "left       nothing of it: no weight, moment or buffer is damaged" in result.stdout
    last = result.stdout.splitlines()[-2]
    assert re.match(r"Recovered: integrity OK, final validation loss \d\.\d+, within noise", last)


def test_the_summaries_say_so(demo):
    demo("--steps", "140", "--at", "130")

    ours, guarded = summary(demo), summary(demo, "guarded")
    assert (ours["fate"], ours["integrity"], ours["within_noise"]) == ("recovered", "OK", True)
    assert ours["rollbacks"] == [{"at": 131, "from_step": 130, "to_step": 100}]
    assert (ours["found_at"], ours["found_after"], ours["scars"]) == (131, 1, [])
    assert ours["validation_loss"]["no guard"] == "NaN"
    counts = {key: guarded[key] for key in ("integrity", "calls", "steps", "rollbacks", "skips")}
    assert counts == {"integrity": "OK", "calls": 140, "steps": 109, "rollbacks": 1, "skips": 0}
    assert guarded["steps_lost"] == ours["updates_lost"] == 30
    assert guarded["tracked"] == ["scheduler"]


def test_the_learning_rate_goes_back_too(train, recorder):
    run = train(Inject.WEIGHTS, at=130, steps=140)

    assert run.rollbacks[0][1].to_step == 100
    # The rollback is call 131: what follows repeats the updates from the 101st on.
    assert recorder.rates[131:] == recorder.rates[100:109]


def test_nobody_misses_a_scheduler_that_is_tracked(demo):
    assert "is not tracked" not in demo("--steps", "140", "--inject", "none").output


# Each kind


@pytest.mark.parametrize(
    ("kind", "at", "steps", "called"),
    [(Inject.NAN_GRAD, 6, 12, {"skipped": [6]}), (Inject.BATCH, 190, 200, {})],
)
def test_what_a_batch_does_not_leave_behind(train, kind, at, steps, called):
    run = train(kind, at=at, steps=steps)

    assert (run.skipped, run.rollbacks) == (called.get("skipped", []), [])
    assert set(run.tamed) <= {190, 191, 192, 193, 194}
    assert (run.scars, run.died_at, run.summary["integrity"]) == ((), None, "OK")
    assert math.isfinite(run.validation_loss)
    assert math.isfinite(run.training_loss)


def test_a_table_that_is_damaged_goes_back_with_the_weights(train):
    run = train(Inject.BUFFERS, at=6, steps=12)

    assert (run.skipped, len(run.rollbacks)) == ([], 1)
    assert (run.scars, run.summary["integrity"]) == ((), "OK")
    assert math.isfinite(run.validation_loss)


@pytest.mark.parametrize("kind", [Inject.BIT_FLIP, Inject.MOMENTS])
def test_a_fault_that_the_loss_does_not_show(train, kind):
    run = train(kind, at=6, steps=30)

    ((call, back),) = run.rollbacks
    assert 6 < call <= 6 + 20
    assert (back.from_step, back.to_step) == (call - 1, 0)
    assert all(map(math.isfinite, run.losses))
    assert (run.scars, run.summary["integrity"]) == ((), "OK")


@pytest.mark.parametrize("kind", [Inject.BIT_FLIP, Inject.MOMENTS])
def test_without_the_guard_it_stays_in_there(train, kind):
    run = train(kind, at=6, steps=30, guard=False)

    assert run.died_at is None
    assert len(run.losses) == 30
    assert len(run.scars) == 1
    assert run.summary["integrity"] == "UNCHECKED"


def test_without_the_guard_the_fault_is_told(demo):
    result = demo("--inject", "moments", "--steps", "30", "--at", "6", "--no-guard")

    assert result.exit_code == 1
    assert re.search(r"no guard .* UNCHECKED +survived, with the fault in it", result.stdout)
    assert re.search(r"survived, with the fault in it: exp_avg_sq of \S+ is damaged", result.stdout)
    assert "found      never: there was no guard" in result.stdout
    assert "undone     nothing" in result.stdout
    assert summary(demo)["fate"] == "survived, with the fault in it"


def test_a_fault_that_is_found_too_late_is_told(demo):
    """The scan takes 20 steps; this run ends before that."""
    result = demo("--inject", "moments", "--steps", "30", "--at", "29")

    assert result.exit_code == 1
    assert "found      never: the run ended before the guard had looked" in result.stdout
    last = result.stdout.splitlines()[-2]
    assert last.startswith("Survived, with the fault in it: integrity OK (as far as the guard had")


def test_poisoned_batches_leave_no_trace_but_in_the_numbers(demo):
    result = demo("--inject", "batch", "--steps", "200", "--at", "190")

    assert result.exit_code == 0, result.output
    assert result.stdout.count("noise in place of the batch") == 2 * POISONED + 1
    assert "fault      step 190: noise in place of the batch (and 4 more)" in result.stdout
    assert "found      in step 190, at once: the loss is" in result.stdout
    assert re.search(r"undone     (tamed \d batch(es)?, (from )?step 19\d|nothing)", result.stdout)
    assert re.search(r"no guard .* UNCHECKED +survived", result.stdout)


@pytest.mark.parametrize(("kind", "at"), [(Inject.WEIGHTS, 50), (Inject.BATCH, 70)])
def test_when_it_strikes_if_nobody_says_when(tiny_recipe, tmp_path, kind, at):
    options = DemoOptions(recipe=tiny_recipe(steps=100), out=tmp_path, inject=kind)
    assert options.fault == Fault(kind=kind, at=at)


def test_every_fault_is_announced():
    assert KINDS.keys() == set(Inject) - {Inject.NONE}
    for kind, does in KINDS.items():
        sentence = announce_fault(Fault(kind=kind, at=7))
        assert does.says in sentence
        assert f"tep {7}" in sentence


# The injector


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].stage is Stage.STATE])
def test_a_state_is_damaged_once_and_seen(kind, tiny_recipe):
    torch.manual_seed(0)
    model = GPT(tiny_recipe().model)
    adamw = torch.optim.AdamW(model.parameters())
    text = torch.arange(16)[None]
    model.loss(text, text).backward()
    adamw.step()
    told = []
    fault = Fault(kind=kind, at=2)
    imp = Injector(fault, model=model, optimizer=adamw, seed=5, report=told.append)
    assert scars(model, adamw) == ()
    for step in (1, 2, 3):
        batch = text, text
        assert imp.on_batch(step, batch) is batch
        imp.on_gradients(step)
        imp.on_state(step)
        assert len(told) == (step >= 2)

    assert len(scars(model, adamw)) == 1
    assert told[0].startswith("after step 2: ")


def test_a_bit_flip_is_finite(tiny_recipe):
    for seed in range(4):
        torch.manual_seed(seed)
        model = GPT(tiny_recipe().model)
        fault = Fault(kind=Inject.BIT_FLIP, at=1)
        sgd = torch.optim.SGD(model.parameters())
        Injector(fault, model=model, optimizer=sgd, seed=seed, report=str).on_state(1)
        assert len(scars(model, sgd)) == 1
        assert all(bool(p.isfinite().all()) for p in model.parameters())


# What is told


def make_run(losses, actions, **more):
    events = [
        Event(call=call, step=0, action=Action.ROLL_BACK, rollback=back)
        for call, back in more.pop("rollbacks", {}).items()
    ]
    summary = {"integrity": "OK", "guard": {}, "steps": 3, "steps_lost": 0}
    return Run(losses=losses, actions=actions, ledger=tuple(events), summary=summary, **more)


def back(from_step, to_step):
    return Rollback(
        from_step=from_step, to_step=to_step, attempt=1, lr_scale=1.0, restores_rng=True
    )


def test_train_loss_is_that_of_batches_that_were_taken(demo):
    take, skip = Action.TAKE, Action.SKIP
    run = make_run([3.0, math.nan, 9.0, 1.0], [take, Action.ROLL_BACK, skip, take])

    assert run.training_loss == 2.0
    result = demo("--steps", "10", "--inject", "nan-grad")
    assert "of the last 9 batches that were taken" in result.stdout


@pytest.mark.parametrize(("change", "within"), [(0.1, True), (-0.1, True), (0.3, False)])
def test_noise(change, within):
    fault = Fault(kind=Inject.WEIGHTS, at=1)
    clean = make_run([1.0], [Action.TAKE], validation_loss=2.0, validation_error=0.2)
    run = make_run([1.0], [Action.TAKE], validation_loss=2.0 + change)

    assert judge_outcome(fault, run, {}, clean).within_noise is within
    assert judge_outcome(fault, run, {}, None).within_noise is None


def test_a_loss_beyond_the_noise_is_told(demo, monkeypatch):
    validate = training._validate
    monkeypatch.setattr(training, "_validate", lambda *args: (validate(*args)[0], 1e-9))
    last = demo("--steps", "20").stdout.splitlines()[-2]

    assert "beyond the noise of the clean run's" in last


# The picture


def test_the_picture_marks_a_rollback(demo):
    demo("--steps", "20")
    picture = (demo.out / "curves.svg").read_text()

    assert "rolled back to step 0" in picture
    assert "one weight becomes NaN" in picture
    assert "dead from step 11" in picture


def test_the_picture_marks_what_stays(demo):
    demo("--inject", "bit-flip", "--steps", "20")

    assert "no guard: the fault stays in it" in (demo.out / "curves.svg").read_text()


@pytest.mark.parametrize(
    ("at", "rollbacks", "window"),
    [
        (50, {}, (38, 62)),
        (100, {}, (76, 100)),
        (1, {}, (1, 25)),
        (50, {51: back(50, 30)}, (28, 62)),
        (50, {70: back(69, 30)}, (28, 76)),
        (50, {51: back(50, 0)}, (38, 62)),
    ],
)
def test_the_panel_is_full(at, rollbacks, window):
    run = make_run([1.0] * 100, [Action.TAKE] * 100, rollbacks=rollbacks)

    assert _window({"guarded": run}, Fault(kind=Inject.WEIGHTS, at=at)) == window


def test_an_arrow_ends_where_the_update_was_made():
    take, skip = Action.TAKE, Action.SKIP
    actions = [take, skip, take, take, Action.ROLL_BACK, take, take, Action.ROLL_BACK]
    run = make_run([1.0] * 8, actions, rollbacks={5: back(3, 1), 8: back(3, 2)})

    assert _call_of(run, 5, 1) == 1
    assert _call_of(run, 8, 2) == 6
    assert _call_of(run, 5, 0) == 0


def test_titles_are_those_of_the_picture():
    from stableopt.commands.demo.curves import _LINES

    titles = {scenario.GUARDED, scenario.UNGUARDED, scenario.CLEAN, scenario.BARE}
    assert titles == _LINES.keys()
