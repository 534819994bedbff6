"""The kernels on plain arrays, to profile one of them against its NumPy reference.

Each function runs on the active backend (``fb.use_backend("numpy")`` gives the reference), takes C-contiguous float32
or float64 arrays, all of one dtype, and writes into the arrays it is given first. These share no memory with each other
and the inputs, except where a function says so. ``threads`` is what ``get_num_threads`` says unless given.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp.core import backend, get_num_threads, plan
from fastbp.core.threads import MAX_THREADS
from fastbp.data.arrays import (
    Array,
    as_array,
    check_bool,
    check_choice,
    check_int,
    check_labels,
    check_normal,
    check_number,
)
from fastbp.losses import LOSSES, Elementwise, probabilities

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_FLOATS = np.dtype(np.float32), np.dtype(np.float64)  # what all kernels take
_local = threading.local()  # scratch space is kept from call to call, one per thread


def _team(threads: int | None) -> int:
    return get_num_threads() if threads is None else check_int("threads", threads, high=MAX_THREADS)


def _scratch(size: int) -> Array:
    """Scratch space of so many bytes."""
    scratch: Array | None = getattr(_local, "scratch", None)
    if scratch is None or scratch.size < size:
        scratch = _local.scratch = plan.aligned(size, np.int8)
    return scratch


def _expect(name: str, array: Array, shape: tuple[int, ...], dtype: np.dtype[Any], contiguous: bool = True) -> None:
    if type(array) not in (np.ndarray, np.memmap):  # of a matrix NumPy computes other products
        raise TypeError(f"{name}: expected an ndarray, got {type(array).__name__}")
    if array.dtype != dtype or array.dtype not in _FLOATS:
        raise TypeError(
            f"{name}: expected dtype {dtype if dtype.kind == 'f' else 'float32 or float64'}, got {array.dtype}"
        )
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    flags = array.flags
    if contiguous and not flags.c_contiguous:
        raise ValueError(f"{name}: expected a C-contiguous array, got strides {array.strides}")
    whole = flags.c_contiguous or not any(stride % array.itemsize for stride in array.strides)
    if not (flags.aligned and whole):
        raise ValueError(f"{name}: expected an aligned array with strides in whole elements, got {array.strides} bytes")


def _expect_like(first: Array, **others: Array | None) -> None:
    """All arrays with the shape and dtype of the first."""
    for name, array in others.items():
        if array is not None:
            _expect(name, array, first.shape, first.dtype)


def _outputs(*inputs: Array | None, in_place: Array | None = None, **outputs: Array | None) -> None:
    """Outputs can be written and lie apart from the inputs, which may still be read then, and from each other.

    They may be ``in_place``, all of it.
    """
    taken = [x for x in inputs if x is not None]
    for name, array in outputs.items():
        if array is None:
            continue
        if not array.flags.writeable:
            raise ValueError(f"{name}: expected an array that can be written, got a read-only one")
        others = taken if in_place is None or _address(array) == _address(in_place) else [*taken, in_place]
        if any(np.may_share_memory(array, x) for x in others):
            raise ValueError(f"{name}: expected memory of its own, but it overlaps another array")
        taken.append(array)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _filled(name: str, array: Array) -> None:
    """An array with entries; only products may have none."""
    _expect(name, array, array.shape, array.dtype)
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one entry, got shape {array.shape}")


def _two_dimensional(name: str, array: Array) -> tuple[int, int]:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected an ndarray, got {type(array).__name__}")
    if array.ndim != 2:
        raise ValueError(f"{name}: expected a 2-D array, got shape {array.shape}")
    return array.shape[0], array.shape[1]


def _eps(eps: float, dtype: np.dtype[Any]) -> None:
    """Zero, or a number that the core does not take for zero."""
    check_number("eps", eps, -math.inf)
    if eps > 0:
        check_normal("eps", eps, dtype)


def _numbers(**numbers: float) -> None:
    for name, number in numbers.items():
        check_number(name, number, -math.inf)


def _shares(**shares: float) -> None:
    for name, share in shares.items():
        check_number(name, share, 0, 1)


def matmul(c: Array, a: Array, b: Array, threads: int | None = None) -> None:
    """c (m, n) = a (m, k) @ b (k, n); a and b may be transposed or strided views."""
    (m, k), (_, n) = _two_dimensional("a", a), _two_dimensional("b", b)
    _expect("a", a, (m, k), a.dtype, contiguous=False)
    _expect("b", b, (k, n), a.dtype, contiguous=False)
    _expect("c", c, (m, n), a.dtype)
    _outputs(a, b, c=c)
    team = _team(threads)
    backend().matmul(c, a, b, _scratch(backend().product_scratch_bytes(m, n, k, a.dtype, team)), team)


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
    _outputs(x, weight, bias, y=y, z=z)
    code = plan.ACTIVATIONS[check_choice("activation", activation, plan.ACTIVATIONS)].code
    scratch = _scratch(backend().scratch_bytes(batch, outputs, inputs, x.dtype))
    backend().dense_forward(y, z, x, weight, bias, code, scratch, _team(threads))


def dense_backward(
    dweight: Array,
    dbias: Array | None,
    dx: Array | None,
    dz: Array,
    x: Array,
    x_z: Array | None,
    weight: Array,
    input_activation: str | None = None,
    threads: int | None = None,
) -> None:
    """dweight (I, O) = x^T dz, dbias (O,) = sum of dz (B, O), dx (B, I) = dz weight^T * input_activation'(x_z).

    ``input_activation`` is the activation that gave x (B, I); None leaves dx the gradient of x itself. x_z, its input,
    is needed for GELU and SiLU.
    """
    (batch, inputs), (_, outputs) = _two_dimensional("x", x), _two_dimensional("weight", weight)
    _expect("x", x, (batch, inputs), x.dtype)
    _expect("weight", weight, (inputs, outputs), x.dtype)
    _expect("dz", dz, (batch, outputs), x.dtype)
    _expect_like(weight, dweight=dweight)
    _expect_like(x, dx=dx, x_z=x_z)
    if dbias is not None:
        _expect("dbias", dbias, (outputs,), x.dtype)
    _outputs(dz, x, x_z, weight, dweight=dweight, dbias=dbias, dx=dx)
    activation = plan.ACTIVATIONS[check_choice("input_activation", input_activation, plan.ACTIVATIONS)]
    if activation.needs_input and x_z is None:
        raise ValueError(f"x_z: expected the argument of {input_activation}, got None")
    scratch = _scratch(backend().scratch_bytes(batch, outputs, inputs, x.dtype))
    backend().dense_backward(dweight, dbias, dx, dz, x, x_z, weight, activation.code, scratch, _team(threads))


def activation_forward(y: Array, z: Array, name: str, threads: int | None = None) -> None:
    """y (B, n) = activation(z); y may be z."""
    _two_dimensional("z", z)
    _filled("z", z)
    _expect_like(z, y=y)
    _outputs(in_place=z, y=y)
    code = plan.ACTIVATIONS[check_choice("name", name, plan.ACTIVATIONS)].code
    backend().activation_forward(y, z, code, _team(threads))


def activation_backward(dz: Array, dy: Array, y: Array, z: Array | None, name: str, threads: int | None = None) -> None:
    """dz (B, n) = dy * activation'(z), from y = activation(z) and, for GELU and SiLU, z; dz may be dy."""
    _two_dimensional("dz", dz)
    _filled("dz", dz)
    _expect_like(dz, dy=dy, y=y, z=z)
    _outputs(y, z, in_place=dy, dz=dz)
    activation = plan.ACTIVATIONS[check_choice("name", name, plan.ACTIVATIONS)]
    if activation.needs_input and z is None:
        raise ValueError(f"z: expected the argument of {name}, got None")
    backend().activation_backward(dz, dy, y, z, activation.code, _team(threads))


