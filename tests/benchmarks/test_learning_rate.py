"""The learning-rate benchmark: its scores, its rivals, and a run of it from end to end."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.common.runner import Journal
from benchmarks.learning_rate import __main__ as learning_rate
from benchmarks.learning_rate import methods as lr_methods
from benchmarks.learning_rate import runs as lr_runs
from benchmarks.learning_rate.methods import BASELINE, METHODS, ROBUST, SCHEDULED, Method
from benchmarks.learning_rate.model import Shape
from benchmarks.learning_rate.plan import LION_LRS, LRS, SEEDS, UNSEEN, VARIANTS, Cell, plan
from benchmarks.learning_rate.report import digest, render
from benchmarks.learning_rate.rivals import AdaGC, Clip, SkipSpikes, ZClip
from benchmarks.learning_rate.runs import run, version_of
from benchmarks.learning_rate.scores import curve, score, scores, sensitivity
from benchmarks.learning_rate.targets import WITHIN, schedule_share, targets
from benchmarks.learning_rate.tasks import LONG, MAIN, TASKS, Task


def record(loss, lr, *, seed=100, task=MAIN[0], method=ROBUST, **rest):
    done = {"logit": 12.0, "finite": True, "stopped": None, "seconds": 1.0, "capped": None}
    guard = {"skips": 0, "rollbacks": 0, "steps_lost": 0}
    cell = {"task": task, "method": method, "lr": lr, "seed": seed}
    return {**cell, "val": loss, "initial": 5.0, **done, **guard, **rest}


def gradient(*values):
    parameter = torch.nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter


class TestScores:
    def test_sensitivity_is_the_mean_excess(self):
        losses = {0.1: 2.5, 0.2: 2.0, 0.3: 3.0, 0.4: math.inf}
        # What was lost counts as 5: (.5 + 0 + 1 + 3) / 4, and (0 + 1 + 3) / 3.
        assert sensitivity(losses, 5.0) == pytest.approx(1.125)
        assert sensitivity(losses, 5.0, least=0.2) == pytest.approx(4 / 3)

    def test_the_best_learning_rate_is_that_of_the_mean(self):
        losses = {100: (2.0, 2.3, 2.6), 101: (2.6, 2.3, 2.4)}
        records = [
            record(loss, lr, seed=seed)
            for seed, row in losses.items()
            for lr, loss in zip((0.1, 0.2, 0.3), row, strict=True)
        ]
        row = score(records)
        assert row["best_lr"] == 0.1  # 2.3, 2.3, 2.5: the lowest of equals
        assert row["best"]["by_seed"] == pytest.approx([2.0, 2.6])
        # Of the second seed, 2.3 is the best: (.3 + 0 + .1) / 3.
        assert row["lrs"]["by_seed"] == pytest.approx([0.3, 0.4 / 3])
        assert row["lrs_plus"] == row["lrs"]
        assert row["best"]["mean"] == pytest.approx(2.3)
        assert (row["best"]["low"], row["best"]["high"]) == (2.0, 2.6)

    def test_nothing_counts_as_worse_than_no_training(self):
        assert curve([record("inf", 0.1), record(7.0, 0.2)]) == {0.1: [5.0], 0.2: [5.0]}

    def test_what_went_wrong_is_counted(self):
        row = score(
            [
                record("inf", 0.1, finite=False, logit="inf"),
                record(2.0, 0.2, logit=None),
                record("inf", 0.3, stopped="too many"),
            ]
        )
        assert (row["non_finite"], row["stopped"], row["runs"]) == (1, 1, 3)
        assert row["logit"] == "inf"
        assert row["lrs"]["mean"] == pytest.approx(2.0)
        json.dumps(row, allow_nan=False)


class TestTargets:
    def _found(self, records):
        return [row["met"] for row in targets(scores(records), records)]

    def _records(self, loss=2.0, **rest):
        """Ours and the baseline on all that has a target."""
        return [
            record(found, rate, seed=seed, task=task, method=method, **rest)
            for task in (*MAIN, *VARIANTS, *UNSEEN, LONG)
            for method, found in ((BASELINE, 2.1), (SCHEDULED, 2.05), (ROBUST, loss))
            for rate in (0.1, 1.0)
            for seed in SEEDS
        ] + [
            record(found, rate, seed=seed, task=MAIN[0], method=method, **rest)
            for pair in WITHIN.items()
            for method, found in zip(pair, (2.1, loss), strict=True)
            for rate in (0.1, 1.0)
            for seed in SEEDS
        ]

    def test_all_are_met(self):
        assert self._found(self._records()) == [True] * 23

    def test_a_worse_loss_is_a_miss(self):
        assert self._found(self._records(loss=2.12)) == [True] * 9 + [False] * 12 + [True] * 2

    def test_a_steep_curve_is_a_miss(self):
        records = self._records()
        steep = [r for r in records if r["method"] == ROBUST and r["task"] == MAIN[0]]
        for one in steep:
            one["val"] += 0.1 * (one["lr"] == 1.0)
        found = targets(scores(records), records)
        assert [row["met"] for row in found] == [False, *[True] * 22]
        assert found[0]["found"].startswith("0.050 over 3 seed(s)")

    def test_large_logits_and_lost_runs_are_misses(self):
        assert self._found(self._records(logit=101.0))[-2:] == [False, True]
        assert self._found(self._records(finite=False))[-2:] == [True, False]
        assert self._found(self._records(stopped="x"))[-2:] == [True, False]
        others = [{**r, "finite": METHODS[r["method"]].robust} for r in self._records()]
        assert self._found(others)[-1] is True

    def test_what_was_not_run_is_neither(self):
        few = [r for r in self._records() if r["seed"] == SEEDS[0]]
        assert self._found(few)[:9] == [None] * 9
        assert self._found([r for r in self._records() if r["lr"] < 1.0])[:9] == [None] * 9
        assert self._found([]) == [None] * 23

    def test_how_much_is_schedule(self):
        found = schedule_share(scores(self._records()), MAIN[0])
        assert found["share"] == pytest.approx(0.5)
        assert schedule_share(scores(self._records(loss=2.2)), MAIN[0])["share"] is None


class TestRivals:
    def test_clip(self):
        parameter = gradient(3.0, 4.0)
        assert Clip().before_step([parameter], 1.0)
        assert parameter.grad.norm().item() == pytest.approx(1.0, abs=1e-5)

    def test_zclip_begins_with_the_norms_of_its_warmup(self):
        zclip = ZClip(warmup=2)
        for norm in (0.1, 0.3):
            zclip.before_step([gradient(norm)], 1.0)
        assert zclip.mean == pytest.approx(0.2)
        assert zclip.variance == pytest.approx(0.01)

    def test_zclip_learns_from_what_it_let_through(self):
        """With mean .2 and deviation .1, a norm of .7 is 5 deviations off: .2 + 2.5² · .1 / 5."""
        zclip = ZClip(warmup=2)
        for norm in (0.1, 0.3):
            zclip.before_step([gradient(norm)], 1.0)
        spike = gradient(0.7)
        zclip.before_step([spike], 1.0)
        assert spike.grad.item() == pytest.approx(0.325, abs=1e-4)
        mean = 0.97 * 0.2 + 0.03 * 0.325
        assert zclip.mean == pytest.approx(mean, abs=1e-5)
        assert zclip.variance == pytest.approx(0.97 * 0.01 + 0.03 * (0.325 - mean) ** 2, abs=1e-5)

    def test_zclip_leaves_what_is_usual_alone(self):
        zclip = ZClip(warmup=2)
        for norm in (0.1, 0.3):
            zclip.before_step([gradient(norm)], 1.0)
        usual = gradient(0.44)  # 2.4 deviations
        zclip.before_step([usual], 1.0)
        assert usual.grad.item() == pytest.approx(0.44)
        assert zclip.mean == pytest.approx(0.97 * 0.2 + 0.03 * 0.44)

    def test_adagc_clips_every_tensor_by_its_own_past(self):
        adagc = AdaGC(warmup=2)
        for first, second in ((0.5, 0.2), (0.4, 0.3)):
            adagc.before_step([gradient(first), gradient(second)], 1.0)
        assert [float(norm) for norm in adagc.past] == pytest.approx([0.4, 0.2])  # the smallest
        spiked, usual = gradient(8.0), gradient(0.1)
        adagc.before_step([spiked, usual], 1.0)
        assert spiked.grad.item() == pytest.approx(1.05 * 0.4)
        assert usual.grad.item() == pytest.approx(0.1)
        known = [0.98 * 0.4 + 0.02 * 0.42, 0.98 * 0.2 + 0.02 * 0.1]
        assert [float(norm) for norm in adagc.past] == pytest.approx(known)

    def test_adagc_clips_all_at_once_at_first(self):
        adagc, parameters = AdaGC(), [gradient(3.0), gradient(4.0)]
        adagc.before_step(parameters, 1.0)
        assert [p.grad.item() for p in parameters] == pytest.approx([0.6, 0.8], abs=1e-5)

    def test_six_sigma_skips_what_is_far_from_the_window(self):
        skip = SkipSpikes(window=40)
        for i in range(30):
            assert skip.before_step([gradient(0.5 + 0.1 * (i % 2))], 2.0 + 0.1 * (i % 2))
        assert skip.before_step([gradient(0.55)], 2.3)  # 5 deviations of .051
        assert not skip.before_step([gradient(0.55)], 2.6)
        assert not skip.before_step([gradient(3.0)], 2.05)
        assert skip.skipped == 2

    def test_six_sigma_waits_for_half_a_window(self):
        skip = SkipSpikes(window=40)
        for _ in range(19):
            assert skip.before_step([gradient(0.5)], 2.0)
        assert not skip.before_step([gradient(0.5)], 9.0)

    def test_six_sigma_takes_nothing_while_it_remembers_a_nan(self):
        skip = SkipSpikes(window=20)
        taken = [skip.before_step([gradient(0.5)], math.nan if i == 30 else 2.0) for i in range(60)]
        assert taken == [True] * 30 + [False] * 21 + [True] * 9


class TestTasks:
    def test_the_schedule(self):
        task = Task(steps=400)
        assert task.factor(0) == pytest.approx(1 / 20)
        assert task.factor(19) == task.factor(20) == 1.0
        assert task.factor(210) == pytest.approx(0.5)
        assert task.factor(210, 0.5) == pytest.approx(math.sqrt(0.5))
        assert task.factor(10, 0.5) == task.factor(10)
        assert 0 < task.factor(399) < 1e-4

    @pytest.mark.parametrize("name", TASKS)
    def test_a_seed_is_a_model_and_its_batches(self, name):
        task = TASKS[name].quick()
        before = torch.get_rng_state()
        first, again = (task.loss(task.build(3), 5, 3) for _ in range(2))
        assert torch.equal(first, again)
        weights, others = (next(task.build(seed).parameters()) for seed in (3, 4))
        assert not torch.equal(weights, others)
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_plan(self):
        cells = plan()
        assert len(cells) == len(set(cells))
        main = [c for c in cells if c.task == MAIN[1]]
        assert len(main) == 10 * len(LRS) * len(SEEDS)
        assert {c.lr for c in cells if c.method == "Lion + clip"} == set(LION_LRS)
        assert {c.seed for c in cells if c.task == "n-gram"} == {SEEDS[0]}
        assert cells[0].task == MAIN[0]
        assert cells[-1].task not in MAIN
        assert plan(methods=["ZClip"], lrs=[0.5], seeds=[7], tasks=[MAIN[0]]) == [
            Cell(MAIN[0], "ZClip", 0.5, 7)
        ]


class TestRuns:
    def test_a_run_is_repeatable(self):
        first, again = (run(MAIN[0], BASELINE, 1e-2, 3, quick=True) for _ in range(2))
        assert {**first, "seconds": 0} == {**again, "seconds": 0}
        assert first["val"] < first["initial"]
        assert first["finite"]
        assert 0 < first["logit"] < 10

    def test_qk_norm_and_z_loss_change_the_run(self):
        losses = {run(MAIN[0], m, 1e-2, 3, quick=True)["val"] for m in (BASELINE, "qk-norm")}
        assert len(losses) == 2
        task = TASKS[MAIN[0]].quick()
        plain, weighed = (task.loss(task.build(0), 0, 0, z_loss=z).item() for z in (0.0, 1e-4))
        assert plain < weighed < plain + 0.01
        assert METHODS["qk-norm"].edit(Shape()).qk_norm

    def test_a_run_that_is_not_finite_ends_and_is_counted(self, monkeypatch):
        self._poison(monkeypatch, at=3)
        lost = run(MAIN[0], BASELINE, 1e-2, 3, quick=True)
        assert (lost["val"], lost["finite"], lost["steps"]) == ("inf", False, 4)
        row = score([lost])
        assert row["non_finite"] == 1
        assert row["best"]["mean"] == lost["initial"]

    def test_the_guard_goes_on_and_it_is_counted(self, monkeypatch):
        self._poison(monkeypatch, at=3)
        kept = run(MAIN[0], ROBUST, 1e-2, 3, quick=True)
        assert kept["steps"] == 12
        assert (kept["finite"], kept["skips"], kept["stopped"]) == (False, 1, None)
        assert kept["val"] < kept["initial"]

    def test_a_run_that_is_given_up_is_counted(self, monkeypatch):
        self._poison(monkeypatch, at=3, forever=True)
        given_up = run(MAIN[0], ROBUST, 1e-2, 3, quick=True)
        if given_up["stopped"] is None:  # there is no time to lose patience in
            assert given_up["skips"] + given_up["rollbacks"] > 0
        else:
            assert given_up["val"] == "inf"
        assert not given_up["finite"]

    def test_what_the_cap_did(self):
        told = {"transform": "UpdateCap(ratio=0.01)", "parameters": 4, "steps": 9, "changes": 10}
        summary = {"calls": 12, "skips": 2, "transforms": ["ClipGradNorm(1.0)", told]}
        assert lr_runs._capped(summary) == pytest.approx(10 / 40)
        assert lr_runs._capped({**summary, "transforms": []}) is None

    def _poison(self, monkeypatch, at, forever=False):
        healthy = Task.loss

        def loss(task, model, step, seed, z_loss=0.0):
            bad = step >= at if forever else step == at
            return healthy(task, model, step, seed, z_loss) * (math.nan if bad else 1.0)

        monkeypatch.setattr(Task, "loss", loss)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Where ``--quick`` has written the results of the main tasks."""
    directory = tmp_path_factory.mktemp("lr")
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    command(directory)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    return directory


