"""Snapshots in a real loop: memory, requests by hand, what is refused, what survives."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from stableopt import Action, ConfigError, DivergenceError, Guard, StableOptimizer
from stableopt.snapshots import memory
from stableopt.testing import corrupt_weight, flip_bit
from tests.contract.bits import assert_same
from tests.contract.scenario import copied

MIB = 2**20


def start(make=torch.optim.AdamW, width=64, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.BatchNorm1d(width))
    return model, StableOptimizer(make(model.parameters()), model=model, guard=Guard(**options))


def train(model, opt, steps=1, first=0):
    width = model[0].in_features
    for step in range(first, first + steps):
        x = torch.randn(8, width, generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        loss = (model(x) - x).pow(2).mean()
        loss.backward()
        opt.observe(loss=loss)
        opt.step()


def bad(model, opt):
    """Take a step on gradients that are not finite."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    opt.step()


def storages(value, seen):
    """Collect every tensor storage that can be reached from ``value``."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, dict):
        for item in value.values():
            storages(item, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            storages(item, seen)
    return seen


def memory_of(snapshot):
    copy = snapshot._state
    return [copy._params, *copy._members, *copy._reserved]


class TestMemory:
    @pytest.mark.parametrize("slots", [2, 3, 5])
    def test_the_bound_is_exact_and_holds_through_the_run(self, slots):
        model, opt = start(slots=slots, every=2)
        live = None
        for call in range(60):
            train(model, opt, first=call)
            if call == 0:
                live = storages([*model.parameters(), *model.buffers()], {})
                live = sum(storages(dict(opt.state), live).values())
            snapshots = opt.summary()["snapshots"]
            assert snapshots["slot_bytes"] == live
            assert snapshots["bytes_at_most"] == slots * live
            held = {}
            for snapshot in opt._loop.restorer.keeper._snapshots:
                storages(memory_of(snapshot), held)
                storages([c for _, c in snapshot._buffers.items()], held)
            assert sum(held.values()) == snapshots["bytes"] <= snapshots["bytes_at_most"]
        assert snapshots["taken"] > 5

    def test_nothing_is_allocated_after_the_first_step(self):
        model, opt = start(slots=3, every=2)
        train(model, opt)
        keeper = opt._loop.restorer.keeper

        def pointers():
            out = {}
            for snapshot in keeper._snapshots:
                storages(memory_of(snapshot), out)
            return set(out)

        before = pointers()
        train(model, opt, steps=30, first=1)
        assert keeper.taken > 5
        assert pointers() == before

    def test_what_does_not_fit_is_said_and_fewer_are_kept(self, monkeypatch, caplog):
        model, _ = start()
        need = 3 * sum(p.numel() * 4 for p in model.parameters())
        monkeypatch.setattr(memory, "_free_host_bytes", lambda: int(2.9 * need / memory.HEADROOM))
        model, opt = start(slots=4)
        assert opt.summary()["snapshots"]["slots"] == 2
        assert "only 2 of 4 snapshots" in caplog.text
        train(model, opt, steps=5)
        assert opt.ledger == ()

    def test_room_for_one_is_an_error_before_training(self, monkeypatch):
        monkeypatch.setattr(memory, "_free_host_bytes", lambda: 20_000)
        with pytest.raises(ConfigError, match=r"slots=3: two snapshots of .* use Guard\(slots=0\)"):
            start()
        _, opt = start(slots=0)
        assert opt.summary()["snapshots"]["slots"] == 0

    def test_running_out_of_it_later_costs_a_snapshot_and_no_run(self, monkeypatch, caplog):
        model, opt = start(every=2)
        train(model, opt, steps=3)
        keeper = opt._loop.restorer.keeper

        def full(*_):
            raise MemoryError("no memory is left")

        monkeypatch.setattr(keeper, "_copy", full)
        train(model, opt, steps=30, first=3)
        assert "was not taken: no memory is left" in caplog.text
        monkeypatch.undo()
        train(model, opt, steps=30, first=33)
        assert opt.ledger == ()
        assert any(s["verified"] and s["step"] > 40 for s in opt.summary()["snapshots"]["steps"])

    def test_estimates_come_close(self):
        for make in (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adadelta):
            model, opt = start(make, width=256)
            guess = opt.summary()["snapshots"]["slot_bytes"]
            train(model, opt)
            assert guess == pytest.approx(opt.summary()["snapshots"]["slot_bytes"], rel=0.02)

    def test_free_memory_is_known_here(self):
        assert memory.free_bytes(torch.device("cpu")) > 16 * MIB


class TestByHand:
    def test_a_snapshot_and_a_rollback(self):
        model, opt = start(every=1000)
        train(model, opt, steps=4)
        opt.snapshot()
        train(model, opt, first=4)
        wanted = copied([dict(model.state_dict()), opt.state_dict()["state"]])
        train(model, opt, steps=3, first=5)
        opt.rollback(reason="I did not like it")
        train(model, opt, first=8)
        assert opt.verdict.action is Action.ROLL_BACK
        assert (
            "asked for by the user (I did not like it); roll back to step 5" in opt.verdict.reason
        )
        assert_same(copied([dict(model.state_dict()), opt.state_dict()["state"]]), wanted)
        summary = opt.summary()
        assert (summary["steps"], summary["lr_scale"], summary["rollbacks_left"]) == (5, 1.0, 6)
        assert opt.verdict.rollback.attempt == 0
        assert summary["integrity"] == "OK"

    def test_it_counts_against_no_limit(self):
        model, opt = start(max_rollbacks=1, budget=1)
        train(model, opt, steps=2)
        for call in range(5):
            opt.rollback()
            train(model, opt, steps=2, first=call)
        assert [e.action for e in opt.ledger] == [Action.ROLL_BACK] * 5
        assert opt.summary()["rollbacks_left"] == 1

    def test_a_snapshot_asked_for_is_kept_until_the_next_one_is(self):
        model, opt = start(every=1, confirm=2, slots=4)
        train(model, opt, steps=3)
        for at in (3, 60):
            opt.snapshot()
            train(model, opt, steps=57, first=at)
            kept = {s["step"]: s["manual"] for s in opt.summary()["snapshots"]["steps"]}
            assert [step for step, manual in kept.items() if manual] == [at + 1]

    def test_it_waits_for_a_step_that_is_taken(self):
        model, opt = start(every=1000)
        train(model, opt, steps=2)
        opt.snapshot()
        bad(model, opt)
        assert opt.verdict.action is Action.SKIP
        train(model, opt, first=2)
        assert {s["step"] for s in opt.summary()["snapshots"]["steps"] if s["manual"]} == {3}

    def test_before_the_first_step_there_is_nothing_to_go_back_to(self, caplog):
        model, opt = start()
        opt.rollback()
        train(model, opt)
        assert opt.verdict.action is Action.TAKE
        assert "no snapshot yet" in caplog.text

    @pytest.mark.parametrize("call", ["snapshot", "rollback"])
    def test_without_snapshots_it_is_refused(self, call):
        _, opt = start(slots=0)
        with pytest.raises(ConfigError, match="slots=0"):
            getattr(opt, call)()
        bare = StableOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), guard=False)
        with pytest.raises(ConfigError, match="guard=False"):
            getattr(bare, call)()


class TestWhatUsersDo:
    def test_bad_batches_are_skipped_anew_after_a_rollback(self):
        """Nine NaN batches in a row cost a rollback, and no run."""
        model, opt = start(every=10, confirm=5)
        train(model, opt, steps=50)
        for _ in range(9):
            bad(model, opt)
        train(model, opt, steps=5, first=50)
        actions = [event.action.value for event in opt.ledger]
        assert actions == ["skip"] * 6 + ["roll_back"] + ["skip"] * 2
        assert opt.summary()["steps_lost"] <= 20

    @pytest.mark.parametrize("every", [1, 2, 3, 100])
    def test_a_mask_that_is_a_parameter(self, every):
        model = torch.nn.Linear(6, 3)
        mask = torch.nn.Parameter(torch.tensor([0.0, -math.inf, 0.0]), requires_grad=False)
        inner = torch.optim.AdamW([*model.parameters(), mask])
        opt = StableOptimizer(inner, guard=Guard(every=every))
        for _ in range(30):
            opt.zero_grad()
            out = (model(torch.ones(4, 6)) + mask).log_softmax(1)[:, 0]
            (-out.mean()).backward()
            opt.step()
        assert opt.ledger == ()

    def test_without_snapshots_the_scan_still_ends_the_run(self):
        """The weight is not used: neither loss nor gradients show it."""
        spare = torch.nn.Parameter(torch.ones(3))
        w = torch.nn.Parameter(torch.ones(3))
        opt = StableOptimizer(torch.optim.SGD([w, spare], lr=0.1), guard=Guard(slots=0))
        w.grad = torch.ones(3)
        opt.step()
        spare.data[1] = math.nan

        def train_on():
            for _ in range(25):
                opt.step()

        with pytest.raises(DivergenceError, match=r"the weights of 0\.1 are not finite.*slots=0"):
            train_on()

    def test_a_fault_in_an_average_is_found_and_undone(self):
        model, opt = start(every=5)
        ema = torch.optim.swa_utils.AveragedModel(model)
        opt.track(ema=ema)
        for call in range(20):
            if call == 12:
                ema.module[0].weight.data[3, 4] = math.nan
            train(model, opt, first=call)
        (event,) = opt.ledger
        assert "the tracked tensors ema.module.0.weight are not finite" in event.reason
        assert ema.module[0].weight.isfinite().all()

    def test_a_batch_that_the_scaler_skips_leaves_no_statistics(self):
        model, opt = start()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        opt.track(scaler=scaler)
        for call in range(40):
            x = torch.randn(8, 64) * (math.nan if call in (10, 20, 30) else 1.0)
            opt.zero_grad()
            scaler.scale(model(x).pow(2).mean()).backward()
            scaler.step(opt)
            scaler.update()
            assert all(b.isfinite().all() for b in model.buffers())
        assert opt.ledger == ()
        assert opt.summary()["steps"] == 37

    @pytest.mark.parametrize("asks", [1, 3], ids=["torch", "Lightning"])
    def test_a_scaler_that_asks_several_times_costs_no_scan(self, asks, monkeypatch):
        """Lightning asks three times before each step, and so it is when a step is left out."""
        model, opt = start()
        looked, damage = [], opt._loop.decider.detectors.damage
        monkeypatch.setattr(
            opt._loop.decider.detectors, "damage", lambda: (looked.append(1), damage())[1]
        )
        for call in range(12):
            told = [opt._step_supports_amp_scaling for _ in range(asks)]
            assert not any(told)
            train(model, opt, steps=1, first=call)
        looked.clear()
        train(model, opt, steps=1, first=12)
        told = [opt._step_supports_amp_scaling for _ in range(asks)]
        assert not looked
        corrupt_weight(opt, math.nan, model=model)
        told = [opt._step_supports_amp_scaling for _ in range(asks)]
        assert all(told)  # nobody called step() in between

    def test_what_cannot_go_back_is_named_and_the_rest_goes_back(self, caplog):
        class Stuck:
            def state_dict(self):
                return {}

            def load_state_dict(self, state):
                raise ValueError("I will not")

        model, opt = start(every=5, confirm=2)
        opt.track(stuck=Stuck())
        train(model, opt, steps=12)
        corrupt_weight(opt, math.nan)
        train(model, opt, first=12)
        assert opt.verdict.rollback.left_behind == ("stuck",)
        assert "stuck raised and was NOT restored" in opt.verdict.reason
        assert opt.summary()["steps"] == 10
        assert opt.summary()["integrity"] == "COMPROMISED"
        assert "I will not" in caplog.text

    def test_what_does_not_give_its_state_costs_the_snapshot_alone(self, caplog):
        class Mute:
            def state_dict(self):
                raise ValueError("I say nothing")

            def load_state_dict(self, state): ...

        model, opt = start(every=5, confirm=2)
        train(model, opt, steps=7)
        opt.track(mute=Mute())
        train(model, opt, steps=7, first=7)
        assert opt.ledger == ()
        assert "the state of mute could not be read" in caplog.text


class TestSafety:
    @pytest.mark.parametrize("where", ["weight", "moment", "buffer"])
    def test_a_snapshot_that_was_damaged_at_rest_is_given_up(self, where, caplog):
        """By a single bit, the lowest: the value alone does not show it."""
        model, opt = start(every=2, confirm=2, slots=4)
        train(model, opt, steps=12)
        keeper = opt._loop.restorer.keeper
        snapshot = keeper._snapshots[keeper.ring.sound()[0].index]
        copies = {
            "weight": lambda: snapshot._state._params[0],
            "moment": lambda: snapshot._state._members[0].state[0, 1]["exp_avg_sq"],
            "buffer": lambda: next(c for _, c in snapshot._buffers.items() if c.dim()),
        }
        flip_bit(copies[where](), 0, index=3)
        corrupt_weight(opt, math.nan)
        train(model, opt, first=12)
        assert opt.verdict.action is Action.ROLL_BACK
        assert opt.verdict.rollback.to_step < 12
        assert "the snapshot of step 12 was damaged in memory" in caplog.text
        assert all(torch.isfinite(p).all() for p in model.parameters())

    def test_a_state_that_refers_to_parameters(self, caplog):
        """They go on training, and are no part of the snapshot."""
        model, opt = start(every=2, confirm=2)
        train(model, opt)
        opt.optimizer.state[model[0].weight]["of"] = model[0].bias
        train(model, opt, steps=12, first=1)
        corrupt_weight(opt, math.nan)
        train(model, opt, first=13)
        assert opt.verdict.action is Action.ROLL_BACK
        assert "was damaged in memory" not in caplog.text
        assert opt.optimizer.state[model[0].weight]["of"] is model[0].bias

    @pytest.mark.parametrize("how", ["another", "larger", "fewer"])
    def test_parameters_that_are_replaced_begin_anew(self, how):
        """What was copied of the old one is never written into the new one."""
        torch.manual_seed(0)
        body, head = torch.nn.Linear(64, 64), torch.nn.Linear(64, 4)
        groups = [{"params": body.parameters()}, {"params": head.parameters()}]
        opt = StableOptimizer(torch.optim.AdamW(groups), sensors=(), guard=Guard(every=4))

        def steps(count):
            for _ in range(count):
                opt.zero_grad()
                (head(body(torch.randn(8, 64))) - 1).pow(2).mean().backward()
                opt.step()

        steps(30)
        old = head.weight.detach().clone()
        for parameter in head.parameters():
            del opt.optimizer.state[parameter]
        head = torch.nn.Linear(64, 9 if how == "larger" else 4)
        if how == "fewer":
            opt.param_groups.pop()
        else:
            opt.param_groups[1]["params"] = list(head.parameters())
        steps(1)
        new = head.weight.detach().clone()
        corrupt_weight(opt, math.nan, name="0.0")
        steps(25)
        assert opt.summary()["rollbacks"] == 1
        assert torch.isfinite(body.weight).all()
        if how != "larger":
            weight = head.weight.detach()
            assert float((weight - new).norm()) < float((weight - old).norm())
        assert opt.summary()["integrity"] == "OK"

    def test_snapshots_that_were_all_damaged_are_told_with_the_end(self):
        model, opt = start(every=2, confirm=2, slots=3)
        train(model, opt, steps=12)
        for snapshot in opt._loop.restorer.keeper._snapshots:
            flip_bit(snapshot._state._params[0], 5, index=3)
        corrupt_weight(opt, math.nan)
        with pytest.raises(DivergenceError, match="3 snapshots were found damaged and given up"):
            train(model, opt, first=12)

    def test_a_stop_leaves_the_newest_verified_weights(self):
        model, opt = start(every=2, confirm=2, max_rollbacks=0)
        train(model, opt, steps=8)
        corrupt_weight(opt, math.nan)
        with pytest.raises(DivergenceError, match="the newest verified snapshot") as stopped:
            train(model, opt, first=8)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert stopped.value.event.rollback.to_step == opt.summary()["steps"] == 4
        assert "rollbacks are not allowed (max_rollbacks=0)" in str(stopped.value)

    def test_the_budget_ends_a_run_that_only_survives_by_going_back(self):
        model, opt = start(every=1, confirm=1, cooldown=0, budget=2, max_rollbacks=3)

        def train_through_faults():
            for call in range(100):
                if call % 10 == 5:
                    corrupt_weight(opt, math.nan)
                train(model, opt, first=call)

        with pytest.raises(DivergenceError, match="no rollback is left"):
            train_through_faults()
        assert opt.summary()["rollbacks"] == 2

    def test_loading_a_checkpoint_empties_the_ring(self):
        model, opt = start(every=2, confirm=2)
        train(model, opt, steps=6)
        saved = copied(dict(model.state_dict())), copy.deepcopy(opt.state_dict())
        train(model, opt, steps=6, first=6)
        model.load_state_dict(saved[0])
        opt.load_state_dict(saved[1])
        assert opt.summary()["snapshots"]["steps"] == []
        train(model, opt, first=6)
        corrupt_weight(opt, math.nan)
        train(model, opt, first=7)
        assert opt.verdict.rollback.to_step == 6
        assert_same(copied(dict(model.named_parameters())), parameters_of(saved[0], model))

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
    def test_copies_have_no_snapshots_and_track_nothing(self, duplicate):
        model, opt = start(every=2)
        opt.track(loader=torch.optim.lr_scheduler.ExponentialLR(opt, 0.9))
        train(model, opt, steps=6)
        twin = duplicate(opt)
        assert twin.summary()["snapshots"]["steps"] == []
        assert twin.summary()["snapshots"]["bytes"] == 0
        assert twin.summary()["tracked"] == []
        for p in twin.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        twin.step()
        assert opt.summary()["steps"] == 6

    def test_a_parameter_added_late_goes_back_to_what_it_was_when_it_came(self):
        model, opt = start(every=2, confirm=2)
        train(model, opt, steps=6)
        late = torch.nn.Parameter(torch.full((3,), 5.0))
        opt.add_param_group({"params": [late]})
        late.grad = torch.ones(3)
        opt.step()
        assert [s["step"] for s in opt.summary()["snapshots"]["steps"]] == [6, 4, 2]
        assert not torch.equal(late.detach(), torch.full((3,), 5.0))
        corrupt_weight(opt, math.nan, name="1.0")
        opt.rollback()
        train(model, opt, first=7)
        assert opt.verdict.rollback.to_step == 4
        assert late.tolist() == [5.0] * 3
        assert late not in opt.state
        assert opt.param_groups[1]["lr"] == 1e-3

    def test_the_counts_survive_a_checkpoint(self):
        model, opt = start(every=1, confirm=1, cooldown=1000)
        for call in range(12):
            if call in (5, 8):
                corrupt_weight(opt, math.nan)
            train(model, opt, first=call)
        again_model, again = start(every=1, confirm=1, cooldown=1000)
        again_model.load_state_dict(copied(dict(model.state_dict())))
        again.load_state_dict(copy.deepcopy(opt.state_dict()))
        assert again.summary()["lr_scale"] == opt.summary()["lr_scale"] == 0.5
        assert again.summary()["rollbacks_left"] == 4
        train(again_model, again)
        corrupt_weight(again, math.nan)
        train(again_model, again, first=1)
        assert again.verdict.rollback.attempt == 3


def parameters_of(state, model):
    names = [name for name, _ in model.named_parameters()]
    return {name: state[name] for name in names}
