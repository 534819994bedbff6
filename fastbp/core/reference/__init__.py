"""The reference: every kernel in plain NumPy, with the same name and signature, never optimised.

It is the oracle of the tests and the baseline of the benchmarks, and the place to read what a kernel computes: a module
here explains the .pxi file of the same name. Partition, panels, blocks and contention have no reference: they are
about threads and memory, which NumPy manages by itself.

Arguments run outputs, inputs, scalars, scratch, threads; the last two serve the compiled kernels and are unused here.
B is the batch, I the inputs and O the outputs of a layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbp.core.plan import ACTIVATIONS
from fastbp.core.reference.activations import FUNCTIONS, activation_backward, activation_forward
from fastbp.core.reference.layers import KINDS
from fastbp.core.reference.layers.dense import dense_backward, dense_forward
from fastbp.core.reference.layers.dropout import dropout
from fastbp.core.reference.layers.embedding import unknown_category
from fastbp.core.reference.layers.normalization import (
    batchnorm_backward,
    batchnorm_forward,
    layernorm_backward,
    layernorm_forward,
)
from fastbp.core.reference.losses import LOSSES, loss, sample_losses, softmax
from fastbp.core.reference.network import Network
from fastbp.core.reference.order import batch_order
from fastbp.core.reference.products import matmul
from fastbp.core.reference.reductions import all_finite, squared_norm
from fastbp.core.reference.updates import RULES, update

__all__ = [
    "CODES",
    "Network",
    "activation_backward",
    "activation_forward",
    "all_finite",
    "batch_order",
    "batchnorm_backward",
    "batchnorm_forward",
    "dense_backward",
    "dense_forward",
    "dropout",
    "layernorm_backward",
    "layernorm_forward",
    "loss",
    "matmul",
    "openmp",
    "openmp_threads",
    "product_scratch_bytes",
    "sample_losses",
    "scratch_bytes",
    "softmax",
    "squared_norm",
    "target",
    "unknown_category",
    "update",
]

#: Name to code, by family; everything but activations is found by name.
CODES: dict[str, dict[str, int]] = {
    "kinds": {name: i for i, name in enumerate(KINDS)},
    "activations": {name or "linear": ACTIVATIONS[name].code for name in FUNCTIONS},
    "losses": {name: i for i, name in enumerate(LOSSES)},
    "rules": {name: i for i, name in enumerate(RULES)},
}


def openmp() -> bool:
    """Whether the threads of this backend's kernels are OpenMP's; else they are those of a pool of its own."""
    return False


def openmp_threads() -> int:
    """How many threads OpenMP would start from here; other libraries may have set a limit, but not for NumPy."""
    return 2**30


def target() -> str:
    """The instruction set that the kernels were compiled for, as the compiler understood its flags."""
    return "numpy"


def product_scratch_bytes(m: int, n: int, k: int, dtype: np.dtype[Any], threads: int) -> int:
    """Bytes of scratch for an (m, k) x (k, n) product by at most so many threads; NumPy allocates its own."""
    return 0


def scratch_bytes(m: int, n: int, k: int, dtype: np.dtype[Any]) -> int:
    """Bytes of scratch for a layer whose forward pass is an (m, k) x (k, n) product.

    NumPy allocates its own.
    """
    return 1
