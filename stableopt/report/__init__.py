"""What there is to see of a run: a report to send, a view to watch, a table to compare."""

from stableopt.report.files import load_run
from stableopt.report.run import Run
from stableopt.report.status import Status, status_of
from stableopt.report.write import Report, write_report

__all__ = ["Report", "Run", "Status", "load_run", "status_of", "write_report"]
