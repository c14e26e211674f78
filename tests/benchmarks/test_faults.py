"""The fault benchmark strikes every fault, and writes a result that its tables can be made from."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.common.environment import describe_environment
from benchmarks.faults.__main__ import main
from benchmarks.faults.kinds import BATCH, FAULTS, FORWARD, STEP, Scene
from benchmarks.faults.pool import Job, play_all
from benchmarks.faults.report import digest as table_of
from benchmarks.faults.report import render, survival
from benchmarks.faults.rivals import BASELINE, OURS, RIVALS, TITLES
from benchmarks.faults.rows import bound_of
from benchmarks.faults.runs import Setting, Strike, run
from benchmarks.faults.state import Whole, digest, is_poisoned, tensors_of
from benchmarks.faults.strikes import newest_snapshot
from benchmarks.faults.targets import is_fault, targets
from benchmarks.faults.tasks import TASKS
from stableopt import Guard, StableOptimizer, testing

QUIET = {"v-zero", "batch-noise"}
"""Finite and plausible, and with little effect: what becomes of them depends on the tensor."""

THOUSANDFOLD = {name for name in FAULTS if name.endswith("1000") or "1000-" in name}

BORNE = {*QUIET, *THOUSANDFOLD, "v-zero-all"}
"""What clipping bears, or survives at least."""

SHORT = [name for name, fault in FAULTS.items() if fault.updates is None]
"""What ``--quick`` strikes with."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The result and the table of ``--quick``."""
    directory = tmp_path_factory.mktemp("faults")
    before = torch.get_rng_state()
    assert main(["--quick", "--jobs", "0", "--output", str(directory)]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    result = json.loads((directory / "faults.json").read_text())
    return result, (directory / "faults.md").read_text()


@pytest.mark.slow
def test_writes_a_result_file(quick):
    result, table = quick
    assert not result["complete"]
    assert "not to be quoted" in table
    assert table == render(result)
    assert result["guard"] == "Guard(every=40)"
    assert result["guard_hash"] is None  # which is that of the default
    assert [row["fault"] for row in result["rows"]] == list(result["records"]) == SHORT
    available = [n for n in TITLES if n == OURS or RIVALS[n].available]
    for row in result["rows"]:
        assert row["title"] in table
        assert list(row["contestants"]) == available
        assert survival(row["contestants"][OURS]) in table


@pytest.mark.slow
def test_every_contestant_meets_the_same_fault(quick):
    for name, records in quick[0]["records"].items():
        times = 2 if FAULTS[name].again is not None else FAULTS[name].times
        assert [len(r["struck_calls"]) for r in records[OURS]] == [times]
        for contestant, (record,) in records.items():
            (ours,) = records[OURS]
            for key in ("task", "optimizer", "implementation", "seed", "phase", "moment"):
                assert record[key] == ours[key]
            first, known = record["injections"][:1], ours["injections"][:1]
            if contestant != "stabilityguard":  # its clean steps are not bit for bit ours
                assert [i["target"] for i in first] == [i["target"] for i in known]
            assert [i["index"] for i in first] == [i["index"] for i in known]
            assert record["struck_calls"][0] == ours["struck_calls"][0]


@pytest.mark.slow
def test_survives_unpoisoned(quick):
    result, _ = quick
    assert result["clean_interventions"] == 0
    for row in result["rows"]:
        ours = row["contestants"][OURS]
        assert ours["survived"] == ours["runs"], row
        assert ours["poisoned"] == ours["diverged"] == row["poisoned_restores"] == 0, row
        assert row["beyond_bound"] == row["false_alarms"] == 0, row
        if row["fault"] not in {*BORNE, "twice"}:  # which goes on with half the learning rate
            assert row["identical"] == ours["runs"], row


@pytest.mark.slow
def test_the_faults_are_real(quick):
    for row in quick[0]["rows"]:
        clip = row["contestants"][BASELINE]
        if is_fault(row) and row["fault"] not in BORNE:
            assert clip["survived"] - clip["poisoned"] == 0, row


@pytest.mark.slow
def test_what_has_diverged_is_told(quick):
    result, table = quick
    row = next(row for row in result["rows"] if row["fault"] == "v-zero-all")
    assert row["contestants"][BASELINE]["diverged"] == 1
    assert "1/1 (1 diverged)" in table


def test_targets_are_missed_where_they_are():
    assert {found["met"] for found in targets(_result())} == {True, None}
    for change, what in (
        ({"silent": 2}, "nothing missed"),
        ({"not_close": 1}, "Δval"),
        ({"late": 1}, "found within"),
        ({"beyond_bound": 1}, "steps lost"),
        ({"poisoned_restores": 1}, "every restored"),
        ({"false_alarms": 1}, "no intervention"),
    ):
        result = _result(**change)
        missed = [found["target"] for found in targets(result) if found["met"] is False]
        assert len(missed) == 1
        assert missed[0].startswith(what)
        assert f"| {missed[0]} | **missed** | NaN in a weight" in render(result)
    result = _result()
    result["rows"][0]["contestants"][OURS]["poisoned"] = 1
    assert [found["met"] for found in targets(result)].count(False) == 1
    result["clean_interventions"] = 3
    assert [found["met"] for found in targets(result)].count(False) == 2


def _result(**change):
    """Return a result of one fault, all in order."""
    score = {"runs": 2, "survived": 2, "poisoned": 0, "diverged": 0, "delta": 0.0}
    score["steps_lost"] = None
    row = {
        **dict.fromkeys(("late", "silent", "not_close", "beyond_bound", "poisoned_restores"), 0),
        **dict.fromkeys(("false_alarms", "rollbacks", "bound"), 0),
        "fault": "weight-nan",
        "title": "NaN in a weight",
        "contestants": {OURS: score, BASELINE: {**score, "survived": 0}},
        "identical": 2,
        "latency": None,
        "steps_lost": None,
        **change,
    }
    return {
        **dict.fromkeys(("updates", "clip_bound", "seconds", "clean_runs"), 1),
        "clean_interventions": 0,
        "guard_hash": "abc",
        "guard": "Guard()",
        "seed": 0,
        "command": "",
        "complete": True,
        "environment": describe_environment(),
        "rows": [row],
    }


def test_the_readme_has_every_contestant():
    text = table_of(_result())
    assert text.startswith("| fault | stableopt | AdamW + clip | found after |")
    assert "| NaN in a weight | 2/2 | 0/2 | - | - | +0.000 |" in text
    assert "`Guard()`, hash abc." in text


@pytest.mark.parametrize(
    ("rival", "fault", "moment", "survives"),
    [
        (BASELINE, "gradient-nan", STEP, False),
        ("finite", "gradient-nan", STEP, True),
        ("finite", "weight-nan", FORWARD, False),
        ("6-sigma", "weight-nan", FORWARD, False),
        ("zclip", "gradient-nan", STEP, False),
        ("checkpoint", "gradient-nan", STEP, True),
        ("checkpoint", "buffer-nan", FORWARD, False),
        # It keeps a copy of the last step, so that the moment decides.
        ("stabilityguard", "weight-nan", FORWARD, True),
        ("stabilityguard", "weight-nan", STEP, False),
    ],
)
def test_rivals(rival, fault, moment, survives):
    if not RIVALS[rival].available:
        pytest.skip(f"{RIVALS[rival].requires} is not installed")
    strike = Strike(fault=FAULTS[fault], phase=75, moment=moment, seed=1)
    outcome = run(_setting(None, rival=rival, updates=90), strike)
    assert (outcome.finished and outcome.finite) is survives
    assert (outcome.error is None) or not survives


def test_a_window_with_a_nan_in_it_is_stuck():
    strike = Strike(fault=FAULTS["gradient-nan"], phase=75, moment=STEP, seed=1)
    outcome = run(_setting(None, rival="6-sigma", updates=90), strike)
    # It comes back once the window has forgotten: the fault itself was harmless.
    assert outcome.finished
    assert outcome.lost == 129
    strike = Strike(fault=FAULTS["weight-nan"], phase=75, moment=FORWARD, seed=1)
    outcome = run(_setting(None, rival="6-sigma", updates=120), strike)
    assert outcome.error == "given up: 75 updates in 275 calls"


def test_a_restart_costs_the_way_back_to_the_checkpoint():
    strike = Strike(fault=FAULTS["weight-nan"], phase=130, moment=FORWARD, seed=1)
    outcome = run(_setting(None, rival="checkpoint", updates=140), strike)
    assert outcome.finished
    assert outcome.lost == 31
    strike = Strike(fault=FAULTS["twice"], phase=130, moment=FORWARD, seed=1)
    outcome = run(_setting(None, rival="checkpoint", updates=140), strike)
    assert outcome.struck == [131, 134]
    assert outcome.lost == 31 + 3


def test_a_checkpoint_that_holds_the_fault_is_the_end():
    # Struck in the call before the checkpoint, behind the gradients: the loss was still finite.
    strike = Strike(fault=FAULTS["weight-nan"], phase=99, moment=STEP, seed=1)
    outcome = run(_setting(None, rival="checkpoint", updates=120), strike)
    assert outcome.error == "the loss was not finite after 5 restarts"


@pytest.mark.parametrize("name", [n for n, rival in RIVALS.items() if rival.healthy])
def test_a_healthy_run_may_be_shared(name):
    shared, own = (run(_setting(None, rival=n), None) for n in (RIVALS[name].healthy, name))
    assert shared.digest == own.digest
    assert shared.lost == own.lost == 0


def test_a_damaged_snapshot_is_not_restored():
    strike = Strike(fault=FAULTS["snapshot-bit"], phase=60, moment=FORWARD, seed=1)
    outcome = run(_setting(Guard(every=40), updates=90), strike)
    flip = outcome.injections[1]
    assert flip.target.startswith("snapshot 40: ")
    assert 0.05 < abs(flip.after / flip.before - 1) < 0.15
    assert outcome.finished
    assert outcome.poisoned_restores == 0
    assert outcome.summary["steps_lost"] == 60  # back to the one before


def test_the_newest_snapshot_is_the_memory_of_the_guard():
    model = torch.nn.Linear(2, 1)
    stable = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), guard=Guard(every=1))
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        stable.step()
    step, (weight, bias) = newest_snapshot(stable)
    assert step == 2
    assert torch.equal(weight, model.weight)
    assert torch.equal(bias, model.bias)
    assert weight.data_ptr() != model.weight.data_ptr()


