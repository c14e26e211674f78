"""What to tell about a run: the ledger, the summary, and writers that never get in the way."""

from stableopt.telemetry.json_lines import JsonLines, read_events
from stableopt.telemetry.writer import Writer

__all__ = ["JsonLines", "Writer", "read_events"]
