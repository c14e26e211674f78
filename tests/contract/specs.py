"""One declarative spec per optimizer: how it is built, and what it can be asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from tests.contract import third_party

Options = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """An optimizer and its documented options.

    Attributes:
        make: Builds it from parameters.
        variants: Sets of options, each of which is tested.
        lr: A learning rate that moves the tiny model.
        tensor_lr: Whether a 0-dim tensor lr works, by variant name; ``"default"`` for all.
        dtypes: What parameters may be.
        model: ``"dense"``, ``"matrices"`` (2-D parameters alone) or ``"sparse"``.
        groups: Whether it takes more than one parameter group.
        closure: ``"optional"`` or ``"required"``.
    """

    make: Callable[..., Optimizer]
    variants: dict[str, Options] = field(default_factory=lambda: {"default": {}})
    lr: float = 1e-2
    tensor_lr: Callable[[str], bool] = lambda variant: True
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "complex64")
    model: str = "dense"
    groups: bool = True
    closure: str = "optional"

    @property
    def name(self) -> str:
        return self.make.__name__


_PATHS = {"default": {}, "foreach": {"foreach": True}, "forloop": {"foreach": False}}
_FUSED = {**_PATHS, "fused": {"fused": True}}
_MAXIMIZE = {"maximize": {"maximize": True}}
_DECAY = {"decay": {"weight_decay": 0.1}}


def _not_foreach(variant: str) -> bool:
    """Torch refuses a tensor lr with foreach unless capturable, which needs CUDA."""
    return variant not in ("foreach", "amsgrad_foreach")


ADAM = {
    **_FUSED,
    **_MAXIMIZE,
    **_DECAY,
    "amsgrad": {"amsgrad": True},
    "betas": {"betas": (0.8, 0.9)},
}

SPECS = [
    Spec(torch.optim.Adadelta, {**_PATHS, **_MAXIMIZE, **_DECAY, "rho": {"rho": 0.5}}, lr=1.0),
    Spec(
        torch.optim.Adafactor,
        {**_PATHS, **_MAXIMIZE, **_DECAY, "d": {"d": 1.5, "beta2_decay": -0.5}},
        dtypes=("float32", "bfloat16"),
    ),
    Spec(
        torch.optim.Adagrad,
        {**_FUSED, **_MAXIMIZE, **_DECAY, "lr_decay": {"lr_decay": 0.1}},
        dtypes=("float32", "bfloat16", "complex64"),
    ),
    Spec(torch.optim.Adam, ADAM, tensor_lr=_not_foreach),
    Spec(torch.optim.AdamW, ADAM, tensor_lr=_not_foreach),
    Spec(torch.optim.Adamax, {**_PATHS, **_MAXIMIZE, **_DECAY}),
    Spec(torch.optim.ASGD, {**_PATHS, **_MAXIMIZE, **_DECAY, "t0": {"t0": 2.0}}),
    Spec(
        torch.optim.LBFGS,
        {
            "default": {"max_iter": 3},
            "strong_wolfe": {"max_iter": 4, "line_search_fn": "strong_wolfe", "history_size": 3},
        },
        lr=0.1,
        groups=False,
        closure="required",
        dtypes=("float32", "bfloat16"),
    ),
    Spec(
        torch.optim.Muon,
        {"default": {}, "plain": {"nesterov": False, "momentum": 0.5}},
        model="matrices",
        dtypes=("float32", "bfloat16"),
    ),
    Spec(
        torch.optim.NAdam,
        {**_PATHS, **_MAXIMIZE, **_DECAY, "decoupled": {"decoupled_weight_decay": True}},
    ),
    Spec(
        torch.optim.RAdam,
        {**_PATHS, **_MAXIMIZE, **_DECAY, "decoupled": {"decoupled_weight_decay": True}},
    ),
    Spec(
        torch.optim.RMSprop,
        {**_PATHS, **_MAXIMIZE, **_DECAY, "centered": {"centered": True, "momentum": 0.9}},
    ),
    Spec(torch.optim.Rprop, {**_PATHS, **_MAXIMIZE, "etas": {"etas": (0.6, 1.1)}}),
    Spec(
        torch.optim.SGD,
        {
            **_FUSED,
            **_MAXIMIZE,
            **_DECAY,
            "momentum": {"momentum": 0.9, "dampening": 0.1},
            "nesterov": {"momentum": 0.9, "nesterov": True},
            "fused_momentum": {"fused": True, "momentum": 0.9},
        },
    ),
    Spec(torch.optim.SparseAdam, {"default": {}, **_MAXIMIZE}, model="sparse", dtypes=("float32",)),
    *(Spec(make, model=model, dtypes=("float32",)) for make, model in third_party.OPTIMIZERS),
]

VARIANTS = [(spec, variant) for spec in SPECS for variant in spec.variants]


def variant_id(pair: tuple[Spec, str]) -> str:
    return f"{pair[0].name}-{pair[1]}"
