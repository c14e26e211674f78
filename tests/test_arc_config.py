"""The example for an ARC solver reads its sections, and ``from_config`` names the example."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from stableopt import ConfigError, Guard, SignalRule, StableOptimizer

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "arc_config.py"))
stable_options = EXAMPLE["stable_options"]


def wrap(model, **options):
    return StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model=model, **options)


def test_the_document_as_it_is_but_for_the_loss():
    options = stable_options(EXAMPLE["CONFIG"])
    assert sorted(str(rule.when) for rule in options["guard"].rules) == [
        "accuracy.drop > 0.05",
        "attention_max < 0.1 | attention_entropy > 5",
        "solver_logits.magnitude > 50",
    ]
    (clamp,) = wrap(EXAMPLE["Adapted"](), **options).summary()["transforms"]
    assert clamp["transform"].startswith("LoRANormClamp(limit=3.0")


def test_the_options_and_rules_of_a_guard_stay():
    guard = Guard(every=7, rules=[SignalRule("a > 1")])
    options = stable_options({"meta_escalation": {"accuracy_drop_threshold": 0.1}}, guard)
    assert options["guard"].every == 7
    assert options["guard"].rules == (SignalRule("a > 1"), SignalRule("accuracy.drop > 0.1"))
    assert wrap(nn.Linear(2, 2), **options).summary()["transforms"] == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss_weights": {"lora_norm_reg": 0.001}}, "belongs to the loss.*lora_norm_penalty"),
        ({"meta_escalation": {"acuracy_drop_threshold": 1}}, "is not known: use one of"),
        ({"meta_escalation": {"accuracy_drop_threshold": "5%"}}, "must be a number above 0"),
        ({"meta_escalation": {"accuracy_drop_threshold": 0}}, "must be a number above 0"),
        ({"meta_escalation": 3}, "meta_escalation=3 must be a dict"),
        ({"meta_escalations": {"accuracy_drop_threshold": 1}}, "is not known: use one of"),
    ],
)
def test_what_cannot_be(config, message):
    with pytest.raises(ConfigError, match=message):
        stable_options(config)


@pytest.mark.parametrize("section", ["hyper_lora", "recursive_solver", "meta_escalation"])
def test_from_config_names_the_example(section):
    adamw = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    config = {section: EXAMPLE["CONFIG"][section]}
    with pytest.raises(ConfigError, match=rf"^{section}=.* read it with examples/arc_config\.py"):
        StableOptimizer.from_config(adamw, config)
