"""The look of every picture."""

from __future__ import annotations

from typing import Any

INK = "#3c4048"
"""Of text, ticks and edges."""

STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""For ``matplotlib.rc_context``."""
