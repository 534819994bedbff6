"""Dense, as the first layer on sparse rows."""

from __future__ import annotations

import numpy as np

from fastbp.core.plan import Array
from fastbp.core.reference.activations import activation_forward
from fastbp.core.reference.layers.record import KINDS, Buffers, Call, Kind
from fastbp.core.sparse import CSR


def multiply_sparse(y: Array, x: CSR, weight: Array) -> None:
    """y (B, O) += x (B, I) @ weight (I, O)."""
    stored = x.stored
    np.add.at(y, x.row_numbers(), x.values[stored, None] * weight[x.columns[stored]])


def multiply_sparse_transposed(dweight: Array, x: CSR, dy: Array) -> None:
    """dweight (I, O) += x (B, I)^T @ dy (B, O)."""
    stored = x.stored
    np.add.at(dweight, x.columns[stored], x.values[stored, None] * dy[x.row_numbers()])


def _forward(call: Call) -> None:
    bias = call.value("bias", int(call.op["outputs"]))
    call.y[:] = 0 if bias is None else bias
    multiply_sparse(call.y, call.x, call.value("weight", *call.weight_shape))
    if call.z is not None:
        call.z[:] = call.y
    activation_forward(call.y, call.y, int(call.op["activation"]), call.threads)


def _gradients(call: Call, dy: Array) -> None:
    dweight, dbias = call.grad("weight", *call.weight_shape), call.grad("bias", int(call.op["outputs"]))
    dweight[:] = 0
    multiply_sparse_transposed(dweight, call.x, dy)
    if dbias is not None:
        np.sum(dy, axis=0, out=dbias)


def _check(x: CSR, buffers: Buffers) -> int:
    wrong = (x.columns[x.stored] < 0) | (x.columns[x.stored] >= x.shape[1])
    return int(x.row_numbers()[wrong][-1]) if wrong.any() else -1


KINDS["sparse"] = Kind(_forward, KINDS["dense"].backward, _gradients, _check)
