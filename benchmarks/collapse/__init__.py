"""Weights that collapse, and healthy ones."""
