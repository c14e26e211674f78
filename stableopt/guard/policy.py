"""From findings and history to one verdict. Plain Python, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stableopt.types import Action, Verdict

if TYPE_CHECKING:
    from stableopt.guard.options import Guard
    from stableopt.types import Finding


class Policy:
    """Skips what is bad, and stops a run that only skips.

    Args:
        guard: The limits.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.skips_in_a_row = 0

    def decide(self, findings: tuple[Finding, ...]) -> Verdict:
        """Turn the findings of one step into its verdict; changes nothing."""
        if not findings:
            return Verdict(action=Action.TAKE)
        cause = "; ".join(finding.message for finding in findings)
        limit = self._guard.max_skips
        if self.skips_in_a_row >= limit:
            reason = f"{cause}; {limit} steps in a row were skipped before it (max_skips={limit})"
            return Verdict(action=Action.STOP, reason=reason, findings=findings)
        reason = f"{cause}; skip {self.skips_in_a_row + 1} of at most {limit} in a row"
        return Verdict(action=Action.SKIP, reason=reason, findings=findings)

    def note(self, verdict: Verdict) -> None:
        """Remember what became of a step."""
        if verdict.action is Action.TAKE:
            self.skips_in_a_row = 0
        elif verdict.action is Action.SKIP:
            self.skips_in_a_row += 1
