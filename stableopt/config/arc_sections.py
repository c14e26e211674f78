"""Sections that the training configuration of a recursive ARC solver has, as options of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, unknown_name
from stableopt.guard import SignalRule
from stableopt.transforms import LoRANormClamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENTROPY = 5.0
"""Attention entropy, in nats, above which attention has collapsed to uniform."""

_READERS: dict[str, dict[str, Callable[[Any], SignalRule | LoRANormClamp]]] = {
    "meta_escalation": {
        "accuracy_drop_threshold": lambda value: SignalRule(f"accuracy.drop > {value}"),
        "attention_collapse_threshold": lambda value: SignalRule(
            f"attention_max < {value} | attention_entropy > {ENTROPY:g}"
        ),
    },
    "hyper_lora": {"lora_max_norm": lambda value: LoRANormClamp(value)},
    "recursive_solver": {
        "logit_clamp_threshold": lambda value: SignalRule(f"solver_logits.magnitude > {value}"),
    },
}
_IN_THE_LOSS = "loss_weights"

SECTIONS = (*_READERS, _IN_THE_LOSS)
"""Names that a configuration may have beside our own."""


def read_sections(
    sections: Mapping[str, Any],
) -> tuple[list[SignalRule], list[LoRANormClamp]]:
    """Return the rules and the transforms that the sections ask for.

    Args:
        sections: Some of ``SECTIONS``, each a dict.

    Raises:
        ConfigError: A key is not known, a value out of range, or it is about the loss.
    """
    rules: list[SignalRule] = []
    clamps: list[LoRANormClamp] = []
    for section, options in sections.items():
        if not hasattr(options, "items"):
            raise ConfigError(f"{section}={options!r} must be a dict of its options")
        for key, value in options.items():
            made = _read(section, key, value)
            if isinstance(made, SignalRule):
                rules.append(made)
            else:
                clamps.append(made)
    return rules, clamps


def _read(section: str, key: str, value: Any) -> SignalRule | LoRANormClamp:
    if section == _IN_THE_LOSS:
        raise ConfigError(
            f"{section}.{key}={value!r} belongs to the loss, which no optimizer sees: add "
            "stableopt.functional.lora_norm_penalty(...) times that weight there"
        )
    if key not in _READERS[section]:
        raise unknown_name(f"{section} option", key, _READERS[section])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{section}.{key}={value!r} must be a number above 0")
    return _READERS[section][key](value)
