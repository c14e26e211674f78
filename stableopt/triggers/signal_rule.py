"""Rules about signals of ``observe()``: when one is out of bounds, and what is done then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, require_int
from stableopt.triggers.conditions import Drifted, Trigger, check_trigger
from stableopt.triggers.signal_statistics import OF_VALUES
from stableopt.types import Response

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stableopt.triggers.conditions import Leaf


@dataclass(frozen=True)
class SignalRule:
    """What is done when signals of ``observe()`` are out of bounds.

    The condition is a trigger on signals, by name or as ``name.statistic``: ``mean``, ``max``,
    ``min``, ``variance`` and ``magnitude`` (the largest absolute value) of a tensor, or of all
    tensors of a dict; ``drop``, by how much the moving average of a signal is below its highest
    value so far, and ``rise``, by how much it is above its lowest. Without a statistic, ``above``
    compares the largest value and ``below`` the smallest. ``loss`` is a signal, too.

    It is evaluated whenever one of its signals is observed, and holds until it is evaluated again.
    The response happens once, when it begins to hold; ``"skip"`` for every batch that meets it, at
    most ``Guard.max_skips`` in a row. While it holds the run is not
    :attr:`~stableopt.StableOptimizer.is_stable`, and no snapshot is verified unless it only warns.

    Args:
        when: A trigger or its text, e.g. ``"attention_max < 0.1 | attention_entropy > 5"``.
        response: ``"warn"``, ``"back_off"``, ``"skip"``, ``"roll_back"`` or ``"stop"``.
        patience: Observations in a row that must meet the condition, at least 1.

    Raises:
        ConfigError: A value is out of range, or the trigger is on the course of a weight.

    Example:
        >>> rule = SignalRule("accuracy.drop > 0.05", response="back_off")
        >>> str(rule.when)
        'accuracy.drop > 0.05'
    """

    when: Trigger | str
    response: str = "warn"
    patience: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "when", check_trigger("when", self.when))
        allowed = [item.value for item in Response if item is not Response.TAME]
        if self.response not in allowed:
            raise ConfigError(f"response={self.response!r} must be one of {', '.join(allowed)}")
        object.__setattr__(self, "response", Response(self.response).value)
        require_int("patience", self.patience, 1, "observations in a row that meet the condition")
        for leaf in self.trigger.leaves():
            if leaf.metric in (f"loss.{statistic}" for statistic in OF_VALUES):
                raise ConfigError(
                    f"when={self.when} cannot be a rule: the losses of a step are averaged; use "
                    "loss, loss.rise or loss.drop, or observe single losses under another name"
                )
            if isinstance(leaf, Drifted):
                raise ConfigError(
                    f"when={self.when} cannot be a rule: drift() is for metrics of weights, not "
                    "for signals; use name.drop or name.rise"
                )

    @property
    def trigger(self) -> Trigger:
        """The condition."""
        return check_trigger("when", self.when)

    def leaves(self) -> Iterator[Leaf]:
        """Return the single conditions."""
        return self.trigger.leaves()


def check_rules(given: object) -> tuple[SignalRule, ...]:
    """Return ``Guard.rules`` as a tuple.

    Raises:
        ConfigError: It is not a list of rules, or two of them are the same.
    """
    rules: tuple[Any, ...] = tuple(given) if isinstance(given, Iterable) else (None,)
    if isinstance(given, str) or not all(isinstance(rule, SignalRule) for rule in rules):
        raise ConfigError(
            f"rules={given!r} must be a list of SignalRule, e.g. "
            "[SignalRule('attention_max < 0.1', response='warn')]"
        )
    for i, rule in enumerate(rules):
        if rule in rules[:i]:
            raise ConfigError(f"rules has {rule!r} twice: give it once")
    return rules
