"""Being a torch optimizer that owns nothing of the one it wraps."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from stableopt.config import checks, reader
from stableopt.loop.step import StepLoop

if TYPE_CHECKING:
    from collections.abc import Callable


KEY = "stableopt"
"""The key of what is ours in the optimizer's state dict."""


class _Inner:
    """An attribute that lives in the inner optimizer: read and written there, never here."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, wrapper: Wrapper | None, owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.optimizer, self._name)

    def __set__(self, wrapper: Wrapper, value: Any) -> None:
        setattr(wrapper.optimizer, self._name, value)


class Wrapper(Optimizer):
    """Is a :class:`torch.optim.Optimizer`, and owns nothing of the one that it wraps.

    Attributes:
        optimizer: The inner optimizer.
    """

    optimizer: Optimizer
    _loop: StepLoop

    param_groups = _Inner()
    state = _Inner()
    defaults = _Inner()
    _optimizer_step_pre_hooks = _Inner()
    _optimizer_step_post_hooks = _Inner()
    _optimizer_state_dict_pre_hooks = _Inner()
    _optimizer_state_dict_post_hooks = _Inner()
    _optimizer_load_state_dict_pre_hooks = _Inner()
    _optimizer_load_state_dict_post_hooks = _Inner()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the inner optimizer, skip it, or restore a snapshot.

        Args:
            closure: Reevaluates the model and returns the loss. It is evaluated before the
                inner step (and before its hooks), also when the step is then skipped.

        Returns:
            The closure's loss, else what the inner optimizer returns.

        Raises:
            DivergenceError: The run cannot go on: more than ``Guard.max_rollbacks`` rollbacks in
                an episode did not help, no rollback or no snapshot is left, or a rule or a
                response asks to stop. (More than ``Guard.max_skips`` skips in a row roll back.)
        """
        compiling = torch.compiler.is_dynamo_compiling()  # the other one asks for all threads
        if compiling and closure is None and not self._loop.traced.obstacle:
            return self._loop.traced()
        return self._eager_step(closure, compiling)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _eager_step(self, closure: Callable[[], Any] | None, compiling: bool) -> Any:
        if compiling:
            self._loop.warn_untraced()
        return self._loop(closure)

    # The inner step fires the global hooks, so torch must not add them to this one; and a
    # scheduler must not replace it on the instance, where a copy would step the original.
    step.hooked = True  # type: ignore[attr-defined]
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, as the inner optimizer does."""
        if torch.compiler.is_dynamo_compiling():
            self.optimizer.zero_grad(set_to_none=set_to_none)
            return
        self._loop.settle(lagged=False)
        self.optimizer.zero_grad(set_to_none=set_to_none)
        self._loop.signals.end_batch()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the inner optimizer; it may have ``transforms`` of its own.

        Raises:
            ConfigError: A transform cannot work with it; the group is then not added.
        """
        checks.check_group(param_group)
        self._loop.settle()
        transforms = reader.group_transforms(param_group)
        self._loop.wait()
        bare = {key: value for key, value in param_group.items() if key != "transforms"}
        self.optimizer.add_param_group(bare)
        try:
            self._loop.add_transforms(transforms, len(self.param_groups) - 1)
        except BaseException:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state dict, with ours under the key ``"stableopt"``.

        A bare optimizer loads it as well. It is plain data (``weights_only=True``).
        """
        self._loop.wait()
        self._loop.settle()
        return {**self.optimizer.state_dict(), KEY: self._loop.register.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of a wrapped or of a bare optimizer; the ring of snapshots is emptied.

        Raises:
            ConfigError: What is under ``"stableopt"`` is broken; nothing was loaded then.
        """
        load = self._loop.prepare(state_dict.get(KEY, {}))  # refuses before anything moves
        self._loop.settle()
        self._loop.wait()
        inner = {key: value for key, value in state_dict.items() if key != KEY}
        self.optimizer.load_state_dict(inner)
        load()

    @property
    def train(self) -> Any:
        """The inner optimizer's ``train``; absent if it has none (schedule-free ones do)."""
        return self._inner_method("train")

    @property
    def eval(self) -> Any:
        """The inner optimizer's ``eval``; absent if it has none."""
        return self._inner_method("eval")

    def _inner_method(self, name: str) -> Any:
        self._loop.wait()
        method = getattr(self.optimizer, name, None)
        if method is None:
            raise AttributeError(f"{type(self.optimizer).__name__} has no {name}()")
        return method

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tell GradScaler to unscale first, so that true gradients are judged.

        Only when it has stopped calling :meth:`step` because the weights are not finite
        themselves does it get True here, and calls: a rollback needs no gradients.
        """
        # If it skips this batch, no step will be taken on it.
        self._loop.signals.end_batch()
        return self._loop.scaler.must_step()

    @property
    def _opt_called(self) -> bool:
        """Tell schedulers whether a step was called before theirs."""
        return self._loop.called or self._loop.traced.called

    @_opt_called.setter
    def _opt_called(self, value: bool) -> None:
        self._loop.called = value

    def __getattr__(self, name: str) -> Any:
        """Point to the inner optimizer: delegating blindly would leak what is not ours."""
        inner = self.__dict__.get("optimizer")
        hint = ""
        if inner is not None and not name.startswith("__") and hasattr(inner, name):
            hint = f"; the wrapped {type(inner).__name__} has it: use .optimizer.{name}"
        raise AttributeError(f"'StableOptimizer' object has no attribute {name!r}{hint}")

    def __repr__(self) -> str:
        return f"StableOptimizer(guard={self._loop.guard or False!r}, {self.optimizer!r})"

    def __eq__(self, other: object) -> bool:
        """Be equal to the inner optimizer, for code that follows ``.optimizer`` and compares."""
        return other is self or other is self.__dict__.get("optimizer", self)

    def __hash__(self) -> int:
        """Be found in sets and dicts where the inner optimizer is."""
        return hash(self.__dict__.get("optimizer", id(self)))

    def _take_its_name(self) -> None:
        """Be of a class that is called like that of the inner optimizer: trackers name by it."""
        self.__class__ = _class_like(type(self), type(self.optimizer))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Be found by the class that has a module, and not by that which only has a name."""
        return _empty, (getattr(type(self), "_wraps_with", type(self)),), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles everything but the writers."""
        self._loop.settle()
        return {"optimizer": self.optimizer, "loop": self._loop}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A model that holds its optimizer is not filled yet: nothing here may look at it.
        self.optimizer = state["optimizer"]
        self._take_its_name()
        self._loop = state["loop"]
        self._close_at_exit()

    def _close_at_exit(self) -> None:
        # Weakly: what is tracked may hold this optimizer, and would never be let go.
        self._finalizer = weakref.finalize(self, _close, weakref.ref(self._loop))

    def __del__(self) -> None:
        """Close what the collector found in a cycle: its weak references are dead by now."""
        loop = self.__dict__.get("_loop")
        if loop is not None:
            loop.close()


_classes: dict[tuple[type, type], type[Wrapper]] = {}


def _class_like(wrapper: type[Wrapper], inner: type) -> type[Wrapper]:
    """Return a class of wrappers that has the name of the inner optimizer's."""
    base = getattr(wrapper, "_wraps_with", wrapper)
    if (base, inner) not in _classes:
        known = {"_wraps_with": base, "__module__": base.__module__, "__doc__": base.__doc__}
        _classes[base, inner] = type(inner.__name__, (base,), known)
    return _classes[base, inner]


def _empty(wrapper: type[Wrapper]) -> Wrapper:
    return wrapper.__new__(wrapper)


def _close(loop: weakref.ref[StepLoop]) -> None:
    alive = loop()
    if alive is not None:
        alive.close()
