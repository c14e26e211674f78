"""The examples run, and show what they say they show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

SHOWS = {
    "accelerate_loop.py": (
        "call 85: skip, because the loss is nan",
        "back at step 64",
        "integrity OK",
    ),
    "arc_config.py": (
        "accuracy.drop > 0.05",
        "solver_logits.magnitude > 50",
        "LoRANormClamp(limit=3.0",
    ),
    "ddp.py": (
        "call 151: skip, because the gradient of",
        "on rank 1 the loss is nan",
        "the copies of 0.weight differ: ranks 0, 1 disagree",
        "integrity OK",
    ),
    "fsdp2.py": (
        "call 151: skip, because",
        "roll_back, because",
        "integrity OK",
        "ranks 2 risk",
    ),
    "compiled_loop.py": (
        "call 61: skip, because",
        "call 121: roll_back, because",
        "compiled: True",
        "graphs since step 30: 0",
    ),
    "gallery.py": ("wrote runs/gallery/report-loss.svg", "wrote runs/gallery/collapse.svg"),
    "hf_trainer.py": (
        "'stable/loss': 'nan'",
        "call 71: roll_back, because",
        "roll back from step 70 to 60",
        "integrity OK",
    ),
    "lightning_module.py": (
        "epoch,loss,stable/loss",
        "call 101: skip, because the loss is nan",
        "call 181: roll_back, because",
        "integrity OK",
    ),
    "lora.py": (
        "free     loss",
        "clamped  loss",
        "largest delta 3.00",
        "LoRANormClamp moves the lora_delta_norm of 0.lora_B from",
    ),
    "mlflow_run.py": (
        "run FINISHED trial trial-7",
        "integrity OK",
        "skips 1.0",
        "because the loss is nan",
        "artifacts stable/summary.json stable/telemetry.jsonl",
        "ml.run.stop trial-7 ['duration_ms', 'calls', 'steps']",
    ),
    "optuna_study.py": (
        "trial  0  COMPLETE",
        "PRUNED    loss -",
        "best loss 1.",
        "its options: {'transforms': (",
    ),
    "plain_loop.py": (
        "call 151: skip, because the loss is nan",
        "call 221: roll_back, because",
        "integrity OK",
    ),
    "robust_gpt.py": (
        "lr 0.3    AdamW + clip   validation loss",
        "lr 0.3    robust()       validation loss 2.",
        "UpdateCap      acted in 150 steps",
    ),
    "sensors_in_a_loop.py": (
        "risk learning",
        "the risk rises to",
        "2.weight: ",
        "condition_number",
    ),
}


def test_every_example_is_listed():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHOWS)


RANKS = {"ddp.py", "fsdp2.py"}
"""Run by torchrun, on two ranks."""

SLOW = {"gallery.py", "robust_gpt.py", "optuna_study.py"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SHOWS]
)
def test_example(name, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *(torchrun if name in RANKS else ()), EXAMPLES / name]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for line in SHOWS[name]:
        assert line in run.stdout
