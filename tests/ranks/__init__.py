"""Tests on several ranks; each rank is a process of its own."""

import tests.mutants.plugin  # noqa: F401 - the other processes have to meet the mutant, too
