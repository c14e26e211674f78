"""The inner update, compiled: one graph, however the learning rate moves."""

from __future__ import annotations

import inspect
import logging
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stableopt.update.eager import EagerUpdate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stableopt.update.traced import TracedStep

logger = logging.getLogger("stableopt")

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes of ``torch.compile`` that record CUDA graphs."""

MOST_KINDS = 4
"""Different options of the groups, the learning rate aside, that are worth a graph each."""


class CompiledUpdate:
    """Calls ``torch.compile``'s version of the inner optimizer's step, hooks included.

    Compiled is the function under ``Optimizer.step``'s own decorator, which no full graph gets
    past; the hooks that the decorator calls are called around it, in their order. A learning rate
    that is a number lies in a tensor during the call, because a graph is bound to the numbers it
    was made with. Every instance has a code object of its own: the limit of recompilations is one
    per code object, and an optimizer that reaches it would end all others.

    What cannot be compiled (fused kernels, Adafactor, options that change from step to step, more
    sets of gradients than torch makes graphs for) is said once, and the inner step is called as it
    is from then on. The step in which it turns out is taken by what would have been compiled: what
    it is to leave out, it leaves out.

    Args:
        optimizer: The inner optimizer.
        options: For ``torch.compile``.
        inside: Takes the step inside of the graph, and may leave it out; ``None`` for the
            optimizer's own step.

    Attributes:
        reason: Why nothing is compiled; empty while it is.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        options: Mapping[str, Any],
        inside: TracedStep | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._options = dict(options)
        self._inside = inside
        self._eager = EagerUpdate(optimizer)
        self._rates: list[Tensor] = []
        self._kinds: set[tuple[Any, ...]] = set()
        self._step: Callable[[Optimizer], Any] | None = None
        self.reason = ""

    def take(self, closure: Callable[[], Any] | None = None, unless: Tensor | None = None) -> Any:
        """Take a step of the inner optimizer; see :class:`~stableopt.update.eager.Update`."""
        if closure is not None:
            self.give_up("its step is given a closure, which it may evaluate again")
        self._look()
        if self.reason:
            return self._eager.take(closure, unless)
        if unless is not None and self._inside is not None:
            self._inside.veto(unless)
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask
        if self._step is None:
            self._step = self._compile()
        with self._rates_in_tensors():
            result = self._step(self._optimizer)
        if self._inside is not None and self._inside.called:
            self._inside.forget()  # the host learns in another way what became of it
        return result

    def _look(self) -> None:
        """Give up if the next step cannot be compiled, as far as that is known before it."""
        if not self.reason and (reason := self._obstacle()):
            self.give_up(reason)

    @property
    def leaves_out(self) -> bool:
        """Whether the next step is left out where it has to be."""
        self._look()
        return self._eager.leaves_out if self.reason else self._inside is not None

    def _obstacle(self) -> str:
        if any(group.get("fused") for group in self._optimizer.param_groups):
            return "its fused kernels are compiled already"
        replaced = vars(self._optimizer).get("step")
        if replaced is not None and not hasattr(replaced, "_wrapped_by_lr_sched"):
            return "its step was replaced on the instance"
        self._kinds.add(_kind_of(self._optimizer))
        if len(self._kinds) > MOST_KINDS:
            return "options other than the learning rate change from step to step"
        return ""

    def _compile(self) -> Callable[[Optimizer], Any]:
        """Return the step with its hooks; it is traced when it is first called."""
        optimizer = self._optimizer
        take = self._inside or partial(inspect.unwrap(type(optimizer).step), optimizer)
        untraced = object()
        mine = weakref.ref(self)  # held by what it holds, it would outlive its run

        def update() -> Any:
            if not torch.compiler.is_dynamo_compiling():
                return untraced  # a backend may skip it; torch would trace all that it calls
            with torch.no_grad():
                return take()

        def compiled(optimizer: Optimizer) -> Any:
            result: Any = untraced
            try:
                result = traced()
            except Exception as error:
                if _comes_from(update, error):
                    raise
                if (alive := mine()) is not None:
                    alive.give_up(_message(error))
            if result is untraced:
                with torch.no_grad():
                    result = take()
            return result

        update.__code__ = update.__code__.replace(co_name=f"update_{type(optimizer).__name__}")
        traced: Callable[[], Any] = torch.compile(
            update, fullgraph=True, dynamic=False, **self._options
        )
        # The decorator that step() has: profiler, hooks of this and of every optimizer.
        hooked: Callable[[Optimizer], Any] = Optimizer.profile_hook_step(compiled)
        return hooked

    def give_up(self, reason: str) -> None:
        """Call the inner step as it is from now on, and say why, once."""
        if self.reason:
            return
        self.reason = reason
        name = type(self._optimizer).__name__
        logger.warning("compile=: the update of %s is not compiled: %s", name, reason)

    @contextmanager
    def _rates_in_tensors(self) -> Iterator[None]:
        groups = self._optimizer.param_groups
        while len(self._rates) < len(groups):
            self._rates.append(torch.zeros((), dtype=torch.float64, device=self._device()))
        given = [(group.get("lr"), group.get("foreach")) for group in groups]
        try:
            for group, rate, (lr, foreach) in zip(groups, self._rates, given, strict=False):
                if isinstance(lr, (int, float)):
                    group["lr"] = rate.fill_(lr)
                    if foreach:
                        group["foreach"] = None  # it takes no tensor; the compiler fuses anyway
            yield
        finally:
            for group, (lr, foreach) in zip(groups, given, strict=True):
                if isinstance(lr, (int, float)):
                    group["lr"] = lr
                    if foreach:
                        group["foreach"] = foreach

    def _device(self) -> torch.device:
        """Return where the learning rates lie: a CUDA graph takes nothing from the host."""
        places = {p.device for group in self._optimizer.param_groups for p in group["params"]}
        graphs = self._options.get("mode") in CUDA_GRAPHS
        on_gpu = [place for place in places if place.type == "cuda"]
        return on_gpu[0] if graphs and on_gpu else torch.device("cpu")

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles what a graph of their own is made from."""
        return {"optimizer": self._optimizer, "options": self._options, "inside": self._inside}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _comes_from(update: Callable[[], Any], error: BaseException) -> bool:
    """Return whether an error was raised while an update ran, which may then be half done.

    What cannot be compiled does not run, and has no frame. Its classes are many, without a common
    base: torch's own, FailOnRecompileLimitHit, IndexErrors and AssertionErrors of its compilers.
    """
    name = update.__code__.co_name
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == name for frame, _ in frames)


def _message(error: Exception) -> str:
    """Return what an error says, in one line."""
    ours = isinstance(error, torch._dynamo.exc.TorchDynamoException)
    cause = error if ours else error.__cause__ or error  # the limit has its reason there
    return " ".join(str(cause).split("\n")[:2]).strip() or type(error).__name__


def _kind_of(optimizer: Optimizer) -> tuple[Any, ...]:
    """Return the options that a graph is bound to."""
    return tuple(
        (key, value if isinstance(value, (int, float, bool, str, tuple)) else None)
        for group in optimizer.param_groups
        for key, value in group.items()
        if key not in ("params", "lr", "initial_lr") and not isinstance(value, Tensor)
    )
