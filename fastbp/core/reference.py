"""The NumPy twin of the compiled kernels: same names, same signatures, never optimised.

It is the oracle of the tests and the baseline of the benchmarks, and it is the place to read what a kernel computes.
Arguments run outputs, inputs, scalars, scratch, threads; the last two are for the compiled twins and unused here.
B is the batch, I the inputs and O the outputs of a layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastbp.core.plan import (
    ACTIVATION,
    BATCHNORM,
    DENSE,
    DROPOUT,
    ELEMENTWISE_LOSSES,
    EMBEDDING,
    LAYERNORM,
    NEEDS_INPUT,
    sizes,
)

Array = Any  # np.ndarray of float32 or float64; the kernels check nothing, their callers did

_RELU, _LEAKY_RELU, _ELU, _GELU, _SILU, _TANH, _SIGMOID, _SOFTPLUS = range(1, 9)
_BCE, _MSE, _MAE, _HUBER, _QUANTILE, _POISSON = range(6)
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF

_erf = np.vectorize(math.erf, otypes=[np.float64])


def openmp() -> bool:
    """Whether the threads of this backend's kernels are OpenMP's."""
    return False


def openmp_threads() -> int:
    """How many threads OpenMP would start from here; it may have been told by others, but not to this backend."""
    return 2**30


def target() -> str:
    """The instruction set that the kernels were compiled for, as the compiler understood its flags."""
    return "numpy"


def scratch_bytes(m: int, n: int, k: int, dtype: np.dtype[Any]) -> int:
    """Scratch that a product or a layer's backward pass needs: NumPy allocates its own."""
    return 1


# --- products -------------------------------------------------------------------------------------------------------


def matmul(c: Array, a: Array, b: Array, scratch: Array, threads: int) -> None:
    """c (m, n) = a (m, k) @ b (k, n); a and b may be transposed views."""
    np.matmul(a, b, out=c)


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
    prior: int,
    scratch: Array,
    threads: int,
) -> None:
    """dweight (I, O) = x^T dz, dbias (O,) = sum of dz (B, O), dx (B, I) = dz weight^T * prior'(x_z).

    ``prior`` is the activation that produced x; 0 leaves dx the gradient of x itself.
    """
    _dense_gradients(dweight, dbias, dz, x)
    if dx is not None:
        _dense_dx(dx, dz, x, x_z, weight, prior, threads)


def _dense_gradients(dweight: Array, dbias: Array | None, dz: Array, x: Array) -> None:
    np.matmul(x.T, dz, out=dweight)
    if dbias is not None:
        np.sum(dz, axis=0, out=dbias)


def _dense_dx(dx: Array, dz: Array, x: Array, x_z: Array | None, weight: Array, prior: int, threads: int) -> None:
    np.matmul(dz, weight.T, out=dx)
    activation_backward(dx, dx, x, x_z, prior, threads)


# --- activations ----------------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + _erf(x / math.sqrt(2)))


def activation_forward(y: Array, z: Array, kind: int, threads: int) -> None:
    """y = activation(z), any shape; y may be z."""
    if kind == _RELU:
        np.maximum(z, 0, out=y)
    elif kind == _LEAKY_RELU:
        y[:] = np.where(z < 0, 0.01 * z, z)
    elif kind == _ELU:
        y[:] = np.where(z < 0, np.expm1(np.minimum(z, 0)), z)
    elif kind == _GELU:  # Hendrycks & Gimpel 2016
        y[:] = z * _normal_cdf(z)
    elif kind == _SILU:
        y[:] = z * _sigmoid(z)
    elif kind == _TANH:
        np.tanh(z, out=y)
    elif kind == _SIGMOID:
        y[:] = _sigmoid(z)
    elif kind == _SOFTPLUS:
        y[:] = np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0)
    elif y is not z:
        y[:] = z


