"""The kernels on plain arrays, to profile one of them against its NumPy twin.

Each function runs on the active backend (``fb.use_backend("numpy")`` gives the twin), takes C-contiguous float32 or
float64 arrays, all of one dtype, and writes into the arrays it is given first. ``threads`` is what ``get_num_threads``
says unless given.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fastbp.core import backend, get_num_threads, plan
from fastbp.data import Array, choice, labels, real_number

_local = threading.local()  # scratch space is kept from call to call, one per thread


def _scratch(m: int, n: int, k: int, itemsize: int, threads: int) -> Array:
    size = backend().scratch_bytes(m, n, k, itemsize, threads)
    if getattr(_local, "scratch", np.empty(0)).nbytes < size:
        _local.scratch = plan.aligned(size, np.int8)
    scratch: Array = _local.scratch
    return scratch


def _expect(name: str, array: Array, shape: tuple[int, ...], dtype: np.dtype[Any], contiguous: bool = True) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected an ndarray, got {type(array).__name__}")
    if array.dtype != dtype or array.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"{name}: expected dtype {dtype if dtype.kind == 'f' else 'float32 or float64'}, got {array.dtype}"
        )
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    if contiguous and not array.flags.c_contiguous:
        raise ValueError(f"{name}: expected a C-contiguous array, got strides {array.strides}")


def _expect_like(first: Array, **others: Array | None) -> None:
    """All arrays with the shape and dtype of the first."""
    for name, array in others.items():
        if array is not None:
            _expect(name, array, first.shape, first.dtype)


def _two_dimensional(name: str, array: Array) -> tuple[int, int]:
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        raise ValueError(f"{name}: expected a 2-D array, got {getattr(array, 'shape', type(array).__name__)}")
    return array.shape[0], array.shape[1]


def matmul(c: Array, a: Array, b: Array, threads: int | None = None) -> None:
    """c (m, n) = a (m, k) @ b (k, n); a and b may be transposed or strided views."""
    (m, k), (_, n) = _two_dimensional("a", a), _two_dimensional("b", b)
    _expect("a", a, (m, k), a.dtype, contiguous=False)
    _expect("b", b, (k, n), a.dtype, contiguous=False)
    _expect("c", c, (m, n), a.dtype)
    threads = threads or get_num_threads()
    backend().matmul(c, a, b, _scratch(m, n, k, a.itemsize, threads), threads)


def dense_forward(
    y: Array,
    z: Array | None,
    x: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None = None,
    threads: int | None = None,
) -> None:
    """y (B, O) = activation(z), z (B, O) = x (B, I) @ weight (I, O) + bias (O,); z is kept unless None."""
    (batch, inputs), (_, outputs) = _two_dimensional("x", x), _two_dimensional("weight", weight)
    _expect("x", x, (batch, inputs), x.dtype)
    _expect("weight", weight, (inputs, outputs), x.dtype)
    _expect("y", y, (batch, outputs), x.dtype)
    _expect_like(y, z=z)
    if bias is not None:
        _expect("bias", bias, (outputs,), x.dtype)
    kind = plan.ACTIVATIONS[choice("activation", activation, plan.ACTIVATIONS)]
    threads = threads or get_num_threads()
    scratch = _scratch(batch, outputs, inputs, x.itemsize, threads)
    backend().dense_forward(y, z, x, weight, bias, kind, scratch, threads)


def dense_backward(
    dweight: Array,
    dbias: Array | None,
    dx: Array | None,
    dz: Array,
    x: Array,
    x_z: Array | None,
    weight: Array,
    prior: str | None = None,
    threads: int | None = None,
) -> None:
    """dweight (I, O) = x^T dz, dbias (O,) = sum of dz (B, O), dx (B, I) = dz weight^T * prior'(x_z).

    ``prior`` is the activation that produced x (B, I); None leaves dx the gradient of x itself. x_z, its argument, is
    needed for GELU and SiLU.
    """
    (batch, inputs), (_, outputs) = _two_dimensional("x", x), _two_dimensional("weight", weight)
    _expect("x", x, (batch, inputs), x.dtype)
    _expect("weight", weight, (inputs, outputs), x.dtype)
    _expect("dz", dz, (batch, outputs), x.dtype)
    _expect_like(weight, dweight=dweight)
    _expect_like(x, dx=dx, x_z=x_z)
    if dbias is not None:
        _expect("dbias", dbias, (outputs,), x.dtype)
    kind = plan.ACTIVATIONS[choice("prior", prior, plan.ACTIVATIONS)]
    if kind in plan.NEEDS_INPUT and x_z is None:
        raise ValueError(f"x_z: expected the argument of {prior}, got None")
    threads = threads or get_num_threads()
    size = max((batch, inputs, outputs), (inputs, outputs, batch), key=lambda s: backend().scratch_bytes(*s, 8, 1))
    backend().dense_backward(
        dweight, dbias, dx, dz, x, x_z, weight, kind, _scratch(*size, x.itemsize, threads), threads
    )


def activation_forward(y: Array, z: Array, name: str, threads: int | None = None) -> None:
    """y (B, n) = activation(z); y may be z."""
    _two_dimensional("z", z)
    _expect("z", z, z.shape, z.dtype)
    _expect_like(z, y=y)
    kind = plan.ACTIVATIONS[choice("name", name, plan.ACTIVATIONS)]
    backend().activation_forward(y, z, kind, threads or get_num_threads())


def activation_backward(dz: Array, dy: Array, y: Array, z: Array | None, name: str, threads: int | None = None) -> None:
    """dz (B, n) = dy * activation'(z), from y = activation(z) and, for GELU and SiLU, z; dz may be dy."""
    _two_dimensional("dz", dz)
    _expect("dz", dz, dz.shape, dz.dtype)
    _expect_like(dz, dy=dy, y=y, z=z)
    kind = plan.ACTIVATIONS[choice("name", name, plan.ACTIVATIONS)]
    if kind in plan.NEEDS_INPUT and z is None:
        raise ValueError(f"z: expected the argument of {name}, got None")
    backend().activation_backward(dz, dy, y, z, kind, threads or get_num_threads())


