"""``stableopt report``: one HTML file about a run."""

from typing import TYPE_CHECKING

from stableopt.runtime.lazy import lazily

if TYPE_CHECKING:
    from stableopt.commands.report.write import Report, write_report

__getattr__, __dir__ = lazily(__name__, {"Report": "write", "write_report": "write"})

__all__ = ["Report", "write_report"]
