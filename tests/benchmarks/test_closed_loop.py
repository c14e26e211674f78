"""The closed-loop benchmark drives runs into failures, and says so when a bound is missed."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from benchmarks.closed_loop.__main__ import main
from benchmarks.closed_loop.norms import BOUNDS, VARIANTS, largest_norm
from benchmarks.closed_loop.report import best_of_ours, digest, render, verdict
from benchmarks.closed_loop.rows import arm_of, outcome, scenario_row
from benchmarks.closed_loop.runs import run
from benchmarks.closed_loop.scenarios import ADAPTERS, BASE_ARMS, SCENARIOS
from benchmarks.closed_loop.tasks import QUICK, Course, adapted_gpt, new_gpt

SENSED = ("spectral norm", "clusters", "rank")


@pytest.fixture(scope="module", autouse=True)
def _one_quiet_thread():
    logger = logging.getLogger("stableopt")
    threads, level = torch.get_num_threads(), logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.CRITICAL)
    yield
    torch.set_num_threads(threads)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The result, the tables and the picture of ``--quick``."""
    directory = tmp_path_factory.mktemp("closed_loop")
    before = torch.get_rng_state()
    assert main(["--quick", "--seeds", "1", "--output", str(directory)]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    result = json.loads((directory / "closed_loop.json").read_text())
    table, picture = (directory / f"closed_loop.{kind}" for kind in ("md", "svg"))
    return result, table.read_text(), picture.read_text()


def test_writes_what_it_found(quick):
    result, table, picture = quick
    assert not result["complete"]
    assert "not to be quoted" in table
    assert table == render(result)
    assert [row["scenario"] for row in result["scenarios"]] == list(SCENARIOS)
    for row in result["scenarios"]:
        assert [a["arm"] for a in row["arms"]] == [*BASE_ARMS, *SCENARIOS[row["scenario"]].arms]
        assert row["title"] in table
        assert row["title"] in picture
    assert {row["bound"] for row in result["norms"]} == set(BOUNDS)


def test_the_digest_has_a_row_for_every_failure_and_every_normalization(quick):
    rows = [line for line in digest(quick[0]).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(SCENARIOS) + 2 + len(BOUNDS) * len(VARIANTS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_drives_lead_beyond_the_bound(quick, name):
    row = next(row for row in quick[0]["scenarios"] if row["scenario"] == name)
    assert arm_of(row, "healthy")["left"] == 0
    assert arm_of(row, "none")["left"] == arm_of(row, "none")["units"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_done_before_a_drive(quick, name):
    row = next(row for row in quick[0]["scenarios"] if row["scenario"] == name)
    assert not any(arm["early"] for arm in row["arms"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_ours_is_outside_for_fewer_steps(quick, name):
    row = next(row for row in quick[0]["scenarios"] if row["scenario"] == name)
    assert best_of_ours(row)["outside"] < arm_of(row, "none")["outside"]


@pytest.mark.parametrize("name", ["clusters", "rank"])
def test_a_soft_cap_raises_the_rank_and_a_decay_does_not(quick, name):
    row = next(row for row in quick[0]["scenarios"] if row["scenario"] == name)
    ranks = {arm["arm"]: arm["spectra"]["relative_rank"] for arm in row["arms"]}
    assert ranks["l2"] == pytest.approx(ranks["none"], rel=0.02)
    assert ranks["dense"] > 1.2 * ranks["none"]


def test_adapters_never_leave_their_bound(quick):
    row = next(row for row in quick[0]["scenarios"] if row["scenario"] == ADAPTERS)
    ours = arm_of(row, "ours")
    assert ours["left"] == 0
    assert ours["worst"] == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("name", SENSED)
def test_the_same_seed_is_the_same_run(name):
    first, second = (run(SCENARIOS[name], "dense", 3, quick=True) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


@pytest.mark.parametrize("name", SCENARIOS)
def test_drives_push_further_in_every_update(name):
    scenario = SCENARIOS[name]
    if scenario.drive is None:
        assert scenario.lr_factor > 1
        return
    weight = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    push = scenario.drive([weight], torch.Generator().manual_seed(1))
    lengths = []
    for _ in range(3):
        push()
        lengths.append(float((weight - before).norm()))
    assert 0 < lengths[0] < lengths[1] < lengths[2]


def test_adapters_begin_as_the_frozen_model():
    model = adapted_gpt(QUICK, 0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    plain = new_gpt(QUICK, 0)
    frozen = {n.replace(".layer", ""): p for n, p in model.named_parameters() if "lora_" not in n}
    plain.load_state_dict(frozen | {"mask": plain.mask}, strict=False)
    text = torch.arange(16)[None]
    assert torch.equal(model(text), plain(text))


class TestOutcome:
    COURSE = Course(steps=8, begin=2, end=6)

    def _outcome(self, series, acted):
        return outcome(SCENARIOS["spectral norm"], series, acted, self.COURSE)

    def test_what_comes_back(self):
        found = self._outcome([1, 1, 1, 5, 6, 7, 3, 4.1], [1, 5, 6])
        assert (found["left"], found["noticed"], found["back"]) == (3, 2, 1)
        assert (found["worst"], found["worst_after"]) == (7, 4.1)
        assert (found["outside"], found["recovered"]) == (round(4 / 6, 4), False)
        assert (found["acts"], found["early"]) == (3, 1)

    def test_what_never_left(self):
        found = self._outcome([4.0] * 8, [3])
        assert (found["left"], found["noticed"], found["back"]) == (None, None, None)
        assert found["recovered"]

    def test_what_never_came_back(self):
        found = self._outcome([1, 5, 5, 5, 5, 5, 5, 5], [2])
        assert (found["left"], found["noticed"], found["back"]) == (1, 1, None)
        assert found["worst_after"] is None

    def test_a_lower_bound(self):
        series = [1, 0.5, 0.3, 0.7, 0.7, 0.7, 0.65, 0.61]
        found = outcome(SCENARIOS["rank"], series, [3], self.COURSE)
        assert (found["worst"], found["worst_after"], found["recovered"]) == (0.3, 0.61, True)


class TestVerdicts:
    def _arm(self, **changed):
        if "left_it" in changed:
            changed["left"] = changed.pop("left_it")
        unit = outcome(SCENARIOS["rank"], [1, 0.5, 0.5, 0.7], [2], Course(steps=4, begin=0, end=3))
        records = [
            {"arm": arm, "seed": 0, "val": 2.0, "spectra": {}, "units": [{**unit, **changed}]}
            for arm in ("healthy", "ours")
        ]
        return arm_of(scenario_row(SCENARIOS["rank"], records), "ours")

    def _verdict(self, *, left=1, lost=1.0, **changed):
        bare = {"left": left, "units": 1, "outside": lost}
        return verdict(self._arm(**changed), bare)

    def test_a_bound_that_is_regained(self):
        assert self._verdict(outside=0.05).startswith("regained;")
        assert "left again" in self._verdict(outside=0.5)

    def test_a_bound_that_is_missed(self):
        lost = self._verdict(back=None, worst_after=None)
        assert lost.startswith("**missed**: 1 of 1 that left it never came back")
        assert "**missed** at the end by 1 of 1" in self._verdict(recovered=False)

    def test_what_is_worse_than_nothing(self):
        assert self._verdict(outside=0.5, lost=0.4).startswith("**worse than nothing**")

    def test_a_bound_that_is_held(self):
        assert "never left; without it 1 of 1" in self._verdict(left_it=None, outside=0.0)
        assert "nothing to hold" in self._verdict(left=0, left_it=None, outside=0.0)

    def test_a_missed_bound_is_in_the_report(self, quick):
        result = json.loads(json.dumps(quick[0]))
        ours = arm_of(result["scenarios"][0], "dense")
        ours.update(left=2, never_back=2)
        assert "dense sampler: **missed**: 2 of 2" in render(result)
        assert "dense sampler: **missed**: 2 of 2" in digest(result)


@pytest.mark.parametrize("variant", VARIANTS)
def test_normalizations_read_what_the_forward_pass_uses(variant):
    course = replace(QUICK, steps=2)
    learner = VARIANTS[variant](course, 1.0, 0)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    norm = largest_norm(learner.model)
    after = learner.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert norm == pytest.approx(1.0 if variant.startswith("torch") else 1.67, abs=0.1)
    assert learner.model.training
