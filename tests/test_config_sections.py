"""Sections of the ARC solver's configuration are read as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stableopt import ConfigError, Guard, SignalRule, StableOptimizer


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)


def read(config, model=None):
    model = nn.Linear(2, 2) if model is None else model
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    return StableOptimizer.from_config(inner, config, model=model)


def rules(opt):
    return [str(rule.when) for rule in opt._loop.guard.rules]


def test_the_document_as_it_is_but_for_the_loss():
    config = {
        "hyper_lora": {"lora_max_norm": 3.0},
        "recursive_solver": {"logit_clamp_threshold": 50.0},
        "meta_escalation": {
            "accuracy_drop_threshold": 0.05,
            "attention_collapse_threshold": 0.1,
        },
    }
    opt = read(config, Adapted())
    assert sorted(rules(opt)) == [
        "accuracy.drop > 0.05",
        "attention_max < 0.1 | attention_entropy > 5",
        "solver_logits.magnitude > 50",
    ]
    (clamp,) = opt.summary()["transforms"]
    assert clamp["transform"].startswith("LoRANormClamp(limit=3.0")


def test_beside_a_guard_a_preset_and_transforms():
    config = {
        "preset": "gradience",
        "guard": {"rules": ["a > 1", {"when": "b < 2", "response": "skip", "patience": 3}]},
        "meta_escalation": {"accuracy_drop_threshold": 0.1},
        "transforms": [{"ClipGradNorm": {"max_norm": 1.0}}],
    }
    opt = read(config)
    options = opt._loop.guard
    assert options.rules == (
        SignalRule("a > 1"),
        SignalRule("b < 2", response="skip", patience=3),
        SignalRule("accuracy.drop > 0.1"),
    )
    assert options.max_weight == 1e6
    assert len(opt.summary()["transforms"]) == 1


def test_a_guard_as_it_is():
    config = {"guard": Guard(every=7), "meta_escalation": {"accuracy_drop_threshold": 0.1}}
    options = read(config)._loop.guard
    assert (options.every, len(options.rules)) == (7, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss_weights": {"lora_norm_reg": 0.001}}, "belongs to the loss.*lora_norm_penalty"),
        ({"meta_escalation": {"acuracy_drop_threshold": 1}}, "did you mean"),
        ({"meta_escalation": {"accuracy_drop_threshold": "5%"}}, "must be a number above 0"),
        ({"meta_escalation": {"accuracy_drop_threshold": 0}}, "must be a number above 0"),
        ({"meta_escalation": 3}, "meta_escalation=3 must be a dict"),
        ({"meta_escalations": {}}, "did you mean 'meta_escalation'"),
        (
            {"guard": False, "meta_escalation": {"accuracy_drop_threshold": 0.1}},
            "guard=False leaves",
        ),
        ({"guard": {"rules": "a > 1"}}, "must be a list of SignalRule"),
        ({"guard": {"rules": [{"wen": "a > 1"}]}}, "did you mean 'when'"),
        ({"guard": {"rules": [{"response": "skip"}]}}, "lacks when"),
        ({"guard": {"responses": {"loss_spike": "roll_back"}}}, "must be one of"),
    ],
)
def test_what_cannot_be(config, message):
    with pytest.raises(ConfigError, match=message):
        read(config)
