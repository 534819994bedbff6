"""Dropout (Srivastava et al. 2014)."""

from __future__ import annotations

import numpy as np

from fastbp.core.plan import Array
from fastbp.core.reference.layers.record import KINDS, Call, Kind
from fastbp.core.reference.order import GOLDEN, MASK, mix


def dropout(y: Array, x: Array, p: float, key: int, step: int, threads: int) -> None:
    """y = x * mask / (1 - p); the mask is element i of the SplitMix64 stream that key and step select.

    Serves both directions: the backward pass computes the same mask again instead of keeping it.
    """
    start = int(mix(np.array([(key + GOLDEN * step) & MASK], dtype=np.uint64))[0])
    index = np.arange(1, x.size + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(start)
    keep = (mix(index) >> np.uint64(32)) >= np.uint64(p * 2.0**32)
    y[:] = np.where(keep.reshape(x.shape), x * x.dtype.type(1 / (1 - p)), 0)


def _forward(call: Call) -> None:
    if call.training:
        dropout(call.y, call.x, float(call.op["p"]), int(call.op["key"]), call.step, call.threads)
    else:
        call.y[:] = call.x


def _backward(call: Call, dx: Array | None, dy: Array) -> None:
    if dx is not None:
        dropout(dx, dy, float(call.op["p"]), int(call.op["key"]), call.step, call.threads)


KINDS["dropout"] = Kind(_forward, _backward)
