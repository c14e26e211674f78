"""Sensors beside exact values and published formulas."""
