"""Ranks that part, ask alone, fail alone or end: every rank ends alike, and none hangs."""

from __future__ import annotations

import pytest

from tests.ranks import loops
from tests.ranks.world import RankFailedError, run


def test_a_rank_that_stops_calling_is_named():
    found, _ = run(loops.stops_calling, patience=3)
    kind, text, seconds = found
    assert kind == "RanksError"
    assert "waited 3 s for rank 1 in call 4 of step()" in text
    assert seconds < 8


def test_a_rank_that_ends_ends_the_run():
    with pytest.raises(RankFailedError, match="rank 1"):
        run(loops.dies, patience=5)


def test_other_options_are_refused_everywhere():
    for kind, text, _ in run(loops.options_differ):
        assert kind == "ConfigError"
        assert "on rank 1 must be the same on all ranks" in text
        assert "max_skips=6" in text


def test_other_checkpoints_are_out_of_step():
    for kind, text, _ in run(loops.clocks_differ):
        assert kind == "RanksError"
        assert "rank 0 is at call 5 after 4 steps" in text
        assert "rank 1 is at call 3 after 2 steps" in text


def test_all_ranks_stop_together():
    one, other = run(loops.too_many_skips)
    assert one == other
    assert one[0] == "DivergenceError"
    assert one[1][-1] == (8, "stop")


def test_a_request_of_one_rank_is_one_of_all():
    one, other = run(loops.one_rank_asks)
    assert one == other
    action, reason, steps = one
    assert (action, steps) == ("roll_back", 5)
    assert "it looks odd" in reason


def test_one_rank_may_look_and_save():
    assert run(loops.one_rank_looks, patience=5) == [9, 9]


def test_a_snapshot_that_fails_on_one_rank_is_none():
    one, other = run(loops.a_snapshot_fails, fresh=True)
    assert one == other
    assert 10 not in one
    assert 5 in one


def test_a_snapshot_that_is_damaged_on_one_rank_is_given_up():
    one, other = run(loops.a_snapshot_is_damaged, fresh=True)
    assert one == other
    assert one[:2] == ("roll_back", 10)


def test_ranks_of_their_own():
    assert run(loops.alone) == [(30, 0, False), (40, 1, False)]


@pytest.mark.slow
def test_two_networks_in_one_job():
    found = run(loops.halves, ranks=4)
    assert [skips for skips, _, _ in found] == [0, 0, 1, 1]
    assert [rank for _, rank, _ in found] == [0, 1, 0, 1]
    digests = [digest for *_, digest in found]
    assert digests[0] != digests[2]


def test_everything_switched_on():
    steps = 120
    one, other = run(loops.healthy, steps)
    assert one["interventions"] == other["interventions"] == []
    for key in ("digest", "readings", "acts", "risk", "copies"):
        assert one[key] == other[key], key
    assert one["readings"]
    assert one["copies"] > 20
    calls = one["ranks"]
    # One sum per step, the check and the outcome of a snapshot; readings and replicas are gathered.
    assert calls["sums"] <= steps + 2 * (steps // 100 + 1) + 1


def test_visits_are_shared():
    (mine, readings), (theirs, others) = run(loops.shared_visits)
    assert mine
    assert theirs
    assert not mine & theirs
    assert readings == others
    assert set(readings) == mine | theirs


def test_what_ranks_cannot_judge_together_is_refused():
    one, other = run(loops.refused)
    assert one == other
    for name, words in {
        "lbfgs": "line search",
        "lagged": "use sync='exact'",
        "zero": "fully_shard",
        "join": "drop_last=True",
        "clip": "leave params= out",
        "alone": "leave guard=False out",
        "group": "group=7 must be",
    }.items():
        assert words in one[name], name


def test_one_rank_may_ask_for_state_before_the_first_step():
    assert run(loops.primed, patience=5) == [2, 2]


def test_two_optimizers_in_one_process():
    one, other = run(loops.two_wrappers)
    assert one == other
    assert one[0] == one[1]


def test_copies_join_a_group_of_their_own():
    assert run(loops.copied_and_pickled) == [(2, 5), (2, 5)]


def test_ranks_of_one_host_share_its_memory():
    (slots, size), other = run(loops.planned, fresh=True)
    assert (slots, size) == other
    assert 2 <= slots < 8
    assert 2 * size <= 3e5


@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_gradient_scaler(mode):
    one, other = run(loops.scaled, mode)
    assert one == other
    actions, _, finite = one
    assert actions[8] == "-"  # the scaler has skipped it
    assert "roll_back" in actions[11:14]
    assert all(finite)


@pytest.mark.parametrize(
    ("every", "begins"),
    [
        (8, 0),
        pytest.param(4, 0, marks=pytest.mark.slow),
        pytest.param(5, 0, marks=pytest.mark.slow),
        pytest.param(16, 0, marks=pytest.mark.slow),
        (8, 60),
        pytest.param(7, 47, marks=pytest.mark.slow),
    ],
)
def test_local_sgd_is_left_alone(every, begins):
    one, other = run(loops.local_sgd, every, begins)
    assert one == other
    entries, steps = one
    assert steps == 130
    assert {action for _, action, _ in entries} <= {"take"}
    assert len([reason for *_, reason in entries if "no longer" in reason]) <= 1
