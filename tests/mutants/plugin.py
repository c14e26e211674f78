"""Load one mutant in place of the real module: ``pytest -p tests.mutants.plugin``."""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

from tests.mutants.catalogue import MUTANTS


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, old: str, new: str) -> None:
        super().__init__(name, path)
        self._old, self._new = old, new

    def get_code(self, fullname: str) -> object:
        source = self.get_data(self.path).decode()
        if source.count(self._old) != 1:
            raise RuntimeError(f"{self.path}: the mutant's text occurs {source.count(self._old)}x")
        return self.source_to_code(source.replace(self._old, self._new).encode(), self.path)


class _Finder(MetaPathFinder):
    def __init__(self, name: str) -> None:
        self._mutant = MUTANTS[name]

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path)
        spec.loader = _Loader(fullname, spec.origin, self._mutant.old, self._mutant.new)
        return spec


if "STABLEOPT_MUTANT" in os.environ:
    sys.meta_path.insert(0, _Finder(os.environ["STABLEOPT_MUTANT"]))
