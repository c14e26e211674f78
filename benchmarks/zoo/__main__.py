"""Run as ``python -m benchmarks.zoo``."""

from __future__ import annotations

import sys

from benchmarks.zoo.command import main

if __name__ == "__main__":  # workers import this module, too
    sys.exit(main())
