"""Which tensors count as copies, and what is said when they differ; no process is started."""

from __future__ import annotations

import torch

from stableopt.ranks.group import Ranks
from stableopt.ranks.replicas import Copy, Replicas
from stableopt.types import Scope


class Together:
    """What two ranks and more have, round by round."""

    def __init__(self, ranks=3):
        optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters())
        self.replicas = Replicas(optimizer, None, Ranks(), 20)
        self.ranks = ranks

    def compare(self, **bits):
        """Compare tensors, each with one number for all ranks, or a list of one per rank."""
        everybody = [{} for _ in range(self.ranks)]
        for name, values in bits.items():
            values = values if isinstance(values, list) else [values] * self.ranks
            for mine, value in zip(everybody, values, strict=True):
                if value is not None:
                    mine[name, "", "(2,)"] = value, False
        return self.replicas.judge(everybody)


def grown(together, names="abcde"):
    """Have tensors begin alike and change alike."""
    for round_ in range(2):
        assert together.compare(**dict.fromkeys(names, round_)) == ()
    return together


def test_a_checksum_is_enough_while_nothing_differs():
    replicas = grown(Together()).replicas
    mine = dict.fromkeys((Copy(name, "", "(2,)") for name in "abcde"), 7)
    assert replicas._brief(mine) == replicas._brief(dict(mine))
    assert replicas._brief(mine) != replicas._brief({**mine, Copy("c", "", "(2,)"): 8})
    assert replicas._brief({**mine, Copy("new", "", "(2,)"): 8}) is None


def test_the_odd_one_out_is_named():
    (found,) = grown(Together()).compare(a=[2, 3, 2], b=2, c=2, d=2, e=2)
    assert found.message.startswith("the copies of a differ: rank 1 against all others (if the")
    assert (found.kind, found.scope, found.where) == ("diverged_replicas", Scope.STATE, ("a",))


def test_of_two_nobody_can_say_which_is_wrong():
    (found,) = grown(Together(2)).compare(a=[2, 3], b=2, c=2, d=2, e=2)
    assert "no majority" in found.message


def test_what_never_changed_alike_is_no_copy():
    together = Together()
    together.compare(a=1)
    assert together.compare(a=[1, 2, 3]) == ()
    assert together.compare(a=[4, 4, 4]) == ()
    assert together.compare(a=[5, 6, 7]) == ()


def test_what_is_on_one_rank_alone_is_no_copy():
    together = Together()
    for value in range(4):
        assert together.compare(a=[value, None, None]) == ()
    assert together.replicas.copies == 0


def test_most_weights_at_once_are_trained_apart():
    """Local SGD: gradients are averaged for a while, and then they are not."""
    together = grown(Together())
    (found,) = together.compare(a=[2, 3, 4], b=[2, 3, 4], c=[2, 3, 4], d=2, e=2)
    assert (found.scope, found.response) == (Scope.NOTICE, "warn")
    assert "gradients are not averaged" in found.message
    assert "group=False" in found.message
    assert together.compare(a=[5, 6, 7], b=[5, 6, 7], c=[5, 6, 7], d=5, e=5) == ()


def test_where_most_never_were_copies_none_is_rolled_back():
    """Local SGD that averages in turns: some weights look like copies for a while."""
    together = Together(2)
    together.compare(a=1, b=1, c=1, d=1)
    together.compare(a=2, b=[2, 3], c=[2, 3], d=[2, 3])
    together.compare(a=3, b=[2, 3], c=[2, 3], d=[2, 3])
    (found,) = together.compare(a=[4, 5], b=[2, 3], c=[2, 3], d=[2, 3])
    assert found.response == "warn"


def test_a_part_of_the_ranks_may_hold_copies():
    """Pipeline stages with two replicas each."""
    together = Together(4)
    for value in (1, 2):
        together.compare(a=[value, value, None, None], b=[None, None, value, value], c=value)
    (found,) = together.compare(a=[3, 4, None, None], b=[None, None, 3, 3], c=3)
    assert found.where == ("a",)


def test_what_training_went_on_with_is_not_told_again():
    together = grown(Together())
    (_,) = together.compare(a=[2, 3, 2], b=2, c=2, d=2, e=2)
    assert together.compare(a=[4, 5, 4], b=4, c=4, d=4, e=4) == ()


def test_what_is_restored_and_differs_again_is_told_again():
    together = grown(Together())
    (_,) = together.compare(a=[2, 3, 2], b=2, c=2, d=2, e=2)
    together.replicas.restart()
    together.compare(**dict.fromkeys("abcde", 1))
    (_,) = together.compare(a=[4, 5, 4], b=4, c=4, d=4, e=4)
