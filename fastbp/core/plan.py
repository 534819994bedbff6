"""What Python and the core agree on: the registry of activations, the program of a model, and the specs of a training.

A program is made of *slots*, which are values (rows x width) with a gradient beside them, and of *ops*, which read slot
``src`` and write slot ``dst``. Both are C-contiguous arrays of records; the ops are in the order in which the data
flows, the slots in that in which they are created, so that a slot's ``parent`` has a higher number than the slot. Slot
0 is the model's input, and the ``dst`` of the last op is its output.

Parameters, their gradients and statistics live in flat buffers, and an op holds offsets into them, in elements:
parameters and gradients at ``weight`` and ``bias``, running and batch statistics at ``stats``. Minus one means that the
op has no such tensor, or the slot no such slot. The parameters of an embedding, which can only be the first op, are
described by TABLE records beside the ops. Where values and gradients lie is the backend's own business.

Layer kinds cross as names, in the op; losses and update rules as specs that name them. Their registries are
``fastbp.layers.LAYERS``, ``fastbp.losses.LOSSES`` and ``fastbp.optim.OPTIMIZERS``; which numbers stand for the names is
the core's own business.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

Array = Any  # np.ndarray


ActivationName = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus"]


class Activation(NamedTuple):
    """An activation as both sides of the core know it."""

    code: int
    #: Whether the derivative needs the input z; that of the others follows from the output y.
    needs_input: bool = False
    #: The initialisation of the weights before it, where the user names none.
    init: str = "he_uniform"
    #: The ONNX operator that computes it, or "" where fastbp.formats.onnx builds it from several.
    onnx: str = ""


#: The registry of activations; codes are compared with those of the compiled core when it is loaded.
ACTIVATIONS: dict[str | None, Activation] = {
    None: Activation(0, init="glorot_uniform", onnx="Identity"),
    "relu": Activation(1, onnx="Relu"),
    "leaky_relu": Activation(2),
    "elu": Activation(3),
    "gelu": Activation(4, needs_input=True),
    "silu": Activation(5, needs_input=True),
    "tanh": Activation(6, init="glorot_uniform", onnx="Tanh"),
    "sigmoid": Activation(7, init="glorot_uniform", onnx="Sigmoid"),
    "softplus": Activation(8),
}

SLOT = np.dtype(
    [
        ("width", np.int64),
        ("column", np.int64),  # of its parent, where it begins
        ("first", np.int64),  # the first column whose gradient is needed, where the input's gradient is not asked for
        ("parent", np.int32),  # the slot that it is a part of: the columns from ``column`` to ``column + width``
        ("keeps_value", np.int32),  # whether only its gradient is a part of the parent's, and its value is not
        ("source", np.int32),  # the slot whose value it has in inference, as behind a dropout
        ("learned", np.int32),  # 1 if parameters lie before it: a backward pass needs its gradient; -1 if it has none
    ]
)

OP = np.dtype(
    [
        ("kind", "S16"),  # the layer kind's name
        ("src", np.int32),
        ("dst", np.int32),
        ("z", np.int32),  # the slot of what its activation was applied to, where the derivative needs that
        ("input_z", np.int32),  # likewise of the activation that gave src, if this op's dx includes its derivative
        ("activation", np.int32),  # applied to the op's result, fused into a dense op
        ("input_activation", np.int32),  # the activation that gave src, if this op's dx includes its derivative
        ("derivative", np.int32),  # whether its backward pass begins with the derivative of its own activation
        ("accumulates", np.int32),  # whether its dx is added to the gradient of src, which a later op has assigned
        ("numeric", np.int64),  # an embedding's columns before those that hold ids
        ("column", np.int64),  # of dst, where a copy or an add begins to write
        ("inputs", np.int64),  # the width of src
        ("outputs", np.int64),  # the width of what it writes
        ("weight", np.int64),
        ("bias", np.int64),
        ("stats", np.int64),  # batch norm: running mean, running variance, batch mean, batch 1/std, n of each
        ("begin", np.int64),  # its parameters in the flat buffers, with the padding behind them, from here ...
        ("end", np.int64),  # ... to here; equal where it has none
        ("p", np.float64),
        ("eps", np.float64),
        ("momentum", np.float64),
        ("key", np.uint64),  # dropout's random stream
    ]
)

#: A table of an embedding: a row of ``dim`` numbers per category, from ``offset`` on in the flat buffers, and how many
#: neighbouring columns of the input hold ids of it.
TABLE = np.dtype([("rows", np.int64), ("dim", np.int64), ("offset", np.int64), ("columns", np.int64)])


#: What multiplies an optimizer's settings from ``begin`` to ``end`` in the flat buffers; an ``lr`` of 0 freezes.
GROUP = np.dtype(
    [("begin", np.int64), ("end", np.int64), ("lr", np.float64), ("weight_decay", np.float64), ("l1", np.float64)]
)


# The specs are written out: dataclasses would take a tenth of the package's time to import. By the slots a misspelt
# field is an error.


class LossSpec:
    """A loss: its name in ``fastbp.losses.LOSSES``, its parameter (delta or quantile), and what it weighs."""

    __slots__ = "class_weight", "missing", "name", "normalized", "parameter", "parameters", "smoothing"

    def __init__(
        self,
        name: str,
        parameter: float = 0.0,
        class_weight: Array | None = None,
        smoothing: float = 0.0,
        parameters: Array | None = None,
        missing: bool = False,
        normalized: bool = True,
    ) -> None:
        self.name, self.parameter, self.smoothing = name, parameter, smoothing
        self.class_weight = class_weight  # (C,), of the model's dtype; (2,) for binary cross-entropy with one output
        self.parameters = parameters  # (O,), of the model's dtype: quantiles, or the weights of positive targets
        self.missing = missing  # whether targets that are NaN are left out
        self.normalized = normalized  # whether the mean is over the weights; else over the number of samples


class UpdateSpec:
    """An update rule: its name in ``fastbp.optim.OPTIMIZERS``, its state vectors, and its settings.

    ``lr`` and ``weight_decay`` are numbers or, for the steps of an epoch, arrays (steps,) of float64.
    """

    __slots__ = (
        "alpha", "applied", "beta1", "beta2", "clip_norm", "clip_value", "decoupled", "eps", "eps_hat", "groups",
        "idle", "l1", "lr", "momentum", "nesterov", "rule", "state", "step", "weight_decay",
    )  # fmt: skip

    def __init__(
        self,
        rule: str,
        state: tuple[Array | None, ...],
        lr: Array | float,
        weight_decay: Array | float = 0.0,
        momentum: float = 0.0,
        nesterov: bool = False,
        beta1: float = 0.0,
        beta2: float = 0.0,
        alpha: float = 0.0,
        eps: float = 0.0,
        eps_hat: bool = False,
        decoupled: bool = False,
        step: int = 1,
        clip_norm: float = 0.0,
        clip_value: float = 0.0,
        groups: Array | None = None,
        idle: bool = False,
        l1: float = 0.0,
    ) -> None:
        self.rule, self.state, self.lr, self.weight_decay = rule, state, lr, weight_decay
        self.momentum, self.nesterov, self.beta1, self.beta2, self.alpha = momentum, nesterov, beta1, beta2, alpha
        self.eps = eps
        self.eps_hat = eps_hat  # whether Adam's eps is added before the bias correction
        self.decoupled = decoupled  # whether weight decay multiplies the parameter, as in AdamW
        self.step = step  # Adam's, from 1
        self.clip_norm, self.clip_value = clip_norm, clip_value  # 0 for none
        self.groups = groups  # GROUP records in their order in the buffers, without overlap
        self.l1 = l1  # times the sign of a parameter, added to its gradient; decoupled, a soft threshold afterwards
        self.idle = idle  # whether a gradient of zero changes nothing
        self.applied = False  # set by ``update``: what an interrupt finds done is done as a whole


class BatchPlan:
    """Which samples the steps of an epoch take, and in which order."""

    __slots__ = "batch_size", "dropout_step", "first", "order", "steps"

    def __init__(self, order: int | Array | None, first: int, steps: int, batch_size: int, dropout_step: int) -> None:
        self.order = order  # as for ``batch_order``
        self.first, self.steps, self.batch_size = first, steps, batch_size  # first: position in the order
        self.dropout_step = dropout_step  # numbers the first step, and so selects dropout's masks


class Report:
    """What the core has done of a BatchPlan. The caller makes it, so that it is there after an interrupt too."""

    __slots__ = "correct", "invalid_row", "loss", "penalty", "steps", "stopped", "weight", "weighted_loss"

    def __init__(self) -> None:
        self.loss = 0.0  # summed over the samples; of a step that was not applied, its loss, which is not finite
        self.weighted_loss = self.weight = 0.0  # the sum with the samples' weights; with a reducer, of all processes
        # with a weight decay of its own for every step: the sum of these, each times the samples of its step and the
        # squares of the weights of dense layers before it
        self.penalty = 0.0
        self.correct = self.steps = 0
        self.invalid_row = -1  # of the data, which ended the steps: its label or its ids have become others
        self.stopped = False  # whether a step was not applied because a process that shares the work has to stop


BUCKET_BYTES = 2**20  # that a reducer gets at a time, at least: below that the latency of a message outweighs its size


class Reducer(Protocol):
    """Adds up the steps of several processes, each of which trains on a share of the samples.

    With a reducer the loss and its gradients are sums over the samples, each with its weight, and not means. In every
    step ``begin`` is called first, then ``reduce`` for consecutive parts of the gradients, then ``wait``. The arrays
    hold the sums over all processes when ``wait`` returns; until then they belong to the reducer.
    """

    def begin(self, header: Array) -> None:
        """Begin a step, with a vector of four float64.

        The total weight of the samples; the sum of their losses, each with its weight; 1 if that is not finite; 1 if
        this process has to stop. Where the sum of the third is positive the step is reported as diverged, where that
        of the last is positive as stopped; neither is applied.
        """

    def reduce(self, bucket: Array) -> None:
        """Take a view of the flat gradients, of at least BUCKET_BYTES except for the last one."""

    def wait(self) -> None:
        """Return when the header and all buckets of the step hold the sums."""


def check_codes(backend: ModuleType) -> None:
    """Raise an ImportError unless the backend was compiled with these activations."""
    expected = {name or "linear": activation.code for name, activation in ACTIVATIONS.items()}
    if backend.CODES["activations"] != expected:
        raise _other_build(backend, "activations", expected)


def check_names(backend: ModuleType, family: str, names: Iterable[str]) -> None:
    """Raise an ImportError unless these are the names of a family, "kinds", "losses" or "rules", in the backend."""
    if set(backend.CODES[family]) != set(names):
        raise _other_build(backend, family, sorted(names))


def _other_build(backend: ModuleType, family: str, expected: object) -> ImportError:
    return ImportError(
        f"{backend.__name__} has other {family} than the rest of fastbp: expected {expected}, got "
        f"{backend.CODES[family]}; if it is compiled, build fastbp again"
    )


ALIGNMENT = 64  # bytes: a cache line and the widest vector register


SLACK = 128  # bytes after a vector that a kernel may read, but not use: it reads rows by two whole registers


def aligned(count: int, dtype: np.dtype | type) -> np.ndarray:
    """An uninitialised vector of count elements that starts on a cache line and has SLACK behind it."""
    dtype = np.dtype(dtype)
    raw = np.empty(count * dtype.itemsize + ALIGNMENT + SLACK, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * dtype.itemsize].view(dtype)
