"""Helpers for tensors, names and scalars that all other packages use."""
