"""Where and when a result was measured."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stableopt import Guard, __version__

ROOT = Path(__file__).parents[2]
"""The repository."""


def describe_environment() -> dict[str, Any]:
    """Return the machine, the versions and the commit, as plain values."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stableopt": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "stabilityguard": version_of("stabilityguard"),
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def guard_hash() -> str:
    """Return a hash of the default guard, which is what everything is measured with."""
    return hashlib.sha256(repr(Guard()).encode()).hexdigest()[:16]


def version_of(package: str) -> str | None:
    """Return the version of a package; ``None`` if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit, with ``+`` behind it where tracked files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    # The results are what a run writes: they do not make the code another one.
    changes = _git("status", "--porcelain", "-uno", "--", ":!benchmarks/results")
    return head + ("+" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    """Return the name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
