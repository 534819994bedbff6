"""Dense."""

from __future__ import annotations

import numpy as np

from fastbp.core.plan import Array
from fastbp.core.reference.activations import activation_backward, activation_forward


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
    dense_gradients(dweight, dbias, dz, x)
    if dx is not None:
        dense_dx(dx, dz, x, x_z, weight, input_activation, threads)


def dense_gradients(dweight: Array, dbias: Array | None, dz: Array, x: Array) -> None:
    """The half of dense_backward that computes dweight and dbias."""
    np.matmul(x.T, dz, out=dweight)
    if dbias is not None:
        np.sum(dz, axis=0, out=dbias)


def dense_dx(
    dx: Array, dz: Array, x: Array, x_z: Array | None, weight: Array, input_activation: int, threads: int
) -> None:
    """The half of dense_backward that computes dx."""
    np.matmul(dz, weight.T, out=dx)
    activation_backward(dx, dx, x, x_z, input_activation, threads)
