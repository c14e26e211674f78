"""Mutants of the sensors, and of what is made of their readings."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

ROWS = "tests/functional/test_row_spectrum.py"
SPECTRA = "tests/functional/test_spectra.py"
REFERENCES = "tests/functional/test_references.py"
PUBLISHED = "tests/functional/test_published.py"
VALUES = "tests/sensors/test_values.py"
SENSING = "tests/sensors/test_sensing.py"
RESPONSES = "tests/sensors/test_responses.py"
LANE = "tests/sensors/test_lane.py"
SAMPLER = "tests/sensors/test_sampler.py"
GOVERNOR = "tests/sensors/test_governor.py"
DRIFT = "tests/health/test_drift.py"
RISK = "tests/health/test_risk.py"
BITWISE = "tests/contract/test_bitwise.py"

SENSOR_MUTANTS = {
    # The mathematics.
    "rounding is taken for a direction": Mutant(
        "stableopt.functional.spectral_norm",
        "_ROUNDING = 32.0",
        "_ROUNDING = 0.0",
        (f"{VALUES}::test_odd_weights_have_right_values",),
    ),
    "a new direction is never looked for": Mutant(
        "stableopt.functional.spectral_norm",
        "_KICK = 0.03",
        "_KICK = 0.0",
        (
            f"{SPECTRA}::test_a_spike_that_is_orthogonal_to_the_last_vector_is_mostly_seen_at_the_next_visit",
        ),
    ),
    "noise comes from the global generator": Mutant(
        "stableopt.functional.spectral_norm",
        'torch.randn(matrix.shape[1], generator=source, dtype=torch.float32, device="cpu")',
        "torch.randn(matrix.shape[1])",
        (f"{VALUES}::test_nothing_is_written_and_no_random_number_consumed",),
    ),
    "rows that were not sampled may be anything": Mutant(
        "stableopt.sensors.sampled_spectrum",
        "gram = torch.where(finite, gram, torch.full_like(gram, math.nan))",
        "pass",
        (f"{VALUES}::test_what_is_not_finite_is_undefined",),
    ),
    "rows too short to have an angle are alive": Mutant(
        "stableopt.functional.row_spectrum",
        "squares > torch.finfo(gram.dtype).tiny",
        "squares > 0",
        (f"{ROWS}::TestOddMatrices::test_rows_too_short_to_have_an_angle_are_dead",),
    ),
    "a row that stands alone is a cluster": Mutant(
        "stableopt.functional.row_spectrum",
        "torch.where(joined, 1.0, 3.0)",
        "torch.where(joined, 1.0, 0.0)",
        (f"{ROWS}::TestLaws::test_dead_rows_change_no_cosines",),
    ),
    "a batch of spectra is one": Mutant(
        "stableopt.functional.rank",
        "torch.special.xlogy(share, share).sum(-1)",
        "torch.special.xlogy(share, share).sum()",
        (f"{ROWS}::TestBatches::test_a_batch_of_gram_matrices_is_one_by_one",),
    ),
    "half of Edelman's law": Mutant(
        "stableopt.functional.references",
        "-math.expm1(-2 / x - 2 / (x * x))",
        "-math.expm1(-2 / x)",
        (f"{REFERENCES}::test_the_tail_of_squares_is_the_frequency_of_draws",),
    ),
    "the published formula is mended": Mutant(
        "stableopt.functional.published",
        "gram.abs().sum(dim=1)",
        "gram.sum(dim=1)",
        (f"{PUBLISHED}::TestAsPublished::test_odd_weights_read_what_they_did",),
    ),
    # Promise 1: bit-identical with every sensor at every step.
    "a sensor writes the weight": Mutant(
        "stableopt.sensors.spectral_norm",
        "matrix = as_matrix(visit.weight)",
        "matrix = as_matrix(visit.weight.mul_(1.0000001))",
        (f"{VALUES}::test_nothing_is_written_and_no_random_number_consumed",),
    ),
    "autocast reaches the sensors": Mutant(
        "stableopt.runtime.lane",
        "stack.enter_context(torch.autocast(kind, enabled=False))",
        "pass",
        (f"{SENSING}::TestReadings::test_autocast_and_defaults_of_the_user_change_no_reading",),
    ),
    # Promise 3: what was flagged enters no baseline; undefined is never healthy.
    "a flagged value becomes part of the course": Mutant(
        "stableopt.health.spectra.drift",
        "        self.away += 1\n",
        "        self.away += 1\n        self.visits.append((step, x))\n",
        (f"{DRIFT}::test_flagged_values_are_no_part_of_the_course",),
    ),
    "undefined is healthy": Mutant(
        "stableopt.health.spectra.tiers",
        "    if math.isnan(value):\n        return Standing.UNDEFINED\n    tier",
        "    if math.isnan(value):\n        return Standing.HEALTHY\n    tier",
        (f"{RISK}::TestTiers::test_undefined_is_never_healthy",),
    ),
    "a sensor that failed read a one": Mutant(
        "stableopt.health.spectra.judged",
        "dict.fromkeys(metrics, math.nan) if values is None",
        "dict.fromkeys(metrics, 1.0) if values is None",
        (f"{SENSING}::TestFailures::test_a_sensor_that_fails_is_undefined_and_told_once",),
    ),
    "nothing known is stable": Mutant(
        "stableopt.health.spectra.risk",
        "return RiskLevel.STABLE if known else None",
        "return RiskLevel.STABLE",
        (f"{SENSING}::TestFailures::test_a_run_about_which_nothing_is_known_has_no_risk",),
    ),
    "a failing sensor ends the run": Mutant(
        "stableopt.sensors.runner",
        "            except Exception as error:  # noqa: BLE001 - a sensor must not end a run\n"
        "                self._warn(task, error)\n"
        "                measurement = None",
        "            except KeyError as error:\n                self._warn(task, error)",
        (f"{SENSING}::TestFailures::test_a_sensor_that_fails_is_undefined_and_told_once",),
    ),
    "what a sensor sees broken is left to the scan": Mutant(
        "stableopt.loop.decide",
        'looks = "looks" in flags or (suspicious and self.detectors.accepted)',
        'looks = "looks" in flags',
        (f"{SENSING}::TestFailures::test_a_weight_that_is_not_finite_is_never_healthy",),
    ),
    # Schedule.
    "the order of the parameters matters": Mutant(
        "stableopt.sensors.sampler",
        "        if self.order ==",
        "        ordered = list(names)\n        if self.order ==",
        (f"{SAMPLER}::test_the_order_of_the_parameters_does_not_matter",),
    ),
    "some weights are never visited": Mutant(
        "stableopt.sensors.sampler",
        "first = turn * count",
        "first = 0",
        (f"{SAMPLER}::test_round_robin_visits_every_weight_within_its_coverage",),
    ),
    "a pause is saved up": Mutant(
        "stableopt.sensors.governor",
        "self._account = min(CREDIT, self._account + earned)",
        "self._account += earned",
        (f"{GOVERNOR}::test_a_long_pause_earns_no_more_than_the_advance",),
    ),
    "what is acted upon is postponed": Mutant(
        "stableopt.health.spectra.sensing",
        "        return self.acts\n",
        "        return False\n",
        (f"{SENSING}::TestSchedule::test_what_is_acted_upon_is_not_postponed",),
    ),
    "weights are touched while they are read": Mutant(
        "stableopt.health.spectra.sensing",
        "            self._launched.round.wait()",
        "            pass",
        (f"{LANE}::test_whoever_touches_the_weights_waits_first",),
    ),
    # Promise 6, and rollback: the same readings again.
    "warm vectors are not saved": Mutant(
        "stableopt.health.spectra.sensing",
        "{metric: dict(known) for metric, known in self._memories.items()}",
        "{}",
        (f"{SENSING}::TestReproducibility::test_a_resumed_run_reads_the_same",),
    ),
    "readings do not go back": Mutant(
        "stableopt.loop.parts",
        'self.register.add("sensors", self.sensing, restored=True)',
        'self.register.add("sensors", self.sensing, restored=False)',
        (f"{SENSING}::TestReproducibility::test_readings_go_back_with_the_weights",),
    ),
    "a reading is taken twice": Mutant(
        "stableopt.health.spectra.sensing",
        "step in (self._measured, self._postponed):",
        "step == self._postponed:",
        (f"{SENSING}::TestReproducibility::test_a_checkpoint_after_a_skip_does_not_measure_twice",),
    ),
    # Promise 4: sensors inform; what is done is asked for, counted and bounded.
    "a risk is acted upon unasked": Mutant(
        "stableopt.guard.responses",
        "if act_on_risk and finding.kind in ON_RISK:",
        "if finding.kind in ON_RISK:",
        (f"{RESPONSES}::TestRisk::test_it_is_told_and_nothing_is_done_about_it",),
    ),
    "telling is an intervention": Mutant(
        "stableopt.types.event",
        "return moved or any(finding.scope not in logged for finding in self.findings)",
        "return moved or bool(self.findings)",
        (f"{RESPONSES}::TestRisk::test_it_is_told_and_nothing_is_done_about_it",),
    ),
    "a danger lowers nothing": Mutant(
        "stableopt.guard.policy",
        "                self.lr_scale *= self._guard.lr_backoff\n",
        "                pass\n",
        (f"{RESPONSES}::TestResponses::test_a_danger_lowers_the_learning_rate_until_it_is_over",),
    ),
    "dangers lower without end": Mutant(
        "stableopt.guard.policy",
        "if scale < lowest * (1 - _ROUNDING):",
        "if False:",
        (
            f"{RESPONSES}::TestResponses::"
            "test_dangers_that_come_again_and_again_lower_it_so_far_and_no_further",
        ),
    ),
    "a snapshot of a danger is trusted": Mutant(
        "stableopt.loop.decide",
        "return not (spiked or endangered)",
        "return True",
        (f"{RESPONSES}::TestResponses::test_a_snapshot_of_a_danger_is_not_trusted",),
    ),
    "an instability is repeated as it was": Mutant(
        "stableopt.guard.policy",
        "lowers = scopes <= {Scope.RISK, Scope.RULE, Scope.NOTICE}",
        "lowers = False",
        (f"{RESPONSES}::TestResponses::test_an_instability_goes_back_with_a_lower_learning_rate",),
    ),
    "a word anywhere in its name exempts a weight from limits": Mutant(
        "stableopt.sensors.targets",
        "pattern.fullmatch(part)",
        "pattern.search(part)",
        ("tests/sensors/test_targets.py::test_layers_of_torch_are_judged",),
    ),
    "limits apply to learned positions where heads are named": Mutant(
        "stableopt.sensors.targets",
        "return _has_part(name, _POSITION) or named",
        "return named",
        (f"{SENSING}::TestReadings::test_learned_positions_are_smooth_and_healthy",),
    ),
}
"""By name, as in :data:`tests.mutants.catalogue.MUTANTS`."""
