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
"""Steps for one scan of all weights and state, unless snapshots are closer together."""

_LOOKS = {
    "loss_spike": "loss_spike",
    "gradient_spike": "gradient_spike",
    "jumped_weight": "weight_jump",
    "vanished_state": "moment_drop",
    "moment_bound": "moment_drop",
}
"""Causes, and the option that turns the search for them off when it is ``None``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Options of the guard, which judges every step and restores snapshots.

    Attributes:
        slots: Snapshots that are kept, at least 2; 0 for none: steps can then only be skipped.
        every: Steps between two snapshots, at least 1; more where ``slots`` are too few to keep
            each of them until it is trusted.
        confirm: Healthy steps after which a snapshot is trusted; ``"auto"`` for one more
            than a scan of all weights and state takes (21, or ``every`` if that is less).
        max_rollbacks: Rollbacks in one episode; the next failure stops the run.
        max_skips: Steps in a row that may be skipped. The next batch that cannot be used causes a
            rollback, after which as many may be skipped again.
        cooldown: Healthy steps beyond the furthest failure that end an episode.
        budget: Rollbacks available at the start, and at most; one more per 1,000 new steps.
        lr_backoff: Factor on the learning rate from the second rollback of an episode on.
        lr_recovery: Steps over which the learning rate is raised again after an episode; 0 for
            at once, ``None`` for never.
        loss_spike: Robust z-score above which a loss is a spike; ``None`` to ignore spikes. A step
            on a spike is tamed: its gradients are scaled down to their usual norm.
        gradient_spike: The same for the logarithm of the global gradient norm.
        max_weight: Largest magnitude that a weight may have; ``None`` for the square root of
            the largest number of its dtype (1.8e19 in float32 and bfloat16; none in float16).
        weight_jump: How many times as large as some 20 steps ago the norm of a weight may be,
            if that growth is unusual, too (:mod:`stableopt.health.tensors.jumps`); ``None`` for no
            limit, e.g. where weights are exchanged on purpose during training.
        moment_drop: How many times smaller than its decay allows the norm of a second moment may
            become (:mod:`stableopt.health.tensors.vanished`); ``None`` for no check of moments
            against their past, e.g. where they are pruned on purpose, as ReLoRA does.
        act_on_risk: Whether there is a response when the risk level of the spectral sensors rises:
            a snapshot at ``WARNING``, a snapshot and ``lr_backoff`` at ``DANGER``, a rollback with
            ``lr_backoff`` at ``INSTABILITY``, within ``max_rollbacks``. By default it is logged.
        responses: The response to a cause, in place of the default: ``{"loss_spike": "warn"}``.
            The documentation lists every cause and its possible responses.
        rules: Limits on signals of ``observe()``, as :class:`~stableopt.SignalRule`.
        sync: When a step is judged: ``"exact"`` before it is taken, for which the host waits until
            the gradients are known; ``"lagged"`` at the next call, without such a wait as long as
            nothing is wrong (see ``docs/how-to/compile.md`` for what that gives up).
        memory: Where snapshots are stored: ``"device"``, ``"host"`` (pinned, for an accelerator) or
            ``"auto"``, the first of these that has room for them.

    Cost:
        Memory: ``slots`` copies of parameters, optimizer state, buffers and tracked objects.
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
            require_int("slots", self.slots, 2, "how many snapshots are kept, or 0 for none")
        require_int("every", self.every, 1, "how many steps lie between two snapshots")
        if self.confirm != "auto":
            require_int(
                "confirm", self.confirm, 1, "healthy steps until a snapshot is trusted, or 'auto'"
            )
        require_int(
            "max_rollbacks",
            self.max_rollbacks,
            0,
            "rollbacks in one episode",
        )
        require_int("max_skips", self.max_skips, 0, "how many steps in a row may be skipped")
        require_int("cooldown", self.cooldown, 0, "how many healthy steps end an episode")
        require_int("budget", self.budget, 0, "how many rollbacks are available at the start")
        require_number("lr_backoff", self.lr_backoff, 1.0, "the factor on the learning rate")
        if self.lr_recovery is not None:
            require_int("lr_recovery", self.lr_recovery, 0, "steps until the lr is restored")
        for name in ("loss_spike", "gradient_spike", "max_weight", "weight_jump", "moment_drop"):
            limit = getattr(self, name)
            if limit is not None:
                otherwise = "for the default" if name == "max_weight" else "for no limit"
                is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
                if name in ("weight_jump", "moment_drop") and not (is_number and limit > 1):
                    raise ConfigError(
                        f"{name}={limit!r} must be a number above 1, or None for no limit"
                    )
                require_number(name, limit, math.inf, f"or None {otherwise}")
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
                f"memory={self.memory!r} must be 'auto', 'device' or 'host': where snapshots are"
            )

    def _check_together(self) -> None:
        """Refuse responses that could never happen."""
        responses = dict(self.responses)
        for kind, name in _LOOKS.items():
            if kind in responses and getattr(self, name) is None:
                raise ConfigError(
                    f"responses[{kind!r}]={responses[kind]!r} must not be asked for "
                    f"with {name}=None, which turns that check off: leave out one of them"
                )
        asked = [*responses.values(), *(rule.response for rule in self.rules)]
        if not self.slots and Response.ROLL_BACK.value in asked:
            raise ConfigError(
                "slots=0 must be at least 2 where a rule or a response asks for roll_back: there "
                "are no snapshots to restore"
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
        """Return the response to a finding."""
        given: Pairs = self.responses  # type: ignore[assignment]  # checked already
        return response_to(finding, given, act_on_risk=self.act_on_risk)

    @property
    def answers_risk(self) -> bool:
        """Whether the response to a risk that rises is more than a warning."""
        kinds = ("risk_warning", "risk_danger", "risk_instability")
        risks = (Finding(kind=kind, message="", scope=Scope.RISK) for kind in kinds)
        return any(self.response_to(risk) is not Response.WARN for risk in risks)

    @property
    def skips_losses(self) -> bool:
        """Whether the response to a loss that is not finite is more than a warning."""
        symptom = Finding(kind="nonfinite_loss", message="", scope=Scope.NOTICE)
        return self.response_to(symptom) is not Response.WARN

    @property
    def scan_period(self) -> int:
        """Steps for one scan of all weights and state."""
        confirm = self.every if isinstance(self.confirm, str) else self.confirm
        return max(1, min(SCAN_PERIOD, confirm - 1))

    @property
    def confirm_steps(self) -> int:
        """Healthy steps after which a snapshot is trusted."""
        return self.scan_period + 1 if isinstance(self.confirm, str) else self.confirm
