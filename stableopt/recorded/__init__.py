"""A run read back from the files that it wrote: what ``report``, ``watch`` and ``compare`` show."""

from stableopt.recorded.files import load_run
from stableopt.recorded.run import Run
from stableopt.recorded.status import Status, status_of

__all__ = ["Run", "Status", "load_run", "status_of"]
