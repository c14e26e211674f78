"""Findings about a NaN or an Inf in the loss or in a gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stableopt.runtime.words import listed
from stableopt.types import Finding, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stableopt.types import GradientNorms, Observation


def find_nonfinite(
    observation: Observation, names: Mapping[tuple[int, int], str]
) -> tuple[Finding, ...]:
    """Return a finding for gradients that are not finite, and one for such a loss.

    Only gradients change the weights: a loss that is not finite while they are is a symptom, and
    often harmless (a mean over no labels).

    Args:
        observation: Loss and gradients of the step.
        names: The name of every parameter by ``(group, index)``.
    """
    findings = []
    loss, gradients = observation.loss, observation.gradients
    spoils = gradients is not None and bool(gradients.nonfinite)
    if loss is not None and not math.isfinite(loss):
        scope = Scope.BATCH if spoils else Scope.NOTICE
        message = f"the loss is {loss}" + ("" if spoils else ", while all gradients are finite")
        findings.append(Finding(kind="nonfinite_loss", message=message, scope=scope, value=loss))
    if gradients is not None and spoils:
        findings.append(_in_gradients(gradients, names))
    return tuple(findings)


def _in_gradients(gradients: GradientNorms, names: Mapping[tuple[int, int], str]) -> Finding:
    where = tuple(names[gradients.owners[i]] for i in gradients.nonfinite)
    return Finding(
        kind="nonfinite_gradient",
        message=f"the gradient of {listed(where)} is not finite",
        where=where,
        value=gradients.total_value,
    )
