"""Faults in training runs."""
