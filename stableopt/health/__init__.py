"""Detectors: what was observed, and what is held against it."""
