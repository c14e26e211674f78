"""Conditions on metrics and signals: when a transform acts, when a rule holds."""

from stableopt.triggers.conditions import Evidence, Trigger, above, below, drift
from stableopt.triggers.signal_rule import SignalRule

__all__ = ["Evidence", "SignalRule", "Trigger", "above", "below", "drift"]
