"""What a record says was done, beside taking the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from stableopt.recorded.values import dict_of, list_of, number_of, whole_of
from stableopt.runtime.words import count


class Kind(str, Enum):
    """What was done, from the gravest down."""

    STOP = "stop"
    ROLL_BACK = "roll_back"
    SKIP = "skip"
    TAME = "tame"
    BACK_OFF = "back_off"
    RISK = "risk"
    NOTICE = "notice"
    CORRECTION = "correction"


WORDS: Mapping[Kind, str] = {
    Kind.STOP: "stopped",
    Kind.ROLL_BACK: "rolled back",
    Kind.SKIP: "skipped",
    Kind.TAME: "tamed",
    Kind.BACK_OFF: "backed off",
    Kind.RISK: "risk rose",
    Kind.NOTICE: "noticed",
    Kind.CORRECTION: "corrected",
}
"""Each kind in words."""


_SYMPTOMS = frozenset({"nonfinite_gradient", "gradient_spike"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """A call of ``step()`` in which something was done beside taking the step.

    Attributes:
        kind: What was done.
        call: Which call of ``step()``.
        step: Updates taken so far, this one included.
        time: Seconds since the epoch; ``None`` if it was not recorded.
        reason: Why, as a sentence.
        layers: Names of the parameters that are to blame, as far as the findings say.
        loss: Of the batch; ``None`` if it was not observed.
        from_step: Updates before a rollback.
        to_step: Updates after it.
        lr_scale: Factor on the learning rates from here on.
    """

    kind: Kind
    call: int
    step: int
    time: float | None = None
    reason: str = ""
    layers: tuple[str, ...] = ()
    loss: float | None = None
    from_step: int | None = None
    to_step: int | None = None
    lr_scale: float = 1.0

    @property
    def undone(self) -> int:
        """Updates that it has undone."""
        if self.from_step is None or self.to_step is None:
            return 0
        return max(0, self.from_step - self.to_step)

    @property
    def refused(self) -> bool:
        """Whether its batch was not trained on."""
        return self.kind in (Kind.SKIP, Kind.ROLL_BACK, Kind.STOP)

    def sentence(self) -> str:
        """Return what was done as a sentence, without the reason."""
        if self.kind is Kind.SKIP:
            return "The batch was skipped: it never happened."
        if self.kind is Kind.ROLL_BACK:
            where = "" if self.to_step is None else f" to step {self.to_step}"
            lost = f": {count(self.undone, 'update')} undone" if self.undone else ""
            return f"The run was rolled back{where}{lost}.{self._lowered()}"
        if self.kind is Kind.STOP:
            step = self.to_step
            return "The run was stopped." + (
                "" if step is None else f" The weights are those of step {step}."
            )
        if self.kind is Kind.BACK_OFF:
            return f"The step was taken.{self._lowered()}"
        return {
            Kind.TAME: "The step was taken with gradients scaled down to what is usual.",
            Kind.RISK: "The step was taken; the risk rose.",
            Kind.NOTICE: "The step was taken, and something was noticed.",
            Kind.CORRECTION: "The step was taken; a transform began to correct it.",
        }[self.kind]

    def _lowered(self) -> str:
        if self.lr_scale == 1.0:
            return ""
        return f" Learning rates are multiplied by {self.lr_scale:g} from here on."


def read_intervention(record: Mapping[str, Any], call: int, step: int) -> Intervention | None:
    """Return what a record says was done; ``None`` if its step was simply taken.

    Args:
        record: Of an event.
        call: Its call.
        step: Its step.
    """
    findings = [f for f in list_of(record.get("findings")) if isinstance(f, dict)]
    kind = _kind_of(record, [str(f.get("kind", "")) for f in findings])
    if kind is None:
        return None
    back = dict_of(record.get("rollback"))
    # A fault in the state shows in every gradient: what holds the fault is to blame.
    causes = [f for f in findings if f.get("kind") not in _SYMPTOMS and f.get("where")] or findings
    where = [name for f in causes for name in list_of(f.get("where")) if isinstance(name, str)]
    scale = number_of(back.get("lr_scale", record.get("lr_scale")))
    return Intervention(
        kind=kind,
        call=call,
        step=step,
        time=number_of(record.get("time")),
        reason=str(record.get("reason", "")),
        layers=tuple(dict.fromkeys(where)),
        loss=number_of(record.get("loss")),
        from_step=whole_of(back.get("from_step")),
        to_step=whole_of(back.get("to_step")),
        lr_scale=1.0 if scale is None else scale,
    )


def _kind_of(record: Mapping[str, Any], kinds: Sequence[str]) -> Kind | None:
    action = record.get("action")
    if action in ("skip", "roll_back", "stop"):
        return Kind(action)
    if record.get("backs_off") is True:
        return Kind.BACK_OFF
    if record.get("tames") is True:
        return Kind.TAME
    if kinds:
        return Kind.RISK if all(k.startswith("risk_") for k in kinds) else Kind.NOTICE
    return Kind.CORRECTION if record.get("reason") else None


def in_rows(interventions: Iterable[Intervention]) -> Iterator[list[Intervention]]:
    """Yield interventions, those of one kind at consecutive calls together.

    Rollbacks and stops are always entries of their own.
    """
    row: list[Intervention] = []
    for intervention in interventions:
        single = intervention.kind in (Kind.ROLL_BACK, Kind.STOP)
        follows = row and not single and row[-1].kind is intervention.kind
        if row and not (follows and intervention.call - row[-1].call == 1):
            yield row
            row = []
        row.append(intervention)
    if row:
        yield row
