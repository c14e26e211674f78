"""The Trainer of Lightning drives the wrapper exactly as it drives the optimizer in it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.utils.data import DataLoader

from stableopt import ConfigError, DivergenceError, Guard, JsonLines, StableOptimizer, UpdateCap
from stableopt.telemetry import LifecycleEvents
from stableopt.testing import corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import copied, seed_everything
from tests.integrations.worlds import Net, Regression, finite

# What Lightning warns of concerns itself; what we warn of has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore")
works_with = pytest.mark.compatibility

UNSEEN = 1e9
"""A z-score that nothing reaches: the samples are few, and some are unlike the others."""

ROUTES = ("bare", "returned", "callback")
"""How the optimizer is wrapped: not at all, in ``configure_optimizers``, or by our callback."""


def lightning():
    import lightning

    return lightning


def callback(**options):
    from stableopt.integrations.lightning import StableCallback

    return StableCallback(**options)


def module(wraps=False, schedule="step", manual=False, guard=None):
    class Module(lightning().LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()
            self.automatic_optimization = not manual
            self.losses = []

        def training_step(self, batch, index):
            loss = self.net(**batch)["loss"]
            self.losses.append(loss.item())
            if manual:
                opt = self.optimizers()
                opt.zero_grad()
                self.manual_backward(loss)
                opt.step()
            return loss

        def validation_step(self, batch, index):
            self.log("val_loss", self.net(**batch)["loss"])

        def configure_optimizers(self):
            self.inner = torch.optim.AdamW(self.parameters(), lr=1e-2)
            self.opt = StableOptimizer(self.inner, model=self, guard=guard) if wraps else self.inner
            if schedule is None:
                return self.opt
            made = torch.optim.lr_scheduler.ExponentialLR(self.opt, 0.9)
            scheduler = {"scheduler": made, "interval": "step"}
            if schedule == "lists":
                return [self.opt], [scheduler]
            if schedule == "plateau":
                made = torch.optim.lr_scheduler.ReduceLROnPlateau(self.opt, patience=0)
                scheduler = {"scheduler": made, "monitor": "val_loss"}
            return {"optimizer": self.opt, "lr_scheduler": scheduler}

    return Module()


def fit(directory, net, *callbacks, data=None, resume=None, validate=False, **options):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "default_root_dir": directory,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = lightning().Trainer(**{**defaults, **options}, callbacks=list(callbacks))
    loader = DataLoader(data or Regression(), batch_size=2)
    evaluated = DataLoader(Regression(), batch_size=4) if validate else None
    trainer.fit(net, loader, evaluated, ckpt_path=resume)
    return trainer


def left(net):
    return copied(net.state_dict()), copied(net.inner.state_dict())


def train(route, directory, *, schedule="step", manual=False, **options):
    """Train by one of the routes; return the module and the wrapper."""
    seed_everything(0)
    net = module(wraps=route == "returned", schedule=schedule, manual=manual)
    ours = callback()
    fit(directory, net, *([ours] if route == "callback" else []), **options)
    return net, ours.optimizer if route == "callback" else net.opt


class Fault:
    """Make a weight NaN before one batch."""

    def __new__(cls, batch):
        class At(lightning().Callback):
            def on_train_batch_start(self, trainer, pl_module, data, batch_idx):
                if pl_module.trainer.fit_loop.total_batch_idx == batch:
                    name = "net.first.weight"
                    corrupt_weight(trainer.optimizers[0], math.nan, model=pl_module, name=name)

        return At()


def rows():
    """Return a logger of Lightning that keeps what is logged in ``.rows``."""
    from lightning.pytorch.loggers.logger import DummyLogger

    class Rows(DummyLogger):
        def __init__(self):
            super().__init__()
            self.rows = []

        def log_metrics(self, metrics, step=None):
            self.rows.append({"step": step, **metrics})

    return Rows()


FEATURES = {
    "lr schedule": {},
    "schedulers in lists": {"schedule": "lists"},
    "ReduceLROnPlateau": {"schedule": "plateau", "validate": True},
    "no schedule": {"schedule": None},
    "accumulation": {"accumulate_grad_batches": 2},
    "uneven accumulation": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "evaluation": {"validate": True, "val_check_interval": 3},
    "manual optimization": {"manual": True},
}


class TestHealthy:
    """Bit for bit what the trainer does with the bare optimizer."""

    @pytest.mark.parametrize(
        "feature", [pytest.param(f, marks=works_with("Lightning", f)) for f in FEATURES]
    )
    def test_it_trains_bit_for_bit_like_the_bare_optimizer(self, tmp_path, feature):
        results = {}
        for route in ROUTES:
            net, opt = train(route, tmp_path / route, **FEATURES[feature])
            results[route] = left(net)
            if route != "bare":
                assert isinstance(opt, StableOptimizer)
                assert opt.summary()["steps"] > 0
                assert opt.ledger == ()
        assert_same(results["returned"], results["bare"])
        assert_same(results["callback"], results["bare"])

    @works_with("Lightning", "resume")
    @pytest.mark.parametrize("route", ["returned", "callback"])
    def test_it_resumes_bit_for_bit(self, tmp_path, route):
        from lightning.pytorch.callbacks import ModelCheckpoint

        def run(resume=None):
            seed_everything(0)
            net = module(wraps=route == "returned")
            ours = callback()
            saves = ModelCheckpoint(tmp_path, every_n_train_steps=8, filename="{step}")
            saves.save_top_k = -1
            callbacks = [saves, *([ours] if route == "callback" else [])]
            fit(tmp_path, net, *callbacks, resume=resume, enable_checkpointing=True)
            return net, ours.optimizer if route == "callback" else net.opt

        whole, _ = run()
        resumed, opt = run(tmp_path / "step=8.ckpt")
        assert_same(left(resumed), left(whole))
        summary = opt.summary()
        assert (summary["steps"], summary["calls"]) == (16, 16)

    def test_a_second_fit_is_a_new_run(self, tmp_path):
        ours = callback(telemetry=tmp_path / "run")
        net = module()
        fit(tmp_path, net, ours)
        first = ours.optimizer
        fit(tmp_path, net, ours)
        assert ours.optimizer is not first
        assert {path.name for path in (tmp_path / "run").iterdir()} == {
            "summary.json",
            "summary-2.json",
            "telemetry.jsonl",
            "telemetry-2.jsonl",
        }
        for name in ("summary.json", "summary-2.json"):
            summary = json.loads((tmp_path / "run" / name).read_text())
            assert (summary["status"], summary["steps"]) == ("closed", 16)


class TestLoss:
    """What is judged is what ``training_step`` returned."""

    @works_with("Lightning", "true loss")
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "scaled"])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_automatic(self, tmp_path, events, precision, accumulate):
        from lightning.pytorch.plugins import MixedPrecision

        net, ours = module(), callback(telemetry=events)
        how = {"precision": precision}
        if precision == "scaled":  # fp16 wants a GPU; the scaler does not
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            how = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
        fit(tmp_path, net, ours, accumulate_grad_batches=accumulate, **how)
        steps = [net.losses[i : i + accumulate] for i in range(0, 16, accumulate)]
        means = [sum(losses) / accumulate for losses in steps]
        assert [event.loss for event in events.seen] == pytest.approx(means, rel=1e-6)
        expected = ["scaler"] if precision == "scaled" else []
        assert ours.optimizer.summary()["tracked"] == expected

    def test_manual(self, tmp_path, events):
        net, ours = module(manual=True), callback(telemetry=events)
        fit(tmp_path, net, ours, max_epochs=1)
        assert [event.loss for event in events.seen] == pytest.approx(net.losses)

    @works_with("Lightning", "skip")
    @pytest.mark.parametrize("route", ["returned", "callback"])
    @pytest.mark.parametrize("manual", [False, True])
    def test_a_bad_sample_costs_one_step_of_each_epoch(self, tmp_path, route, manual):
        options = {} if manual else {"accumulate_grad_batches": 2}
        net, opt = train(route, tmp_path, manual=manual, data=Regression(bad=5), **options)
        assert opt.summary()["skips"] == 2
        assert finite(net)


class TestRollback:
    @works_with("Lightning", "rollback")
    @pytest.mark.parametrize("route", ["returned", "callback"])
    def test_a_nan_weight_is_undone(self, tmp_path, route):
        guard = Guard(every=2, confirm=1, loss_spike=UNSEEN, gradient_spike=UNSEEN)
        net = module(wraps=route == "returned", guard=guard)
        ours = [callback(guard=guard)] if route == "callback" else []
        fit(tmp_path, net, Fault(7), *ours)
        opt = ours[0].optimizer if ours else net.opt
        summary = opt.summary()
        assert (summary["rollbacks"], summary["integrity"]) == (1, "OK")
        assert finite(net)

    @pytest.mark.parametrize("rewinds", [False, True])
    def test_the_schedule_belongs_to_the_clock_of_the_trainer(self, tmp_path, rewinds, caplog):
        guard = Guard(every=2, confirm=1, loss_spike=UNSEEN, gradient_spike=UNSEEN)
        net, ours = module(), callback(guard=guard, rewind_schedule=rewinds)
        fit(tmp_path, net, Fault(7), ours)
        (group,) = net.inner.param_groups
        steps = ours.optimizer.summary()["steps"]
        assert steps < 16
        assert group["lr"] == pytest.approx(1e-2 * 0.9 ** (steps if rewinds else 16))
        assert not [r for r in caplog.records if "is not tracked" in r.message]

    @works_with("Lightning", "divergence")
    def test_divergence_leaves_fit_with_weights_that_can_be_saved(self, tmp_path):
        from lightning.pytorch.callbacks import ModelCheckpoint

        guard = Guard(max_rollbacks=0, every=2, confirm=1, loss_spike=UNSEEN)
        net, ours = module(), callback(guard=guard, telemetry=tmp_path / "run")
        saves = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_train_steps=999)
        with pytest.raises(DivergenceError, match="newest verified snapshot"):
            fit(tmp_path, net, Fault(7), ours, saves, enable_checkpointing=True)
        assert finite(net)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["status"], summary["integrity"]) == ("stopped", "COMPROMISED")
        (saved,) = tmp_path.glob("*.ckpt")
        weights = torch.load(saved, weights_only=True)["state_dict"]
        assert_same(dict(weights), copied(net.state_dict()))

    @pytest.mark.parametrize(
        ("error", "status", "outcome"),
        [
            (RuntimeError("boom"), "failed", "failed"),
            (KeyboardInterrupt(), "interrupted", "killed"),
            (SystemExit(3), "failed", "failed"),
        ],
        ids=repr,
    )
    def test_the_summary_knows_what_fit_ended_by(self, tmp_path, error, status, outcome):
        class Fails(lightning().Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if batch_idx == 3:
                    raise error

        said = []
        ours = callback(telemetry=[JsonLines(tmp_path / "run"), LifecycleEvents(said.append)])
        with pytest.raises((type(error), SystemExit)):  # Lightning exits after an interrupt
            fit(tmp_path, module(), ours, Fails())
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == (status, 3)
        stop = said[-1]["metadata"]
        assert (stop["status"], stop["success"]) == (outcome, False)


class TestLogs:
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_the_loggers_get_ours(self, tmp_path, accumulate):
        net, ours = module(), callback()
        target = rows()
        options = {"logger": target, "log_every_n_steps": 2}
        fit(tmp_path, net, ours, accumulate_grad_batches=accumulate, **options)
        logged = [row for row in target.rows if "stable/loss" in row]
        steps = 16 // accumulate
        assert [row["stable/step"] for row in logged] == list(range(2, steps + 1, 2))
        assert [row["step"] for row in logged] == list(range(1, steps, 2))  # as Lightning counts
        each = 2 * accumulate
        means = [sum(net.losses[i : i + each]) / each for i in range(0, 16, each)]
        assert [row["stable/loss"] for row in logged] == pytest.approx(means, rel=1e-6)
        assert all(row["stable/lr_scale"] == 1.0 for row in logged)

    def test_log_false(self, tmp_path):
        target = rows()
        fit(tmp_path, module(), callback(log=False), logger=target, log_every_n_steps=1)
        assert target.rows == []

    @pytest.mark.parametrize("clip", [None, 0.5])
    def test_clipping_that_hides_spikes_is_warned_of_once(self, tmp_path, caplog, clip):
        ours, net = callback(), module()
        for _ in range(2):
            fit(tmp_path, net, ours, gradient_clip_val=clip, max_epochs=1)
        warnings = [r.message for r in caplog.records if "hides their spikes" in r.message]
        assert len(warnings) == (1 if clip else 0)


@pytest.mark.parametrize("schedule", [None, "step", "lists"])
@pytest.mark.parametrize("route", ["returned", "callback"])
def test_the_monitor_of_learning_rates_logs_what_it_logs_for_the_bare_optimizer(
    tmp_path, route, schedule
):
    def logged(route):
        monitor = lightning().pytorch.callbacks.LearningRateMonitor("step")
        net = module(wraps=route == "returned", schedule=schedule)
        ours = [callback()] if route == "callback" else []
        fit(tmp_path, net, monitor, *ours, logger=rows(), log_every_n_steps=1)
        return {name: len(values) for name, values in monitor.lrs.items()}

    bare = logged("bare")
    assert list(bare) == ["lr-AdamW"]
    assert logged(route) == bare


class TestSeveralOptimizers:
    def module(self, wrapped):
        class Pair(lightning().LightningModule):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False
                self.parts = torch.nn.ModuleList([Net(), Net()])

            def training_step(self, batch, index):
                for opt, part in zip(self.optimizers(), self.parts, strict=True):
                    loss = part(**batch)["loss"]
                    opt.zero_grad()
                    self.manual_backward(loss)
                    if isinstance(opt, StableOptimizer):
                        opt.observe(loss=loss)
                    opt.step()

            def configure_optimizers(self):
                made = [torch.optim.SGD(part.parameters(), lr=0.01) for part in self.parts]
                for number in wrapped:
                    made[number] = StableOptimizer(made[number], model=self.parts[number])
                self.made = made
                return made

        return Pair()

    def test_those_that_are_wrapped_are_used(self, tmp_path):
        net, ours, target = self.module([0, 1]), callback(), rows()
        fit(tmp_path, net, ours, data=Regression(bad=5), logger=target, log_every_n_steps=1)
        assert [opt.summary()["skips"] for opt in net.made] == [2, 2]
        assert ours.optimizer is None
        keys = {key for row in target.rows for key in row}
        assert {"stable/0/skips", "stable/1/skips"} <= keys
        assert "stable/loss" not in keys
        assert finite(net)

    def test_one_of_them_hears_no_loss_but_its_own(self, tmp_path):
        net, ours = self.module([1]), callback()
        net.parts[0].last.bias.data.fill_(1e25)  # the loss of the other one is inf
        fit(tmp_path, net, ours)
        assert net.made[1].summary()["skips"] == 0
        assert ours.optimizer is net.made[1]

    @pytest.mark.parametrize(("wrapped", "options"), [([], {}), ([0, 1], {"sensors": ()})])
    def test_those_that_are_not_wrapped_are_refused(self, tmp_path, wrapped, options):
        with pytest.raises(ConfigError, match="optimizers=2 must be wrapped in configure_opt"):
            fit(tmp_path, self.module(wrapped), callback(**options))


class TestRefused:
    def test_an_unknown_option(self):
        with pytest.raises(ConfigError, match="StableCallback option='guards' is not known"):
            callback(guards=None)

    @pytest.mark.parametrize("nothing", [None, []])
    def test_no_optimizer(self, tmp_path, nothing):
        net = module()
        net.configure_optimizers = lambda: nothing
        with pytest.raises(ConfigError, match=r"configure_optimizers\(\) returned no optimizer"):
            fit(tmp_path, net, callback())

    def test_options_beside_an_optimizer_that_is_wrapped(self, tmp_path):
        with pytest.raises(ConfigError, match=r"options=\['transforms'\] must not be given"):
            fit(tmp_path, module(wraps=True), callback(transforms=[UpdateCap(0.1)]))

    def test_a_writer_for_two_trainings(self, tmp_path):
        ours, net = callback(telemetry=JsonLines(tmp_path / "run")), module()
        fit(tmp_path, net, ours)
        with pytest.raises(ConfigError, match="closed at the end of the training before"):
            fit(tmp_path, net, ours)


def test_without_the_extra(monkeypatch):
    import importlib
    import sys

    import stableopt.integrations.lightning
    from stableopt import MissingExtraError

    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "stableopt.integrations.lightning")
    with pytest.raises(MissingExtraError, match=r"pip install 'stableopt\[lightning\]'"):
        importlib.import_module("stableopt.integrations.lightning")
    assert stableopt.integrations.lightning.StableCallback is not None
