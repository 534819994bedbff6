# The doors of kernels.pyx, under any name that it is built by. What each computes stands at its twin in reference.py.
# All floats of a call have one dtype; nothing is checked.

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from fastbp.core.plan import ELEMENTWISE_LOSSES as ELEMENTWISE_LOSSES
from fastbp.core.plan import RULES as RULES

_Real = TypeVar("_Real", np.float32, np.float64)
_LossRecipe = tuple[str, float, NDArray[_Real] | None]  # name, parameter, class weight
_UpdateRecipe = tuple[str, tuple[NDArray[_Real] | None, ...], dict[str, Any]]  # rule, state vectors, settings
_Dtype = np.dtype[np.float32] | np.dtype[np.float64]
_Records = NDArray[np.void]  # of plan.OP or plan.TABLE

def openmp() -> bool: ...
def openmp_threads() -> int: ...
def target() -> str: ...
def scratch_bytes(m: int, n: int, k: int, dtype: _Dtype) -> int: ...

# --- products and layers

def matmul(
    c: NDArray[_Real], a: NDArray[_Real], b: NDArray[_Real], scratch: NDArray[np.int8], threads: int
) -> None: ...
def dense_forward(
    y: NDArray[_Real],
    z: NDArray[_Real] | None,
    x: NDArray[_Real],
    weight: NDArray[_Real],
    bias: NDArray[_Real] | None,
    activation: int,
    scratch: NDArray[np.int8],
    threads: int,
) -> None: ...
def dense_backward(
    dweight: NDArray[_Real],
    dbias: NDArray[_Real] | None,
    dx: NDArray[_Real] | None,
    dz: NDArray[_Real],
    x: NDArray[_Real],
    x_z: NDArray[_Real] | None,
    weight: NDArray[_Real],
    prior: int,
    scratch: NDArray[np.int8],
    threads: int,
) -> None: ...
def activation_forward(y: NDArray[_Real], z: NDArray[_Real], kind: int, threads: int) -> None: ...
def activation_backward(
    dz: NDArray[_Real], dy: NDArray[_Real], y: NDArray[_Real], z: NDArray[_Real] | None, kind: int, threads: int
) -> None: ...
def dropout(y: NDArray[_Real], x: NDArray[_Real], p: float, key: int, step: int, threads: int) -> None: ...
def batchnorm_forward(
    y: NDArray[_Real],
    stats: NDArray[_Real],
    x: NDArray[_Real],
    weight: NDArray[_Real],
    bias: NDArray[_Real],
    momentum: float,
    eps: float,
    training: bool,
    threads: int,
) -> None: ...
def batchnorm_backward(
    dweight: NDArray[_Real],
    dbias: NDArray[_Real],
    dx: NDArray[_Real] | None,
    dy: NDArray[_Real],
    x: NDArray[_Real],
    stats: NDArray[_Real],
    weight: NDArray[_Real],
    threads: int,
) -> None: ...
def layernorm_forward(
    y: NDArray[_Real],
    rows: NDArray[_Real],
    x: NDArray[_Real],
    weight: NDArray[_Real],
    bias: NDArray[_Real],
    eps: float,
    threads: int,
) -> None: ...
def layernorm_backward(
    dweight: NDArray[_Real],
    dbias: NDArray[_Real],
    dx: NDArray[_Real] | None,
    dy: NDArray[_Real],
    x: NDArray[_Real],
    rows: NDArray[_Real],
    weight: NDArray[_Real],
    threads: int,
) -> None: ...

# --- losses and updates

def cross_entropy(
    dlogits: NDArray[_Real],
    logits: NDArray[_Real],
    labels: NDArray[np.int64],
    class_weight: NDArray[_Real] | None,
    sample_weight: NDArray[_Real] | None,
    label_smoothing: float,
    threads: int,
) -> float: ...
def elementwise_loss(
    dpred: NDArray[_Real],
    pred: NDArray[_Real],
    target: NDArray[_Real],
    sample_weight: NDArray[_Real] | None,
    kind: int,
    parameter: float,
    threads: int,
) -> float: ...
def update(
    param: NDArray[_Real],
    grad: NDArray[_Real],
    recipe: _UpdateRecipe[_Real],
    lr: float,
    grad_scale: float,
    threads: int,
) -> None: ...
def squared_norm(x: NDArray[_Real], threads: int) -> float: ...

# --- the rest

def order(rows: NDArray[np.int64], first: int, samples: int, key: int | NDArray[np.int64] | None) -> None: ...
def all_finite(x: NDArray[np.float32] | NDArray[np.float64]) -> bool: ...
def unknown_category(x: NDArray[_Real], categories: NDArray[np.int64]) -> int: ...
def peak_flops(dtype: _Dtype, repeats: int) -> float: ...

@disjoint_base  # its instances have a layout of their own: a class cannot inherit from two backends
class Network:
    def __init__(
        self, ops: _Records, values: NDArray[_Real], grads: NDArray[_Real], stats: NDArray[_Real], tables: _Records
    ) -> None: ...
    @property
    def threads(self) -> int: ...
    def watch(self, spent: NDArray[np.float64] | None) -> None: ...
    def forward(self, y: NDArray[_Real], x: NDArray[_Real], step: int, training: bool, threads: int) -> None: ...
    def backward(self, dx: NDArray[_Real] | None, dy: NDArray[_Real], threads: int) -> None: ...
    def train(
        self,
        progress: list[Any],
        X: NDArray[_Real],
        y: NDArray[_Real] | NDArray[np.int64],
        sample_weight: NDArray[_Real] | None,
        key: int | NDArray[np.int64] | None,
        first: int,
        steps: int,
        batch_size: int,
        loss: _LossRecipe[_Real],
        update: _UpdateRecipe[_Real],
        lrs: NDArray[np.float64] | float,
        decays: NDArray[np.float64] | None,
        clip_norm: float,
        step: int,
        threads: int,
    ) -> None: ...