def activation_backward(dz: Array, dy: Array, y: Array, z: Array, kind: int, threads: int) -> None:
    """dz = dy * activation'(z), given y = activation(z), and z itself for GELU and SiLU; dz may be dy."""
    if kind == _RELU:
        dz[:] = np.where(y <= 0, 0, dy)
    elif kind == _LEAKY_RELU:
        dz[:] = np.where(y > 0, dy, 0.01 * dy)
    elif kind == _ELU:
        dz[:] = np.where(y > 0, dy, dy * (y + 1))
    elif kind == _GELU:
        dz[:] = dy * (_normal_cdf(z) + z * np.exp(-0.5 * np.square(z)) / math.sqrt(2 * math.pi))
    elif kind == _SILU:
        s = _sigmoid(z)
        dz[:] = dy * (s + z * s * (1 - s))
    elif kind == _TANH:
        dz[:] = dy * (1 - y * y)
    elif kind == _SIGMOID:
        dz[:] = dy * (y * (1 - y))
    elif kind == _SOFTPLUS:
        dz[:] = dy * -np.expm1(-y)
    elif dz is not dy:
        dz[:] = dy


# --- dropout and normalisation --------------------------------------------------------------------------------------


def _mix(h: Array) -> Array:
    """SplitMix64's output function (Steele, Lea & Flood 2014) on uint64."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def dropout(y: Array, x: Array, p: float, key: int, step: int, threads: int) -> None:
    """y = x * mask / (1 - p); the mask is element i of the SplitMix64 stream that key and step select.

    Serves both directions: the backward pass asks for the same mask again instead of keeping it.
    """
    start = int(_mix(np.array([(key + _GOLDEN * step) & _MASK], dtype=np.uint64))[0])
    index = np.arange(1, x.size + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(start)
    keep = (_mix(index) >> np.uint64(32)) >= np.uint64(p * 2.0**32)
    y[:] = np.where(keep.reshape(x.shape), x * x.dtype.type(1 / (1 - p)), 0)


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


# --- embedding ------------------------------------------------------------------------------------------------------


def _numeric(x: Array, tables: Array) -> int:
    """How many columns of x (B, I) come before those of ids."""
    return int(x.shape[1] - tables["columns"].sum())


def _lookups(flat: Array, x: Array, tables: Array) -> Iterator[tuple[Array, Array, slice]]:
    """For each column of ids: its table, a view of flat (n,), its ids (B,), and the columns of y that they become."""
    i = j = _numeric(x, tables)  # the numeric columns are as many in y
    for rows, dim, offset, columns in tables.tolist():
        for _ in range(columns):
            yield flat[offset : offset + rows * dim].reshape(rows, dim), x[:, i].astype(np.int64), slice(j, j + dim)
            i, j = i + 1, j + dim


def _embedding_forward(y: Array, x: Array, values: Array, tables: Array, threads: int) -> None:
    """y (B, O): the numeric columns of x (B, I), then for each column of ids their rows of its table.

    tables (T,) TABLE records say where in the flat values (n,) they lie; the last columns of x hold the ids, as whole
    numbers.
    """
    numeric = _numeric(x, tables)
    y[:, :numeric] = x[:, :numeric]
    for table, ids, columns in _lookups(values, x, tables):
        y[:, columns] = table[ids]


def _embedding_backward(grads: Array, dx: Array | None, dy: Array, x: Array, tables: Array, threads: int) -> None:
    """The gradients of the tables in the flat grads (n,), column by column and row by row; ids have none: dx is 0."""
    for table, _, _ in _lookups(grads, x, tables):
        table[:] = 0
    for table, ids, columns in _lookups(grads, x, tables):
        np.add.at(table, ids, dy[:, columns])
    if dx is not None:
        numeric = _numeric(x, tables)
        dx[:, :numeric], dx[:, numeric:] = dy[:, :numeric], 0


def unknown_category(x: Array, categories: Array) -> int:
    """Of the last columns of x (B, I), read row by row: which is the first entry that is no id, or -1.

    An id of column j is a whole number from 0 to categories[j] - 1; categories (k,) int64.
    """
    ids = x[:, x.shape[1] - len(categories) :]
    wrong = ~((ids >= 0) & (ids < categories) & (ids == np.floor(ids)))
    return int(wrong.argmax()) if wrong.any() else -1


# --- losses ---------------------------------------------------------------------------------------------------------


def cross_entropy(
    dlogits: Array,
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    sample_weight: Array | None,
    label_smoothing: float,
    threads: int,
) -> float:
    """The mean softmax cross-entropy of logits (B, C) and labels (B,) int64; dlogits (B, C) is its gradient.

    With weights of classes w or samples s the mean is weighted, as in PyTorch:
    sum_i s_i w[label_i] loss_i / sum_i s_i w[label_i].
    """
    n, classes = logits.shape
    weight = np.ones(classes) if class_weight is None else class_weight.astype(np.float64)
    of_sample = np.ones(n) if sample_weight is None else sample_weight.astype(np.float64)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    target = np.full(logits.shape, label_smoothing / classes) * weight
    target[np.arange(n), labels] += (1 - label_smoothing) * weight[labels]
    target *= of_sample[:, None]
    total = (of_sample * weight[labels]).sum() or np.inf  # a batch that weighs nothing teaches nothing
    dlogits[:] = (np.exp(log_p) * target.sum(axis=1, keepdims=True) - target) / total
    return float(-(target * log_p).sum() / total)


def elementwise_loss(
    dpred: Array, pred: Array, target: Array, sample_weight: Array | None, kind: int, parameter: float, threads: int
) -> float:
    """The mean of an elementwise loss over all entries of pred and target (B, O); dpred is its gradient.

    With sample weights s it is sum_ij s_i loss_ij / (O sum_i s_i).
    """
    e = pred - target
    if kind == _BCE:
        loss = np.maximum(pred, 0) - pred * target + np.log1p(np.exp(-np.abs(pred)))
        gradient = _sigmoid(pred) - target
    elif kind == _MSE:
        loss, gradient = e * e, 2 * e
    elif kind == _MAE:
        loss, gradient = np.abs(e), np.sign(e)
    elif kind == _HUBER:
        inside = np.abs(e) <= parameter
        loss = np.where(inside, 0.5 * e * e, parameter * (np.abs(e) - 0.5 * parameter))
        gradient = np.clip(e, -parameter, parameter)
    elif kind == _QUANTILE:
        loss = np.where(e > 0, (1 - parameter) * e, -parameter * e)
        gradient = np.where(e > 0, 1 - parameter, np.where(e < 0, -parameter, 0))
    else:
        loss, gradient = np.exp(pred) - target * pred, np.exp(pred) - target
    of_sample = np.ones(len(pred)) if sample_weight is None else sample_weight.astype(np.float64)
    share = of_sample[:, None] / (of_sample.sum() * pred.shape[1] or np.inf)
    dpred[:] = gradient * share
    return float((loss * share).sum())


# --- optimizer updates over the flat buffers ------------------------------------------------------------------------


def _sgd(
    param: Array,
    velocity: Array | None,
    grad: Array,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    grad_scale: float,
) -> None:
    """v = momentum v + g, param -= lr (g + momentum v if nesterov else v), g = grad_scale grad + weight_decay param."""
    g = grad * grad_scale + weight_decay * param
    if velocity is not None:
        velocity *= momentum
        velocity += g
        g = g + momentum * velocity if nesterov else velocity
    param -= lr * g


def _adam(
    param: Array,
    m: Array,
    v: Array,
    grad: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
    grad_scale: float,
    eps_hat: bool = False,
) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1); decoupled weight decay makes it AdamW (Loshchilov & Hutter 2019).

    step counts from 1. eps_hat adds eps before the bias correction, as in the form at the end of their section 2.
    """
    g = grad * grad_scale
    if decoupled:
        param *= 1 - lr * weight_decay
    else:
        g += weight_decay * param
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    correction = math.sqrt(1 - beta2**step)
    param -= (lr / (1 - beta1**step)) * m / (np.sqrt(v) / correction + (eps / correction if eps_hat else eps))


