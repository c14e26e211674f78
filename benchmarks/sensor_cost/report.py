"""What sensors add to training, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.common.report import facts, grid, heading, machine
from benchmarks.common.variants import PERIODIC, VARIANTS
from stableopt.sensors import Sensors


def render(result: dict[str, Any]) -> str:
    """Return the Markdown of a result."""
    told = facts(result, machine(result), "1 thread used")
    return (
        "\n".join(
            [heading("What the sensors add to training", "sensor_cost"), told, digest(result)]
        )
        + "\n"
    )


def digest(result: dict[str, Any]) -> str:
    """Return what the documentation quotes."""
    dense = result["dense_steps"]
    lines = [
        f"Sensors run after every {result['every']}th step, so what counts is the total time of "
        "whole intervals, everybody in turn; a median of steps would hide it. In percent of a bare "
        "training step (forward, backward, fused AdamW; CPU, one thread, fp32): what is added "
        "between the end of backward and the end of the update, where all of them run; the noise "
        "of forward and backward is larger than that. At 20M the gradients are computed "
        "beforehand, and the sensors have no budget; at 1M whole steps are taken, with the "
        f"default budget of {Sensors().budget:.1%}.",
        "",
    ]
    head = ("model, tokens", "", f"first {dense} steps: courses are learned", "after that")
    lines += [*grid(head, (row for cell in result["cells"] for row in _rows(cell))), ""]
    for cell in result["cells"]:
        if (cell["size"], cell["tokens"]) == ("20M", 4096):
            added = cell["sensors"]["steady"]
            met = "met" if added <= result["target"] else "**not met**"
            lines.append(
                f"Target: at most {result['target']:.1%} of a step of 20M parameters at 4,096 "
                f"tokens: {added:.3%}, {met}."
            )
        if cell["whole_steps"]:
            lines.append(
                f"At {cell['parameters'] / 1e6:.0f}M and {cell['tokens']} tokens the sensors would "
                "take more than their budget, and visits are postponed (their own counter: "
                f"{cell['sensors']['postponed']})."
                if cell["sensors"]["postponed"]
                else f"At {cell['parameters'] / 1e6:.0f}M and {cell['tokens']} tokens nothing was "
                "postponed."
            )
    return "\n".join(lines)


def _rows(cell: dict[str, Any]) -> Iterator[list[str]]:
    title, sensors = f"{cell['parameters'] / 1e6:.0f}M, {cell['tokens']:,}", cell["sensors"]
    for variant in cell["variants"][1:]:
        label = {**VARIANTS, **PERIODIC}[variant["name"]].label
        yield [title, label, *(f"{variant[part]:+.3%}" for part in ("dense", "steady"))]
    dense, steady = f"{sensors['dense']:+.3%}", f"**{sensors['steady']:+.3%}**"
    yield [title, "**the default sensors**: the difference", dense, steady]
    account = [f"{sensors['own_account'][part]:+.3%}" for part in ("dense", "steady")]
    yield [title, "the same by their own account", *account]
