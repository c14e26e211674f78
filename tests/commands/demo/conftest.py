"""A model that trains in a second, and the command line around it."""

from __future__ import annotations

from functools import partial

import pytest
from typer.testing import CliRunner

from stableopt.commands import command_line as cli
from stableopt.commands.demo.corpus import load_corpus
from stableopt.commands.demo.model import ModelOptions
from stableopt.commands.demo.options import Recipe

TINY = ModelOptions(context=16, width=16, depth=1, heads=2)


class Recorder:
    """A watcher that keeps what it receives."""

    def __init__(self):
        self.rates = []
        self.strikes = []

    def stepped(self, step, loss, lr, action):
        self.rates.append(lr)

    def struck(self, strike):
        self.strikes.append(strike)


@pytest.fixture(scope="session")
def tiny_recipe():
    """Make a recipe for a tiny model."""
    return partial(Recipe, batch=16, lr=1e-2, model=TINY)


@pytest.fixture(scope="session")
def corpus():
    return load_corpus()


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def demo(monkeypatch, tmp_path, tiny_recipe):
    """Run ``stableopt demo`` with a tiny model; ``.out`` is the directory."""
    monkeypatch.setattr("stableopt.commands.demo.command.Recipe", tiny_recipe)

    def invoke(*options, out=tmp_path / "out"):
        # Wide enough that no sentence is broken.
        env = {"COLUMNS": "200"}
        return CliRunner(env=env).invoke(cli.app, ["demo", "--out", str(out), *options])

    invoke.out = tmp_path / "out"
    return invoke
