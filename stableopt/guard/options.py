"""The options of the guard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from stableopt.errors import ConfigError, require_int, require_number
from stableopt.guard.responses import Pairs, check_responses, response_to
from stableopt.triggers.signal_rule import SignalRule, check_rules
from stableopt.types import Finding, Response, Scope

SCAN_PERIOD = 20
"""Steps in which weights and state are scanned once, unless snapshots are closer together."""

_LOOKS = {
    "loss_spike": "loss_spike",
    "gradient_spike": "gradient_spike",
    "jumped_weight": "weight_jump",
    "vanished_state": "moment_drop",
    "moment_bound": "moment_drop",
}
"""Causes, and the option without which nobody looks for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Options of the guard, which judges every step and knows the way back.

    Attributes:
        slots: Snapshots that are kept, at least 2; 0 for none, which leaves skipping.
        every: Steps between two snapshots, at least 1; stretched where ``slots`` could not
            keep them apart until they are trusted.
        confirm: Healthy steps after which a snapshot is trusted; ``"auto"`` for one more
            than a scan of all weights and state takes (21, or ``every`` if that is less).
        max_rollbacks: Rollbacks in one episode; the next failure stops the run.
        max_skips: Steps in a row that may be skipped. The next one that cannot be used rolls
            back, after which as many may be skipped again.
        cooldown: Healthy steps beyond the furthest failure that end an episode.
        budget: Rollbacks at hand at the start, and at most; one more per 1,000 new steps.
        lr_backoff: Factor on the learning rate from the second rollback of an episode on.
        lr_recovery: Steps over which the learning rate comes back after an episode; 0 for at
            once, ``None`` for never.
        loss_spike: Robust z-score above which a loss is a spike; ``None`` not to look. A step on
            a spike is tamed: its gradients are scaled down to what is usual.
        gradient_spike: The same for the logarithm of the global gradient norm.
        max_weight: Largest magnitude that a weight may have; ``None`` for the square root of
            the largest number of its dtype (1.8e19 in float32 and bfloat16; none in float16).
        weight_jump: How many times as large as some 20 steps ago the norm of a weight may be,
            if that growth is out of proportion, too (:mod:`stableopt.health.tensors.jumps`);
            ``None`` not to look, e.g. where weights are exchanged on purpose during training.
        moment_drop: How many times smaller than its decay allows the norm of a second moment may
            become (:mod:`stableopt.health.tensors.vanished`); ``None`` not to compare moments with
            their past, e.g. where they are pruned on purpose, as ReLoRA does.
        act_on_risk: Whether a risk level of the spectral sensors is answered when it rises:
            ``WARNING`` by a snapshot, ``DANGER`` by one and ``lr_backoff``, ``INSTABILITY`` by a
            rollback with ``lr_backoff``, within ``max_rollbacks``. Otherwise it is only told.
        responses: What is done about a cause, in place of the default: ``{"loss_spike": "warn"}``.
            The documentation lists every cause, and what may be done about it.
        rules: What signals of ``observe()`` have to be like, as
            :class:`~stableopt.SignalRule`.
        sync: When a step is judged: ``"exact"`` before it is taken, for which the host waits until
            the gradients are known; ``"lagged"`` at the next call, for which it never waits while
            all is well (see ``docs/how-to/compile.md`` for what that gives up).
        memory: Where snapshots lie: ``"device"``, ``"host"`` (pinned, for an accelerator) or
            ``"auto"``, the first of these where they fit.

    Cost:
        Memory: ``slots`` copies of parameters, optimizer state, buffers and what is tracked.
        Time: one copy and one scan of all that per ``every`` steps, and one scan of weights
        and state spread over at most 20 steps.

    Example:
        >>> Guard(every=200, max_skips=2).every
        200
        >>> Guard(max_skips=-1)
        Traceback (most recent call last):
            ...
        stableopt.errors.ConfigError: max_skips=-1 must be an int of at least 0: \
