"""Which weights are measured at which step."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from stableopt.errors import ConfigError, require_int, require_number

ORDERS = ("round_robin", "random")


@dataclass(frozen=True, slots=True)
class Sampler:
    """Which share of the weights is measured, how often, and in which order.

    ``"round_robin"`` visits every weight within ``every / ratio`` steps; ``"random"`` draws
    again every time, as ASSR does. Both depend on the places of the parameters and the seed
    alone. What is suspected, or has no baseline yet, is visited beside those whose turn it is.

    Attributes:
        ratio: Share of the weights in one visit, at least one weight.
        every: Steps between two visits. They are read with every ``every``-th step.
        order: ``"round_robin"`` or ``"random"``.
        seed: Of the order, of the sampled rows and of the noise of warm starts.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> Sampler(ratio=1 / 4, every=20).coverage
        80
    """

    ratio: float = 1 / 8
    every: int = 10
    order: str = "round_robin"
    seed: int = 0

    def __post_init__(self) -> None:
        require_number("ratio", self.ratio, 1.0, "the share of the weights in one visit")
        require_int("every", self.every, 1, "how many steps lie between two visits")
        require_int("seed", self.seed, 0, "what order, rows and noise are drawn from")
        if self.order not in ORDERS:
            raise ConfigError(f"order={self.order!r} must be 'round_robin' or 'random'")

    @property
    def coverage(self) -> int:
        """Steps within which ``"round_robin"`` visits every weight."""
        return self.every * math.ceil(1 / self.ratio)

    @property
    def spacing(self) -> int:
        """Steps between two visits of a weight whose usual course is being learned.

        Closer ones would measure how it moves within a few steps, early in training.
        """
        return max(self.coverage // 2, 4 * self.every)

    def due(self, step: int) -> bool:
        """Return whether weights are measured after ``step`` steps.

        What is measured after step 9 is read in the tenth, with which telemetry writes it.
        """
        return step == 0 or (step + 1) % self.every == 0

    def pick(self, names: Sequence[str], turn: int, step: int) -> list[str]:
        """Return those whose turn it is.

        Args:
            names: What all weights are known by, in any order.
            turn: How many times weights were picked before.
            step: Steps taken so far.
        """
        count = min(len(names), max(1, math.ceil(self.ratio * len(names))))
        ordered = sorted(names, key=lambda name: (zlib.crc32(f"{self.seed}:{name}".encode()), name))
        if self.order == "random":
            return random.Random(f"{self.seed}:{step}").sample(ordered, count)  # noqa: S311
        first = turn * count
        return [ordered[(first + i) % len(ordered)] for i in range(count)]
