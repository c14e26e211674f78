"""The collapse benchmark watches what a training loop would, and finds what collapses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.collapse.__main__ import main
from benchmarks.collapse.kinds import COLLAPSES, SLOW
from benchmarks.collapse.report import render
from benchmarks.collapse.runs import Watch, collapsible, strike, struck_at, train, watch
from benchmarks.collapse.tasks import HEALTHY, TASKS
from stableopt.functional import effective_rank
from stableopt.health.spectra.sensing import Sensing
from stableopt.ranks.group import Ranks
from stableopt.sensors import Sensors

KIND, OUTPUT = "autoencoder", "7.weight"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trajectory():
    return train(KIND, 0, quick=True, steps=240)


@pytest.fixture(scope="module")
def watched(trajectory):
    return watch(trajectory)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The result and the table of ``--quick``."""
    directory = tmp_path_factory.mktemp("collapse")
    before = torch.get_rng_state()
    assert main(["--quick", "--seeds", "1", "--kinds", KIND, "--output", str(directory)]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    result = json.loads((directory / "collapse.json").read_text())
    return result, (directory / "collapse.md").read_text()


def test_writes_a_result_file(quick):
    result, table = quick
    assert not result["complete"]
    assert "not to be quoted" in table
    assert table == render(result)
    assert [row["kind"] for row in result["healthy"]] == [KIND]
    assert [row["collapse"] for row in result["collapses"]] == list(COLLAPSES)
    for row in result["collapses"]:
        assert row["title"] in table
        assert {record["kind"] for record in result["records"][row["collapse"]]} == {KIND}


def test_a_healthy_run_is_never_in_danger(quick):
    (row,) = quick[0]["healthy"]
    assert row["last_loss"] < row["first_loss"]
    assert row["assessments"]["danger"] == row["assessments"]["instability"] == 0
    assert set(row["levels"]) <= {"stable", "warning"}


def test_finds_what_collapses(quick):
    """Output layers are judged by their past alone: they may be missed."""
    for name in ("rank-one", "rank-decay", "clusters"):
        records = [r for r in quick[0]["records"][name] if r["name"] != OUTPUT]
        assert len(records) > 3
        for record in records:
            assert record["found"] is not None, record
            assert record["found"]["visits"] <= 8, record


@pytest.mark.parametrize("kind", HEALTHY)
def test_models_learn(kind):
    losses = train(kind, 0, quick=True, steps=100).losses
    assert sum(losses[-20:]) < 0.96 * sum(losses[:20])


def test_replays_what_would_be_read_beside_the_training(trajectory, watched):
    live = []

    def beside(moment, step, optimizer, model):
        if not live:
            live.append(Sensing(optimizer, model, Sensors(budget=None), Ranks(), acts=False))
        if moment == "join":
            live.extend(live[0].join(step).readings)
        else:
            live[0].launch(step)

    again = train(KIND, 0, quick=True, steps=240, beside=beside)
    assert again.losses == trajectory.losses
    read = [(r.name, r.step, r.metric, r.value, r.standing) for r in live[1:]]
    replayed = [
        (v.name, v.step, metric, value, v.standings[metric])
        for v in watched[0].visits
        for metric, value in v.values.items()
    ]
    assert sorted(read) == sorted(replayed)


def test_a_struck_weight_is_visited_when_it_would_be(trajectory, watched):
    """A collapse that changes nothing is found only where the healthy run complains as well."""
    seen, state = watched
    nothing = replace(COLLAPSES["slow"], alter=lambda matrix, visit, draw: matrix, visits=1)
    for name in collapsible(trajectory):
        record = strike(trajectory, state, name, nothing)
        after = [v for v in seen.visits if v.name == name and v.step > struck_at(trajectory)]
        assert record["found"] is None or after[0].bad


def test_one_weight_alone_reads_what_it_reads_among_all(trajectory, watched):
    seen, state = watched
    first = next(v for v in seen.visits if v.step > struck_at(trajectory))
    alone = Watch(trajectory, only=first.name)
    alone.resume(state)
    alone.load(first.step)
    alone.sensing.launch(first.step)
    assert alone.join(first.step) == [first]


@pytest.mark.parametrize("collapse", COLLAPSES.values(), ids=COLLAPSES)
def test_collapses_are_progressive(collapse):
    weight = torch.randn(48, 8, 6, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    changes = [float((collapse.apply(weight, k, 1) - weight).norm()) for k in (1, 2, 4)]
    assert torch.equal(weight, before)
    assert 0 < changes[0] < changes[1] < changes[2]
    assert torch.equal(collapse.apply(weight, 3, 1), collapse.apply(weight, 3, 1))


def test_slow_decay_is_as_slow_as_it_says():
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    slow = COLLAPSES["slow"].apply(weight, 5, 0)
    fallen = effective_rank(weight).log() - effective_rank(slow).log()
    assert fallen.item() == pytest.approx(5 * SLOW, abs=2e-3)


def test_every_weight_has_a_role():
    for kind, task in TASKS.items():
        roles = {task.role(n) for n, p in task.build(0, quick=True).named_parameters()}
        assert roles, kind