how many steps in a row may be skipped
    """

    slots: int = 3
    every: int = 100
    confirm: int | str = "auto"
    max_rollbacks: int = 3
    max_skips: int = 6
    cooldown: int = 50
    budget: int = 6
    lr_backoff: float = 0.5
    lr_recovery: int | None = 200
    loss_spike: float | None = 6.0
    gradient_spike: float | None = 6.0
    max_weight: float | None = None
    weight_jump: float | None = 8.0
    moment_drop: float | None = 2.0
    act_on_risk: bool = False
    responses: Mapping[str, str] | Pairs = ()
    rules: Sequence[SignalRule] = ()
    sync: str = "exact"
    memory: str = "auto"

    def __post_init__(self) -> None:
        if self.slots != 0 or isinstance(self.slots, bool):
            require_int("slots", self.slots, 2, "how many snapshots are kept; 0 for none")
        require_int("every", self.every, 1, "how many steps lie between two snapshots")
        if self.confirm != "auto":
            require_int("confirm", self.confirm, 1, "after how many steps one is trusted; or auto")
        require_int("max_rollbacks", self.max_rollbacks, 0, "how many an episode may have")
        require_int("max_skips", self.max_skips, 0, "how many steps in a row may be skipped")
        require_int("cooldown", self.cooldown, 0, "how many healthy steps end an episode")
        require_int("budget", self.budget, 0, "how many rollbacks are at hand at the start")
        require_number("lr_backoff", self.lr_backoff, 1.0, "the factor on the learning rate")
        if self.lr_recovery is not None:
            require_int("lr_recovery", self.lr_recovery, 0, "over how many steps lr comes back")
        for name in ("loss_spike", "gradient_spike", "max_weight"):
            if getattr(self, name) is not None:
                otherwise = "for the default" if name == "max_weight" else "not to look"
                require_number(name, getattr(self, name), math.inf, f"or None {otherwise}")
        for name in ("weight_jump", "moment_drop"):
            factor = getattr(self, name)
            if factor is not None:
                require_number(name, factor, math.inf, "or None not to look")
                if factor <= 1:
                    raise ConfigError(f"{name}={factor!r} must be above 1, or None not to look")
        if not isinstance(self.act_on_risk, bool):
            raise ConfigError(f"act_on_risk={self.act_on_risk!r} must be True or False")
        object.__setattr__(self, "responses", check_responses(self.responses))
        object.__setattr__(self, "rules", check_rules(self.rules))
        self._check_together()
        if self.sync not in ("exact", "lagged"):
            raise ConfigError(
                f"sync={self.sync!r} must be 'exact' or 'lagged': when a step is judged"
            )
        if self.memory not in ("auto", "device", "host"):
            raise ConfigError(
                f"memory={self.memory!r} must be 'auto', 'device' or 'host': where snapshots lie"
            )

    def _check_together(self) -> None:
        """Refuse answers that nothing would ever give."""
        responses = dict(self.responses)
        for kind, name in _LOOKS.items():
            if kind in responses and getattr(self, name) is None:
                raise ConfigError(
                    f"responses[{kind!r}]={responses[kind]!r} must not be asked for "
                    f"with {name}=None, which does not look for it: leave out one of them"
                )
        asked = [*responses.values(), *(rule.response for rule in self.rules)]
        if not self.slots and Response.ROLL_BACK.value in asked:
            raise ConfigError(
                "slots=0 must be at least 2 where a rule or a response asks for roll_back: there "
                "are no snapshots to go back to"
            )

    def as_config(self) -> dict[str, Any]:
        """Return the options as plain values, as ``from_config`` takes them."""
        rules = [
            {"when": str(rule.when), "response": rule.response, "patience": rule.patience}
            for rule in self.rules
        ]
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**known, "responses": dict(self.responses), "rules": rules}

    def response_to(self, finding: Finding) -> Response:
        """Return what is to be done about a finding."""
        given: Pairs = self.responses  # type: ignore[assignment]  # checked already
        return response_to(finding, given, act_on_risk=self.act_on_risk)

    @property
    def answers_risk(self) -> bool:
        """Whether a risk that rises is answered by more than a warning."""
        kinds = ("risk_warning", "risk_danger", "risk_instability")
        risks = (Finding(kind=kind, message="", scope=Scope.RISK) for kind in kinds)
        return any(self.response_to(risk) is not Response.WARN for risk in risks)

    @property
    def skips_losses(self) -> bool:
        """Whether a loss that is not finite is reason enough not to take a step."""
        symptom = Finding(kind="nonfinite_loss", message="", scope=Scope.NOTICE)
        return self.response_to(symptom) is not Response.WARN

    @property
    def scan_period(self) -> int:
        """Steps in which all weights and state are scanned once."""
        confirm = self.every if isinstance(self.confirm, str) else self.confirm
        return max(1, min(SCAN_PERIOD, confirm - 1))

    @property
    def confirm_steps(self) -> int:
        """Healthy steps after which a snapshot is trusted."""
        return self.scan_period + 1 if isinstance(self.confirm, str) else self.confirm
