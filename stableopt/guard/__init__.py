"""How to survive: the options of the guard, and the policy from findings to a verdict."""

from stableopt.guard.options import Guard

__all__ = ["Guard"]