def dropout(y: Array, x: Array, p: float, key: int, step: int, threads: int | None = None) -> None:
    """y (B, n) = x * mask / (1 - p), the mask from the random stream of key and step, both below 2**64."""
    _two_dimensional("x", x)
    _filled("x", x)
    _expect_like(x, y=y)
    _outputs(x, y=y)
    key, step = (check_int(name, n, 0, 2**64 - 1) for name, n in (("key", key), ("step", step)))
    backend().dropout(y, x, check_number("p", p, 0, 1), key, step, _team(threads))


def batchnorm_forward(
    y: Array,
    stats: Array,
    x: Array,
    weight: Array,
    bias: Array,
    momentum: float = 0.1,
    eps: float = 1e-5,
    training: bool = True,
    threads: int | None = None,
) -> None:
    """y (B, n) = weight * (x - mean) / std + bias over the batch, or with the running statistics.

    stats (4, n): running mean and variance, and the batch's mean and 1/std, which training leaves there.
    """
    _norm(x, weight=weight, bias=bias)
    _expect_like(x, y=y)
    _expect("stats", stats, (4, x.shape[1]), x.dtype)
    _outputs(x, weight, bias, y=y, stats=stats)
    _numbers(momentum=momentum)
    _eps(eps, x.dtype)
    check_bool("training", training)
    backend().batchnorm_forward(y, stats, x, weight, bias, momentum, eps, training, _team(threads))


