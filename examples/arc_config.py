"""Read the stability sections in the configuration of a recursive ARC solver.

What they ask of weights becomes a transform, what they ask of signals a rule of the guard.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from stableopt import ConfigError, Guard, LoRANormClamp, SignalRule, StableOptimizer

CONFIG = {
    "hyper_lora": {"lora_max_norm": 3.0},
    "recursive_solver": {"logit_clamp_threshold": 50.0},
    "meta_escalation": {"accuracy_drop_threshold": 0.05, "attention_collapse_threshold": 0.1},
}
"""The sections of the document, as YAML gives them."""

ENTROPY = 5.0
"""Attention entropy, in nats, above which attention has collapsed to uniform."""

RULES = {
    "meta_escalation.accuracy_drop_threshold": "accuracy.drop > {}",
    "meta_escalation.attention_collapse_threshold": (
        f"attention_max < {{}} | attention_entropy > {ENTROPY:g}"
    ),
    "recursive_solver.logit_clamp_threshold": "solver_logits.magnitude > {}",
}


def stable_options(config: dict[str, Any], guard: Guard | None = None) -> dict[str, Any]:
    """Return keyword arguments of ``StableOptimizer`` for the sections of a configuration.

    Args:
        config: The sections, each a dict.
        guard: Its rules and options are kept; the default one if not given.

    Raises:
        ConfigError: An option is unknown, out of range, or belongs to the loss.
    """
    rules, clamps = [], []
    for section, options in config.items():
        if not isinstance(options, dict):
            raise ConfigError(f"{section}={options!r} must be a dict of its options")
        for key, value in options.items():
            name = f"{section}.{key}"
            if section == "loss_weights":
                raise ConfigError(
                    f"{name}={value!r} belongs to the loss, which no optimizer sees: add "
                    "stableopt.functional.lora_norm_penalty(...) times that weight there"
                )
            if name not in RULES and name != "hyper_lora.lora_max_norm":
                raise ConfigError(
                    f"{name}={value!r} is not known: use one of {', '.join(RULES)}, "
                    "hyper_lora.lora_max_norm"
                )
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConfigError(f"{name}={value!r} must be a number above 0")
            if name in RULES:
                rules.append(SignalRule(RULES[name].format(value)))
            else:
                clamps.append(LoRANormClamp(value))
    known = Guard() if guard is None else guard
    return {"guard": replace(known, rules=(*known.rules, *rules)), "transforms": clamps}


class Adapted(torch.nn.Module):
    """A layer with an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = torch.nn.Linear(4, 2, bias=False)
        self.lora_B = torch.nn.Linear(2, 4, bias=False)


def main() -> None:
    """Wrap an optimizer with the options of the document."""
    model = Adapted()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
    opt = StableOptimizer(adamw, model=model, **stable_options(CONFIG))
    summary = opt.summary()
    for rule in summary["guard"]["rules"]:
        print("rule      ", rule["when"])
    for transform in summary["transforms"]:
        print("transform ", transform["transform"])


if __name__ == "__main__":
    main()
