"""An activation as an op of its own."""

from __future__ import annotations

from fastbp.core.plan import Array
from fastbp.core.reference.activations import activation_forward
from fastbp.core.reference.layers.record import KINDS, Call, Kind


def _forward(call: Call) -> None:
    activation_forward(call.y, call.x, int(call.op["activation"]), call.threads)


def _backward(call: Call, dx: Array | None, dy: Array) -> None:
    """The network has applied the derivative, as that of every activation."""
    if dx is not None:
        dx[:] = dy


KINDS["activation"] = Kind(_forward, _backward)
