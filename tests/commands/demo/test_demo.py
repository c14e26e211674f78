"""The demo from its command line, with a model that trains in a second."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import stableopt
from stableopt import ConfigError, __main__
from stableopt.commands import command_line as cli
from stableopt.commands.demo import train as training
from stableopt.commands.demo.corpus import Corpus, load_corpus
from stableopt.commands.demo.faults import Fault, Inject
from stableopt.commands.demo.model import GPT
from stableopt.telemetry import read_events
from stableopt.types import Action


def events(directory: Path) -> list[dict]:
    return list(read_events(directory / "telemetry.jsonl"))


# The runs


@pytest.mark.parametrize("inject", ["nan-grad", "inf-grad"])
def test_guarded_survives_and_unguarded_dies(demo, inject):
    result = demo("--inject", inject, "--steps", "20", "--at", "8")

    assert result.exit_code == 0, result.output
    assert re.search(r"guarded .* 1 +0 +0 +OK +recovered", result.stdout)
    assert re.search(r"no fault .* 0 +0 +0 +OK +survived", result.stdout)
    assert re.search(r"no guard .* nan .* COMPROMISED +died at step 9", result.stdout)
    assert "no guard: died at step 9" in result.stdout
    assert "stopped after step 13" in result.stdout


@pytest.mark.parametrize("inject", ["nan-grad", "inf-grad"])
def test_skip_is_recorded_and_told_once(demo, tiny_recipe, inject):
    result = demo("--inject", inject, "--steps", "20", "--at", "8")

    (skip,) = [event for event in events(demo.out / "guarded") if event["action"] == "skip"]
    (where,) = skip["findings"][0]["where"]
    assert skip["call"] == 8
    assert where in dict(GPT(tiny_recipe().model).named_parameters())
    assert result.output.count("call 8: skip: ") == 1
    assert f"skip: the gradient of {where} is not finite" in result.stdout
    assert not result.stderr


def test_files_are_where_the_text_says(demo):
    result = demo("--steps", "10")

    for run in ("guarded", "no-fault", "no-guard"):
        summary = demo.out / run / "summary.json"
        assert json.loads(summary.read_text())["status"] == "closed"
        assert str(summary) in result.stdout
        assert str(demo.out / run / "telemetry.jsonl") in result.stdout
    assert (demo.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (demo.out / "curves.svg").read_text()
    assert str(demo.out / "curves.png") in result.stdout
    last = result.stdout.splitlines()[-1].split()
    assert last[:2] == ["report", str(demo.out / "guarded" / "report.html")]
    assert "Rolled back" in (demo.out / "guarded" / "report.html").read_text()


def test_a_second_demo_keeps_the_first(demo):
    demo("--steps", "10", "--no-guard")
    result = demo("--steps", "10", "--no-guard")

    assert (demo.out / "no-guard" / "telemetry.jsonl").exists()
    assert str(demo.out / "no-guard" / "telemetry-2.jsonl") in result.stdout


def test_without_the_guard_it_dies_and_says_so(demo):
    result = demo("--no-guard", "--steps", "20")

    assert result.exit_code == 1, result.output
    assert "no guard: died at step 11" in result.stdout
    assert not (demo.out / "guarded").exists()


def test_a_fault_in_the_last_step_is_no_survival(demo):
    result = demo("--inject", "nan-grad", "--no-guard", "--steps", "10", "--at", "10")

    assert result.exit_code == 1, result.output
    assert "died at step 10: it left weights whose loss is not finite" in result.stdout


def test_without_a_fault_it_equals_bare_adamw(demo):
    result = demo("--inject", "none", "--steps", "20")

    assert result.exit_code == 0, result.output
    assert "bitwise identical" in result.stdout
    assert re.search(r"bare AdamW .* 0 +- +survived", result.stdout)


def test_a_difference_is_told(demo, monkeypatch):
    def one_bit_off(*args):
        run = training.train_bare(*args)
        next(iter(run.weights.values())).view(torch.int32)[0, 0] ^= 1
        return run

    monkeypatch.setattr("stableopt.commands.demo.scenario.train_bare", one_bit_off)
    result = demo("--inject", "none", "--steps", "10")

    assert result.exit_code == 1
    assert "DIFFER" in result.stdout


def test_same_seed_gives_the_same_curve(corpus, tiny_recipe, recorder, tmp_path):
    runs = [
        training.train(
            corpus,
            tiny_recipe(steps=12, seed=seed),
            recorder,
            out=tmp_path,
            fault=Fault(kind=Inject.NAN_GRAD, at=5),
        )
        for seed in (3, 3, 4)
    ]

    assert runs[0].losses == runs[1].losses
    assert training.identical(runs[0], runs[1])
    assert runs[0].strikes == runs[1].strikes
    assert runs[0].losses != runs[2].losses
    assert not training.identical(runs[0], runs[2])


def test_skipped_step_shows_in_the_run(corpus, tiny_recipe, recorder, tmp_path):
    fault = Fault(kind=Inject.INF_GRAD, at=5)
    run = training.train(corpus, tiny_recipe(steps=12), recorder, out=tmp_path, fault=fault)

    assert run.skipped == [5]
    assert run.actions.count(Action.TAKE) == 11
    assert run.summary["integrity"] == "OK"
    assert run.died_at is None
    assert math.isfinite(run.validation_loss)


def test_it_learns(corpus, tiny_recipe, recorder, tmp_path):
    run = training.train(corpus, tiny_recipe(steps=60), recorder, out=tmp_path)

    assert run.training_loss < run.losses[0] - 0.5


def test_ctrl_c_is_told_by_the_summary(demo, monkeypatch):
    def interrupt(self, step, loss, lr, action):
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("stableopt.commands.demo.live.Live.stepped", interrupt)
    result = demo("--steps", "20")

    assert result.exit_code == 130
    assert "Interrupted" in result.stderr
    summary = json.loads((demo.out / "guarded" / "summary.json").read_text())
    assert (summary["status"], summary["calls"]) == ("interrupted", 5)


def test_logger_is_left_as_it_was(demo):
    logger = logging.getLogger("stableopt")
    before = logger.propagate, list(logger.handlers)
    demo("--steps", "10", "--no-guard")

    assert (logger.propagate, logger.handlers) == before


# The data


def test_batches_depend_on_seed_and_step_alone(corpus):
    size = {"size": 3, "context": 8}
    state = torch.get_rng_state()
    inputs, targets = corpus.batch(7, seed=1, **size)

    assert torch.equal(inputs, corpus.batch(7, seed=1, **size)[0])
    assert not torch.equal(inputs, corpus.batch(8, seed=1, **size)[0])
    assert not torch.equal(inputs, corpus.batch(7, seed=2, **size)[0])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(state, torch.get_rng_state())


def test_windows_reach_both_ends_and_no_further():
    corpus = Corpus(training=torch.arange(10).byte(), validation=torch.arange(10).byte())

    _, targets = corpus.validation_batch(size=4, context=4)
    seen = torch.cat([corpus.batch(i, seed=0, size=8, context=8)[1] for i in range(4)])
    assert (targets[0, 0], targets[-1, -1]) == (1, 9)
    assert set(seen[:, -1].tolist()) == {8, 9}


def test_corpus_leaves_packages_and_tests_out(tmp_path):
    source = b"x = 1\n" * 20_000
    for folder in ("b", "a", "site-packages", "test", "idlelib"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.py").write_bytes(folder.encode() + source)
    corpus = load_corpus(tmp_path)

    data = torch.cat([corpus.training, corpus.validation])
    assert bytes(data.tolist()) == b"a" + source + b"b" + source


def test_corpus_without_sources(tmp_path):
    with pytest.raises(ConfigError, match=r"^stdlib='.*' has 0 bytes of Python sources"):
        load_corpus(tmp_path)


# The command line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "100", "--at", "100"], "at=100 must be a step from 1 to 99 (steps=100), whi"),
        (
            ["--inject", "batch", "--steps", "99", "--at", "100"],
            "at=100 must be a step from 1 to 99",
        ),
        (["--at", "0"], "at=0 must be a step from 1 to"),
        (["--steps", "9"], "steps=9 must be at least 10"),
        (["--seed", "-1"], "seed=-1 must be an int from 0 to"),
        (["--inject", "none", "--no-guard"], "inject=none with --no-guard"),
        (["--inject", "none", "--at", "5"], "at=5 must not be given with inject=none"),
    ],
)
def test_bad_options(demo, options, message):
    result = demo(*options)

    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {message}")
    assert result.stderr.count("\n") == 1
    assert not result.stdout
    assert not demo.out.exists()


def test_out_that_is_a_file(demo, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("")
    result = demo(out=taken)

    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: out={str(taken)!r} cannot be written")
    assert not result.stdout


def test_unknown_fault(demo):
    assert demo("--inject", "gremlins").exit_code == 2


def test_version():
    result = CliRunner().invoke(cli.app, ["--version"])

    assert result.exit_code == 0
    assert result.stdout == f"stableopt {stableopt.__version__}\n"


def test_as_a_module(tmp_path):
    command = [sys.executable, "-m", "stableopt", "demo", "--steps", "10", "--no-guard"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    assert result.returncode == 1, result.stderr
    assert "no guard: died at step 6" in result.stdout
    assert not result.stderr


@pytest.mark.parametrize("package", ["typer", "rich.console"])
def test_missing_cli_extra(monkeypatch, capsys, package):
    for name in [name for name in sys.modules if name.startswith("stableopt.commands")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(stableopt, "commands")  # comes back with the modules
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as exit_:
        __main__.main()

    assert exit_.value.code == 2
    assert "pip install 'stableopt[cli]'" in capsys.readouterr().err


def test_missing_report_extra(demo, monkeypatch):
    for name in ("stableopt.commands.demo.scenario", "stableopt.commands.demo.curves"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = demo()

    assert result.exit_code == 2
    assert "pip install 'stableopt[report]'" in result.stderr
    assert not result.stdout


def test_the_package_imports_no_extra():
    code = (
        "import stableopt, sys; sys.exit(bool({'typer', 'rich', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
