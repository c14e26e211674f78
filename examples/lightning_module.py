"""A LightningModule that survives a poisoned batch and a lost weight, with one callback.

Run it: ``python examples/lightning_module.py``.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stableopt import ClipGradNorm, Guard
from stableopt.integrations.lightning import StableCallback
from stableopt.testing import corrupt_weight, poison_batch

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="lightning")  # it would like more workers


class Waves(lightning.LightningModule):
    """Learns a sum of sines; nothing in it knows of stableopt."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a batch, one of which is poisoned."""
        if self.global_step == 100:
            batch = poison_batch(batch)
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW and its schedule, as ever."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=256)
        scheduler = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class LoseAWeight(lightning.Callback):
    """What a failing memory does."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """Make one weight NaN after 180 steps."""
        if trainer.global_step == 180:
            corrupt_weight(trainer.optimizers[0], float("nan"), model=pl_module)


lightning.seed_everything(0, verbose=False)
x = torch.rand(4096, 8) * 2 - 1
data = TensorDataset(x, torch.sin(3 * x).sum(dim=1, keepdim=True))
stable = StableCallback(
    guard=Guard(every=50),  # a snapshot every 50 steps: this run is short
    transforms=[ClipGradNorm(1.0)],  # in place of gradient_clip_val, so that spikes are seen
)
logger = CSVLogger("runs/lightning")
trainer = lightning.Trainer(
    max_epochs=4,
    accelerator="cpu",
    logger=logger,
    log_every_n_steps=64,
    callbacks=[stable, LoseAWeight()],
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
module = Waves()
trainer.fit(module, DataLoader(data, batch_size=64, shuffle=True))

if trainer.is_global_zero:
    with open(f"{logger.log_dir}/metrics.csv") as metrics:
        print(metrics.read())
for event in stable.optimizer.ledger:
    if event.intervened:
        print(f"call {event.call}: {event.action.value}, because {event.reason}")
print("integrity", stable.optimizer.summary()["integrity"])
