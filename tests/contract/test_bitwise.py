"""Promise 1: wrapped equals bare to the last bit while nothing is wrong."""

from __future__ import annotations

import pytest
import torch

from tests.contract.bits import assert_same
from tests.contract.pairwise import cover
from tests.contract.scenario import SCHEDULERS, WRAPS, Scenario, bare, guarded, run
from tests.contract.specs import SPECS, VARIANTS, variant_id

DIMENSIONS = {
    "which": VARIANTS,
    "scheduler": list(SCHEDULERS),
    "tensor_lr": [False, True],
    "scheduler_on": ["wrapper", "inner"],
    "closure": [False, True],
    "accumulate": [1, 2],
    "grad_none": [False, True],
    "add_group": ["no", "early", "late"],
    "named": [False, True],
    "dtype": ["float32", "bfloat16", "complex64"],
    "hooks": ["none", "own", "global"],
}


def possible(row: dict) -> bool:
    """Tell whether bare torch may run this (partial) row at all."""
    row = dict(row)
    spec, variant = row.get("which", (None, ""))
    late = row.get("add_group") == "late"
    if late and row.get("scheduler", "none") != "none":
        return False  # no torch scheduler knows a group that comes after it
    if spec is None:
        return True
    if row.get("tensor_lr") and not spec.tensor_lr(variant):
        return False
    if row.get("dtype", "float32") not in spec.dtypes:
        return False
    if row.get("dtype") == "complex64" and variant.startswith("fused"):
        return False
    if row.get("dtype") == "bfloat16" and variant == "fused_momentum":
        return False  # bare torch 2.13 does not repeat itself: uninitialised momentum is read
    if row.get("add_group", "no") != "no" and (not spec.groups or spec.model == "sparse"):
        return False
    return not (spec.closure == "required" and row.get("closure") is False)


def of_spec(name: str, value, other: str):
    """Return the spec where a variant meets a scheduler, which does not see its kernels."""
    return value[0].name if (name, other) == ("which", "scheduler") else None


def scenarios() -> list[Scenario]:
    out = []
    for row in cover(DIMENSIONS, possible, alike=of_spec):
        spec, variant = row.pop("which")
        out.append(Scenario(spec=spec, variant=variant, **row))
    return out


def scenario_id(scenario: Scenario) -> str:
    flags = [n for n in ("tensor_lr", "closure", "grad_none", "named") if getattr(scenario, n)]
    return "-".join(
        [
            scenario.spec.name,
            scenario.variant,
            f"{scenario.scheduler}.{scenario.scheduler_on}",
            f"x{scenario.accumulate}",
            scenario.add_group,
            scenario.dtype,
            scenario.hooks,
            *flags,
        ]
    )


ALL = scenarios()


@pytest.mark.parametrize("scenario", ALL, ids=scenario_id)
def test_wrapped_equals_bare(scenario):
    expected = run(scenario, bare)
    for name, wrap in WRAPS.items():
        actual = run(scenario, wrap, ended=was_left_alone)
        assert_same(actual, expected)
        assert not any(actual.moved), name


@pytest.mark.parametrize("pair", VARIANTS, ids=variant_id)
def test_spikes_are_looked_for_and_snapshots_are_verified(pair):
    """Longer than the warm-up of the detectors: they judge, and find nothing."""
    scenario = Scenario(spec=pair[0], variant=pair[1])
    seen = []

    def judged(opt):
        was_left_alone(opt)
        assert opt._loop.decider.detectors.spikes._gradient.ready
        snapshots = opt.summary()["snapshots"]
        seen.append((snapshots["taken"], sum(s["verified"] for s in snapshots["steps"])))

    actual = run(scenario, guarded, steps=60, ended=judged)
    assert_same(actual, run(scenario, bare, steps=60))
    ((taken, verified),) = seen
    assert taken >= 60 // 4
    assert verified >= 1


def was_left_alone(opt):
    summary = opt.summary()
    assert not any(event.intervened for event in opt.ledger)
    assert not any(transform["steps"] for transform in summary["transforms"])
    assert summary["snapshots"]["taken"] > 0
    assert any(snapshot["verified"] for snapshot in summary["snapshots"]["steps"])


def test_all_optimizers_of_torch_are_specified():
    public = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    assert public <= {spec.name for spec in SPECS}
    assert len(public) == 15


def test_all_schedulers_of_torch_are_specified():
    module = torch.optim.lr_scheduler
    public = {name for name in module.__all__ if name.endswith(("LR", "Plateau", "Restarts"))}
    assert public - {"LRScheduler"} | {"ChainedScheduler", "SequentialLR"} <= set(SCHEDULERS)
