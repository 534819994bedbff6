"""Activations and their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastbp.core.plan import ACTIVATIONS, Array

_erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); exp(-|x|) cannot overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + _erf(x / math.sqrt(2)))


def _normal_pdf_times(z: Array) -> Array:
    """z times the standard normal density at z."""
    return z * np.exp(-0.5 * np.square(z)) / math.sqrt(2 * math.pi)


def _silu_derivative(dy: Array, y: Array, z: Array) -> Array:
    s = sigmoid(z)
    return dy * (s + z * s * (1 - s))


#: By name: y = f(z), and dz = f'(z) dy from the output y or, where ``needs_input`` says so, the input z.
FUNCTIONS: dict[str | None, tuple[Callable[[Array], Array], Callable[[Array, Array, Array], Array]]] = {
    None: (lambda z: z, lambda dy, y, z: dy),
    "relu": (lambda z: np.maximum(z, 0), lambda dy, y, z: np.where(y <= 0, 0, dy)),
    "leaky_relu": (lambda z: np.where(z < 0, 0.01 * z, z), lambda dy, y, z: np.where(y > 0, dy, 0.01 * dy)),
    "elu": (
        lambda z: np.where(z < 0, np.expm1(np.minimum(z, 0)), z),
        lambda dy, y, z: np.where(y > 0, dy, dy * (y + 1)),
    ),
    # Hendrycks & Gimpel 2016
    "gelu": (lambda z: z * _normal_cdf(z), lambda dy, y, z: dy * (_normal_cdf(z) + _normal_pdf_times(z))),
    "silu": (lambda z: z * sigmoid(z), _silu_derivative),
    "tanh": (np.tanh, lambda dy, y, z: dy * (1 - y * y)),
    "sigmoid": (sigmoid, lambda dy, y, z: dy * (y * (1 - y))),
    "softplus": (
        lambda z: np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0),
        lambda dy, y, z: dy * -np.expm1(-y),
    ),
}
_BY_CODE = {ACTIVATIONS[name].code: functions for name, functions in FUNCTIONS.items()}


def activation_forward(y: Array, z: Array, code: int, threads: int) -> None:
    """y = activation(z), any shape; y may be z."""
    y[:] = _functions(code)[0](z)


def activation_backward(dz: Array, dy: Array, y: Array, z: Array | None, code: int, threads: int) -> None:
    """dz = dy * activation'(z), given y = activation(z) and, where the activation needs it, z itself; dz may be dy."""
    dz[:] = _functions(code)[1](dy, y, z)


def _functions(code: int) -> tuple[Callable[[Array], Array], Callable[[Array, Array, Array], Array]]:
    if code not in _BY_CODE:
        raise ValueError(f"activation: expected a code below {len(_BY_CODE)}, got {code}")
    return _BY_CODE[code]
