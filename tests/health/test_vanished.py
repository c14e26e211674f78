"""Second moments that become smaller than they can are found; those that only decay are not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stableopt import Action, DivergenceError
from stableopt.health.tensors.vanished import MomentHistory
from tests.health.test_jumps import Run

OPTIMIZERS = {
    "exp_avg_sq": torch.optim.AdamW,
    "sum": torch.optim.Adagrad,
    "square_avg": torch.optim.RMSprop,
    "acc_delta": lambda p, lr: torch.optim.Adadelta(p, lr=lr, rho=0.99),
}


class Tensor:
    """What moments are held in."""


class TestHistory:
    def vanished(self, *, norm, after, decay=0.999, factor=2.0, other=False, before=1.0):
        tensor = Tensor()
        history = MomentHistory(factor)
        history.learn("v", before, tensor)
        history.call += after
        return history.has_vanished("v", norm, decay, Tensor() if other else tensor)

    def test_what_is_lost_has_vanished(self):
        assert self.vanished(norm=0.0, after=20)
        assert self.vanished(norm=0.4, after=20)
        assert not self.vanished(norm=0.5, after=20)
        assert not self.vanished(norm=0.01, after=20, decay=0.8)
        assert self.vanished(norm=0.9, after=0, factor=1.05)

    def test_what_says_nothing(self):
        assert not self.vanished(norm=0.0, after=20, other=True)
        assert not self.vanished(norm=0.0, after=20, before=1e-30)
        assert not self.vanished(norm=0.0, after=20, before=math.inf)
        assert not self.vanished(norm=0.0, after=20, factor=None)
        assert not MomentHistory(2.0).has_vanished("v", 0.0, 0.999, self)

    @given(
        squares=st.lists(st.floats(0, 1e6), min_size=1, max_size=60),
        decay=st.floats(0.5, 1.0),
        every=st.integers(1, 20),
    )
    def test_no_gradients_break_it(self, squares, decay, every):
        holder, history, moment = Tensor(), MomentHistory(1.01), 1.0
        for i, square in enumerate(squares):
            history.call += 1
            moment = decay * moment + (1 - decay) * square
            if i % every == 0:
                assert not history.has_vanished("v", moment, decay, holder)
                history.learn("v", moment, holder)


class TestTraining:
    @pytest.mark.parametrize("key", OPTIMIZERS)
    @pytest.mark.parametrize("wait", [0, 7, 19])
    def test_a_moment_that_is_zeroed_goes_back_within_a_scan(self, key, wait):
        run = Run(OPTIMIZERS[key])
        run.steps(50 + wait)
        before = run.opt.optimizer.state[run.model[0].weight][key]
        norm = float(before.norm())
        before.zero_()
        for _ in range(20):
            run.steps(1)
            if run.opt.verdict.action is Action.ROLL_BACK:
                break
        kinds = {finding.kind for finding in run.opt.verdict.findings}
        assert kinds & {"vanished_state", "moment_bound"}
        after = run.opt.optimizer.state[run.model[0].weight][key]
        assert norm / 3 < float(after.norm()) < 3 * norm
        run.steps(60)
        assert run.opt.summary()["rollbacks"] == 1

    def test_it_is_told_by_name(self):
        run = Run(OPTIMIZERS["sum"])
        run.steps(50)
        run.opt.optimizer.state[run.model[2].weight]["sum"].zero_()
        run.steps(20)
        (event,) = run.opt.ledger
        assert event.findings[0].where == ("2.weight",)
        assert event.reason.startswith("sum of 2.weight is smaller than decay allows")

    def test_it_is_never_in_a_snapshot(self):
        run = Run(OPTIMIZERS["sum"], every=10)
        run.steps(49)
        run.opt.optimizer.state[run.model[2].weight]["sum"].zero_()
        run.steps(25)
        assert run.opt.summary()["rollbacks"] == 1
        assert run.opt.ledger[0].rollback.to_step < 49

    def test_stopping_instead(self):
        run = Run(OPTIMIZERS["sum"], responses={"vanished_state": "stop"})
        run.steps(50)
        run.opt.optimizer.state[run.model[2].weight]["sum"].zero_()
        with pytest.raises(DivergenceError, match=r"sum of 2\.weight is smaller"):
            run.steps(20)

    @pytest.mark.parametrize("key", OPTIMIZERS)
    def test_training_on_nothing_is_no_fault(self, key):
        """Gradients that end: moments decay as fast as they can."""
        run = Run(OPTIMIZERS[key])
        run.steps(45)
        for _ in range(60):
            run.opt.zero_grad()
            for parameter in run.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            run.opt.step()
        assert not run.opt.ledger

    def test_a_state_that_is_put_anew_is_none(self):
        run = Run()
        run.steps(45)
        for state in run.opt.optimizer.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros_like(state[key])
        run.steps(45)
        assert not run.opt.ledger

    def test_not_looking(self):
        run = Run(OPTIMIZERS["sum"], moment_drop=None)
        run.steps(50)
        run.opt.optimizer.state[run.model[2].weight]["sum"].zero_()
        run.steps(30)
        assert not run.opt.ledger

    def test_a_rollback_forgets_what_came_after_it(self):
        """Moments of the past are smaller than those of a run that had grown loud."""
        run = Run(every=10)
        run.steps(25)
        for factor in range(15):
            run.opt.zero_grad()
            run.model(torch.randn(32, 16)).mul(3.0**factor).pow(2).mean().backward()
            run.opt.step()
        run.opt.rollback(reason="by hand")
        run.steps(40)
        assert [event.reason[:12] for event in run.opt.ledger] == ["asked for by"]
