"""The quiet zoo: its trainings learn, its table renders, and harm is noticed."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.common.environment import describe_environment
from benchmarks.zoo import __main__ as command
from benchmarks.zoo.catalogue import TRAININGS
from benchmarks.zoo.harness import Run, Training, left_out, play
from benchmarks.zoo.report import render
from benchmarks.zoo.rows import row_of
from benchmarks.zoo.targets import SEEDS, allowed, targets
from stableopt.types import Action, Event, Rollback

CHEAP = ["unfreezing", "pruned-weights", "lookahead", "schedule-free"]


def failing(run):
    model = torch.nn.Linear(2, 1)
    optimizer = run.wrap(torch.optim.SGD(model.parameters(), 0.1), model)
    run.step(optimizer, model(run.randn(4, 2)).square().mean())
    raise ValueError("a | b")


BROKEN = Training(name="broken", title="It", metric="m", function=failing, at_most=1.0)


def a_record(seed, *, wrapped, **changes):
    """A made-up record of a run in which nothing happened."""
    record = {
        "training": "broken",
        "seed": seed,
        "wrapped": wrapped,
        "metric": 0.1 * seed,
        "calls": 500,
        "left_out": 0,
        "tamed": 0,
        "interventions": 0,
        "reasons": [],
        "seconds": 1.0,
        "error": None,
        "digest": f"{seed}",
    }
    return record | changes


def a_row(**changes):
    """The row of five seeds, of which the last wrapped run is another one."""
    records = [a_record(seed, wrapped=wrapped) for seed in range(5) for wrapped in (False, True)]
    records[-1] |= changes
    return row_of(BROKEN, records)


def missed(row):
    return [target["target"].split(":")[0] for target in targets([row]) if not target["met"]]


def test_what_there_is():
    assert len(TRAININGS) >= 35
    for name, training in TRAININGS.items():
        assert name == training.name
        assert training.title
        assert (training.at_least is None) != (training.at_most is None)


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    """The exit status, the result and the table of a few trainings of one seed."""
    directory = tmp_path_factory.mktemp("zoo")
    arguments = ["--seeds", "0", "--only", *CHEAP, "--jobs", "0", "--output", str(directory)]
    before = torch.get_rng_state()
    status = command.main(arguments)
    assert torch.equal(torch.get_rng_state(), before)
    result = json.loads((directory / "zoo.json").read_text(encoding="utf-8"))
    return status, result, (directory / "zoo.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_command(cheap):
    status, result, table = cheap
    assert status == (0 if all(target["met"] for target in result["targets"]) else 1)
    assert not result["complete"]
    assert "not to be quoted" in table
    assert table == render(result)
    assert sorted(row["name"] for row in result["rows"]) == sorted(CHEAP)
    for name in CHEAP:
        assert TRAININGS[name].title in table


@pytest.mark.slow
def test_bare_and_wrapped_learn(cheap):
    _, result, _ = cheap
    for name in CHEAP:
        bare, wrapped = result["records"][name]
        assert (bare["wrapped"], wrapped["wrapped"]) == (False, True)
        assert bare["error"] is None
        assert wrapped["error"] is None
        assert TRAININGS[name].learned(bare["metric"])
        assert TRAININGS[name].learned(wrapped["metric"])
        assert bare["calls"] == wrapped["calls"] >= 300
        assert (bare["left_out"], bare["tamed"], bare["interventions"]) == (0, 0, 0)


def test_the_list(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--list"])
    assert len(capsys.readouterr().out.splitlines()) == len(TRAININGS)


def test_the_seeds_of_the_comparison_are_the_default():
    assert SEEDS == (100, 101, 102, 103, 104)


def test_the_shim_of_a_bare_run_does_nothing():
    model = torch.nn.Linear(2, 1)
    bare = torch.optim.SGD(model.parameters(), 0.1)
    run = Run(0, wrapped=False)
    optimizer = run.wrap(bare, model)
    assert optimizer is bare
    optimizer.track(anything=object())
    run.step(optimizer, model(run.randn(4, 2)).square().mean())
    assert (run.calls, run.events) == (1, [])


def test_a_training_that_raises_is_a_failed_run():
    records = [play(BROKEN, 0, wrapped=wrapped) for wrapped in (False, True)]
    for record in records:
        assert record["error"] == "ValueError: a | b"
        assert record["metric"] is None
        assert record["calls"] == 1
    row = row_of(BROKEN, records)
    assert missed(row) == ["every bare run learns", "no exception"]
    result = {
        "rows": [row],
        "targets": targets([row]),
        "environment": describe_environment(),
        "seeds": [0],
        "command": "",
        "jobs": 1,
        "seconds": 0.0,
        "guard": "",
        "guard_hash": "",
        "complete": True,
    }
    assert "**broken**" in render(result)
    assert "ValueError: a / b" in render(result)


def test_a_metric_that_is_not_finite_is_a_failed_run():
    training = Training(name="nan", title="", metric="", function=lambda run: float("nan"))
    record = play(training, 0, wrapped=False)
    assert (record["metric"], record["error"]) == (None, "the metric is nan")


@pytest.mark.parametrize(
    ("changes", "misses"),
    [
        ({}, []),
        ({"metric": 0.79}, []),
        ({"metric": 0.81}, ["metrics of wrapped runs within the spread"]),
        ({"metric": -0.41}, ["metrics of wrapped runs within the spread"]),
        ({"metric": None, "error": "ValueError"}, ["no exception"]),
        ({"left_out": 5}, []),
        ({"left_out": 6}, ["batches left out"]),
        ({"tamed": 5}, []),
        ({"tamed": 6}, ["batches tamed"]),
    ],
)
def test_the_judgement(changes, misses):
    found = missed(a_row(**changes))
    assert [name.split(" of the bare")[0] for name in found] == misses


def test_a_bare_run_that_learns_nothing_is_noticed():
    records = [a_record(seed, wrapped=wrapped) for seed in range(5) for wrapped in (False, True)]
    records[0]["metric"] = 2.0
    assert row_of(BROKEN, records)["unlearned"] == [0]


def test_a_row():
    row = a_row(metric=0.5, digest="other", seconds=3.0, left_out=2, reasons=["call 3: why"])
    assert row["bare"] == {"median": 0.2, "min": 0.0, "max": 0.4}
    assert row["wrapped"]["max"] == 0.5
    assert row["difference"] == pytest.approx(0.1)
    assert (row["identical"], row["runs"], row["calls"], row["left_out"]) == (4, 5, 2500, 2)
    assert row["time"] == 1.0
    assert row["said"] == ["seed 4, call 3: why"]


def test_all_runs_a_little_worse_are_noticed():
    records = [a_record(seed, wrapped=wrapped) for seed in range(5) for wrapped in (False, True)]
    for record in records:
        record["metric"] += 0.3 * record["wrapped"]
    assert row_of(BROKEN, records)["shifted"] == [0.5]
    assert row_of(BROKEN, records)["outside"] == []


def test_a_spread_of_nothing_allows_next_to_nothing():
    assert allowed([]) is None
    low, high = allowed([1.0, 1.0])
    assert low < 1.0 < high
    assert high - low < 1e-8


def test_what_counts_as_left_out():
    rollback = Rollback(from_step=130, to_step=100, attempt=1, lr_scale=1.0, restores_rng=True)
    skip = Event(call=1, step=0, action=Action.SKIP)
    back = Event(call=131, step=100, action=Action.ROLL_BACK, rollback=rollback)
    assert [left_out(event) for event in (skip, back)] == [1, 31]
    assert left_out(Event(call=1, step=1, action=Action.TAKE, backs_off=True)) == 0
