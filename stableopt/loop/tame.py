"""Scale gradients that spike, or the moments that remember one, down to what is usual."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stableopt.health.tensors.laws import POWERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim import Optimizer

    from stableopt.types import Finding, GradientNorms, Observation, Verdict


ROUNDING = 1e-3
"""By how much gradients that were scaled to a norm already may be above it."""


def tame(
    optimizer: Optimizer,
    verdict: Verdict,
    observation: Observation,
    *,
    own: bool,
    measure: Callable[[], GradientNorms | None],
) -> tuple[Verdict, Observation]:
    """Scale down the gradients that stand out; return what was done, and the norms after it.

    Args:
        optimizer: The inner optimizer.
        verdict: What was decided.
        observation: What was measured.
        own: Whether the optimizer evaluates the closure again, and steps on other gradients.
        measure: Measures the gradients.
    """
    said = tame_memory(optimizer, verdict.findings)
    tamed = observation
    if not own:
        tamed, done = tame_gradients(optimizer, observation, verdict.findings, measure)
        said += done
    reason = "; ".join([verdict.reason, *said])
    return replace(verdict, tames=bool(said), reason=reason), tamed


@torch.no_grad()
def tame_gradients(
    optimizer: Optimizer,
    observation: Observation,
    findings: Sequence[Finding],
    measure: Callable[[], GradientNorms | None],
) -> tuple[Observation, list[str]]:
    """Scale gradients down to the largest norm of recent steps; their direction stays.

    Args:
        optimizer: The inner optimizer.
        observation: What was measured.
        findings: The spikes.
        measure: Measures the gradients.

    Returns:
        The observation with the new norms, and a sentence for everything that was scaled.

    Cost:
        Two reads and a write of the gradients, where something is scaled.
    """
    said = []
    for finding in sorted(findings, key=lambda finding: finding.usual or 0.0):
        gradients = observation.gradients
        if gradients is None or finding.usual is None or finding.kind == "first_gradient":
            continue
        if finding.group is not None:
            gradients = gradients.of_group(finding.group)
        if gradients.total_value <= finding.usual * (1 + ROUNDING):
            continue
        factor = finding.usual / gradients.total_value
        _scale(optimizer, gradients, factor)
        observation = replace(observation, gradients=measure())
        what = "gradients" if finding.group is None else f"gradients of group {finding.group}"
        said.append(f"the {what} are scaled by {factor:.3g} to a norm of {finding.usual:.4g}")
    return observation, said


def _scale(optimizer: Optimizer, gradients: GradientNorms, factor: float) -> None:
    for group, place in gradients.owners:
        gradient = optimizer.param_groups[group]["params"][place].grad
        if gradient is not None:
            gradient.mul_(factor)


@torch.no_grad()
def tame_memory(optimizer: Optimizer, findings: Sequence[Finding]) -> list[str]:
    """Bring what is remembered of the first gradient down to the size of those after it.

    Averages of gradients are scaled by the ratio, averages of squares by its square. The first
    step of Adam and its relatives is as long as any other, whatever the gradient was.

    Args:
        optimizer: The inner optimizer.
        findings: Among them that the first gradient was out.

    Returns:
        A sentence, if something was scaled.

    Cost:
        One read and write of the optimizer's state, once in a run.
    """
    for finding in findings:
        if finding.kind == "first_gradient" and finding.usual and finding.value:
            factor = finding.usual / finding.value
            for state in optimizer.state.values():
                for key, power in POWERS.items():
                    if type(state.get(key)) is Tensor:
                        state[key].mul_(factor**power)
            return [f"what is remembered of it is scaled by {factor:.3g}"]
    return []
