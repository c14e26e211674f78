"""How sensitive a method is to its learning rate, as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

Losses = dict[float, float]
"""Validation losses by learning rate."""


def sensitivity(losses: Mapping[float, float], initial: float, least: float = 0.0) -> float:
    r"""Return the learning-rate sensitivity of one sweep.

    The mean of :math:`\min(\ell, \ell_\text{init}) - \ell^*` over the learning rates, with
    :math:`\ell^*` the best loss of the whole sweep.

    Args:
        losses: By learning rate; infinite where a run was lost.
        initial: L_init.
        least: The lowest learning rate that counts.

    Reference:
        Wortsman et al., "Small-scale proxies for large-scale transformer training
        instabilities", 2023, arXiv:2309.14322.
    """
    capped = {lr: min(loss, initial) for lr, loss in losses.items()}
    best = min(capped.values())
    return fmean(loss - best for lr, loss in capped.items() if lr >= least)


def curve(records: Iterable[Mapping[str, Any]]) -> dict[float, list[float]]:
    """Return the losses of a method on a task by learning rate, at most L_init each."""
    found: dict[float, list[float]] = {}
    for record in sorted(records, key=lambda record: (record["lr"], record["seed"])):
        loss = min(float(record["val"]), float(record["initial"]))
        found.setdefault(record["lr"], []).append(loss)
    return found


def score(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the runs of one method on one task come to.

    Args:
        records: For every seed the same learning rates.

    Returns:
        Of ``lrs`` (the sensitivity), ``lrs_plus`` (that at and above ``best_lr``) and ``best``
        the mean over seeds, the lowest and the highest; ``best_lr`` has the best mean loss.
    """
    means = {lr: fmean(losses) for lr, losses in curve(records).items()}
    best_lr = min(means, key=lambda lr: means[lr])
    sweeps = _sweeps(records)
    return {
        "task": records[0]["task"],
        "method": records[0]["method"],
        "grid": list(means),
        "seeds": sorted({record["seed"] for record in records}),
        "lrs": _spread([sensitivity(losses, initial) for losses, initial in sweeps]),
        "lrs_plus": _spread([sensitivity(losses, initial, best_lr) for losses, initial in sweeps]),
        "best_lr": best_lr,
        "best": _spread([min(losses[best_lr], initial) for losses, initial in sweeps]),
        "logit": _largest_logit(records),
        "runs": len(records),
        "non_finite": sum(not record["finite"] for record in records),
        "stopped": sum(record["stopped"] is not None for record in records),
    }


def scores(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the scores of every method on every task, in the order of their first runs."""

    def key(record: Mapping[str, Any]) -> tuple[str, str]:
        return record["task"], record["method"]

    known = list(records)
    order = {pair: i for i, pair in enumerate(dict.fromkeys(map(key, known)))}
    ordered = sorted(known, key=lambda record: order[key(record)])
    return [score(list(group)) for _, group in groupby(ordered, key)]


def _sweeps(records: Iterable[Mapping[str, Any]]) -> list[tuple[Losses, float]]:
    """Return losses and initial loss of every seed."""
    found: dict[int, tuple[Losses, float]] = {}
    for record in records:
        losses, _ = found.setdefault(record["seed"], ({}, float(record["initial"])))
        losses[record["lr"]] = float(record["val"])
    return [found[seed] for seed in sorted(found)]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": fmean(values), "low": min(values), "high": max(values), "by_seed": list(values)}


def _largest_logit(records: Iterable[Mapping[str, Any]]) -> float | str | None:
    logits = [float(record["logit"]) for record in records if record["logit"] is not None]
    if not logits:
        return None
    largest = max(logits)
    return largest if largest < float("inf") else "inf"
