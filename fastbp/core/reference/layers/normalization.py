"""Batch norm and layer norm."""

from __future__ import annotations

import numpy as np

from fastbp.core.plan import Array
from fastbp.core.reference.layers.record import KINDS, Call, Kind


def batchnorm_forward(
    y: Array,
    stats: Array,
    x: Array,
    weight: Array,
    bias: Array,
    momentum: float,
    eps: float,
    training: bool,
    threads: int,
) -> None:
    """y (B, n) = weight * (x - mean) / std + bias (Ioffe & Szegedy 2015, algorithm 1).

    stats (4, n): running mean, running variance, and the batch's mean and 1/std that training leaves for the backward
    pass. A batch of one sample has no variance and leaves the running statistics alone.
    """
    if training:
        mean = x.mean(axis=0, dtype=np.float64)
        variance = np.square(x - mean).mean(axis=0, dtype=np.float64)
        stats[2] = mean
        stats[3] = 1 / np.sqrt(variance + eps)
        n = x.shape[0]
        if n > 1:
            stats[0] += momentum * (mean - stats[0])
            stats[1] += momentum * (variance * n / (n - 1) - stats[1])
        mean, scale = stats[2], stats[3]
    else:
        mean, scale = stats[0], 1 / np.sqrt(stats[1] + eps)
    y[:] = (x - mean) * (scale * weight) + bias


def batchnorm_backward(
    dweight: Array, dbias: Array, dx: Array | None, dy: Array, x: Array, stats: Array, weight: Array, threads: int
) -> None:
    """The gradients of batchnorm_forward in training, dx through the batch's mean and variance too."""
    xhat = (x - stats[2]) * stats[3]
    np.sum(dy * xhat, axis=0, out=dweight)
    np.sum(dy, axis=0, out=dbias)
    if dx is not None:
        n = x.shape[0]
        dx[:] = (weight * stats[3]) * (dy - dbias / n - xhat * (dweight / n))


def layernorm_forward(y: Array, rows: Array, x: Array, weight: Array, bias: Array, eps: float, threads: int) -> None:
    """y (B, n) = weight * (x - mean) / std + bias over each row (Ba, Kiros & Hinton 2016); rows (B, 2): mean, 1/std."""
    rows[:, 0] = x.mean(axis=1, dtype=np.float64)
    rows[:, 1] = 1 / np.sqrt(np.square(x - rows[:, :1]).mean(axis=1, dtype=np.float64) + eps)
    y[:] = (x - rows[:, :1]) * rows[:, 1:] * weight + bias


def layernorm_backward(
    dweight: Array, dbias: Array, dx: Array | None, dy: Array, x: Array, rows: Array, weight: Array, threads: int
) -> None:
    """The gradients of layernorm_forward."""
    xhat = (x - rows[:, :1]) * rows[:, 1:]
    np.sum(dy * xhat, axis=0, out=dweight)
    np.sum(dy, axis=0, out=dbias)
    if dx is not None:
        g = dy * weight
        dx[:] = rows[:, 1:] * (g - g.mean(axis=1, keepdims=True) - xhat * (g * xhat).mean(axis=1, keepdims=True))


def _batchnorm_forward(call: Call) -> None:
    n = int(call.op["inputs"])
    weight, bias, stats = call.value("weight", n), call.value("bias", n), call.statistics(4, n)
    momentum, eps = call.op["momentum"], call.op["eps"]
    batchnorm_forward(call.y, stats, call.x, weight, bias, momentum, eps, call.training, call.threads)


def _batchnorm_backward(call: Call, dx: Array | None, dy: Array) -> None:
    n = int(call.op["inputs"])
    dweight, dbias = call.grad("weight", n), call.grad("bias", n)
    stats, weight = call.statistics(4, n), call.value("weight", n)
    batchnorm_backward(dweight, dbias, dx, dy, call.x, stats, weight, call.threads)


def _layernorm_forward(call: Call) -> None:
    n = int(call.op["inputs"])
    call.kept = np.empty((len(call.x), 2), call.x.dtype)
    weight, bias = call.value("weight", n), call.value("bias", n)
    layernorm_forward(call.y, call.kept, call.x, weight, bias, call.op["eps"], call.threads)


def _layernorm_backward(call: Call, dx: Array | None, dy: Array) -> None:
    n = int(call.op["inputs"])
    dweight, dbias = call.grad("weight", n), call.grad("bias", n)
    layernorm_backward(dweight, dbias, dx, dy, call.x, call.kept, call.value("weight", n), call.threads)


KINDS["batchnorm"] = Kind(_batchnorm_forward, _batchnorm_backward)
KINDS["layernorm"] = Kind(_layernorm_forward, _layernorm_backward)