def batchnorm_backward(
    dweight: Array,
    dbias: Array,
    dx: Array | None,
    dy: Array,
    x: Array,
    stats: Array,
    weight: Array,
    threads: int | None = None,
) -> None:
    """The gradients of ``batchnorm_forward`` in training, from the stats (4, n) that it left."""
    _norm(x, weight=weight, dweight=dweight, dbias=dbias)
    _expect_like(x, dx=dx, dy=dy)
    _expect("stats", stats, (4, x.shape[1]), x.dtype)
    _outputs(dy, x, stats, weight, dweight=dweight, dbias=dbias, dx=dx)
    backend().batchnorm_backward(dweight, dbias, dx, dy, x, stats, weight, _team(threads))


def layernorm_forward(
    y: Array, rows: Array, x: Array, weight: Array, bias: Array, eps: float = 1e-5, threads: int | None = None
) -> None:
    """y (B, n) = weight * (x - mean) / std + bias over each row; rows (B, 2) gets each row's mean and 1/std."""
    _norm(x, weight=weight, bias=bias)
    _expect_like(x, y=y)
    _expect("rows", rows, (x.shape[0], 2), x.dtype)
    _outputs(x, weight, bias, y=y, rows=rows)
    _eps(eps, x.dtype)
    backend().layernorm_forward(y, rows, x, weight, bias, eps, _team(threads))


def layernorm_backward(
    dweight: Array,
    dbias: Array,
    dx: Array | None,
    dy: Array,
    x: Array,
    rows: Array,
    weight: Array,
    threads: int | None = None,
) -> None:
    """The gradients of ``layernorm_forward``, from the rows (B, 2) that it left."""
    _norm(x, weight=weight, dweight=dweight, dbias=dbias)
    _expect_like(x, dx=dx, dy=dy)
    _expect("rows", rows, (x.shape[0], 2), x.dtype)
    _outputs(dy, x, rows, weight, dweight=dweight, dbias=dbias, dx=dx)
    backend().layernorm_backward(dweight, dbias, dx, dy, x, rows, weight, _team(threads))


def _norm(x: Array, **vectors: Array) -> None:
    """x (B, n) and the vectors (n,) that go with it."""
    _, n = _two_dimensional("x", x)
    _filled("x", x)
    for name, vector in vectors.items():
        _expect(name, vector, (n,), x.dtype)


def cross_entropy(
    dlogits: Array,
    logits: Array,
    target: Array,
    class_weight: Array | None = None,
    label_smoothing: float = 0.0,
    sample_weight: Array | None = None,
    threads: int | None = None,
) -> float:
    """The mean softmax cross-entropy of logits (B, C) and labels (B,); dlogits (B, C) gets its gradient.

    With weights of the classes (C,) or the samples (B,) it is the weighted mean.
    """
    batch, classes = _two_dimensional("logits", logits)
    _filled("logits", logits)
    _expect_like(logits, dlogits=dlogits)
    if class_weight is not None:
        _expect("class_weight", class_weight, (classes,), logits.dtype)
    target = check_labels("target", target, batch, classes)
    if sample_weight is not None:
        _expect("sample_weight", sample_weight, (batch,), logits.dtype)
    _outputs(logits, target, class_weight, sample_weight, dlogits=dlogits)
    check_number("label_smoothing", label_smoothing, 0, 1)
    spec = plan.LossSpec("cross_entropy", class_weight=class_weight, smoothing=label_smoothing)
    loss: float = backend().loss(dlogits, logits, target, sample_weight, spec, _team(threads))
    return loss


