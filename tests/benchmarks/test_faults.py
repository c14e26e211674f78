"""The fault benchmark strikes every fault, and writes a result that its tables can be made from."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.fault_kinds import FAULTS, Scene
from benchmarks.fault_report import render
from benchmarks.fault_rows import bound_of
from benchmarks.fault_runs import Setting, Strike, run
from benchmarks.fault_state import digest, is_poisoned, tensors_of
from benchmarks.fault_tasks import TASKS
from benchmarks.faults import main
from stableopt import Guard, testing

UNSEEN = {"gradient-1000", "early-1000", "batch-noise"}
"""Spikes before there is a baseline; clipping bears them."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The result and the table of ``--quick``."""
    directory = tmp_path_factory.mktemp("faults")
    before = torch.get_rng_state()
    assert main(["--quick", "--output", str(directory)]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    result = json.loads((directory / "faults.json").read_text())
    return result, (directory / "faults.md").read_text()


def test_writes_a_result_file(quick):
    result, table = quick
    (block,) = result["blocks"]
    assert not result["complete"]
    assert "not to be quoted" in table
    assert table == render(result, "faults.json")
    assert block["guard"] == "Guard(every=40)"
    assert [row["fault"] for row in block["rows"]] == list(block["records"]) == list(FAULTS)
    for row in block["rows"]:
        assert row["title"] in table
        for record in block["records"][row["fault"]]:
            assert len(record["struck_calls"]) == (1 if FAULTS[row["fault"]].again is None else 2)
        assert [len(r["struck_calls"]) for r in block["bare_records"][row["fault"]]] == [1]


def test_survives_unpoisoned(quick):
    (block,) = quick[0]["blocks"]
    assert block["clean_interventions"] == 0
    for row in block["rows"]:
        assert row["survived"] == row["runs"], row
        assert row["poisoned_restores"] == row["poisoned_at_end"] == 0, row
        assert row["beyond_bound"] == row["false_alarms"] == 0, row
        if row["fault"] not in {*UNSEEN, "twice"}:  # which goes on with half the learning rate
            assert row["identical"] == row["runs"], row


def test_the_faults_are_real(quick):
    (block,) = quick[0]["blocks"]
    for row in block["rows"]:
        if row["fault"] not in {*UNSEEN, "none"}:
            assert row["bare_survived"] - row["bare_poisoned"] == 0, row


def test_a_missed_fault_is_seen():
    strike = Strike(fault=FAULTS["v-inf"], phase=25, moment="before forward", seed=1)
    blind = Guard(slots=0, loss_spike=None, gradient_spike=None)
    outcome = run(_setting(blind), strike)
    assert outcome.error is not None or outcome.poisoned
    assert math.isfinite(run(_setting(Guard(every=40)), strike).validation)


def test_the_same_seed_gives_the_same_run():
    first, second = (run(_setting(None), None) for _ in range(2))
    assert first.validation == second.validation


def _setting(guard):
    return Setting(
        task="classifier",
        optimizer="AdamW",
        implementation="foreach",
        seed=3,
        updates=50,
        guard=guard,
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
    for value in (math.nan, math.inf, 1e20):
        model = TASKS["classifier"].build(0)
        testing.corrupt_buffer(model, value)
        assert is_poisoned(dict(model.named_buffers()), [])


def test_bounds():
    guard = Guard(every=40)
    assert bound_of(FAULTS["weight-nan"], guard) == 41
    assert bound_of(FAULTS["gradient-1000"], guard) == 21 + 80
    assert bound_of(FAULTS["twice"], guard) == 41 + 21 + 80


def test_refuses_a_fault_that_is_not_known(capsys):
    with pytest.raises(SystemExit):
        main(["--faults", "weight-nam"])
    assert "no fault is called 'weight-nam': give some of weight-nan" in capsys.readouterr().err