@pytest.mark.parametrize("name", TASKS)
def test_a_shift_is_of_the_data_alone(name):
    task = TASKS[name]
    before, after = (task.batch(0, 5, shifted=shifted) for shifted in (False, True))
    assert [part.shape for part in before] == [part.shape for part in after]
    assert not all(torch.equal(*parts) for parts in zip(before, after, strict=True))
    strike = Strike(fault=FAULTS["shift"], phase=30, moment=BATCH, seed=1)
    shifted = run(_setting(None, task=name, shift=31), strike)
    assert shifted.digest == run(_setting(None, task=name, shift=31), None).digest
    assert shifted.validation > run(_setting(None, task=name), None).validation + 0.1


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same():
    setting = _setting(Guard(every=20))
    job = Job(fault="gradient-nan", contestant=OURS, setting=setting, phase=30, moment=STEP, seed=1)
    shift = Job(fault="shift", contestant=OURS, setting=setting, phase=30, moment=BATCH, seed=1)
    assert job.clean == setting
    assert shift.clean == replace(setting, guard=None)
    assert play_all([job], processes=1) == play_all([job], processes=0)


def test_a_missed_fault_is_seen():
    strike = Strike(fault=FAULTS["v-inf"], phase=25, moment="before forward", seed=1)
    blind = Guard(slots=0, loss_spike=None, gradient_spike=None)
    outcome = run(_setting(blind), strike)
    assert outcome.error is not None or outcome.poisoned
    assert math.isfinite(run(_setting(Guard(every=40)), strike).validation)


