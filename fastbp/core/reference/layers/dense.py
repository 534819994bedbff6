"""Dense."""

from __future__ import annotations

import numpy as np

from fastbp.core.plan import Array
from fastbp.core.reference.activations import activation_backward, activation_forward
from fastbp.core.reference.layers.record import KINDS, Call, Kind


def dense_forward(
    y: Array,
    z: Array | None,
    x: Array,
    weight: Array,
    bias: Array | None,
    activation: int,
    scratch: Array,
    threads: int,
) -> None:
    """y (B, O) = activation(z), z (B, O) = x (B, I) @ weight (I, O) + bias (O,); z is kept unless None."""
    np.matmul(x, weight, out=y)
    if bias is not None:
        y += bias
    if z is not None:
        z[:] = y
    activation_forward(y, y, activation, threads)


def dense_backward(
    dweight: Array,
    dbias: Array | None,
    dx: Array | None,
    dz: Array,
    x: Array,
    x_z: Array | None,
    weight: Array,
    input_activation: int,
    scratch: Array,
    threads: int,
) -> None:
    """dweight (I, O) = x^T dz, dbias (O,) = sum of dz (B, O), dx (B, I) = dz weight^T * input_activation'(x_z).

    ``input_activation`` is the code of the activation that gave x; 0 leaves dx the gradient of x itself.
    """
    _dense_gradients(dweight, dbias, dz, x)
    if dx is not None:
        np.matmul(dz, weight.T, out=dx)
        activation_backward(dx, dx, x, x_z, input_activation, threads)


def _dense_gradients(dweight: Array, dbias: Array | None, dz: Array, x: Array) -> None:
    np.matmul(x.T, dz, out=dweight)
    if dbias is not None:
        np.sum(dz, axis=0, out=dbias)


def _forward(call: Call) -> None:
    inputs, outputs = call.weight_shape
    weight, bias = call.value("weight", inputs, outputs), call.value("bias", outputs)
    dense_forward(call.y, call.z, call.x, weight, bias, int(call.op["activation"]), None, call.threads)


def _gradients(call: Call, dy: Array) -> None:
    inputs, outputs = call.weight_shape
    _dense_gradients(call.grad("weight", inputs, outputs), call.grad("bias", outputs), dy, call.x)


def _backward(call: Call, dx: Array | None, dy: Array) -> None:
    """The network applies the derivative of the activation that gave x: other gradients of x may be added first."""
    if dx is not None:
        np.matmul(dy, call.value("weight", *call.weight_shape).T, out=dx)


KINDS["dense"] = Kind(_forward, _backward, _gradients)
