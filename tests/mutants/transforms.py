"""Mutants of the transforms, their triggers, and what they are made of."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

TRIGGERS = "tests/triggers/test_triggers.py"
IN_USE = "tests/transforms/test_in_use.py"
CORRECTED = "tests/sensors/test_corrected.py"
ACTS = "tests/test_acts.py"
BINDING = "tests/transforms/test_binding.py"
UPDATE_CAP = "tests/transforms/test_update_cap.py"
MAX_NORM = "tests/transforms/test_max_norm.py"
DECAY = "tests/transforms/test_adaptive_weight_decay.py"
CAPS = "tests/functional/test_caps.py"
CAP = "tests/transforms/test_spectral_cap.py"
NORMALIZATION = "tests/transforms/test_spectral_normalization.py"
LORA = "tests/transforms/test_lora_norm_clamp.py"
QK = "tests/transforms/test_qk_clip.py"
LOGIT = "tests/transforms/test_logit_bound.py"

TRANSFORM_MUTANTS = {
    # Triggers: when, and how hard.
    "severity has no ceiling": Mutant(
        "stableopt.triggers.conditions",
        "else min(1.0, math.log(value / self.limit))",
        "else math.log(value / self.limit)",
        (f"{TRIGGERS}::TestSeverity::test_above",),
    ),
    "a trigger flickers at its limit": Mutant(
        "stableopt.triggers.conditions",
        "bound = self.release if str(self) in held else self.limit",
        "bound = self.limit",
        (f"{TRIGGERS}::TestHysteresis::test_it_does_not_flicker_at_the_limit",),
    ),
    "limits that look alike hold together": Mutant(
        "stableopt.triggers.conditions",
        "return short if float(short) == number else repr(number)",
        "return short",
        (f"{TRIGGERS}::TestText",),
    ),
    "or is the smallest": Mutant(
        "stableopt.triggers.conditions",
        "return max(self._severities(evidence, held), default=None)",
        "return min(self._severities(evidence, held), default=None)",
        (f"{TRIGGERS}::TestAlgebra::test_or_is_the_largest_and_and_the_smallest",),
    ),
    "and is content with one": Mutant(
        "stableopt.triggers.conditions",
        "return min(found) if len(found) == len(self.parts) else None",
        "return min(found) if found else None",
        (f"{TRIGGERS}::TestAlgebra",),
    ),
    "a trigger as text loses its parentheses": Mutant(
        "stableopt.triggers.conditions",
        'return self._text(" & ", AnyOf)',
        'return self._text(" & ", int)',
        (f"{TRIGGERS}::TestText::test_it_says_everything",),
    ),
    "any token is a metric": Mutant(
        "stableopt.triggers.text",
        "if not _NAME.fullmatch(metric):",
        "if False:",
        (f"{TRIGGERS}::TestText::test_what_is_no_trigger_is_refused",),
    ),
    "the first key about a weight wins": Mutant(
        "stableopt.transforms.evidence",
        "signal[max(keys, key=lambda key: len(str(key)))] if keys",
        "signal[keys[0]] if keys",
        (f"{TRIGGERS}::TestSignals::test_the_more_specific_key_wins",),
    ),
    # Binding: what is found, and what is refused.
    "a pattern may match nothing": Mutant(
        "stableopt.transforms.binding",
        "if not entry.worked and not isinstance(entry.transform, WhereFound):",
        "if False:",
        (f"{BINDING}::TestSelection::test_what_matches_nothing_is_an_error",),
    ),
    "two may move the same": Mutant(
        "stableopt.transforms.binding",
        "if owner is not bound.entry:",
        "if False:",
        (f"{BINDING}::TestConflicts",),
    ),
    "what no sensor visits is acted on": Mutant(
        "stableopt.transforms.binding",
        "        if missed:",
        "        if False:",
        (f"{BINDING}::TestMetrics::test_parameters_that_no_sensor_visits",),
    ),
    "what is remembered goes by an address": Mutant(
        "stableopt.transforms.binding",
        'f"{self.position}.{self.kind}{group}"',
        'f"{self.position}.{object.__repr__(self.transform)}{group}"',
        (f"{BINDING}::TestCustom::test_what_it_remembers_is_found_again",),
    ),
    "a wrapper hides the type of a transform": Mutant(
        "stableopt.transforms.binding",
        'type(getattr(self.transform, "transform", self.transform)).__name__',
        "type(self.transform).__name__",
        (f"{BINDING}::TestCustom::test_its_key_survives_other_options_and_wrappers",),
    ),
    "a group counts with the others": Mutant(
        "stableopt.transforms.chain",
        "sum(entry.group == group for entry in self._entries)",
        "len(self._entries)",
        (f"{BINDING}::TestCustom::test_a_group_counts_its_own",),
    ),
    "what is orphaned is not reported": Mutant(
        "stableopt.transforms.chain",
        "if unused or new:",
        "if False:",
        (f"{BINDING}::TestCustom::test_a_checkpoint_of_other_transforms_is_reported_once",),
    ),
    "a rollback past a new group is reported": Mutant(
        "stableopt.transforms.chain",
        "if memories and frozenset(memories) not in self._saved:",
        "if True:",
        (f"{BINDING}::TestCustom::test_a_rollback_restores_its_memory_and_reports_no_later_group",),
    ),
    "a broken checkpoint is loaded halfway": Mutant(
        "stableopt.transforms.chain",
        "        peaks, memories = parse_state(state)\n",
        '        self._peaks = {int(g): lr for g, lr in state.get("peaks", {}).items()}\n'
        "        peaks, memories = parse_state(state)\n",
        (f"{BINDING}::TestCustom::test_a_broken_state_changes_nothing",),
    ),
    "a checkpoint shares tensors with what it saved": Mutant(
        "stableopt.transforms.chain",
        "return value.detach().clone()",
        "return value",
        (f"{BINDING}::TestCustom::test_what_it_remembers_is_plain_data_and_tensors",),
    ),
    "a new group starts the counts anew": Mutant(
        "stableopt.transforms.chain",
        "item.entry.worked = True",
        "item.entry.steps = 0",
        (f"{BINDING}::TestGroups::test_counts_and_episodes_go_on_when_a_group_is_added",),
    ),
    "lazy parameters are forgotten": Mutant(
        "stableopt.transforms.chain",
        "return lazy < self._site.lazy",
        "return lazy < 0",
        (f"{BINDING}::TestLazy",),
    ),
    # Promise 5, and acting once per reading.
    "news never ends": Mutant(
        "stableopt.transforms.chain",
        "self._fresh, self._signals, self._taken = {}, {}, True",
        "self._signals, self._taken = {}, True",
        (f"{ACTS}::TestSkipped::test_readings_are_news_until_a_step_is_taken_or_it_goes_back",),
    ),
    "a skipped step swallows the news": Mutant(
        "stableopt.transforms.chain",
        "if self.reads or self._site.lazy:",
        "self._fresh = {}\n        if self.reads or self._site.lazy:",
        (f"{ACTS}::TestSkipped::test_readings_are_news_until_a_step_is_taken_or_it_goes_back",),
    ),
    "a rollback keeps the news": Mutant(
        "stableopt.transforms.chain",
        "memories.get(entry.key, {})\n            self._fresh = {}",
        "memories.get(entry.key, {})",
        (f"{ACTS}::TestSkipped::test_readings_are_news_until_a_step_is_taken_or_it_goes_back",),
    ),
    "an old reading acts again": Mutant(
        "stableopt.transforms.watch",
        "return severity if self._has_new_reading(target) else None",
        "return severity",
        (f"{DECAY}::TestWhen::test_of_a_sensor",),
    ),
    "every act is news": Mutant(
        "stableopt.transforms.chain",
        "again=seen and entry.transform.routine",
        "again=False",
        (f"{ACTS}::TestLedger::test_a_routine_transform_is_told_once_in_an_episode",),
    ),
    "what was undone is told": Mutant(
        "stableopt.transforms.chain",
        "(self._changes if self._taken else {})",
        "self._changes",
        (f"{ACTS}::TestSkipped::test_what_a_line_search_did_before_it_was_undone_is_not_told",),
    ),
    "clipping does not see the decay": Mutant(
        "stableopt.transforms.view",
        "if any(target.place in self._changed for target in self._targets):",
        "if False:",
        (f"{DECAY}::TestCoupled::test_what_clips_after_it_clips_what_it_added",),
    ),
    "the backoff does not reach the cap": Mutant(
        "stableopt.transforms.view",
        "float(lr) * self._lr_scale",
        "float(lr)",
        (f"{UPDATE_CAP}::TestLearningRate::test_the_backoff_of_the_guard_shrinks_the_cap",),
    ),
    "the cap is linear in the learning rate": Mutant(
        "stableopt.transforms.update_cap",
        "math.sqrt(min(1.0, share))",
        "min(1.0, share)",
        (f"{UPDATE_CAP}::TestLearningRate::test_the_schedule_brings_the_steps_down_by_the_root",),
    ),
    "the cap hides what is not finite": Mutant(
        "stableopt.transforms.update_cap",
        "            if math.isfinite(length):",
        "            if True:",
        (
            f"{UPDATE_CAP}::TestTensors::test_a_step_that_is_not_finite_is_left_for_the_guard_to_see",
        ),
    ),
    "steps whose norm overflows are not capped": Mutant(
        "stableopt.transforms.update_cap",
        "length = safe_norm([weight - old])",
        "pass",
        (f"{UPDATE_CAP}::TestTensors::test_finite_steps_whose_norm_overflows",),
    ),
    "what begins at zero stays there": Mutant(
        "stableopt.transforms.update_cap",
        "max(LEAST * unit, min(norm, MOST * unit))",
        "min(norm, MOST * unit)",
        (f"{UPDATE_CAP}::TestTensors",),
    ),
    "what is large by its initialisation moves fast": Mutant(
        "stableopt.transforms.update_cap",
        "max(LEAST * unit, min(norm, MOST * unit))",
        "max(LEAST * unit, norm)",
        (f"{UPDATE_CAP}::TestTensors",),
    ),
    "the weights before a step are those of the first": Mutant(
        "stableopt.transforms.previous",
        "elif live:",
        "elif False:",
        (f"{UPDATE_CAP}::TestLearningRate",),
    ),
    "short rows are scaled up": Mutant(
        "stableopt.transforms.max_norm",
        "(norms > limit * (1 + ROOM))",
        "(norms > 0)",
        (f"{MAX_NORM}::TestTensors::test_rows_columns_and_kernels",),
    ),
    "rounding leaves a norm above its bound": Mutant(
        "stableopt.transforms.max_norm",
        "aim(limit, weight) / norms",
        "limit / norms",
        (f"{MAX_NORM}::TestLaws",),
    ),
    "norms that overflow are not bounded": Mutant(
        "stableopt.transforms.max_norm",
        "if bool(torch.isfinite(norms).all()):",
        "if True:",
        (f"{MAX_NORM}::TestTensors::test_finite_weights_whose_norm_overflows",),
    ),
    "small decays are lost to rounding": Mutant(
        "stableopt.transforms.adaptive_weight_decay",
        "if share >= smallest_share(weight):",
        "if True:",
        (f"{DECAY}::TestDecoupled::test_shares_below_rounding_are_not_lost",),
    ),
    "a decay grows weights": Mutant(
        "stableopt.transforms.adaptive_weight_decay",
        "weight.mul_(math.exp(-share))",
        "weight.mul_(math.exp(share))",
        (f"{DECAY}::TestWhen::test_the_weight_falls_until_the_trigger_lets_go",),
    ),
    "half the penalty": Mutant(
        "stableopt.transforms.adaptive_weight_decay",
        "alpha=2 * rate",
        "alpha=rate",
        (f"{DECAY}::TestCoupled::test_the_gradient_becomes_that_of_the_penalty",),
    ),
    "a decay promises what it cannot do": Mutant(
        "stableopt.transforms.adaptive_weight_decay",
        "if not self.published:",
        "if False:",
        (f"{DECAY}::test_a_trigger_that_a_decay_does_not_move_is_refused_with_what_does",),
    ),
    "frozen weights are changed": Mutant(
        "stableopt.transforms.site",
        "part.targets = self._trained(chosen)",
        "part.targets = chosen",
        (f"{IN_USE}::TestFrozen",),
    ),
    "the subspace is looked for where its norm is": Mutant(
        "stableopt.transforms.spectral_cap",
        'unit_noise(matrix, torch.Generator("cpu").manual_seed(_SEED))',
        "unit_noise(matrix, None)",
        (f"{IN_USE}::test_a_cap_sees_what_it_left_outside_of_its_subspace",),
    ),
    "steps are capped after weights are bounded": Mutant(
        "stableopt.transforms.chain",
        "            self._act(view, Phase.UPDATE)\n            self._act(view, Phase.WEIGHT)\n",
        "            self._act(view, Phase.WEIGHT)\n            self._act(view, Phase.UPDATE)\n",
        (f"{IN_USE}::test_bounds_hold_after_the_cap_of_the_step_whatever_the_order",),
    ),
    "a corrected weight waits for its turn": Mutant(
        "stableopt.health.spectra.monitor",
        "self.corrected.add(name)",
        "pass",
        (f"{CORRECTED}::test_it_is_visited_out_of_turn",),
    ),
    "corrections become the course of a weight": Mutant(
        "stableopt.health.spectra.monitor",
        "        self._drift.forget(name)\n        self.corrected",
        "        self.corrected",
        (f"{CORRECTED}::test_its_course_begins_anew",),
    ),
    "who was corrected is not in a checkpoint": Mutant(
        "stableopt.health.spectra.monitor",
        '"corrected": sorted(self.corrected)',
        '"corrected": []',
        (f"{CORRECTED}::test_that_goes_into_checkpoints",),
    ),
    # The mathematics, and what is made of it.
    "what is below the limit is capped, too": Mutant(
        "stableopt.functional.caps",
        "share = left * above.clamp(min=0)",
        "share = left * above",
        (f"{CAPS}::TestFastCap::test_no_singular_value_rises_and_it_goes_no_farther_than_needed",),
    ),
    "a Gram matrix sees every singular value": Mutant(
        "stableopt.functional.caps",
        "_STEEP = 1e5",
        "_STEEP = 1e30",
        (f"{CAPS}::TestExactCap::test_a_norm_far_above_the_limit_hides_nothing_above_it",),
    ),
    "the soft cap takes too much": Mutant(
        "stableopt.functional.caps",
        "return matrix - cube * (sigma * strength)",
        "return matrix - cube * (sigma * strength * 1.5)",
        (f"{CAPS}::TestSoftCap::test_it_is_one_cubic_step",),
    ),
    "a cap acts without a reading": Mutant(
        "stableopt.transforms.spectral_cap",
        "if watch.fresh(t) is not None]",
        "if watch.lasting(t) is not None]",
        (f"{CAP}::TestWhenItActs::test_once_per_reading_and_never_without_one",),
    ),
    "the fast cap is trusted": Mutant(
        "stableopt.transforms.spectral_cap",
        "if float(spectral_norm(capped).sigma) <= limit * (1 + ROOM):",
        "if True:",
        (f"{CAP}::TestCap::test_more_large_values_than_the_subspace_holds",),
    ),
    "the soft cap aims where rounding undoes it": Mutant(
        "stableopt.transforms.spectral_cap",
        "min(1 / 3, 1 - bound / sigma)",
        "min(1 / 3, 1 - limit / sigma)",
        (f"{CAP}::TestCap::test_the_soft_cap_takes_a_third_per_reading_at_most",),
    ),
    "a projection aims where rounding undoes it": Mutant(
        "stableopt.transforms.spectral_normalization",
        "exact_cap_and_norm(matrix, aim(bound, weight), only_above=bound)",
        "exact_cap_and_norm(matrix, bound)",
        (f"{NORMALIZATION}::test_the_bound_holds_after_every_step",),
    ),
    "the scale of an adapter is forgotten": Mutant(
        "stableopt.transforms.lora_norm_clamp",
        "scale=pair.scale, ord=kind",
        "scale=1.0, ord=kind",
        (f"{LORA}::TestNames::test_those_of_peft_with_their_scale",),
    ),
    "A is scaled instead of B": Mutant(
        "stableopt.transforms.lora_norm_clamp",
        "largest[pair.b] = max(norm, largest.get(pair.b, 0.0))",
        "largest[pair.a] = max(norm, largest.get(pair.a, 0.0))",
        (f"{LORA}::test_the_norm_is_at_most_the_limit_and_a_stays",),
    ),
    "only what is trained has a name": Mutant(
        "stableopt.transforms.site",
        "*map(without_wrappers, every)",
        "",
        (f"{LORA}::TestFrozen::test_a_may_be_frozen",),
    ),
    "biases of queries and keys stay behind": Mutant(
        "stableopt.transforms.qk_clip",
        "        if tensor is not None:\n            # Factors",
        "        if tensor is not None and tensor.dim() > 2:\n            # Factors",
        (f"{QK}::TestWeightsAlone::test_the_bound_comes_under_the_limit_at_once",),
    ),
    "every head takes the worst factor": Mutant(
        "stableopt.transforms.qk_clip",
        "logits = torch.where(beyond, logits, torch.zeros_like(logits))",
        "logits = torch.where(beyond.any(), logits.max(), logits).expand_as(logits)",
        (f"{QK}::TestWeightsAlone::test_other_heads_stay_bit_for_bit",),
    ),
    "shared keys are scaled": Mutant(
        "stableopt.transforms.qk_clip",
        "q, k = qk_scales(logits, goal, kv_heads=layout.key_heads)",
        "q, k = qk_scales(logits, goal)\n        k = k[: layout.key_heads]",
        (f"{QK}::TestWeightsAlone::test_where_heads_share_keys_the_queries_take_all_of_it",),
    ),
    "a tensor for all blocks is one by heads": Mutant(
        "stableopt.transforms.qk_clip",
        "by_heads(measured, layout.heads) if alone else None",
        "by_heads(measured, layout.heads)",
        (f"{QK}::TestSignals::test_a_tensor_for_several_blocks_is_not_one_by_heads",),
    ),
    "a head that is not finite is scaled": Mutant(
        "stableopt.transforms.qk_clip",
        "beyond = beyond & _finite(layout, tensors).to(beyond.device)",
        "pass",
        (f"{QK}::TestWeightsAlone::test_a_head_that_is_not_finite_is_left_alone",),
    ),
    "what is frozen is scaled": Mutant(
        "stableopt.transforms.qk_clip",
        "trained = bool(scaled) and {*scaled, layout.key.weight} <= site.trained.keys()",
        "trained = layout.key.weight in site.trained",
        (f"{QK}::TestFrozen",),
    ),
    "the gain of Gemma is scaled without its one": Mutant(
        "stableopt.transforms.qk_clip",
        "gain.copy_((wide + norm.gain_offset) * factor - norm.gain_offset)",
        "gain.copy_(wide * factor)",
        (f"{QK}::TestQKNorm::test_its_gains_are_scaled_and_nothing_else",),
    ),
    "a measured logit has the slack of a bound": Mutant(
        "stableopt.transforms.qk_clip",
        "(self.slack if measured is None else 1.0)",
        "self.slack",
        (f"{QK}::TestSignals::test_each_head_by_what_was_measured_of_it",),
    ),
    "the bias of a class does not count": Mutant(
        "stableopt.transforms.logit_bound",
        "offset = offset + tensors[head.bias].detach().to(wide)",
        "pass",
        (f"{LOGIT}::TestWeightsAlone::test_no_logit_of_any_input_is_above_the_limit",),
    ),
    "the largest logit is the most positive": Mutant(
        "stableopt.transforms.logit_bound",
        "for largest in (True, False)]",
        "for largest in (True,)]",
        (f"{LOGIT}::TestSignals::test_what_was_measured_scales_the_whole_layer",),
    ),
    "the whole output layer is scaled": Mutant(
        "stableopt.transforms.logit_bound",
        "share = torch.where(beyond, _aim(limit, parameters) / bounds, torch.ones_like(bounds))",
        "share = (_aim(limit, parameters) / bounds).clamp(max=1).amin().expand_as(bounds)",
        (f"{LOGIT}::TestWeightsAlone::test_rows_under_the_limit_stay_bit_for_bit",),
    ),
    "a projection is never due": Mutant(
        "stableopt.transforms.spectral_normalization",
        "if view.step % self.every:",
        "if (view.step + 1) % self.every:",
        (f"{NORMALIZATION}::test_it_projects_every_few_steps",),
    ),
    "a flat spectrum is shrunk for ever": Mutant(
        "stableopt.transforms.spectral_cap",
        "if bool(after > before * (2 / 3) * (1 + ROOM)) else None",
        "if True else None",
        (f"{CAP}::TestRank::test_a_rank_that_is_not_there_is_not_raised_by_shrinking_to_nothing",),
    ),
    "a frozen bias is left behind": Mutant(
        "stableopt.transforms.logit_bound",
        " or not set(wanted) <= set(site.trained):",
        ":",
        (f"{LOGIT}::TestErrors::test_a_head_of_which_a_part_is_frozen_is_not_found",),
    ),
}