def _rmsprop(
    param: Array,
    square: Array,
    velocity: Array | None,
    grad: Array,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
    grad_scale: float,
) -> None:
    """square = alpha square + (1 - alpha) g^2, param -= lr g / (sqrt(square) + eps), through a velocity if given."""
    g = grad * grad_scale + weight_decay * param
    square += (1 - alpha) * (g * g - square)
    g = g / (np.sqrt(square) + eps)
    if velocity is not None:
        velocity *= momentum
        velocity += g
        g = velocity
    param -= lr * g


def _adagrad(
    param: Array, total: Array, grad: Array, lr: float, eps: float, weight_decay: float, grad_scale: float
) -> None:
    """total += g^2, param -= lr g / (sqrt(total) + eps) (Duchi, Hazan & Singer 2011)."""
    g = grad * grad_scale + weight_decay * param
    total += g * g
    param -= lr * g / (np.sqrt(total) + eps)


def update(
    param: Array,
    grad: Array,
    recipe: tuple[str, tuple[Array | None, ...], dict[str, Any]],
    lr: float,
    grad_scale: float,
    threads: int,
) -> None:
    """One step of the rule that an optimizer's ``(rule, state vectors, settings)`` names, over flat vectors (n,).

    grad changes where the settings clip it by value.
    """
    rule, state, settings = recipe
    most = settings.get("clip_value", 0.0)
    if most > 0:
        np.clip(grad, -most, most, out=grad)
    rules: dict[str, Any] = {"sgd": _sgd, "adam": _adam, "rmsprop": _rmsprop, "adagrad": _adagrad}
    settings = {name: value for name, value in settings.items() if name != "clip_value"}
    settings |= {"lr": lr, "grad_scale": grad_scale}
    begin = 0
    for low, high in [*settings.pop("undecayed", ()), (param.size, param.size)]:  # pairs (k, 2): where nothing decays
        for part, change in ((slice(begin, low), {}), (slice(low, high), {"weight_decay": 0.0})):
            vectors = (None if vector is None else vector[part] for vector in state)
            rules[rule](param[part], *vectors, grad[part], **settings | change)
        begin = high


