"""torch's own tests of its optimizers pass over the wrapper, wherever their files are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.torch_suite.artefacts import ARTEFACTS
from tests.torch_suite.run import Run, compare, missing, run

VARIABLE = "STABLEOPT_TORCH_TESTS"


def a_run(errors=(), **outcomes):
    return Run(outcomes, dict(errors), {"wrapped": 1, "bare": 0})


def test_nothing_fails_over_the_wrapper_alone():
    given = os.environ.get(VARIABLE)
    directory = Path(given) if given else None
    obstacle = missing(directory)
    if directory is None or obstacle is not None:
        pytest.skip(f"{obstacle}: set {VARIABLE} to the test folder of torch's source tree")
    bare, wrapped = run(directory, "bare"), run(directory, "wrapped")
    difference = compare(bare, wrapped)
    assert wrapped.constructed["wrapped"] > 0
    assert not difference.faults
    assert not difference.uneven
    unused = [
        pattern for pattern, why in ARTEFACTS.items() if why not in difference.artefacts.values()
    ]
    assert not unused


def test_what_fails_bare_as_well_is_no_fault_of_the_wrapper():
    bare = a_run({"both": "wrong"}, both="failed", good="passed", ours="passed")
    wrapped = a_run({"both": "wrong", "ours": "worse"}, both="failed", good="passed", ours="failed")
    assert compare(bare, wrapped).faults == {"ours": "worse"}


def test_a_test_that_only_one_run_ran_is_told():
    bare = a_run(here="passed", there="skipped", never="skipped")
    wrapped = a_run(here="skipped", there="passed", never="skipped", new="passed")
    assert list(compare(bare, wrapped).uneven) == ["here", "new", "there"]


def test_a_directory_without_the_files_says_what_it_lacks(tmp_path):
    (tmp_path / "test_optim.py").touch()
    assert "optim/test_swa_utils.py" in missing(tmp_path)


@pytest.mark.parametrize("how", ["bare", "wrapped"])
def test_a_run_notes_outcomes_and_errors(tmp_path, how):
    (tmp_path / "test_optim.py").write_text(
        "import copy, pickle, unittest\n"
        "import torch\n"
        "from torch.optim import SGD, Adam, Optimizer\n"
        "W = [torch.zeros(2, requires_grad=True)]\n"
        "class Mine(SGD):\n"
        "    pass\n"
        "class Tests(unittest.TestCase):\n"
        "    def test_same_class(self):\n"
        "        self.assertIsInstance(SGD(W), SGD)\n"
        "    def test_subclass(self):\n"
        "        self.assertIn(type(Mine(W, lr=0.5)).__name__, ('Mine', 'StableOptimizer'))\n"
        "    def test_differentiable(self):\n"
        "        self.assertIs(type(Adam(W, differentiable=True)), Adam)\n"
        "    def test_copies(self):\n"
        "        made = SGD(W, lr=0.25)\n"
        "        for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):\n"
        "            self.assertIs(type(again), type(made))\n"
        "            self.assertEqual(again.param_groups[0]['lr'], 0.25)\n"
        "    def test_error(self):\n"
        "        with self.assertRaisesRegex(ValueError, 'empty parameter list'):\n"
        "            SGD([])\n"
        "    @unittest.skip('not here')\n"
        "    def test_skipped(self):\n"
        "        pass\n"
    )
    done = run(tmp_path, how)
    failed = [] if how == "bare" else ["Tests::test_same_class"]
    assert [test for test, outcome in done.tests.items() if outcome == "failed"] == failed
    assert [test for test, outcome in done.tests.items() if outcome == "skipped"] == [
        "Tests::test_skipped"
    ]
    assert list(done.errors) == failed
    assert done.constructed == {"wrapped": 0 if how == "bare" else 3, "bare": int(how != "bare")}
