"""The findings of all ranks as one list. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from stableopt.types import Finding, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def merged(findings: Sequence[Sequence[Finding]]) -> tuple[Finding, ...]:
    """Return the findings of all ranks: in the order of the ranks, each once.

    One that not every rank has made begins with the ranks that have. Of a spike, which all ranks
    have seen, the words of the first rank stand for all: others hold other parts of the gradients.

    Args:
        findings: Those of each rank.

    Example:
        >>> lost = Finding(kind="nonfinite_weight", message="fc.weight is NaN")
        >>> merged([(), (lost,)])[0].message
        'on rank 1 fc.weight is NaN'
        >>> merged([(lost,), (lost,)])[0].message
        'fc.weight is NaN'
    """
    first: dict[object, Finding] = {}
    ranks: dict[object, list[int]] = {}
    for rank, mine in enumerate(findings):
        for finding in mine:
            same: object = (finding.kind, finding.message, finding.scope, finding.where)
            if finding.scope is Scope.SPIKE or finding.kind == "first_gradient":
                same = (finding.kind, finding.group)  # judged by the same numbers everywhere
            first.setdefault(same, finding)
            if rank not in ranks.setdefault(same, []):
                ranks[same].append(rank)
    return tuple(
        finding if len(ranks[same]) == len(findings) else _of(ranks[same], finding)
        for same, finding in first.items()
    )


def _of(ranks: Sequence[int], finding: Finding) -> Finding:
    return replace(finding, message=f"on {spoken(ranks)} {finding.message}")


def spoken(ranks: Iterable[int]) -> str:
    """Return ranks in words.

    Example:
        >>> spoken([1]), spoken([2, 0])
        ('rank 1', 'ranks 0, 2')
    """
    numbers = sorted(ranks)
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