def squared_norm(x: Array, threads: int) -> float:
    """The sum of squares of x (n,), in float64."""
    return float(np.square(x, dtype=np.float64).sum())


ROUNDS = 4
FEWEST_BITS = 8  # smaller domains would have too few permutations


def _scramble(h: Array) -> Array:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def _feistel(x: Array, keys: Array, low_bits: int, high_bits: int) -> Array:
    low = (x % 2**low_bits).astype(np.uint32)
    high = (x >> np.uint64(low_bits)).astype(np.uint32)
    for i in range(0, ROUNDS, 2):
        high ^= _scramble(low ^ keys[i]) & np.uint32(2**high_bits - 1)
        low ^= _scramble(high ^ keys[i + 1]) & np.uint32(2**low_bits - 1)
    return (high.astype(np.uint64) << np.uint64(low_bits)) | low


def order(rows: Array, first: int, samples: int, key: int | Array | None) -> None:
    """rows (count,) int64 = the numbers first..first+count of an epoch's order of its samples, or of no shuffle.

    The order is a pseudo-random permutation that takes no memory: a Feistel network (Luby & Rackoff 1988) permutes the
    numbers of so many bits, and numbers beyond the last sample are sent through it again until they fall inside (cycle
    walking, Black & Rogaway 2002). key, below 2**64, chooses it; None leaves the samples in their order. An order that
    is given as row numbers (n,) is taken as it is.
    """
    if isinstance(key, np.ndarray):
        rows[:] = key[first : first + len(rows)]
        return
    rows[:] = np.arange(first, first + len(rows))
    if key is None:
        return
    bits = max(FEWEST_BITS, (samples - 1).bit_length())
    seeds = np.array([(key + _GOLDEN * (i + 1)) & _MASK for i in range(ROUNDS)], np.uint64)
    keys = (_mix(seeds) >> np.uint64(32)).astype(np.uint32)
    x = rows.astype(np.uint64)
    outside = np.ones(len(x), bool)
    while outside.any():
        x[outside] = _feistel(x[outside], keys, bits // 2, bits - bits // 2)
        outside = x >= samples
    rows[:] = x


def all_finite(x: Array) -> bool:
    """Whether no entry of x is NaN or infinite; in chunks, so that a large x is not doubled in memory."""
    flat = x.reshape(-1)
    return all(bool(np.isfinite(flat[i : i + 65536]).all()) for i in range(0, flat.size, 65536))


# --- the plan -------------------------------------------------------------------------------------------------------


_IN_GATHER, _IN_LOSS, _IN_WAITING, _IN_FORWARD, _IN_DX, _IN_DWEIGHT = range(6)  # of spent; the last three per layer


class Network:
    """Runs a plan, one op at a time, over the flat buffers values and grads (n,) and stats (s,); tables (T,) TABLE."""

    def __init__(self, ops: Array, values: Array, grads: Array, stats: Array, tables: Array) -> None:
        self.ops, self.tables = ops, tables
        self.values, self.grads, self.stats = values, grads, stats
        self.threads = 1  # that the last epoch was given
        counts = np.array([sum(sizes(op, tables)) for op in ops])
        self._shares = counts / max(1, counts.sum())
        self._spent: Array | None = None
        self._last = 0.0

    def watch(self, spent: Array | None) -> None:
        """Add up where the time goes: seconds in gather, loss and waiting, then forward, dx and dweight of each layer.

        spent (3 + 3 * layers,) float64, or None to stop. Nothing ever waits here, and the gradients of batch norm and
        layer norm, which come with their dx, are charged to it.
        """
        self._spent = spent

    def _lap(self, slots: int | slice, share: float | Array = 1.0) -> None:
        """Charge the time since the last call to a slot, or a share of it to each of several."""
        if self._spent is not None:
            now = time.perf_counter()
            self._spent[slots] += (now - self._last) * share
            self._last = now

    def _parameter(self, flat: Array, offset: int, *shape: int) -> Array:
        return flat[offset : offset + math.prod(shape)].reshape(shape) if offset >= 0 else None

    def forward(self, y: Array, x: Array, step: int, training: bool, threads: int) -> None:
        """y (B, O) = network(x (B, I)); keeps what the backward pass needs. step selects dropout's masks."""
        kept: tuple[list[Any], ...] = ([], [], [])
        batch = x.shape[0]
        for i, op in enumerate(self.ops):
            out = np.empty((batch, op["outputs"]), dtype=x.dtype)
            pre = x if op["kind"] == ACTIVATION else np.empty_like(out) if op["activation"] in NEEDS_INPUT else None
            rows = np.empty((batch, 2), dtype=x.dtype) if op["kind"] == LAYERNORM else None
            n = int(op["inputs"])
            weight = self._parameter(self.values, op["weight"], n)
            bias = self._parameter(self.values, op["bias"], int(op["outputs"]))
            if op["kind"] == DENSE:
                weight = self._parameter(self.values, op["weight"], n, int(op["outputs"]))
                dense_forward(out, pre, x, weight, bias, op["activation"], None, threads)
            elif op["kind"] == EMBEDDING:
                _embedding_forward(out, x, self.values, self.tables, threads)
            elif op["kind"] == ACTIVATION:
                activation_forward(out, x, op["activation"], threads)
            elif op["kind"] == DROPOUT:
                dropout(out, x, float(op["p"]) if training else 0.0, int(op["key"]), step, threads)
            elif op["kind"] == BATCHNORM:
                stats = self._parameter(self.stats, op["stats"], 4, n)
                batchnorm_forward(out, stats, x, weight, bias, op["momentum"], op["eps"], training, threads)
            else:
                layernorm_forward(out, rows, x, weight, bias, op["eps"], threads)
            self._lap(_IN_FORWARD + 3 * i)
            for values, value in zip(kept, (x, pre, rows), strict=True):
                values.append(value)
            x = out
        kept[0].append(x)
        y[:] = x
        if training:  # else a backward pass may wait for what is kept, and other threads are here
            (self._inputs, self._pre, self._rows), self._step = kept, step

    def layer_outputs(self) -> list[Array]:
        """The outputs of every op in the last forward pass in training."""
        outputs: list[Array] = self._inputs[1:]
        return outputs

    def backward(self, dx: Array | None, dy: Array, threads: int) -> None:
        """Fill grads from dy (B, O), the gradient of the last forward's y, and dx (B, I) if it is not None."""
        for i in reversed(range(len(self.ops))):
            op = self.ops[i]
            x, y, pre = self._inputs[i], self._inputs[i + 1], self._pre[i]
            if op["activation"] and not (i + 1 < len(self.ops) and self.ops[i + 1]["prior"]):
                dz = np.empty_like(y)
                activation_backward(dz, dy, y, pre, op["activation"], threads)
                dy = dz
                self._lap(_IN_DX + 3 * i)
            if op["kind"] == ACTIVATION and i > 0:
                continue
            out = np.empty_like(x) if i > 0 else dx
            n = int(op["inputs"])
            weight = self._parameter(self.values, op["weight"], n)
            dweight = self._parameter(self.grads, op["weight"], n)
            dbias = self._parameter(self.grads, op["bias"], int(op["outputs"]))
            if op["kind"] == DENSE:
                weight = self._parameter(self.values, op["weight"], n, int(op["outputs"]))
                dweight = self._parameter(self.grads, op["weight"], n, int(op["outputs"]))
                x_z = self._pre[i - 1] if op["prior"] else None
                _dense_gradients(dweight, dbias, dy, x)  # dense_backward, in halves that are timed apart
                self._lap(_IN_DWEIGHT + 3 * i)
                if out is not None:
                    _dense_dx(out, dy, x, x_z, weight, op["prior"], threads)
            elif op["kind"] == EMBEDDING:
                _embedding_backward(self.grads, out, dy, x, self.tables, threads)
            elif op["kind"] == DROPOUT and out is not None:
                dropout(out, dy, float(op["p"]), int(op["key"]), self._step, threads)
            elif op["kind"] == BATCHNORM:
                stats = self._parameter(self.stats, op["stats"], 4, n)
                batchnorm_backward(dweight, dbias, out, dy, x, stats, weight, threads)
            elif op["kind"] == LAYERNORM:
                layernorm_backward(dweight, dbias, out, dy, x, self._rows[i], weight, threads)
            elif out is not None:
                out[:] = dy  # an activation at the very front
            self._lap(_IN_DX + 3 * i)
            if out is not None:
                dy = out

    def train(
        self,
        progress: list[Any],
        X: Array,
        y: Array,
        sample_weight: Array | None,
        key: int | Array | None,
        first: int,
        steps: int,
        batch_size: int,
        loss: tuple[str, float, Array | None],
        update_recipe: tuple[str, tuple[Array | None, ...], dict[str, Any]],
        lrs: Array | float,
        decays: Array | None,
        clip_norm: float,
        step: int,
        threads: int,
    ) -> None:
        """Steps of one epoch over X (n, I) and y, from position ``first`` of its order, batch_size rows at a time.

        sample_weight (n,) may be None, key is the order's, as for ``order``, loss ``(name, parameter, class weight)``,
        update_recipe ``(rule, state vectors, settings)``, lrs (steps,) float64 or, for all steps, a float, decays
        (steps,) float64 or, for the weight decay of the settings, None, clip_norm 0 for none; step numbers the first
        step, for dropout. progress, a list, becomes the loss summed over the samples, how many were right, and the
        steps done, after an interrupt too; and where a loss, which is then added as it is, or a gradient that is
        clipped by its norm is not finite: such a step is not taken, nor any after it.
        """
        name, parameter, weight = loss
        rule, state, settings = update_recipe
        self.threads, self._last = threads, time.perf_counter()
        samples = len(key) if isinstance(key, np.ndarray) else len(X)
        for t in range(steps):
            rows = np.empty(min(batch_size, samples - first), np.int64)
            order(rows, first, samples, key)
            first += batch_size
            xb, yb, wb = X[rows], y[rows], None if sample_weight is None else sample_weight[rows]
            pred = np.empty((len(rows), int(self.ops[-1]["outputs"])), X.dtype)
            dpred = np.empty_like(pred)
            stats = self.stats.copy()
            self._lap(_IN_GATHER)
            self.forward(pred, xb, step + t, True, threads)
            if name == "cross_entropy":
                value = cross_entropy(dpred, pred, yb, weight, wb, parameter, threads)
                right = int(np.count_nonzero(pred.argmax(axis=1) == yb))
            else:
                value = elementwise_loss(dpred, pred, yb, wb, ELEMENTWISE_LOSSES[name], parameter, threads)
                binary = name == "binary_cross_entropy"
                right = int(np.count_nonzero(((pred > 0) == (yb > 0.5)).all(axis=1))) if binary else 0
            self._lap(_IN_LOSS)
            norm = 0.0
            if math.isfinite(value):
                self.backward(None, dpred, threads)
                norm = math.sqrt(squared_norm(self.grads, threads)) if clip_norm > 0 else 0.0
            if not (math.isfinite(value) and math.isfinite(norm)):
                self.stats[:] = stats
                progress[0] += value
                return
            scale = min(1.0, clip_norm / (norm + 1e-6)) if clip_norm > 0 else 1.0
            moment = {"step": settings["step"] + t} if "step" in settings else {}
            if decays is not None:
                moment["weight_decay"] = float(decays[t])
            update(
                self.values,
                self.grads,
                (rule, state, settings | moment),
                lrs if isinstance(lrs, float) else float(lrs[t]),
                scale,
                threads,
            )
            # the update is one pass over all parameters: each layer is charged for as many as are its own
            self._lap(slice(_IN_DWEIGHT, None, 3), self._shares)
            progress[:] = progress[0] + value * len(rows), progress[1] + right, progress[2] + 1
