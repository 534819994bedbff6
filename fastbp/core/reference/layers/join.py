"""What joins branches: columns of a wider value are copied from a branch, or a branch is added to them."""

from __future__ import annotations

from fastbp.core.plan import Array
from fastbp.core.reference.layers.record import KINDS, Call, Kind


def _copy(call: Call) -> None:
    call.y[:] = call.x


def _add(call: Call) -> None:
    call.y += call.x


def _backward(call: Call, dx: Array | None, dy: Array) -> None:
    if dx is not None:
        dx[:] = dy


KINDS["copy"] = Kind(_copy, _backward)
KINDS["add"] = Kind(_add, _backward)
