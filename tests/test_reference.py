"""Every public name is in ``docs/reference``, and what is there exists."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import stableopt
from stableopt import integrations

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"

ENTRIES = {
    entry: page.name
    for page in sorted(REFERENCE.glob("*.md"))
    for entry in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
}
"""By name, the page that has it."""

PACKAGES = (
    "functional",
    "guard",
    "layouts",
    "recorded",
    "sensors",
    "telemetry",
    "testing",
    "transforms",
    "triggers",
    "types",
)

MODULES = ("presets", "optimizer.gate")
"""Public, and without ``__all__``: every class and function that they define."""


def resolve(name: str) -> object:
    """Return what a dotted name stands for: a module, or something in one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return getattr(resolve(module), last)


def defined(module: object) -> list[str]:
    """Return the public classes and functions that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def names_of(module: object) -> list[str]:
    """Return what is public in an integration."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [name for name in defined(module) if name.endswith(("Writer", "Callback"))]


def public() -> dict[str, object]:
    """Return everything public by name."""
    names = {f"stableopt.{name}": getattr(stableopt, name) for name in stableopt.__all__}
    del names["stableopt.__version__"]
    listed = {f"stableopt.{package}": lambda module: module.__all__ for package in PACKAGES}
    listed |= {f"stableopt.{module}": defined for module in MODULES}
    for info in pkgutil.iter_modules(integrations.__path__):
        listed[f"stableopt.integrations.{info.name}"] = names_of
    for path, list_names in listed.items():
        module = importlib.import_module(path)
        names |= {f"{path}.{name}": getattr(module, name) for name in list_names(module)}
    return names


PUBLIC = public()
OWN = [resolve(entry) for entry in ENTRIES]


def is_listed(name: str) -> bool:
    """Return whether the entry of a module shows a name: not where a file has the same name."""
    file = REFERENCE.parents[1] / f"{name.replace('.', '/')}.py"
    return name.rpartition(".")[0] in ENTRIES and not file.exists()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_entry(name):
    """Its own, that of another public name for the same, or that of its module."""
    assert any(PUBLIC[name] is value for value in OWN) or is_listed(name)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_exists(entry):
    assert resolve(entry) is not None


def test_no_name_has_two_entries():
    assert len({id(value) for value in OWN}) == len(OWN)


def test_modules_with_an_entry_say_what_is_public():
    """mkdocstrings lists what is in ``__all__``, or defined in the module itself."""
    for entry in ENTRIES:
        value = resolve(entry)
        if inspect.ismodule(value) and hasattr(value, "__path__"):
            assert value.__all__


def test_every_page_is_in_the_overview():
    overview = (REFERENCE / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in REFERENCE.glob("*.md")} - {"index.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", overview))
