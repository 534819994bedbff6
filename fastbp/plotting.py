"""matplotlib, which is imported when something is drawn."""

from __future__ import annotations

from typing import Any


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, in inches; an ImportError that names the extra where matplotlib is missing."""
    try:
        from matplotlib import figure  # its own figure: pyplot would keep it in a global list
    except ImportError as error:
        raise ImportError("plot: it needs matplotlib; install it with: pip install fastbp[plot]") from error
    return figure.Figure(figsize=(width, height), layout="constrained")
