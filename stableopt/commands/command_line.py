"""All commands."""

from stableopt.commands import runs
from stableopt.commands.app import app
from stableopt.commands.audit import command as audit
from stableopt.commands.demo import command as demo
from stableopt.commands.memory import command as memory

__all__ = ["app", "audit", "demo", "memory", "runs"]
