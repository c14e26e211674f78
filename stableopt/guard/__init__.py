"""DECIDE: from findings to a verdict. No torch here."""

from stableopt.guard.options import Guard
from stableopt.triggers.signal_rule import SignalRule

__all__ = ["Guard", "SignalRule"]
