"""A fault on one rank leaves no trace on any: the run ends with the bits of one without it."""

from __future__ import annotations

import pytest

from tests.ranks import loops
from tests.ranks.faults import AT, EVERY, FAULTS, SKIPPED, UPDATES, exact
from tests.ranks.world import run

SEEN_BY_COPIES = ("flip", "sign")
"""Faults that only a comparison with other ranks shows."""

OF_PARTS = tuple(fault for fault in FAULTS if fault not in SEEN_BY_COPIES)


def check(found):
    """Compare every rank with the run that never saw the fault, and with the other ranks."""
    for fault in found[0]:
        (_, actions, reasons, _, said), _ = found[0][fault]
        for (digest, *rest, moved, theirs), bare in (ranks[fault] for ranks in found):
            assert digest == bare, (fault, reasons)
            assert rest == [actions, reasons], fault
            assert not moved
            assert theirs["sums"] == said["sums"]
        others = [(i, action) for i, action in enumerate(actions) if action != "take"]
        if fault is None:
            assert (others, reasons) == ([], [])
            # One a step; at a snapshot one for the check of the state and one for the outcome.
            assert said["sums"] == UPDATES + 2 * (UPDATES // EVERY) + 1
            continue
        ((at, action),) = others
        assert action == ("skip" if fault in SKIPPED else "roll_back"), reasons
        if fault in SKIPPED:
            assert at == AT
        else:
            assert AT <= at <= AT + EVERY
        assert len(reasons) == 1
        if fault == "weight":
            assert "on rank" in reasons[0]
            assert "the weights of second.weight are not finite" in reasons[0]
        if fault == "lost_moment":
            assert "exp_avg_sq of second.weight is smaller than decay allows" in reasons[0]
        if fault in SEEN_BY_COPIES:
            assert "the copies of second.weight differ" in reasons[0]


def test_ddp():
    check(run(exact, "ddp", "single", [None, *FAULTS], limit=200))


def test_fsdp2():
    found = run(exact, "fsdp2", "fused", [None, *OF_PARTS], limit=200)
    check(found)
    (*_, said), _ = found[0][None]
    assert said["gathers"] == 5  # at the first step: hosts, options, bits, snapshots that fit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "ranks", "kernels", "faults"),
    [
        ("ddp", 4, "fused", FAULTS),
        ("ddp", 3, "foreach", FAULTS),
        ("ddp_unused", 2, "fused", FAULTS),
        ("ddp_no_sync", 2, "fused", FAULTS),
        ("fsdp2", 4, "foreach", OF_PARTS),
        ("fsdp2", 3, "single", OF_PARTS),
        ("hsdp", 4, "fused", FAULTS),
        ("tp", 2, "single", OF_PARTS),
    ],
)
def test_every_mode(mode, ranks, kernels, faults):
    check(run(exact, mode, kernels, [None, *faults], ranks=ranks, limit=400))


@pytest.mark.parametrize("mode", ["ddp", "fsdp2", pytest.param("tp", marks=pytest.mark.slow)])
def test_norms(mode):
    """Loss and gradient norm are those of the whole batch and of all gradients, on all ranks."""
    found = run(loops.observed, mode)
    for rank in found:
        for (loss, norm), expected in zip(*rank, strict=True):
            assert loss == pytest.approx(expected[0], rel=1e-6)
            assert norm == pytest.approx(expected[1], rel=1e-6)
    assert found[0][0] == found[1][0]


@pytest.mark.parametrize(
    ("mode", "most"), [("ddp", 0.0), pytest.param("fsdp2", 1e-6, marks=pytest.mark.slow)]
)
def test_clipping(mode, most):
    """It is torch's, bit for bit where every rank has all gradients."""
    for ours, theirs in run(loops.clipped, mode):
        for a, b in zip(ours, theirs, strict=True):
            assert abs(a - b).max() <= most


def test_gathered_weights_are_not_those_of_before():
    """A forward pass without a backward pass leaves the weights of other ranks in place."""
    for before, after in run(loops.rolled_back_behind_an_evaluation):
        assert after == before
