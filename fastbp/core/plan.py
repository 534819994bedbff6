"""What Python and the core agree on: the registry of activations, the plan of a model, and the specs of a training.

A plan is a C-contiguous array of OP records in the order in which the data flows. Parameters, their gradients and
statistics live in flat buffers, and a record holds offsets into them, in elements: parameters and gradients at
``weight`` and ``bias``, running and batch statistics at ``stats``. Minus one means that the op has no such tensor. The
parameters of an embedding, which can only be the first op, are described by TABLE records beside the plan. Where
activations lie is the backend's own business.

Losses and update rules cross as specs that name them; their registries are ``fastbp.losses.LOSSES`` and
``fastbp.optim.OPTIMIZERS``, and their codes are the core's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Array = Any  # np.ndarray

KINDS = {"dense": 0, "activation": 1, "dropout": 2, "batchnorm": 3, "layernorm": 4, "embedding": 5}
DENSE, ACTIVATION, DROPOUT, BATCHNORM, LAYERNORM, EMBEDDING = KINDS.values()


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

OP = np.dtype(
    [
        ("kind", np.int32),
        ("activation", np.int32),  # applied to the op's result, fused into a dense op
        ("input_activation", np.int32),  # the activation that gave the input, if this op's dx includes its derivative
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

#: A table of an embedding: a row of ``dim`` numbers per category, from ``offset`` on in the flat buffers, and how many
#: neighbouring columns of the input hold ids of it.
TABLE = np.dtype([("rows", np.int64), ("dim", np.int64), ("offset", np.int64), ("columns", np.int64)])


# The specs are written out: dataclasses would take a tenth of the package's time to import. By the slots a misspelt
# field is an error.


class LossSpec:
    """A loss: its name in ``fastbp.losses.LOSSES``, its parameter (label smoothing, delta, quantile), class weights."""

    __slots__ = "class_weight", "name", "parameter"

    def __init__(self, name: str, parameter: float = 0.0, class_weight: Array | None = None) -> None:
        self.name, self.parameter = name, parameter
        self.class_weight = class_weight  # (C,), of the model's dtype


class UpdateSpec:
    """An update rule: its name in ``fastbp.optim.OPTIMIZERS``, its state vectors, and its settings.

    ``lr`` and ``weight_decay`` are numbers or, for the steps of an epoch, arrays (steps,) of float64.
    """

    __slots__ = (
        "alpha", "beta1", "beta2", "clip_norm", "clip_value", "decoupled", "eps", "eps_hat", "idle", "lr", "momentum",
        "nesterov", "rule", "state", "step", "undecayed", "weight_decay",
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
        undecayed: Array | None = None,
        idle: bool = False,
    ) -> None:
        self.rule, self.state, self.lr, self.weight_decay = rule, state, lr, weight_decay
        self.momentum, self.nesterov, self.beta1, self.beta2, self.alpha = momentum, nesterov, beta1, beta2, alpha
        self.eps = eps
        self.eps_hat = eps_hat  # whether Adam's eps is added before the bias correction
        self.decoupled = decoupled  # whether weight decay multiplies the parameter, as in AdamW
        self.step = step  # Adam's, from 1
        self.clip_norm, self.clip_value = clip_norm, clip_value  # 0 for none
        self.undecayed = undecayed  # (k, 2) int64: from where to where in the flat buffers weight decay does not act
        self.idle = idle  # whether a gradient of zero changes nothing


class BatchPlan:
    """Which samples the steps of an epoch take, and in which order."""

    __slots__ = "batch_size", "dropout_step", "first", "order", "steps"

    def __init__(self, order: int | Array | None, first: int, steps: int, batch_size: int, dropout_step: int) -> None:
        self.order = order  # as for ``batch_order``
        self.first, self.steps, self.batch_size = first, steps, batch_size  # first: position in the order
        self.dropout_step = dropout_step  # numbers the first step, and so selects dropout's masks


class Report:
    """What the core has done of a BatchPlan. The caller makes it, so that it is there after an interrupt too."""

    __slots__ = "correct", "loss", "steps"

    def __init__(self) -> None:
        self.loss = 0.0  # summed over the samples; of a step that was not applied, its loss, which is not finite
        self.correct = self.steps = 0


def check_codes(backend: ModuleType) -> None:
    """Raise an ImportError unless the backend was compiled with these layer kinds and activations."""
    activations = {name or "linear": activation.code for name, activation in ACTIVATIONS.items()}
    for family, expected in (("kinds", KINDS), ("activations", activations)):
        if backend.CODES[family] != expected:
            raise _other_build(backend, family, expected)


def check_names(backend: ModuleType, family: str, names: Iterable[str]) -> None:
    """Raise an ImportError unless these are the names of a family, "losses" or "rules", in the backend."""
    if set(backend.CODES[family]) != set(names):
        raise _other_build(backend, family, sorted(names))


def _other_build(backend: ModuleType, family: str, expected: object) -> ImportError:
    return ImportError(
        f"{backend.__name__} has other {family} than the rest of fastbp: expected {expected}, got "
        f"{backend.CODES[family]}; if it is compiled, build fastbp again"
    )


def sizes(op: np.void, tables: np.ndarray) -> tuple[int, int]:
    """How many numbers the weight and the bias of an op have; tables are those of the plan's embedding."""
    if op["kind"] == EMBEDDING:
        return int((tables["rows"] * tables["dim"]).sum()), 0
    inputs, outputs = int(op["inputs"]), int(op["outputs"])
    weight = 0 if op["weight"] < 0 else inputs * outputs if op["kind"] == DENSE else inputs
    return weight, outputs if op["bias"] >= 0 else 0


ALIGNMENT = 64  # bytes: a cache line and the widest vector register


SLACK = 128  # bytes after a vector that a kernel may read, but not use: it reads rows by two whole registers


def aligned(count: int, dtype: np.dtype | type) -> np.ndarray:
    """An uninitialised vector of count elements that starts on a cache line and has SLACK behind it."""
    dtype = np.dtype(dtype)
    raw = np.empty(count * dtype.itemsize + ALIGNMENT + SLACK, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * dtype.itemsize].view(dtype)
