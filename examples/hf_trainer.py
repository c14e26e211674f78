"""A Trainer of transformers that survives a lost weight, with one line.

A small Llama with random weights learns to continue sequences. Nothing is downloaded. Run it:
``python examples/hf_trainer.py``.
"""

from __future__ import annotations

import tempfile

import torch
from torch.utils.data import TensorDataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from stableopt import ClipGradNorm, Guard
from stableopt.integrations.transformers import stabilize, stable_optimizer_of
from stableopt.testing import corrupt_weight

set_seed(0)
starts = torch.randint(0, 61, (512, 1))
rows = (starts + 7 * torch.arange(24)) % 61  # each symbol follows from the one before
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))


def collate(batch):
    """Have every sequence be its own labels."""
    tokens = torch.stack([row for (row,) in batch])
    return {"input_ids": tokens, "labels": tokens}


class LoseAWeight(TrainerCallback):
    """What a failing memory does."""

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Make one weight NaN before step 70."""
        if state.global_step == 70:
            corrupt_weight(optimizer, float("nan"), model=model)


arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    max_steps=150,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    learning_rate=3e-3,
    warmup_steps=10,
    lr_scheduler_type="cosine",
    max_grad_norm=0.0,
    logging_steps=25,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(
    model=model,
    args=arguments,
    train_dataset=TensorDataset(rows),
    data_collator=collate,
    callbacks=[LoseAWeight()],
)
stabilize(
    trainer,
    guard=Guard(every=20),  # a snapshot every 20 steps: this run is short
    transforms=[ClipGradNorm(1.0)],  # in place of max_grad_norm, so that spikes are seen
    telemetry=tempfile.mkdtemp(),
)
trainer.train()

opt = stable_optimizer_of(trainer.optimizer)
for event in opt.ledger:
    if event.intervened:
        print(f"call {event.call}: {event.action.value}, because {event.reason}")
print("integrity", opt.summary()["integrity"])
