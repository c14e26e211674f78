"""What a run cost, and how to repeat it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stableopt.commands.report.markup import Html, el, join
from stableopt.commands.report.reproduce import recipe_of
from stableopt.commands.report.sections import counted, section
from stableopt.recorded.values import number_of, whole_of
from stableopt.runtime.words import count, duration, size
from stableopt.sensors.governor import CREDIT
from stableopt.telemetry.encode import plain

if TYPE_CHECKING:
    from stableopt.recorded.run import Run


def costs(run: Run) -> Html:
    """Return what snapshots, sensors and telemetry took, as far as the summary knows."""
    pairs = [*_memory(run), *_overhead(run)]
    if not pairs:
        pairs = [("not recorded", "There is no summary.json that can be read.")]
    terms = [join(el("dt", name), el("dd", value)) for name, value in pairs]
    return section("Memory and overhead", el("dl", *terms, class_="facts"), name="cost")


def _memory(run: Run) -> list[tuple[str, str]]:
    slots, slot_bytes = run.setting("snapshots", "slots"), run.setting("snapshots", "slot_bytes")
    most = number_of(run.setting("snapshots", "bytes_at_most"))
    if whole_of(slots) is None or number_of(slot_bytes) is None or most is None:
        return []
    where = run.setting("snapshots", "memory")
    now = number_of(run.setting("snapshots", "bytes")) or 0.0
    taken = counted(run.setting("snapshots", "taken"))
    pairs = [
        (
            "snapshots",
            f"{count(slots, 'slot')} of {size(slot_bytes)} in {where} memory: "
            f"{size(most)} at most, {size(now)} now; {taken} taken",
        )
    ]
    steps = run.setting("snapshots", "steps")
    if isinstance(steps, list):
        held = [
            f"step {s.get('step')}{'' if s.get('verified') else ' (not verified yet)'}"
            for s in steps
            if isinstance(s, dict)
        ]
        pairs.append(("held now", ", ".join(held) or "none"))
    return pairs


def _overhead(run: Run) -> list[tuple[str, str]]:
    pairs = []
    share = number_of(run.setting("sensors", "share"))
    if share is not None:
        waits, postponed = run.setting("sensors", "waits"), run.setting("sensors", "postponed")
        weights = counted(run.setting("sensors", "weights"))
        pairs.append(
            (
                "sensors",
                f"{share:.2%} of the time, on {weights} weights; postponed {counted(postponed)} "
                f"times, waited for {counted(waits)} times{_excess(run, share)}",
            )
        )
    dropped, failed = run.setting("telemetry", "dropped"), run.setting("telemetry", "failed")
    if whole_of(dropped) is not None:
        pairs.append(
            ("telemetry", f"{count(dropped, 'event')} dropped, {counted(failed)} writes failed")
        )
    if run.began is not None and run.ended is not None and run.call > run.first_call:
        each = (run.ended - run.began) / (run.call - run.first_call)
        spent = duration(each) if each >= 1 else f"{1000 * each:.3g} ms"
        pairs.append(("a call of step()", f"every {spent} on average, all of training included"))
    return pairs


def _excess(run: Run, share: float) -> str:
    """Return why the sensors took more than their budget; nothing if they did not."""
    budget = number_of(run.setting("sensors", "budget"))
    if budget is None or not share > budget:
        return ""
    return (
        f". That is above the budget of {budget:.3g} ({budget:.2%}): the first visit of all "
        f"weights, {1000 * CREDIT:.0f} ms in advance, and visits that something acts upon are "
        "not held to it, and weigh much in a short run or with short steps"
    )


def reproduce(run: Run) -> Html:
    """Return the configuration and the versions."""
    if run.summary is None:
        missing = "There is no summary.json that can be read: the configuration is not recorded."
        return section("To reproduce", el("p", missing), name="reproduce")
    recipe = recipe_of(run)
    versions = run.setting("versions")
    pairs = [
        ("optimizer", str(run.setting("optimizer"))),
        ("parameters", counted(run.setting("parameters"))),
    ]
    options = run.setting("hyperparameters")
    if isinstance(options, dict) and options:
        given = ", ".join(f"{name}={_option(value)}" for name, value in options.items())
        pairs.insert(1, ("its options", given))
    if isinstance(versions, dict):
        pairs += [(str(name), str(version)) for name, version in versions.items()]
    tracked = run.setting("tracked")
    if isinstance(tracked, list) and tracked:
        pairs.append(("tracked", ", ".join(map(str, tracked))))
    terms = [join(el("dt", name), el("dd", value)) for name, value in pairs]
    own = "" if options else ", the options of the inner optimizer"
    yours = f"Model, data, seed and schedule{own} are yours: they are not recorded."
    return section(
        "To reproduce",
        el("dl", *terms, class_="facts"),
        el("p", "For ", el("code", "StableOptimizer.from_config(optimizer, config)"), ":"),
        el("pre", el("code", json.dumps(plain(recipe.config), indent=2)), tabindex="0"),
        el("p", " ".join([*recipe.beyond, yours]), class_="note"),
        name="reproduce",
    )


def _option(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False)
