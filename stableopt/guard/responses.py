"""The response to each cause: one table, which the policy follows and the docs print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from stableopt.errors import ConfigError, unknown_name
from stableopt.types import Response

if TYPE_CHECKING:
    from stableopt.types import Finding


class Cause(NamedTuple):
    """What a kind of finding means for a run.

    Attributes:
        meaning: In words.
        default: The response if ``Guard(responses=)`` does not name the cause.
        allowed: The responses that it may name.
    """

    meaning: str
    default: Response
    allowed: tuple[Response, ...]


_WARN, _TAME, _LOWER, _SKIP, _BACK, _STOP = Response
_BATCH = (_SKIP, _BACK, _STOP)
_SPIKE = (_WARN, _TAME, _LOWER, _SKIP, _STOP)
_SYMPTOM = (_WARN, _SKIP, _STOP)
_STATE = (_BACK, _STOP)
_FIRST = (_WARN, _TAME, _STOP)
_RISK = (_WARN, _LOWER, _BACK, _STOP)
_NOTICE = (_WARN, _STOP)
_FROZEN = (_STOP,)
_COPIES = (_WARN, _BACK, _STOP)

_REASONS = {
    _STATE: "training cannot go on from a state with a fault in it",
    _BATCH: "such a step would spoil the weights",
    **dict.fromkeys((_SPIKE, _SYMPTOM, _FIRST), "an unusual batch is no reason for a rollback"),
    **dict.fromkeys((_NOTICE, _FROZEN), "neither another batch nor a snapshot would change it"),
    _COPIES: "the batch is not at fault",
    _RISK: "the fault is in the weights, not in the batch",
}
"""Why other responses are not allowed."""

CAUSES: dict[str, Cause] = {
    "nonfinite_gradient": Cause("a gradient is NaN or infinite", _SKIP, _BATCH),
    "nonfinite_loss": Cause("the loss is NaN or infinite, and no gradient is", _WARN, _SYMPTOM),
    "loss_spike": Cause("the loss is far above what was usual lately", _TAME, _SPIKE),
    "gradient_spike": Cause("the gradient norm is far above what was usual lately", _TAME, _SPIKE),
    "first_gradient": Cause(
        "the first gradient was a hundred times as large as those after it", _TAME, _FIRST
    ),
    "nonfinite_weight": Cause("a weight is NaN or infinite", _BACK, _STATE),
    "nonfinite_state": Cause("a tensor of the optimizer's state is NaN or infinite", _BACK, _STATE),
    "nonfinite_buffer": Cause("a buffer of the model is NaN or infinite", _BACK, _STATE),
    "nonfinite_tracked": Cause("a tensor of a tracked object is NaN or infinite", _BACK, _STATE),
    "huge_weight": Cause("a weight is larger than `max_weight`", _BACK, _STATE),
    "huge_state": Cause("a tensor of the optimizer's state is too large", _BACK, _STATE),
    "huge_buffer": Cause("a buffer of the model is too large", _BACK, _STATE),
    "jumped_weight": Cause("a weight is many times as large as some steps ago", _BACK, _STATE),
    "vanished_state": Cause("a second moment is smaller than its decay allows", _BACK, _STATE),
    "moment_bound": Cause("the moments of Adam contradict each other", _BACK, _STATE),
    "negative_moment": Cause("a second moment is negative", _BACK, _STATE),
    "diverged_replicas": Cause(
        "copies of a weight on several ranks are no longer the same", _BACK, _COPIES
    ),
    "nonfinite_frozen": Cause("a frozen weight is NaN or infinite", _STOP, _FROZEN),
    "changed_frozen": Cause("a frozen weight has changed", _WARN, _NOTICE),
    "stalled_weight": Cause("a weight does not move, though it has a gradient", _WARN, _NOTICE),
    "large_update": Cause("an update is far longer than the weight itself", _WARN, _RISK),
    "risk_warning": Cause("a weight has left its healthy range or its own course", _WARN, _RISK),
    "risk_danger": Cause("a weight is in a range never seen in healthy training", _WARN, _RISK),
    "risk_instability": Cause("several weights are there, or one is not finite", _WARN, _RISK),
}
"""By the kind of the finding."""

ON_RISK = {"risk_danger": _LOWER, "risk_instability": _BACK}
"""What ``act_on_risk`` changes."""


Pairs = tuple[tuple[str, str], ...]
"""Causes and responses, as a value that cannot change."""


def response_to(finding: Finding, given: Pairs, *, act_on_risk: bool) -> Response:
    """Return the response to a finding.

    Args:
        finding: The finding.
        given: ``Guard.responses``.
        act_on_risk: ``Guard.act_on_risk``.
    """
    if finding.response is not None:
        return Response(finding.response)
    asked = dict(given)
    if finding.kind in asked:
        return Response(asked[finding.kind])
    if act_on_risk and finding.kind in ON_RISK:
        return ON_RISK[finding.kind]
    return CAUSES[finding.kind].default


def check_responses(given: object) -> Pairs:
    """Return ``Guard.responses`` as pairs of plain strings.

    Raises:
        ConfigError: There is no such cause, or it does not have that response.
    """
    pairs = isinstance(given, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in given)
    if not isinstance(given, Mapping) and not pairs:
        raise ConfigError(
            f"responses={given!r} must be a dict from causes to responses, e.g. "
            "{'loss_spike': 'warn'}"
        )
    found = {}
    for kind, response in dict(given).items():  # type: ignore[call-overload]
        if kind not in CAUSES:
            raise unknown_name("cause", kind, CAUSES)
        allowed = [item.value for item in CAUSES[kind].allowed]
        if response not in allowed:
            raise ConfigError(
                f"responses[{kind!r}]={response!r} must be one of {', '.join(allowed)}: "
                f"{_REASONS[CAUSES[kind].allowed]}"
            )
        found[str(kind)] = Response(response).value
    return tuple(found.items())
