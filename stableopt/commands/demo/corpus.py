"""Text to train on that every interpreter has: the sources of its standard library."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stableopt.errors import ConfigError

_EXCLUDED = frozenset({"__pycache__", "dist-packages", "idlelib", "site-packages", "test", "tests"})
_SMALLEST = 100_000
_HELD_OUT = 0.05
_STEPS_PER_SEED = 2**24  # so that no two pairs of seed and step share a generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Bytes to train on, and a tail of them to validate on.

    Attributes:
        training: ``(n,)`` of uint8.
        validation: ``(m,)`` of uint8; never trained on.
    """

    training: Tensor
    validation: Tensor

    def batch(self, step: int, *, seed: int, size: int, context: int) -> tuple[Tensor, Tensor]:
        """Return the batch of one step: the same for the same step and seed, always.

        Args:
            step: Number of the step, from 0 to 2²⁴ - 1.
            seed: At least 0.
            size: How many windows.
            context: Bytes per window.

        Returns:
            Inputs and targets, ``(size, context)`` of int64; targets are one byte ahead.
        """
        generator = torch.Generator().manual_seed(seed * _STEPS_PER_SEED + step)
        last = len(self.training) - context
        starts = torch.randint(last, (size,), generator=generator)
        return _windows(self.training, starts, context)

    def validation_batch(self, *, size: int, context: int) -> tuple[Tensor, Tensor]:
        """Return ``size`` windows spread evenly over the validation bytes."""
        last = len(self.validation) - context - 1
        starts = torch.linspace(0, last, size, dtype=torch.float64).long()
        return _windows(self.validation, starts, context)


def load_corpus(root: str | os.PathLike[str] | None = None) -> Corpus:
    """Read every ``*.py`` file under ``root``, in the order of their paths.

    Installed packages, tests and ``idlelib`` are left out.

    Args:
        root: Where to read; the interpreter's standard library if not given.

    Raises:
        ConfigError: There are too few sources to train on.
    """
    directory = Path(sysconfig.get_paths()["stdlib"] if root is None else root)
    data = bytearray().join(path.read_bytes() for path in sorted(_sources(directory)))
    if len(data) < _SMALLEST:
        raise ConfigError(
            f"stdlib={str(directory)!r} has {len(data)} bytes of Python sources, and the demo "
            f"needs at least {_SMALLEST} to train on: use an interpreter that is installed "
            "with the sources of its standard library"
        )
    text = torch.frombuffer(data, dtype=torch.uint8)
    held_out = int(len(text) * _HELD_OUT)
    return Corpus(training=text[:-held_out], validation=text[-held_out:])


def _sources(directory: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if name not in _EXCLUDED]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    windows = text[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]
