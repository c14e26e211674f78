"""The table of what works, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.report import grid

PACKAGES = {
    "HF Trainer": "transformers",
    "Lightning": "lightning",
    "Accelerate": "accelerate",
    "PEFT": "peft",
    "Optuna": "optuna",
    "TensorBoard": "tensorboard",
    "MLflow": "mlflow-skinny",
    "Weights & Biases": "wandb",
}
"""The package behind every place that tests name."""

TRAINERS = ("HF Trainer", "Lightning", "Accelerate")


def digest(result: Mapping[str, Any]) -> str:
    """Return what works as Markdown: a table for the trainers, a line for every other place."""
    places, versions = result["places"], result["versions"]
    titles = {place: f"{place} ({PACKAGES[place]} {versions[place]})" for place in places}
    trainers = [place for place in TRAINERS if place in places]
    others = [place for place in PACKAGES if place in places and place not in trainers]
    features = sorted({feature for place in trainers for feature in places[place]}, key=str.lower)
    words = {None: "", True: "yes", False: "**no**"}
    lines = grid(
        ["", *(titles[place] for place in trainers)],
        ([f, *(words[places[place].get(f)] for place in trainers)] for f in features),
    )
    tested = ([titles[place], _tested(places[place])] for place in others)
    return "\n".join([*lines, "", *grid(["", "tested"], tested)])


def _tested(features: Mapping[str, bool]) -> str:
    return ", ".join(name if works else f"**not {name}**" for name, works in features.items())
