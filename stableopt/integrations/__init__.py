"""Integrations with trainers and trackers; each needs an extra."""
