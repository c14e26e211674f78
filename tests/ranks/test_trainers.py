"""Trainers launched on two ranks: the examples run as they do on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_trainer.py", "lightning_module.py", "accelerate_loop.py"])
def test_a_trainer_on_two_ranks(name, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [sys.executable, *torchrun, EXAMPLES / name],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("integrity OK") == 2
    told = [line for line in run.stdout.splitlines() if line.startswith("call ")]
    assert told
    assert all(told.count(line) == 2 for line in told)  # equal on both ranks
