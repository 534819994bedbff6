"""Sums over vectors."""

from __future__ import annotations

import numpy as np

from fastbp.core.plan import Array


def squared_norm(x: Array, groups: Array | None, threads: int) -> float:
    """The sum of squares of a gradient x (n,), in float64, without those of frozen parameters (plan.GROUP)."""
    squares = np.square(x, dtype=np.float64)
    for group in () if groups is None else groups:
        if group["lr"] == 0:
            squares[group["begin"] : group["end"]] = 0
    return float(squares.sum())


def all_finite(x: Array) -> bool:
    """Whether no entry of x is NaN or infinite; in chunks, so that a large x is not doubled in memory."""
    flat = x.reshape(-1)
    return all(bool(np.isfinite(flat[i : i + 65536]).all()) for i in range(0, flat.size, 65536))
