# The bindings of kernels.pyx, under any name that it is built by. What each computes is documented at the function of
# the same name in reference/. All floats of a call have one dtype; nothing but sizes is checked.

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from fastbp.core.plan import BUCKET_BYTES as BUCKET_BYTES
from fastbp.core.plan import BatchPlan, LossSpec, Reducer, Report, UpdateSpec
from fastbp.core.sparse import CSR

_Real = TypeVar("_Real", np.float32, np.float64)
_Dtype = np.dtype[np.float32] | np.dtype[np.float64]
_Records = NDArray[np.void]  # of plan.OP, plan.SLOT, plan.TABLE or plan.GROUP
_Order = int | NDArray[np.int64] | None

CODES: dict[str, dict[str, int]]

def openmp() -> bool: ...
def openmp_threads() -> int: ...
def target() -> str: ...
def scratch_bytes(m: int, n: int, k: int, dtype: _Dtype) -> int: ...
def product_scratch_bytes(m: int, n: int, k: int, dtype: _Dtype, threads: int) -> int: ...

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
    input_activation: int,
    scratch: NDArray[np.int8],
    threads: int,
) -> None: ...
def activation_forward(y: NDArray[_Real], z: NDArray[_Real], code: int, threads: int) -> None: ...
def activation_backward(
    dz: NDArray[_Real], dy: NDArray[_Real], y: NDArray[_Real], z: NDArray[_Real] | None, code: int, threads: int
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

def loss(
    dpred: NDArray[_Real],
    pred: NDArray[_Real],
    target: NDArray[_Real] | NDArray[np.int64],
    sample_weight: NDArray[_Real] | None,
    spec: LossSpec,
    threads: int,
) -> float: ...
def sample_losses(
    losses: NDArray[_Real],
    dpred: NDArray[_Real],
    pred: NDArray[_Real],
    target: NDArray[_Real] | NDArray[np.int64],
    sample_weight: NDArray[_Real] | None,
    spec: LossSpec,
    threads: int,
) -> None: ...
def softmax(y: NDArray[_Real], logits: NDArray[_Real], threads: int) -> None: ...
def update(param: NDArray[_Real], grad: NDArray[_Real], spec: UpdateSpec, grad_scale: float, threads: int) -> None: ...
def squared_norm(x: NDArray[_Real], groups: _Records | None, threads: int) -> float: ...

# --- the rest

def batch_order(rows: NDArray[np.int64], first: int, samples: int, order: _Order) -> None: ...
def all_finite(x: NDArray[np.float32] | NDArray[np.float64]) -> bool: ...
def unknown_category(x: NDArray[_Real], categories: NDArray[np.int64]) -> int: ...
def peak_flops(dtype: _Dtype, repeats: int) -> float: ...

@disjoint_base
class PythonReducer:
    def __init__(self, reducer: Reducer, header: NDArray[np.float64], grads: NDArray[_Real]) -> None: ...

@disjoint_base  # its instances have a layout of their own: a class cannot inherit from two backends
class Network:
    def __init__(
        self,
        ops: _Records,
        slots: _Records,
        tables: _Records,
        values: NDArray[_Real],
        grads: NDArray[_Real],
        stats: NDArray[_Real],
    ) -> None: ...
    @property
    def density(self) -> float: ...
    @property
    def threads(self) -> int: ...
    @property
    def passes(self) -> int: ...
    def publish(self) -> None: ...
    def record_times(self, times: NDArray[np.float64] | None) -> None: ...
    def forward(self, y: NDArray[_Real], x: NDArray[_Real] | CSR, step: int, training: bool, threads: int) -> None: ...
    def backward(
        self, dx: NDArray[_Real] | None, dy: NDArray[_Real], parameter_gradients: bool, threads: int
    ) -> None: ...
    def train(
        self,
        report: Report,
        data: tuple[NDArray[_Real] | CSR, NDArray[_Real] | NDArray[np.int64], NDArray[_Real] | None],
        batches: BatchPlan,
        loss_specs: Sequence[LossSpec],
        update_spec: UpdateSpec,
        reducer: Reducer | None,
        threads: int,
    ) -> None: ...
