"""A writer records one run, once: what is closed or in use is refused, and nothing is lost."""

from __future__ import annotations

import gc

import pytest
import torch

from stableopt import ConfigError, Guard, JsonLines, StableOptimizer
from stableopt.telemetry import LifecycleEvents, LoggingWriter, claims
from tests.telemetry.runs import make, train

MAKERS = {
    "JsonLines": lambda path: JsonLines(path),
    "LifecycleEvents": lambda path: LifecycleEvents(path / "events.jsonl"),
    "LoggingWriter": lambda path: LoggingWriter("train.claims"),
}


def tracker(name, path):
    """Return a writer by its name."""
    if name == "TensorBoardWriter":
        module = pytest.importorskip("stableopt.integrations.tensorboard")
        return module.TensorBoardWriter(path)
    if name == "WandbWriter":
        module = pytest.importorskip("stableopt.integrations.wandb")
        return module.WandbWriter(mode="disabled", directory=path)
    if name == "MLflowWriter":
        module = pytest.importorskip("stableopt.integrations.mlflow")
        return module.MLflowWriter(tracking_uri=f"sqlite:///{path}/mlflow.db")
    return MAKERS[name](path)


def bare(telemetry, **options):
    """Return an optimizer of one parameter."""
    w = torch.nn.Parameter(torch.ones(2))
    return StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=telemetry, **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "name",
    [
        "JsonLines",
        "LifecycleEvents",
        "LoggingWriter",
        "TensorBoardWriter",
        "MLflowWriter",
        "WandbWriter",
    ],
)
def test_a_writer_has_one_run(tmp_path, events, name):
    writer = tracker(name, tmp_path)
    opt = bare([writer])
    with pytest.raises(ConfigError, match=f"telemetry={name} object is in use by another optimi"):
        bare([events, writer])
    opt.close()
    with pytest.raises(ConfigError, match=f"{name} object was closed at the end of the training"):
        bare(writer)
    bare(events).close()  # the one beside it was not taken


def test_a_run_that_is_forgotten_is_closed(events):
    opt = bare(events)
    del opt
    gc.collect()
    assert events.closed == 1
    with pytest.raises(ConfigError, match="was closed"):
        bare(events)


def test_one_that_is_given_twice(events):
    with pytest.raises(ConfigError, match="is in the list twice"):
        bare([events, events])


@pytest.mark.parametrize("options", [{"compile": 3}, {"guard": Guard(), "model": 3}])
def test_an_optimizer_that_could_not_be_built_takes_nothing(events, options):
    with pytest.raises(ConfigError):
        bare(events, **options)
    opt = bare(events)
    opt.param_groups[0]["params"][0].grad = torch.ones(2)
    opt.step()
    opt.close()
    assert [event.step for event in events.seen] == [1]


def test_a_copy_takes_nothing(events):
    import copy

    opt, _ = make(events)
    copy.deepcopy(opt).close()
    opt.close()
    assert events.closed == 1


def test_a_writer_that_is_gone_leaves_no_trace(events):
    gc.collect()
    before = dict(claims._states)
    writer = LifecycleEvents(lambda event: None)
    train(writer, faults=False, steps=1)
    del writer
    gc.collect()
    assert claims._states == before


def test_a_writer_without_weak_references(events):
    class Bare:
        __slots__ = ("seen",)

        def __init__(self):
            self.seen = []

        def write(self, event):
            self.seen.append(event)

        def close(self):
            pass

    writer = Bare()
    opt = bare(writer)
    with pytest.raises(ConfigError, match="in use"):
        bare(writer)
    opt.close()
    assert id(writer) not in claims._states  # its number may be that of another one tomorrow
