"""Checkpoints in files, and the command line around them."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from stableopt.commands import command_line as cli


@pytest.fixture
def gaussian():
    """Make Gaussian matrices, the same ones every time."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=generator).to(dtype)

    return make


@pytest.fixture
def audit(tmp_path):
    """Run ``stableopt audit`` on a file, or on what is to be saved to one."""

    def invoke(content, *options, suffix=".pt", columns=200):
        path = content
        if isinstance(content, (dict, list, torch.Tensor)):
            path = tmp_path / f"checkpoint{suffix}"
            torch.save(content, path)
        runner = CliRunner(env={"COLUMNS": str(columns)})
        return runner.invoke(cli.app, ["audit", str(path), "--out", str(invoke.out), *options])

    invoke.out = tmp_path / "out"
    return invoke


@pytest.fixture
def weights(audit):
    """Audit, and return the exit code and the reports by name."""

    def measure(content, *options, **more):
        result = audit(content, *options, **more)
        assert result.exit_code in (0, 1), result.output
        record = json.loads((audit.out / "audit.json").read_text())
        return result.exit_code, {weight["name"]: weight for weight in record["weights"]}, record

    return measure
