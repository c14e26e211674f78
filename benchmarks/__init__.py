"""Measurements behind every figure that the project quotes."""
