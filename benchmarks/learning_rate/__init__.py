"""Sensitivity to the learning rate."""
