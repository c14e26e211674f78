"""``stableopt report``: one HTML file about a run."""

from stableopt.commands.report.write import Report, write_report

__all__ = ["Report", "write_report"]
