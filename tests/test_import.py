"""What importing the package imports."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import stableopt

EXTRAS = {
    "accelerate",
    "jsonschema",
    "lightning",
    "matplotlib",
    "mlflow",
    "optuna",
    "peft",
    "rich",
    "safetensors",
    "tensorboard",
    "transformers",
    "typer",
    "wandb",
}


def imported(code):
    """Return the top-level modules that a new interpreter has imported after ``code``."""
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_package_alone_imports_nothing():
    """Names are imported when they are asked for: ``--help`` does not wait for torch."""
    assert not imported("import stableopt") & {"torch", "einops", "numpy", *EXTRAS}


def test_the_wrapper_imports_no_extra():
    code = "import torch; a = {n.partition('.')[0] for n in sys.modules}; import stableopt; "
    code = f"import sys; {code} stableopt.StableOptimizer; print(*EXTRAS & set(sys.modules) - a)"
    code = code.replace("EXTRAS", repr(EXTRAS))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("name", stableopt.__all__)
def test_every_public_name_is_there(name):
    assert getattr(stableopt, name) is not None
    assert name in dir(stableopt)


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'StableOptimiser'"):
        stableopt.StableOptimiser  # noqa: B018
    assert not hasattr(stableopt, "cli2")


@pytest.mark.parametrize("package", ["stableopt", "stableopt.telemetry", "stableopt.transforms"])
def test_no_lazy_name_is_that_of_a_module(package):
    """Whoever imported the module would then get it in place of what the name stands for."""
    found = importlib.import_module(package)
    modules = {module.name for module in pkgutil.iter_modules(found.__path__)}
    assert not modules & set(found.__all__)
    for name in found.__all__:
        assert not inspect.ismodule(getattr(found, name))