def command(directory):
    where = ["--output", str(directory), "--journal", str(directory / "lr.jsonl")]
    assert learning_rate.main(["--quick", "--jobs", "0", "--tasks", *MAIN, *where]) == 0


class TestCommand:
    def _result(self, directory):
        return json.loads((directory / "lr_sensitivity.json").read_text())

    def test_writes_a_result(self, quick):
        result, table = self._result(quick), (quick / "lr_sensitivity.md").read_text()
        assert table == render(result)
        assert not result["complete"]
        assert "not to be quoted" in table
        assert (quick / "lr_sensitivity.svg").read_text().count("AdamW + clip") == 1
        assert [row["method"] for row in result["rows"]] == [*METHODS, *list(METHODS)[:10]]
        assert all(row["runs"] == 2 for row in result["rows"])
        text, checksum = lr_methods.frozen()
        assert (result["robust"], result["robust_hash"]) == (text, checksum)
        assert " at 0x" not in text  # the hash is the same in every process

    def test_every_method_learns(self, quick):
        for found in self._result(quick)["records"]:
            if found["lr"] < 0.01 and not found["method"].startswith("SGD"):
                assert float(found["val"]) < found["initial"], found

    def test_the_readme_shows_both_main_tasks(self, quick):
        text = digest(self._result(quick))
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) == 12
        assert len({line.count("|") for line in rows}) == 1
        assert "**robust**" in text
        assert "gallery/learning-rate.svg" in text

    def test_the_report_says_what_is_missed(self, quick):
        result = self._result(quick)
        missed = [{"target": "a", "found": "b", "met": False}]
        assert "| a | b | **missed** |" in render({**result, "targets": missed})

    def test_goes_on_where_it_was(self, quick, monkeypatch):
        first = self._result(quick)

        def never(**cell):
            raise AssertionError(cell)

        monkeypatch.setattr("benchmarks.learning_rate.runs.run", never)
        command(quick)
        assert self._result(quick)["records"] == first["records"]

    def test_what_does_not_fit_is_refused(self, capsys):
        with pytest.raises(SystemExit):
            learning_rate.main(["--tasks", "LSTM", "--methods", "ZClip"])
        assert "no run is planned" in capsys.readouterr().err

    def test_only_the_whole_plan_is_complete(self):
        main = learning_rate.main
        assert main.whole(main.parse([]))
        for left_out in (["--seeds", "100"], ["--quick"], ["--tasks", *MAIN], ["--lrs", "0.1"]):
            assert not main.whole(main.parse(left_out))


