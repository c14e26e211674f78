"""Lines of logging: the numbers always, the sentence where nothing else logs it."""

from __future__ import annotations

import logging

import pytest
import torch

from stableopt import ConfigError, DivergenceError, Guard, StableOptimizer
from stableopt.telemetry import LoggingWriter
from stableopt.telemetry.metrics import metrics_of
from tests.telemetry.runs import train


def records_of(caplog, name):
    return [r for r in caplog.records if r.name == name]


def test_the_log_holds_what_the_run_said(events, caplog):
    caplog.set_level(logging.INFO)
    opt, _ = train([LoggingWriter("train", every=10), events])
    *logged, end = records_of(caplog, "train")
    wanted = [e for e in events.seen if not e.routine or e.step % 10 == 0]
    assert [r.stable["call"] for r in logged] == [e.call for e in wanted]
    for event, record in zip(wanted, logged, strict=True):
        for name, value in metrics_of(event).items():
            assert repr(record.stable[name]) == repr(value)
        healthy = event.routine
        assert record.levelno == (logging.INFO if healthy else logging.WARNING)
        assert (f"because {event.reason}" in record.getMessage()) is not healthy
    assert "loss nan" in logged[1].getMessage()
    assert "lr/0 0.001, lr/1 0.002" in logged[0].getMessage()
    assert end.getMessage() == "run closed: integrity OK, 40 calls, 1 skips, 0 tamed, 1 rollbacks"
    assert opt.summary()["telemetry"]["failed"] == 0


def test_an_intervention_is_not_explained_twice(caplog):
    caplog.set_level(logging.INFO)
    train(LoggingWriter(every=10))
    assert sum("the loss is nan" in r.getMessage() for r in caplog.records) == 1
    assert any("loss nan" in r.getMessage() for r in records_of(caplog, "stableopt.run"))


def test_the_end_of_a_run_is_logged_once(caplog):
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.full((2,), torch.nan)
    opt = StableOptimizer(
        torch.optim.SGD([w], lr=0.1), telemetry=LoggingWriter("train"), guard=Guard(max_skips=0)
    )
    with pytest.raises(DivergenceError):
        opt.step()
    opt.close()
    logged = [r.getMessage() for r in records_of(caplog, "train")]
    ends = [line for line in logged if line.startswith("run ")]
    assert ends == ["run stopped: integrity COMPROMISED, 1 calls, 0 skips, 0 tamed, 0 rollbacks"]
    assert len(logged) == 2


def test_a_level_that_is_not_enabled_costs_nothing(caplog):
    caplog.set_level(logging.WARNING)
    train(LoggingWriter("train"), faults=False)
    assert not records_of(caplog, "train")


@pytest.mark.parametrize(
    "options", [{"logger": 3}, {"every": 0}, {"level": "INFO"}], ids=lambda o: next(iter(o))
)
def test_options_are_checked(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        LoggingWriter(**options)
