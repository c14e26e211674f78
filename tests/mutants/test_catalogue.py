"""The list of mutants keeps up with the code, also where the mutants themselves are not run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", MUTANTS)
def test_the_text_of_a_mutant_occurs_once(name):
    mutant = MUTANTS[name]
    source = Path(find_spec(mutant.module).origin).read_text()
    assert source.count(mutant.old) == 1
    assert mutant.new != mutant.old
    for test in (argument for argument in mutant.tests if argument.startswith("tests/")):
        path, *names = test.split("::")
        text = (ROOT / path).read_text()
        assert [part for part in names if part.partition("[")[0] not in text] == []
