"""The one line: ``StableOptimizer(optimizer)``."""

from stableopt.optimizer.stable import StableOptimizer

__all__ = ["StableOptimizer"]
