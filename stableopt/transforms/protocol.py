"""What a transform is: a few declared attributes, ``find()`` and ``act()``."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stableopt.transforms.selection import Select
    from stableopt.transforms.site import Site
    from stableopt.transforms.view import StepView


class Phase(str, Enum):
    """When a transform acts in a step that is taken."""

    GRADIENT = "gradient"
    """Before the inner optimizer's step, on gradients. With a closure that is evaluated many
    times (LBFGS), after each evaluation."""
    UPDATE = "update"
    """After the inner step, on the change that it made to weights; before ``WEIGHT``."""
    WEIGHT = "weight"
    """After the inner step, on weights."""


class Needs(NamedTuple):
    """What a transform reads.

    Attributes:
        metrics: Metrics of sensors, or signals of ``observe()``.
        previous: Whether it calls :meth:`StepView.previous`, which costs a copy of the weights.
        lr: Whether it calls :meth:`StepView.lr` or :meth:`StepView.peak_lr`.
        signals: Signals of ``observe()`` that it looks up itself. On several ranks it is given the
            largest value of each, where ``metrics`` are means.
    """

    metrics: tuple[str, ...] = ()
    previous: bool = False
    lr: bool = False
    signals: tuple[str, ...] = ()


class Target(NamedTuple):
    """A parameter that is acted on.

    Attributes:
        name: Unique in the optimizer; use it as a key in ``memory``.
        place: ``(group, index)`` in the optimizer. Trainers may replace parameters: look them up
            in every step, with :meth:`StepView.parameter`.
    """

    name: str
    place: tuple[int, int]


class Found(NamedTuple):
    """What ``find()`` returns.

    Attributes:
        targets: The parameters to act on.
        parts: Anything else that ``act()`` needs, such as layouts.
    """

    targets: Sequence[Target]
    parts: Any = None


class Change(NamedTuple):
    """What was done to one parameter.

    Attributes:
        name: Of the parameter; empty for a change of all parameters together.
        before: The metric of the transform before the change.
        after: And after it.
    """

    name: str
    before: float
    after: float


@runtime_checkable
class Transform(Protocol):
    """Changes gradients or weights around the inner optimizer's step.

    One object may be given to any number of optimizers: its state belongs into ``memory``.

    Example:
        >>> import torch
        >>> from stableopt import StableOptimizer
        >>> from stableopt.transforms import Change, Found, Needs, Phase
        >>> class Floor:
        ...     '''Keep every entry of a weight at least at ``least``.'''
        ...     params = None  # all parameters; or patterns of names
        ...     phase = Phase.WEIGHT
        ...     metric = "smallest_entry"
        ...     routine = True  # also acts in healthy training
        ...     needs = Needs()
        ...     def __init__(self, least):
        ...         self.least = least
        ...     def find(self, site):
        ...         return Found(site.targets)
        ...     def act(self, view, found, memory):
        ...         changes = []
        ...         for target in found.targets:
        ...             weight = view.parameter(target)
        ...             smallest = float(weight.min())
        ...             if smallest < self.least:
        ...                 weight.clamp_(min=self.least)
        ...                 memory[target.name] = memory.get(target.name, 0) + 1
        ...                 changes.append(Change(target.name, smallest, self.least))
        ...         return changes
        >>> w = torch.nn.Parameter(torch.tensor([0.5, -3.0]))
        >>> opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), transforms=[Floor(-1.0)])
        >>> w.grad = torch.zeros(2)
        >>> opt.step()
        >>> opt.ledger[-1].reason
        'Floor moves the smallest_entry of 0.0 from -3 to -1'
        >>> opt.state_dict()["stableopt"]["transforms"]["states"]
        {'0.Floor': {'0.0': 1}}
    """

    @property
    def params(self) -> Select:
        """Which parameters it may act on; ``None`` for all."""

    @property
    def phase(self) -> Phase:
        """When it acts."""

    @property
    def metric(self) -> str:
        """What it changes. No parameter may have two transforms with the same metric."""

    @property
    def routine(self) -> bool:
        """Whether it also acts in healthy training, so that acting is no intervention."""

    @property
    def needs(self) -> Needs:
        """What it reads."""

    def find(self, site: Site) -> Found:
        """Return the parameters to act on; called again when the parameters change.

        Raises:
            NothingSelectedError: There are none.
            ConfigError: It cannot act on them.
        """

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Change gradients or weights in place, under ``no_grad``; return what was changed.

        What need not be changed must stay as it is, bit for bit.

        Args:
            view: The step.
            found: What ``find()`` returned.
            memory: Kept from step to step, restored by a rollback and saved in checkpoints.
                Empty at first; numbers, strings, lists, dicts and tensors only.
        """
