"""The step as pure tensor work, for a step() that is compiled from outside."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.optim import Optimizer

from stableopt.functional import widest_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.optim import Optimizer

_WRITTEN: dict[type[Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps"),
    torch.optim.NAdam: ("exp_avgs", "exp_avg_sqs", "mu_products", "state_steps"),
    torch.optim.RAdam: ("exp_avgs", "exp_avg_sqs", "state_steps"),
    torch.optim.Adamax: ("exp_avgs", "exp_infs", "state_steps"),
    torch.optim.Adadelta: ("square_avgs", "acc_deltas", "state_steps"),
    torch.optim.Adagrad: ("state_sums", "state_steps"),
    torch.optim.RMSprop: ("square_avgs", "momentum_buffer_list", "grad_avgs", "state_steps"),
    torch.optim.Rprop: ("prevs", "step_sizes", "state_steps"),
    torch.optim.SGD: ("momentum_buffer_list",),
    torch.optim.Muon: ("muon_momentum_bufs",),
}
"""What ``_init_group`` of an optimizer lists, beside parameters and gradients: every tensor that a
step of its writes to."""


class Counts(NamedTuple):
    """What compiled steps did since :meth:`TracedStep.take_counts` was called last.

    Attributes:
        calls: How many there were.
        taken: How many of them changed the weights.
        vetoed: How many were left out because of a rollback before them.
        row: How many of the last ones were left out in a row, those not counted.
    """

    calls: int
    taken: int
    vetoed: int
    row: int


class TracedStep:
    """Takes the inner step, and undoes it where gradients or loss are not finite.

    The update is computed in any case, and ``torch.where`` picks the old value or the new one of
    every tensor that it wrote to: in a compiled graph this costs no more than the update itself.
    The outcome is counted in tensors, which stay on the device until they are asked for.

    Nothing here may read a number on the host, or change an attribute that it also reads: the first
    would break the graph, the second would cause a retrace.

    Args:
        optimizer: The inner optimizer.

    Attributes:
        called: Whether a compiled step was called since :meth:`take_counts`.
        used: Whether one ever was.
        obstacle: Why a step cannot be traced; empty if it can.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._update: Any = inspect.unwrap(type(optimizer).step)
        self.called = self.used = False
        self.obstacle = ""
        self._lists = _lists_of(optimizer)
        devices = {p.device for group in optimizer.param_groups for p in group["params"]}
        device = next(iter(devices), torch.device("cpu"))
        self._together = len(devices) <= 1
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), device=device)
        self._veto = torch.zeros((), dtype=torch.bool, device=device)
        self.scale = torch.ones((), device=device, dtype=widest_real(device))
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self.look(transforms=False, guarded=True)

    def look(
        self,
        *,
        transforms: bool,
        guarded: bool,
        several: bool = False,
        buffers: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        """Update :attr:`obstacle`: whether a step can be traced as things are now.

        Args:
            transforms: Whether there are any, which a graph would leave out.
            guarded: Whether there is a guard, whose work this is.
            several: Whether several ranks take one verdict.
            buffers: Copies of the model's buffers after the last step that was taken, and those
                buffers: a batch that is left out has moved them already.
        """
        self._buffers = list(buffers)
        optimizer = self._optimizer
        groups = optimizer.param_groups
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        reasons = {
            "there is no guard": not guarded,
            "transforms are not traced": transforms,
            "several ranks take one verdict": several,
            "its step has hooks": bool(hooks),
            "its parameters are on several devices": not self._together,
            "it is not known which tensors its step writes to": self._lists is None,
            "its kernels are fused": any(group.get("fused") for group in groups),
            "its first momentum depends on dampening": any(g.get("dampening") for g in groups),
        }
        self.obstacle = next((reason for reason, holds in reasons.items() if holds), "")

    # inside a graph

    def __call__(self) -> None:
        """Take the step, or leave everything as it is; traced, never run as it stands."""
        optimizer = self._optimizer
        with torch.no_grad():
            gradients: list[Tensor] = []
            written: list[Tensor] = []
            weights: list[bool] = []
            begun: list[Tensor] = []
            for group in optimizer.param_groups:
                lists: list[list[Any]] = [[] for _ in range(self._lists or 0)]
                optimizer._init_group(group, *lists)  # type: ignore[attr-defined]
                if isinstance(optimizer, torch.optim.SGD) and group["momentum"]:
                    begun += [p for p, m in zip(lists[0], lists[2], strict=True) if m is None]
                gradients += lists[1]
                for i, tensors in enumerate((lists[0], *lists[2:])):
                    there = [tensor for tensor in tensors if tensor is not None]
                    written += there
                    weights += [i == 0] * len(there)
            sound = torch.isfinite(self._loss)
            if gradients:
                sound = sound & torch.stack([torch.isfinite(g).all() for g in gradients]).all()
            good = sound & ~self._veto
            before = [tensor.clone() for tensor in written]
            self._update(optimizer)
            for tensor, old, moves in zip(written, before, weights, strict=True):
                # How far a step goes is proportional to the learning rate, decay included. The
                # options of a group must not be written to: all of them would be replaced.
                new = torch.lerp(old, tensor, self.scale.to(old.dtype)) if moves else tensor
                tensor.copy_(torch.where(good.to(tensor.device), new, old))
            for parameter in begun:
                # SGD's first momentum is the gradient; from zero it comes to the same.
                state = optimizer.state[parameter]
                momentum = state["momentum_buffer"]
                state["momentum_buffer"] = torch.where(good, momentum, 0.0)
            for copy, live in self._buffers:
                copy.copy_(torch.where(good.to(live.device), live, copy))
                live.copy_(copy)
            self._count(good)
            self._loss.zero_()
            self._veto.zero_()
            self.called = True

    def _count(self, good: Tensor) -> None:
        one = torch.ones_like(good)
        self._counts[:3] += torch.stack([one, good, self._veto])
        left_out = ~(good | self._veto)
        self._counts[3] = torch.where(good, 0, self._counts[3] + left_out)

    # outside of it

    @torch.no_grad()
    def note_loss(self, loss: float | Tensor) -> None:
        """Have the next step left out if ``loss`` is not finite."""
        if self.used:
            self._loss.add_(loss)

    def veto(self, holds: Tensor | bool = True) -> None:
        """Have the next step left out if ``holds``."""
        self._veto.copy_(torch.as_tensor(holds, device=self._veto.device))

    def forget(self) -> None:
        """Count nothing of what happened since the last time."""
        self.called = False
        self._counts.zero_()

    def take_counts(self) -> Counts | None:
        """Return what happened since the last time; ``None`` if nothing did.

        Cost:
            One host synchronisation, if something did.
        """
        if not self.called:
            return None
        self.called, self.used = False, True
        counts = Counts(*self._counts.tolist())
        self._counts.zero_()
        return counts if counts.calls else None

    def __getstate__(self) -> dict[str, Any]:
        """Give copies no counts: they have their own."""
        return {"optimizer": self._optimizer, "buffers": self._buffers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["optimizer"])  # type: ignore[misc]
        self._buffers = state["buffers"]


def _lists_of(optimizer: Optimizer) -> int | None:
    """Return how many lists ``_init_group`` fills; ``None`` where it is not as it is known here.

    It is private to torch: another version, or a subclass, may list something else.
    """
    known = next((names for kind, names in _WRITTEN.items() if isinstance(optimizer, kind)), None)
    if known is None:
        return None
    names = list(inspect.signature(type(optimizer)._init_group).parameters)  # type: ignore[attr-defined]
    fits = names[2:3] in (["params"], ["params_with_grad"]) and names[3:] == ["grads", *known]
    return len(names) - 2 if fits else None
