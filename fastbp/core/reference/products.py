"""The matrix product."""

from __future__ import annotations

import numpy as np

from fastbp.core.plan import Array


def matmul(c: Array, a: Array, b: Array, scratch: Array, threads: int) -> None:
    """c (m, n) = a (m, k) @ b (k, n); a and b may be transposed views."""
    np.matmul(a, b, out=c)