def elementwise_loss(
    dpred: Array,
    pred: Array,
    target: Array,
    name: str,
    parameter: float | None = None,
    sample_weight: Array | None = None,
    threads: int | None = None,
) -> float:
    """The mean of ``"mse"``, ``"huber"``, ... of pred and target (B, O); dpred (B, O) gets its gradient.

    ``parameter`` is Huber's delta or the quantile, and needed for these two alone. With weights of the samples (B,) it
    is the weighted mean.
    """
    check_choice("name", name, [key for key, loss_class in LOSSES.items() if issubclass(loss_class, Elementwise)])
    if (parameter is None) is LOSSES[name].has_parameter:
        raise ValueError(
            f"parameter: expected {'a number' if parameter is None else 'none'} for {name!r}, got {parameter}"
        )
    batch, _ = _two_dimensional("pred", pred)
    _filled("pred", pred)
    _expect_like(pred, dpred=dpred, target=target)
    if sample_weight is not None:
        _expect("sample_weight", sample_weight, (batch,), pred.dtype)
    _outputs(pred, target, sample_weight, dpred=dpred)
    parameter = 0.0 if parameter is None else check_number("parameter", parameter, 0, open_low=True)
    loss: float = backend().loss(dpred, pred, target, sample_weight, plan.LossSpec(name, parameter), _team(threads))
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
    _flat(param, grad, velocity=velocity)
    _shares(momentum=momentum)
    _numbers(lr=lr, weight_decay=weight_decay, grad_scale=grad_scale)
    check_bool("nesterov", nesterov)
    spec = plan.UpdateSpec("sgd", (velocity,), lr, weight_decay, momentum=momentum, nesterov=nesterov)
    backend().update(param, grad, spec, grad_scale, _team(threads))


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
    _flat(param, grad, m=m, v=v)
    _shares(beta1=beta1, beta2=beta2)
    _numbers(lr=lr, weight_decay=weight_decay, grad_scale=grad_scale)
    _eps(eps, param.dtype)
    check_int("step", step)
    check_bool("decoupled", decoupled)
    spec = plan.UpdateSpec(
        "adam", (m, v), lr, weight_decay, beta1=beta1, beta2=beta2, eps=eps, decoupled=decoupled, step=step
    )
    backend().update(param, grad, spec, grad_scale, _team(threads))


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
    _flat(param, grad, square=square, velocity=velocity)
    _shares(alpha=alpha, momentum=momentum)
    _numbers(lr=lr, weight_decay=weight_decay, grad_scale=grad_scale)
    _eps(eps, param.dtype)
    spec = plan.UpdateSpec("rmsprop", (square, velocity), lr, weight_decay, alpha=alpha, eps=eps, momentum=momentum)
    backend().update(param, grad, spec, grad_scale, _team(threads))


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
    _flat(param, grad, total=total)
    _numbers(lr=lr, weight_decay=weight_decay, grad_scale=grad_scale)
    _eps(eps, param.dtype)
    spec = plan.UpdateSpec("adagrad", (total,), lr, weight_decay, eps=eps)
    backend().update(param, grad, spec, grad_scale, _team(threads))


def _flat(param: Array, grad: Array, **state: Array | None) -> None:
    if not isinstance(param, np.ndarray):
        raise TypeError(f"param: expected an ndarray, got {type(param).__name__}")
    if param.ndim != 1:
        raise ValueError(f"param: expected a 1-D array, got shape {param.shape}")
    _filled("param", param)
    _expect_like(param, grad=grad, **state)
    _outputs(grad, param=param, **state)


def softmax(x: ArrayLike) -> Array:
    """The softmax of logits (B, C), row by row: a new array of float32, or of float64 where x is.

    A logit of minus infinity has probability 0.
    """
    logits = _floats("x", x)
    _two_dimensional("x", logits)
    return probabilities("softmax", logits)


def sigmoid(x: ArrayLike) -> Array:
    """``1 / (1 + exp(-x))`` of every entry of an array of any shape: float32, or float64 where x is."""
    logits = _floats("x", x)
    return probabilities("sigmoid", logits.reshape(1, -1)).reshape(logits.shape)


def _floats(name: str, value: ArrayLike) -> Array:
    array = as_array(name, value)
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected numbers, got an array of dtype {array.dtype}")
    return np.array(array, np.float64 if array.dtype == np.float64 else np.float32, order="C")
