"""What both sides of the core agree on: codes, and the op record that a model is lowered to.

A plan is a C-contiguous array of OP records in the order the data flows. Parameters, their gradients and statistics
live in flat buffers and a record holds offsets into them, in elements: parameters and gradients at ``weight`` and
``bias``, running and batch statistics at ``stats``. Minus one means that the op has no such tensor. The parameters of
an embedding, which can only be the first op, are described by TABLE records beside the plan. Where activations lie is
the backend's own business.
"""

from __future__ import annotations

from typing import Any

import numpy as np

DENSE, ACTIVATION, DROPOUT, BATCHNORM, LAYERNORM, EMBEDDING = range(6)

ACTIVATIONS: dict[str | None, int] = {
    None: 0,
    "relu": 1,
    "leaky_relu": 2,
    "elu": 3,
    "gelu": 4,
    "silu": 5,
    "tanh": 6,
    "sigmoid": 7,
    "softplus": 8,
}
#: Activations whose derivative needs the input z; that of the others follows from the output y.
NEEDS_INPUT = frozenset({ACTIVATIONS["gelu"], ACTIVATIONS["silu"]})

ELEMENTWISE_LOSSES = {"binary_cross_entropy": 0, "mse": 1, "mae": 2, "huber": 3, "quantile": 4, "poisson": 5}

#: Update rules of the optimizers.
RULES = {"sgd": 0, "adam": 1, "rmsprop": 2, "adagrad": 3}

OP = np.dtype(
    [
        ("kind", np.int32),
        ("activation", np.int32),  # applied to the op's result, fused into a dense op
        ("prior", np.int32),  # the previous op's activation, if this op's dx includes its derivative
        ("numeric", np.int32),  # an embedding's columns before those that hold ids
        ("inputs", np.int64),
        ("outputs", np.int64),
        ("weight", np.int64),
        ("bias", np.int64),
        ("stats", np.int64),  # batch norm: running mean, running variance, batch mean, batch 1/std, n of each
        ("p", np.float64),
        ("eps", np.float64),
        ("momentum", np.float64),
        ("key", np.uint64),  # dropout's random stream
    ]
)

#: A table of an embedding: a row of ``dim`` numbers per category from ``offset`` on in the flat buffers, which as many
#: neighbouring columns of the input look their ids up in.
TABLE = np.dtype([("rows", np.int64), ("dim", np.int64), ("offset", np.int64), ("columns", np.int64)])


def sizes(op: np.void, tables: np.ndarray) -> tuple[int, int]:
    """How many numbers the weight and the bias of an op have; tables are those of the plan's embedding."""
    if op["kind"] == EMBEDDING:
        return int((tables["rows"] * tables["dim"]).sum()), 0
    inputs, outputs = int(op["inputs"]), int(op["outputs"])
    weight = 0 if op["weight"] < 0 else inputs * outputs if op["kind"] == DENSE else inputs
    return weight, outputs if op["bias"] >= 0 else 0


def idle_without_gradient(rule: str, settings: dict[str, Any]) -> bool:
    """Whether an optimizer's update by a gradient of zero changes nothing: no momentum, no decay, no running mean."""
    return rule in ("sgd", "adagrad") and settings["weight_decay"] == 0 and settings.get("momentum", 0) == 0


ALIGNMENT = 64  # bytes: a cache line and the widest vector register


SLACK = 128  # bytes after a vector that a kernel may read, but not use: it reads rows by two whole registers


def aligned(count: int, dtype: np.dtype | type) -> np.ndarray:
    """An uninitialised vector of count elements that starts on a cache line and has SLACK behind it."""
    dtype = np.dtype(dtype)
    raw = np.empty(count * dtype.itemsize + ALIGNMENT + SLACK, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * dtype.itemsize].view(dtype)
