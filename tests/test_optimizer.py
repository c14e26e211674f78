"""Being a torch Optimizer: what schedulers, trainers and users rely on; what is refused."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from stableopt import (
    ClipGradNorm,
    ConfigError,
    DivergenceError,
    Guard,
    SignalRule,
    StableOptimizer,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


@pytest.fixture
def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def backward(model):
    model(torch.ones(2, 3)).pow(2).mean().backward()


class TestContract:
    def test_it_is_an_optimizer_that_owns_nothing_of_the_inner_one(self, adamw):
        opt = StableOptimizer(adamw)
        assert isinstance(opt, torch.optim.Optimizer)
        assert opt.param_groups is adamw.param_groups
        assert opt.state is adamw.state
        assert opt.defaults is adamw.defaults
        opt.param_groups = [*adamw.param_groups]
        opt.state = {}
        assert opt.param_groups is adamw.param_groups
        assert opt.state is adamw.state

    def test_wrapping_changes_nothing_of_the_inner_one(self, model):
        class Minimal(torch.optim.Optimizer):
            def __init__(self, params):
                super().__init__(params, {"lr": 0.1})

            def step(self, closure=None):
                return None

        inner = Minimal(model.parameters())
        StableOptimizer(inner)
        assert inner.defaults == {"lr": 0.1}
        assert set(inner.param_groups[0]) == {"params", "lr"}

    def test_lr_moves_after_a_load_whichever_object_the_scheduler_holds(self, model, adamw):
        opt = StableOptimizer(adamw)
        opt.load_state_dict(opt.state_dict())  # what Accelerate does on construction
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda n: 0.5**n)
        backward(model)
        opt.step()
        scheduler.step()
        assert adamw.param_groups[0]["lr"] == pytest.approx(5e-3)

    def test_a_scheduler_that_steps_first_still_warns(self, adamw):
        scheduler = torch.optim.lr_scheduler.StepLR(StableOptimizer(adamw), 1)
        with pytest.warns(UserWarning, match="before `optimizer.step"):
            scheduler.step()

    def test_a_scheduler_does_not_patch_the_instance(self, adamw):
        opt = StableOptimizer(adamw)
        torch.optim.lr_scheduler.StepLR(opt, 1)
        assert "step" not in opt.__dict__

    def test_added_groups_are_stepped(self, model, adamw):
        opt = StableOptimizer(adamw, model=model)
        extra = nn.Parameter(torch.ones(2))
        opt.add_param_group({"params": [extra], "lr": 0.5})
        extra.grad = torch.ones(2)
        opt.step()
        assert (extra < 1).all()
        assert len(adamw.param_groups) == 2

    def test_train_and_eval_are_there_only_if_the_inner_one_has_them(self, model, adamw):
        import schedulefree

        assert not hasattr(StableOptimizer(adamw), "train")
        inner = schedulefree.AdamWScheduleFree(model.parameters(), foreach=False)
        opt = StableOptimizer(inner)
        opt.train()
        assert inner.param_groups[0]["train_mode"]
        opt.eval()
        assert not inner.param_groups[0]["train_mode"]

    def test_nothing_leaks_by_delegation(self, model):
        inner = torch.optim.AdamW(model.parameters(), fused=True)
        assert inner._step_supports_amp_scaling
        assert not StableOptimizer(inner)._step_supports_amp_scaling
        with pytest.raises(AttributeError, match=r"use \.optimizer\._init_group"):
            StableOptimizer(inner)._init_group  # noqa: B018

    def test_step_hooks_fire_once_wherever_they_are_registered(self, model, adamw):
        fired = []
        opt = StableOptimizer(adamw)
        opt.register_step_post_hook(lambda *_: fired.append("outer"))
        handle = adamw.register_step_post_hook(lambda *_: fired.append("inner"))
        backward(model)
        opt.step()
        handle.remove()
        opt.step()
        assert fired == ["outer", "inner", "outer"]

    def test_global_hooks_fire_once_even_if_torch_patches_the_class_again(self, model, adamw):
        fired = []
        opt = StableOptimizer(adamw)
        opt._patch_step_function()  # what Optimizer.__init__ and __setstate__ call
        handle = register_optimizer_step_post_hook(lambda *_: fired.append("global"))
        backward(model)
        opt.step()
        handle.remove()
        assert fired == ["global"]

    def test_state_dict_hooks_fire_once(self, adamw):
        fired = []
        opt = StableOptimizer(adamw)
        opt.register_state_dict_pre_hook(lambda _: fired.append("pre"))
        opt.register_load_state_dict_post_hook(lambda _: fired.append("loaded"))
        opt.load_state_dict(opt.state_dict())
        assert fired == ["pre", "loaded"]

    def test_zero_grad(self, model, adamw):
        opt = StableOptimizer(adamw)
        backward(model)
        opt.zero_grad(set_to_none=False)
        assert all((p.grad == 0).all() for p in model.parameters())
        opt.zero_grad()
        assert all(p.grad is None for p in model.parameters())

    def test_swapped_parameters_are_found_by_position(self, model, adamw):
        opt = StableOptimizer(adamw, model=model)
        swapped = nn.Parameter(model[0].weight.detach().clone())
        model[0].weight = adamw.param_groups[0]["params"][0] = swapped
        backward(model)
        swapped.grad[0, 0] = torch.nan
        opt.step()
        assert opt.verdict.findings[0].where == ("0.weight",)

    def test_a_failing_closure_leaves_no_stale_signal(self, model, adamw):
        opt = StableOptimizer(adamw)
        opt.observe(loss=float("nan"))
        with pytest.raises(MemoryError):
            opt.step(lambda: (_ for _ in ()).throw(MemoryError()))
        backward(model)
        opt.step()
        assert opt.ledger == ()

    def test_closures_run_with_gradients_enabled(self, model, adamw):
        opt = StableOptimizer(adamw)

        def closure():
            loss = model(torch.ones(2, 3)).sum()
            loss.backward()
            return loss

        with torch.no_grad():
            assert opt.step(closure).requires_grad

    def test_it_is_collected_and_closed_when_forgotten(self, model, adamw, tmp_path):
        opt = StableOptimizer(adamw, telemetry=tmp_path)
        gone = weakref.ref(opt)
        del opt
        gc.collect()
        assert gone() is None
        assert json.loads((tmp_path / "summary.json").read_text())["status"] == "closed"

    def test_repr_shows_the_guard_and_the_inner_one(self, adamw):
        text = repr(StableOptimizer(adamw, guard=Guard(max_skips=2)))
        assert "max_skips=2" in text
        assert "AdamW" in text


class TestBadInput:
    def test_wrapping_twice(self, adamw):
        with pytest.raises(ConfigError, match="wrapped in a StableOptimizer already"):
            StableOptimizer(StableOptimizer(adamw))

    @pytest.mark.parametrize("thing", [None, "adamw", nn.Linear(2, 2), object()])
    def test_not_an_optimizer(self, thing):
        with pytest.raises(ConfigError, match=r"must be a torch.optim.Optimizer"):
            StableOptimizer(thing)

    def test_one_that_only_passes_on_to_another(self, adamw):
        class Shell(torch.optim.Optimizer):
            def __init__(self, optimizer):
                self.optimizer = optimizer
                self.param_groups = optimizer.param_groups

        with pytest.raises(ConfigError, match=r"Shell object must be .*wrap the one"):
            StableOptimizer(Shell(adamw))

    def test_an_optimizer_class(self):
        with pytest.raises(ConfigError, match="AdamW is a class"):
            StableOptimizer(torch.optim.AdamW)

    def test_differentiable(self, model):
        inner = torch.optim.Adam(model.parameters(), differentiable=True)
        with pytest.raises(ConfigError, match="differentiable=True"):
            StableOptimizer(inner)

    def test_a_differentiable_group_added_later(self, adamw):
        opt = StableOptimizer(adamw)
        extra = nn.Parameter(torch.ones(2))
        with pytest.raises(ConfigError, match="differentiable=True"):
            opt.add_param_group({"params": [extra], "differentiable": True})
        assert len(opt.param_groups) == 1

    @pytest.mark.parametrize("other", [3, "gpt", nn.Linear(1, 1)])
    def test_a_model_that_is_not_the_trained_one(self, adamw, other):
        with pytest.raises(ConfigError, match="model="):
            StableOptimizer(adamw, model=other)

    @pytest.mark.parametrize("value", [True, 3, "on", Guard])
    def test_guard(self, adamw, value):
        with pytest.raises(ConfigError, match="guard="):
            StableOptimizer(adamw, guard=value)

    @pytest.mark.parametrize("value", [0, -1.0, float("nan"), "1", None, True])
    def test_max_norm(self, value):
        with pytest.raises(ConfigError, match=r"max_norm=.*above 0"):
            ClipGradNorm(value)

    @pytest.mark.parametrize(
        "value", [ClipGradNorm(1.0), ["clip"], [ClipGradNorm], [lambda g: g], 3, "ClipGradNorm"]
    )
    def test_transforms(self, adamw, value):
        with pytest.raises(ConfigError, match="transforms"):
            StableOptimizer(adamw, transforms=value)

    @pytest.mark.parametrize("value", [3, object(), [object()], print])
    def test_telemetry(self, adamw, value):
        with pytest.raises(ConfigError, match="telemetry="):
            StableOptimizer(adamw, telemetry=value)

    def test_a_directory_that_is_a_file(self, adamw, tmp_path):
        (tmp_path / "taken").write_text("x")
        with pytest.raises(ConfigError, match=r"telemetry=.*cannot be written"):
            StableOptimizer(adamw, telemetry=tmp_path / "taken")

    def test_an_unknown_option(self, adamw):
        with pytest.raises(TypeError, match="guards"):
            StableOptimizer(adamw, guards=None)

    def test_what_several_ranks_cannot_judge(self, adamw, monkeypatch):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 4)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
        with pytest.raises(ConfigError, match=r"sync='lagged'.*several ranks"):
            StableOptimizer(adamw, guard=Guard(sync="lagged"))
        StableOptimizer(adamw, guard=False)


class TestFromConfig:
    def test_everything(self, model, adamw, tmp_path):
        config = {
            "guard": {"max_skips": 2},
            "transforms": [{"ClipGradNorm": {"max_norm": 0.5}}],
            "telemetry": {"directory": str(tmp_path), "every": 1},
        }
        opt = StableOptimizer.from_config(adamw, config, model=model)
        summary = opt.summary()
        assert summary["guard"]["max_skips"] == 2
        assert [t["transform"] for t in summary["transforms"]] == [
            "ClipGradNorm(max_norm=0.5, params=None)"
        ]
        opt.close()
        assert (tmp_path / "summary.json").exists()

    def test_rules_as_text_and_with_options_beside_a_preset(self, adamw):
        rules = ["a > 1", {"when": "b < 2", "response": "skip", "patience": 3}]
        config = {"preset": "gradience", "guard": {"rules": rules}}
        options = StableOptimizer.from_config(adamw, config)._loop.guard
        assert options.rules == (
            SignalRule("a > 1"),
            SignalRule("b < 2", response="skip", patience=3),
        )
        assert options.max_weight == 1e6

    def test_the_constructor_takes_the_same_plain_data(self, model, adamw):
        plain = {"guard": {"max_skips": 2}, "sensors": ["SpectralNorm"]}
        plain["transforms"] = [{"ClipGradNorm": {"max_norm": 0.5}}, "UpdateCap"]
        ours = StableOptimizer(adamw, model=model, **plain).summary()
        theirs = StableOptimizer.from_config(adamw, plain, model=model).summary()
        assert (ours["guard"], ours["transforms"]) == (theirs["guard"], theirs["transforms"])

    def test_defaults(self, adamw):
        assert StableOptimizer.from_config(adamw, {}).summary()["guard"] == Guard().as_config()
        assert StableOptimizer.from_config(adamw, {"guard": True}).summary()["guard"]
        assert StableOptimizer.from_config(adamw, {"guard": False}).summary()["guard"] is False
        nothing = {"guard": None, "transforms": None, "telemetry": None}
        assert StableOptimizer.from_config(adamw, nothing).summary()["telemetry"] is None

    def test_lazy_modules(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on lazy modules
            model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 1))
        opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        assert opt.summary()["parameters"] == 5
        model(torch.randn(6, 3)).sum().backward()
        opt.step()
        before = model[1].running_mean.clone()
        model(torch.full((6, 3), torch.nan)).sum().backward()
        opt.step()
        assert torch.equal(model[1].running_mean, before)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ([], "config="),
            ({"gaurd": {}}, "did you mean 'guard'"),
            ({"guard": {"max_skip": 3}}, "did you mean 'max_skips'"),
            ({"guard": {"max_skips": -1}}, "max_skips=-1"),
            ({"guard": 3}, "guard=3 must be a dict"),
            ({"guard": "false"}, "or False for no guard"),
            ({"telemetry": {}}, "lacks directory"),
            ({"telemetry": ""}, "telemetry='' is no directory"),
            ({"telemetry": "a\0b"}, "cannot be written"),
            ({"telemetry": {"directory": None}}, "directory=None"),
            ({"transforms": {"ClipGradNorm": {}}}, "must be a list"),
            ({"transforms": [{"ClipGradNrom": {}}]}, "did you mean 'ClipGradNorm'"),
            ({"transforms": [{"ClipGradNorm": {}}]}, "lacks max_norm"),
            ({"transforms": [{"ClipGradNorm": {"max_norm": 0}}]}, "max_norm=0"),
            ({"transforms": [{"a": {}, "b": {}}]}, "one key"),
            ({"guard": {"rules": "a > 1"}}, "must be a list of SignalRule"),
            ({"guard": {"rules": [{"wen": "a > 1"}]}}, "did you mean 'when'"),
            ({"guard": {"rules": [{"response": "skip"}]}}, "lacks when"),
            ({"guard": {"responses": {"loss_spike": "roll_back"}}}, "must be one of"),
            ({"telemetry": {"dir": "x"}}, "directory"),
            ({"telemetry": {"directory": "runs/never", "every": 0}}, "every=0"),
        ],
    )
    def test_bad_input(self, adamw, config, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=message):
            StableOptimizer.from_config(adamw, config)
        assert list(tmp_path.iterdir()) == []


class TestObserve:
    def test_losses_are_averaged_and_win_over_the_closure(self, model, adamw, events):
        opt = StableOptimizer(adamw, telemetry=events)
        opt.observe(loss=1.0)
        opt.observe(loss=torch.tensor([2.0, 6.0]))
        opt.step(lambda: torch.tensor(77.0))
        opt.close()
        assert events.seen[0].loss == 2.5

    def test_any_non_finite_loss_wins(self, adamw):
        opt = StableOptimizer(adamw, guard=Guard(responses={"nonfinite_loss": "skip"}))
        opt.observe(loss=1.0)
        opt.observe(loss=float("inf"))
        opt.observe(loss=2.0)
        opt.step()
        assert opt.verdict.action.value == "skip"

    def test_other_signals_keep_the_last_value_and_are_consumed(self, adamw, events):
        opt = StableOptimizer(adamw, telemetry=events)
        opt.observe(accuracy=0.1, spread=torch.tensor([1.0, 3.0]), parts={"a": 1})
        opt.observe(accuracy=0.5, nothing=None)
        opt.step()
        opt.step()
        opt.close()
        assert events.seen[0].signals == {
            "accuracy": 0.5,
            "spread": {"mean": 2.0, "min": 1.0, "max": 3.0},
            "parts": {"a": 1.0},
        }
        assert events.seen[1].signals == {}

    @pytest.mark.parametrize("resets", [0, 1, 2])
    def test_what_is_told_between_two_steps_is_for_the_next_one(self, adamw, events, resets):
        opt = StableOptimizer(adamw, telemetry=events)
        opt.step()
        opt.observe(accuracy=0.5)
        for _ in range(resets):
            opt.zero_grad()
        opt.observe(loss=1.0)
        opt.step()
        opt.step()
        opt.close()
        assert [event.signals for event in events.seen] == [{}, {"accuracy": 0.5}, {}]

    @pytest.mark.parametrize("reset_after_forward", [False, True])
    def test_what_a_grad_scaler_skipped_is_not_held_against_the_next_batch(
        self, model, adamw, reset_after_forward
    ):
        opt = StableOptimizer(adamw)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for step in range(4):
            if not reset_after_forward:
                opt.zero_grad()
            loss = model(torch.ones(2, 3)).mean() * (float("inf") if step == 1 else 1.0)
            opt.observe(loss=loss)
            if reset_after_forward:
                opt.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
        assert opt.ledger == ()
        assert opt.summary()["steps"] == 3

    def test_a_running_average_updated_in_place_is_observed_as_it_was(self, adamw, events):
        opt = StableOptimizer(adamw, telemetry=events)
        running = torch.tensor(1.0)
        opt.observe(loss=running)
        running += 5
        opt.step()
        opt.close()
        assert events.seen[0].loss == 1.0

    @pytest.mark.parametrize("value", ["low", object(), [1, 2], torch.zeros(0), torch.tensor(1j)])
    def test_bad_values_are_refused_and_nothing_is_kept(self, adamw, value):
        opt = StableOptimizer(adamw)
        with pytest.raises(ConfigError, match="loss"):
            opt.observe(accuracy=1.0, loss=value)
        with pytest.raises(ConfigError, match="loss"):
            opt.observe(loss={"a": 1.0})
        assert opt._loop.signals.take() == ([], {})

    def test_numbers_of_every_make(self, adamw, events):
        opt = StableOptimizer(adamw, telemetry=events)
        with torch.sparse.check_sparse_tensor_invariants(enable=True):
            sparse = torch.eye(2).to_sparse()
        values = [np.float32(2), np.array(2.0), np.array([1, 3]), True, sparse * 2, 10**400]
        for value in values:
            opt.observe(loss=value)
            opt.step()
        opt.close()
        assert [e.loss for e in events.seen] == [2.0, 2.0, 2.0, 1.0, 2.0, float("inf")]

    def test_closures_may_return_anything(self, model, adamw):
        opt = StableOptimizer(adamw)
        for value in (None, "text", {"loss": 1}, (1, 2)):
            assert opt.step(lambda v=value: v) == value


class TestImport:
    def test_importing_brings_in_no_extra(self):
        code = (
            "import sys, stableopt;"
            "extras = ['typer', 'rich', 'matplotlib', 'torch._dynamo.convert_frame'];"
            "print([m for m in extras if m in sys.modules])"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert out.stdout.strip() == "[]"

    def test_errors_survive_pickling(self):
        import pickle

        from stableopt import Action, Event, MissingExtraError

        event = Event(call=1, step=0, action=Action.STOP)
        error = pickle.loads(pickle.dumps(DivergenceError("why", event, [event])))
        assert (str(error), error.event, error.ledger) == ("why", event, (event,))
        missing = pickle.loads(pickle.dumps(MissingExtraError("the demo", "cli")))
        assert "pip install 'stableopt[cli]'" in str(missing)


def test_no_warning_in_an_ordinary_loop(model, adamw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt = StableOptimizer(adamw, model=model)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=5)
        for _ in range(4):
            opt.zero_grad()
            backward(model)
            opt.step()
            scheduler.step()


def test_the_summary_is_strict_json_whatever_happened():
    w = torch.nn.Parameter(torch.ones(2))
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1))
    for value in (1.0, float("nan"), float("inf")):
        opt.observe(loss=value)
        w.grad = torch.full((2,), value)
        opt.step()
    assert json.loads(json.dumps(opt.summary(), allow_nan=False))["ledger"][0]["loss"] == "NaN"
