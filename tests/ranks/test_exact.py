"""A fault on one rank leaves no trace on any: the run ends with the bits of one without it."""

from __future__ import annotations

import pytest

from tests.ranks.faults import AT, EVERY, FAULTS, SKIPPED, exact
from tests.ranks.world import run


def check(found):
    for fault in found[0]:
        (_, actions, reasons, _, said), _ = found[0][fault]
        for (digest, *rest, moved, theirs), bare in (ranks[fault] for ranks in found):
            assert digest == bare, (fault, reasons)
            assert rest == [actions, reasons], fault
            assert not moved
            assert theirs["sums"] == said["sums"]
        if fault is None:
            assert set(actions) == {"take"}
            assert not reasons
            continue
        others = [(i, action) for i, action in enumerate(actions) if action != "take"]
        ((at, action),) = others
        assert action == ("skip" if fault in SKIPPED else "roll_back"), reasons
        if fault in SKIPPED:
            assert at == AT
        else:
            assert AT <= at <= AT + EVERY
        assert len(reasons) == 1


@pytest.mark.parametrize(
    ("ranks", "kernels"), [(2, "single"), pytest.param(4, "fused", marks=pytest.mark.slow)]
)
def test_ddp(ranks, kernels):
    check(run(exact, "ddp", kernels, [None, *FAULTS], ranks=ranks, limit=200))
