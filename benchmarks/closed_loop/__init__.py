"""Driven failures, with and without a transform."""
