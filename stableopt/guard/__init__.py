"""How to survive: the options of the guard, and the policy from findings to a verdict."""

from stableopt.guard.options import Guard
from stableopt.guard.rules import SignalRule

__all__ = ["Guard", "SignalRule"]