def cross_entropy(
    dlogits: Array,
    logits: Array,
    target: Array,
    class_weight: Array | None = None,
    label_smoothing: float = 0.0,
    threads: int | None = None,
) -> float:
    """The mean softmax cross-entropy of logits (B, C) and labels (B,); dlogits (B, C) gets its gradient."""
    batch, classes = _two_dimensional("logits", logits)
    _expect("logits", logits, logits.shape, logits.dtype)
    _expect_like(logits, dlogits=dlogits)
    if class_weight is not None:
        _expect("class_weight", class_weight, (classes,), logits.dtype)
    target = labels("target", target, batch, classes)
    real_number("label_smoothing", label_smoothing, 0, 1)
    loss: float = backend().cross_entropy(
        dlogits, logits, target, class_weight, label_smoothing, threads or get_num_threads()
    )
    return loss


def elementwise_loss(
    dpred: Array, pred: Array, target: Array, name: str, parameter: float = 0.0, threads: int | None = None
) -> float:
    """The mean of ``"mse"``, ``"huber"``, ... of pred and target (B, O); dpred (B, O) gets its gradient.

    ``parameter`` is Huber's delta or the quantile.
    """
    _two_dimensional("pred", pred)
    _expect("pred", pred, pred.shape, pred.dtype)
    _expect_like(pred, dpred=dpred, target=target)
    kind = plan.ELEMENTWISE_LOSSES[choice("name", name, plan.ELEMENTWISE_LOSSES)]
    loss: float = backend().elementwise_loss(dpred, pred, target, kind, parameter, threads or get_num_threads())
    return loss


def sgd_update(
    param: Array,
    velocity: Array | None,
    grad: Array,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    threads: int | None = None,
) -> None:
    """One step of gradient descent over flat vectors (n,), in place; see ``fb.SGD``."""
    _flat(param, velocity=velocity, grad=grad)
    backend().sgd_update(
        param, velocity, grad, lr, momentum, nesterov, weight_decay, grad_scale, threads or get_num_threads()
    )


def adam_update(
    param: Array,
    m: Array,
    v: Array,
    grad: Array,
    lr: float,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    grad_scale: float = 1.0,
    threads: int | None = None,
) -> None:
    """Step number ``step``, from 1, of Adam, or AdamW if ``decoupled``, over flat vectors (n,); see ``fb.Adam``."""
    _flat(param, m=m, v=v, grad=grad)
    backend().adam_update(
        param, m, v, grad, lr, beta1, beta2, eps, weight_decay, decoupled, step, grad_scale,
        threads or get_num_threads(),
    )  # fmt: skip


def rmsprop_update(
    param: Array,
    square: Array,
    velocity: Array | None,
    grad: Array,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    threads: int | None = None,
) -> None:
    """One step of RMSprop over flat vectors (n,); see ``fb.RMSprop``."""
    _flat(param, square=square, velocity=velocity, grad=grad)
    backend().rmsprop_update(
        param, square, velocity, grad, lr, alpha, eps, momentum, weight_decay, grad_scale,
        threads or get_num_threads(),
    )  # fmt: skip


def adagrad_update(
    param: Array,
    total: Array,
    grad: Array,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    threads: int | None = None,
) -> None:
    """One step of Adagrad over flat vectors (n,); see ``fb.Adagrad``."""
    _flat(param, total=total, grad=grad)
    backend().adagrad_update(param, total, grad, lr, eps, weight_decay, grad_scale, threads or get_num_threads())


def _flat(param: Array, **others: Array | None) -> None:
    if not isinstance(param, np.ndarray) or param.ndim != 1:
        raise ValueError(f"param: expected a 1-D array, got {getattr(param, 'shape', type(param).__name__)}")
    _expect("param", param, param.shape, param.dtype)
    _expect_like(param, **others)
