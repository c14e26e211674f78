"""Run pytest over and over in forks of one process that has done the slow imports.

``python -m tests.mutants.server`` reads the name of a mutant per line, and answers with a line of
JSON. The package itself is imported in the forks alone, where the mutant is in its place.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback

import hypothesis  # noqa: F401
import numpy as np  # noqa: F401
import pytest
import torch._dynamo  # noqa: F401

from tests.mutants.catalogue import MUTANTS

OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-p", "tests.mutants.plugin"]
OPTIONS += ["-p", "no:xdist", "-p", "no:benchmark"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported here


def run(name: str) -> tuple[int, str]:
    """Return the exit code of pytest over the tests of a mutant, and what it printed."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os.environ["STABLEOPT_MUTANT"] = name
                code = int(pytest.main([*OPTIONS, *MUTANTS[name].tests]))
            except BaseException:  # noqa: BLE001 - what else would tell of it
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


def main() -> None:
    """Serve until there is nobody to ask any more."""
    assert not any(name.partition(".")[0] == "stableopt" for name in sys.modules)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        code, report = run(line.strip())
        answers.write(json.dumps({"code": code, "report": report}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
