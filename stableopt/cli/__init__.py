"""The command line. It parses and exits; what it does is in the rooms it opens."""

from stableopt.cli import audit, demo, runs
from stableopt.cli.app import app

__all__ = ["app", "audit", "demo", "runs"]
