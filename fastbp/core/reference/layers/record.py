"""What the network asks of every layer kind: a record of functions, by the kind's name; and what these get."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastbp.core.plan import Array


class Buffers(NamedTuple):
    """The flat buffers of a model, and its tables: values and grads (n,), stats (s,), tables (t,) TABLE records."""

    values: Array
    grads: Array
    stats: Array
    tables: Array


class Call:
    """One op in one pass: its record, the arrays that it reads and writes, and the settings of the pass.

    x (B, I), y (B, O) and z, what its activation is applied to, are slots; whatever else a backward pass needs a kind
    keeps in ``kept``.
    """

    __slots__ = "buffers", "kept", "op", "parameter_gradients", "step", "threads", "training", "x", "y", "z"

    def __init__(
        self,
        op: np.void,
        buffers: Buffers,
        x: Array,
        y: Array,
        z: Array | None,
        step: int,
        training: bool,
        threads: int,
    ) -> None:
        self.op, self.buffers = op, buffers
        self.x, self.y, self.z = x, y, z
        self.step, self.training, self.threads = step, training, threads
        self.parameter_gradients = True
        self.kept: Array | None = None

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(I, O)."""
        return int(self.op["inputs"]), int(self.op["outputs"])

    def value(self, name: str, *shape: int) -> Array:
        """The tensor of that name, ``weight`` or ``bias``, or None if the op has none."""
        return _tensor(self.buffers.values, int(self.op[name]), shape)

    def grad(self, name: str, *shape: int) -> Array:
        """Where its gradient belongs: an array that nobody reads if the pass has no gradients of parameters."""
        offset = int(self.op[name])
        if offset >= 0 and not self.parameter_gradients:
            return np.empty(shape, self.buffers.grads.dtype)
        return _tensor(self.buffers.grads, offset, shape)

    def statistics(self, *shape: int) -> Array:
        """The op's part of the statistics."""
        return _tensor(self.buffers.stats, int(self.op["stats"]), shape)


def _tensor(flat: Array, offset: int, shape: tuple[int, ...]) -> Array:
    return flat[offset : offset + math.prod(shape)].reshape(shape) if offset >= 0 else None


class Kind(NamedTuple):
    """A layer kind; the functions write into the arrays of the call."""

    #: y from x, in inference and in training.
    forward: Callable[[Call], None]
    #: dx (B, I) from dy (B, O), unless dx is None; and the gradients of parameters that come with it.
    backward: Callable[[Call, Array | None, Array], None]
    #: The gradients of all other parameters, from dy, where there are any.
    gradients: Callable[[Call, Array], None] | None = None
    #: Of the model's input (B, I): a row whose ids no table has, or -1.
    check: Callable[[Array, Buffers], int] | None = None


#: The kinds by name; each module of this folder adds its own.
KINDS: dict[str, Kind] = {}