class TestJournal:
    CELL = Cell(MAIN[0], BASELINE, 0.1, 100)

    def test_remembers_what_was_run(self, tmp_path):
        path = tmp_path / "deep" / "lr.jsonl"
        assert Journal(path, "a", Cell).load() == {}
        Journal(path, "a", Cell).append(self.CELL, {"val": 2.0})
        Journal(path, "b", Cell).append(replace(self.CELL, lr=0.2), {"val": "inf"})
        assert Journal(path, "a", Cell).load() == {self.CELL: {"val": 2.0}}

    def test_half_a_line_does_no_harm(self, tmp_path):
        path = tmp_path / "lr.jsonl"
        Journal(path, "a", Cell).append(self.CELL, {"val": 2.0})
        path.write_text(path.read_text() + json.dumps(asdict(self.CELL))[:20])
        Journal(path, "a", Cell).append(replace(self.CELL, seed=101), {"val": 3.0})
        assert len(Journal(path, "a", Cell).load()) == 2

    def test_other_sources_are_another_version(self):
        assert version_of(quick=True) != version_of(quick=False)
        assert version_of(quick=False) == version_of(quick=False)


def test_ours_clips_once():
    """The preset has a clip of its own."""
    for method in METHODS.values():
        assert isinstance(method, Method)
        assert isinstance(method.gate(), lr_methods.Nothing) or not method.robust
