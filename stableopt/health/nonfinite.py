"""A NaN or an Inf in the loss, in a gradient, or in the weights behind them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stableopt.functional import all_finite
from stableopt.types import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stableopt.types import GradientNorms, Observation

_NAMED = 3
"""How many parameters a sentence names before it says how many more there are."""


def find_nonfinite(
    observation: Observation, names: Mapping[tuple[int, int], str]
) -> tuple[Finding, ...]:
    """Return a finding for a loss that is not finite, and one for such gradients.

    Args:
        observation: What is known about the step.
        names: The name of every parameter by ``(group, index)``.
    """
    findings = []
    loss, gradients = observation.loss, observation.gradients
    if loss is not None and not math.isfinite(loss):
        findings.append(Finding(kind="nonfinite_loss", message=f"the loss is {loss}", value=loss))
    if gradients is not None and gradients.nonfinite:
        findings.append(_in_gradients(gradients, names))
    return tuple(findings)


def find_nonfinite_weights(
    param_groups: Sequence[dict[str, Any]], names: Mapping[tuple[int, int], str]
) -> tuple[Finding, ...]:
    """Return a finding for parameters that are not finite themselves.

    Looked for only once something else is wrong with a step: then it tells a bad batch,
    which a skip undoes, from a run whose weights are lost already.

    Cost:
        One read of the parameters and one host synchronisation per parameter.
    """
    where = tuple(
        names[g, i]
        for g, group in enumerate(param_groups)
        for i, parameter in enumerate(group["params"])
        if not all_finite(parameter)
    )
    if not where:
        return ()
    message = f"the weights of {_shown(where)} are not finite themselves"
    return (Finding(kind="nonfinite_weight", message=message, where=where),)


def _in_gradients(gradients: GradientNorms, names: Mapping[tuple[int, int], str]) -> Finding:
    where = tuple(names[gradients.owners[i]] for i in gradients.nonfinite)
    return Finding(
        kind="nonfinite_gradient",
        message=f"the gradient of {_shown(where)} is not finite",
        where=where,
        value=gradients.total_value,
    )


def _shown(where: Sequence[str]) -> str:
    more = f" and {len(where) - _NAMED} more" if len(where) > _NAMED else ""
    return ", ".join(where[:_NAMED]) + more
