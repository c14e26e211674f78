"""Mutants of what is recorded: trackers, lifecycle events, the report."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

HEATMAP = "tests/commands/report/test_heatmap.py"
METRICS = "tests/telemetry/test_metrics.py"
CHANNEL = "tests/telemetry/test_writer_thread.py"
PAGE = "tests/commands/report/test_page.py"
MEMORY = "tests/commands/memory/test_memory.py"

TELLING_MUTANTS = {
    "losses that are not finite are left out": Mutant(
        "stableopt.telemetry.metrics",
        "for name, value in known.items() if value is not None)",
        "for name, value in known.items() if value is not None and math.isfinite(value))",
        (f"{METRICS}::test_losses_that_are_not_finite_are_kept",),
    ),
    "every step is an intervention": Mutant(
        "stableopt.telemetry.metrics",
        "    if not event.intervened:\n        return {}\n",
        "",
        (f"{METRICS}::test_the_sums_over_events_are_those_of_the_summary",),
    ),
    "a queue has no bound": Mutant(
        "stableopt.telemetry.writer_thread",
        "                self._queue.popleft()\n",
        "                pass\n",
        (f"{CHANNEL}::test_what_does_not_fit_is_dropped_the_oldest_first",),
    ),
    "what was lost is not counted": Mutant(
        "stableopt.telemetry.writer_thread",
        "            self.dropped += count\n",
        "            pass\n",
        (f"{CHANNEL}::test_what_is_refused_is_not_tried_again",),
    ),
    "names write markup": Mutant(
        "stableopt.commands.report.markup",
        'return escape("\\n".join(map(printable, lines.split("\\n"))))',
        'return Markup("\\n".join(map(printable, lines.split("\\n"))))',
        (f"{PAGE}::test_names_cannot_write_markup",),
    ),
    "an estimate has one snapshot too few": Mutant(
        "stableopt.commands.memory.estimate",
        "        snapshots=slots * slot,\n",
        "        snapshots=(slots - 1) * slot,\n",
        (f"{MEMORY}::test_totals",),
    ),
    "an estimate has frozen weights in its snapshots": Mutant(
        "stableopt.commands.memory.estimate",
        "    slot = gradients + state + kept\n",
        "    slot = weights + state + kept\n",
        (f"{MEMORY}::test_frozen_parameters_and_buffers",),
    ),
    "limits apply where the guard applies none": Mutant(
        "stableopt.recorded.offenders",
        "return Standing.UNJUDGED if name in unjudged else tier.standing(value)",
        "return tier.standing(value)",
        (f"{HEATMAP}::test_limits_do_not_apply_where_the_summary_says_so",),
    ),
}