def test_the_same_seed_gives_the_same_run():
    first, second = (run(_setting(None), None) for _ in range(2))
    assert first.validation == second.validation


def _setting(guard, *, task="classifier", updates=50, **options):
    return Setting(
        task=task,
        optimizer="AdamW",
        implementation="foreach",
        seed=3,
        updates=updates,
        guard=guard,
        **options,
    )


@pytest.mark.parametrize("name", TASKS)
def test_what_is_untouched_stays_untouched(name):
    task = TASKS[name]
    model = task.build(0)
    task.loss(model, task.batch(0, 1)).backward()
    rows = task.untouched
    gradient = dict(model.named_parameters())[rows.name].grad
    assert gradient.shape == (rows.first + rows.count, rows.width)
    assert not gradient[rows.first :].any()


def test_poison_is_found():
    model = TASKS["classifier"].build(0)
    optimizer = torch.optim.AdamW(model.parameters())
    scene = Scene(model=model, optimizer=optimizer, untouched=TASKS["classifier"].untouched)
    tensors = tensors_of(scene)
    before = digest(tensors)
    assert not is_poisoned(tensors, [])
    small = testing.corrupt_weight(optimizer, 0.125, model=model)
    assert not is_poisoned(tensors, [])
    assert is_poisoned(tensors, [small])
    assert digest(tensors) != before
    weight = tensors[small.target]
    norm = float(weight.norm())
    whole = Whole(target=small.target, before=norm, after=100 * norm)
    assert not is_poisoned(tensors, [whole])
    weight.mul_(50)
    assert is_poisoned(tensors, [whole])
    for value in (math.nan, math.inf, 1e20):
        model = TASKS["classifier"].build(0)
        testing.corrupt_buffer(model, value)
        assert is_poisoned(dict(model.named_buffers()), [])


def test_bounds():
    guard = Guard(every=40)
    assert bound_of(FAULTS["weight-nan"], guard) == 41
    assert bound_of(FAULTS["gradient-1000"], guard) == 21 + 80
    assert bound_of(FAULTS["twice"], guard) == 41 + 21 + 80
    assert bound_of(FAULTS["snapshot-bit"], guard) == 81
    assert bound_of(FAULTS["shift"], guard) == guard.max_skips


def test_refuses_a_fault_that_is_not_known(capsys):
    with pytest.raises(SystemExit):
        main(["--faults", "weight-nam"])
    assert "no fault is called 'weight-nam': give some of weight-nan" in capsys.readouterr().err
