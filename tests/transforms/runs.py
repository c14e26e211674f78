"""Runs in which nothing moves a weight but a transform."""

from __future__ import annotations

import torch

from stableopt import StableOptimizer
from tests.sensors.runs import stand_still


def stepped(model, transform, signals=None, steps=1, parameters=None, **options):
    """Return an optimizer that has taken steps which move nothing but by the transform."""
    if parameters is None:
        parameters = [p for p in model.parameters() if p.requires_grad]
    inner = torch.optim.SGD(parameters, lr=0.1)
    opt = StableOptimizer(inner, model=model, sensors=(), transforms=[transform], **options)
    stand_still(opt, steps, **(signals or {}))
    return opt


def changes(opt):
    """Return on how many parameters the transform has acted, all steps together."""
    return opt.summary()["transforms"][0]["changes"]
