"""The options of the guard are checked before training starts."""

from __future__ import annotations

import math

import pytest

from stableopt import ConfigError, Guard, SignalRule

WRONG = {
    "slots": [-1, 1, 1.0, True, "3", None],
    "every": [0, -1, 2.5, True, "auto"],
    "confirm": [0, -3, 1.5, True, "always", None],
    "max_rollbacks": [-1, 0.5, True, None],
    "max_skips": [-1, 1.5, True, "many", None],
    "cooldown": [-1, 0.5, None],
    "budget": [-1, 1.5, None],
    "lr_backoff": [0, -0.5, 1.5, math.nan, True, "half", None],
    "lr_recovery": [-1, 1.5, True, "never"],
    "loss_spike": [0, -1.0, math.nan, True, "6"],
    "gradient_spike": [0, -1.0, math.nan],
    "max_weight": [0, -1.0, math.nan, "auto"],
    "memory": ["disk", None, 3],
    "weight_jump": [0, 1, 1.0, -8, math.nan, True, "8"],
    "moment_drop": [0, 1, 1.0, -2, math.nan, True, "2"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_what_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name}=.* must be "):
        Guard(**{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"responses": {"loss_spike": "warn"}, "loss_spike": None},
        {"responses": {"gradient_spike": "warn"}, "gradient_spike": None},
        {"responses": {"jumped_weight": "stop"}, "weight_jump": None},
        {"responses": {"vanished_state": "stop"}, "moment_drop": None},
        {"responses": {"nonfinite_loss": "roll_back"}, "slots": 0},
        {"rules": [SignalRule("x > 1", response="roll_back")], "slots": 0},
    ],
)
def test_answers_that_nothing_would_give_are_refused(options):
    with pytest.raises(ConfigError, match="must"):
        Guard(**options)


@pytest.mark.parametrize(
    ("options", "period", "confirm"),
    [
        ({}, 20, 21),
        ({"every": 1}, 1, 2),
        ({"every": 3}, 2, 3),
        ({"every": 21}, 20, 21),
        ({"every": 1000}, 20, 21),
        ({"confirm": 1}, 1, 1),
        ({"confirm": 5}, 4, 5),
        ({"confirm": 500}, 20, 500),
    ],
)
def test_a_snapshot_is_trusted_after_a_whole_scan(options, period, confirm):
    guard = Guard(**options)
    assert (guard.scan_period, guard.confirm_steps) == (period, confirm)
