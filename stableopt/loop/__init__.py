"""One step: observe, judge, decide, act, record. Begin with ``step.py``."""
