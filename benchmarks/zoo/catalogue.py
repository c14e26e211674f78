"""All trainings of the zoo, in the order of their table."""

from __future__ import annotations

from importlib import import_module

from benchmarks.zoo.harness import TRAININGS, Record, play

KINDS = ("adapters", "compression", "generative", "loops", "meta")
KINDS += ("optimizers", "rl", "sequences", "similarity", "tasks")
for kind in KINDS:
    import_module(f"benchmarks.zoo.{kind}")  # enters its trainings


def play_both(cell: tuple[str, int]) -> list[Record]:
    """Play a training bare and wrapped, one after the other in this process.

    Args:
        cell: Name of the training, and the seed of both runs.

    Returns:
        The record of the bare one, and that of the wrapped one.
    """
    name, seed = cell
    return [play(TRAININGS[name], seed, wrapped=wrapped) for wrapped in (False, True)]
