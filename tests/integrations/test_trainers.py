"""Real trainers drive the wrapper exactly as they drive the optimizer in it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from stableopt import StableOptimizer
from tests.contract.bits import assert_same
from tests.contract.scenario import copied, seed_everything

# What trainers warn of concerns themselves; what we warn of has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore")

WRAPS = {
    "bare": lambda inner, model: inner,
    "wrapped": lambda inner, model: StableOptimizer(inner, model=model),
}


class Regression(Dataset):
    """Sixteen samples; ``bad`` is one that holds a NaN."""

    def __init__(self, bad: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(16, 4, generator=generator)
        self.y = torch.randn(16, 1, generator=generator)
        if bad is not None:
            self.x[bad, 0] = math.nan

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.last = torch.nn.Linear(8, 1)

    def forward(self, x, y):
        out = self.last(torch.relu(self.norm(self.first(x))))
        return {"loss": (out - y).pow(2).mean(), "out": out}


class TestTransformers:
    def trainer(self, wrap, directory, max_steps=8, bad=None):
        import transformers

        seed_everything(0)
        model = Net()
        inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
        opt = WRAPS[wrap](inner, model)
        schedule = transformers.get_cosine_schedule_with_warmup(opt, 2, 12)
        arguments = transformers.TrainingArguments(
            output_dir=str(directory),
            max_steps=max_steps,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_grad_norm=0.5,
            save_steps=4,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=1,
        )
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=Regression(bad), optimizers=(opt, schedule)
        )
        return trainer, model, inner, opt

    def left(self, model, inner):
        return copied(model.state_dict()), copied(inner.state_dict())

    def test_it_trains_bit_for_bit_like_the_bare_optimizer(self, tmp_path):
        results = {}
        for wrap in WRAPS:
            trainer, model, inner, _ = self.trainer(wrap, tmp_path / wrap)
            trainer.train()
            results[wrap] = self.left(model, inner)
            assert inner.param_groups[0]["lr"] < 1e-2  # the schedule reached the inner one
        assert_same(results["wrapped"], results["bare"])

    def test_it_resumes_bit_for_bit(self, tmp_path):
        trainer, model, inner, _ = self.trainer("wrapped", tmp_path)
        trainer.train()
        whole = self.left(model, inner)
        trainer, model, inner, opt = self.trainer("wrapped", tmp_path)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert_same(self.left(model, inner), whole)
        assert opt.summary()["steps"] == 8

    def test_a_bad_sample_costs_one_step_of_each_epoch(self, tmp_path):
        trainer, model, _, opt = self.trainer("wrapped", tmp_path, bad=5)
        trainer.train()
        assert opt.summary()["skips"] == 2  # two epochs of four steps
        assert all(value.isfinite().all() for value in model.state_dict().values())


class TestLightning:
    def fit(self, wrap, directory, bad=None):
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = Net()

            def training_step(self, batch, index):
                return self.net(**batch)["loss"]

            def configure_optimizers(self):
                self.inner = torch.optim.AdamW(self.parameters(), lr=1e-2)
                self.opt = WRAPS[wrap](self.inner, self)
                schedule = torch.optim.lr_scheduler.ExponentialLR(self.opt, 0.9)
                return {"optimizer": self.opt, "lr_scheduler": schedule}

        seed_everything(0)
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            gradient_clip_val=0.5,
            accumulate_grad_batches=2,
            default_root_dir=directory,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(Regression(bad), batch_size=2))
        return module

    def test_it_trains_bit_for_bit_like_the_bare_optimizer(self, tmp_path):
        results = {}
        for wrap in WRAPS:
            module = self.fit(wrap, tmp_path)
            results[wrap] = copied(module.state_dict()), copied(module.inner.state_dict())
            assert module.inner.param_groups[0]["lr"] < 1e-2
        assert_same(results["wrapped"], results["bare"])

    def test_a_bad_sample_is_skipped_through_the_closure(self, tmp_path):
        module = self.fit("wrapped", tmp_path, bad=5)
        assert module.opt.summary()["skips"] == 2
        assert all(value.isfinite().all() for value in module.state_dict().values())


class TestAccelerate:
    def train(self, wrap, bad=None):
        import accelerate

        seed_everything(0)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = Net()
        inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
        opt = WRAPS[wrap](inner, model)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
        loader = DataLoader(Regression(bad), batch_size=2)
        net, prepared, loader, schedule = accelerator.prepare(model, opt, loader, schedule)
        for batch in loader:
            with accelerator.accumulate(net):
                accelerator.backward(net(**batch)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 0.5)
                prepared.step()
                schedule.step()
                prepared.zero_grad()
        return model, inner, opt

    def test_it_trains_bit_for_bit_like_the_bare_optimizer(self):
        results = {}
        for wrap in WRAPS:
            model, inner, _ = self.train(wrap)
            results[wrap] = copied(model.state_dict()), copied(inner.state_dict())
            assert inner.param_groups[0]["lr"] < 1e-2
        assert_same(results["wrapped"], results["bare"])

    def test_a_bad_sample_is_skipped(self):
        model, _, opt = self.train("wrapped", bad=5)
        assert opt.summary()["skips"] == 1
        assert all(value.isfinite().all() for value in model.state_dict().values())
