"""What is around the passes of a training step: its batch, its rates, and the sum of its gradients over processes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np

from fastbp.core.plan import BUCKET_BYTES, Array, BatchPlan, Reducer, UpdateSpec
from fastbp.core.reference.order import batch_order

Batch = tuple[Array, Array, Array | None]


def gather(data: Batch, batches: BatchPlan, step: int) -> tuple[Array, Batch]:
    """The rows of a step (B,), and what they hold: X (B, I), y, sample_weight (B,) or None."""
    X, y, sample_weight = data
    samples = len(batches.order) if isinstance(batches.order, np.ndarray) else len(X)
    first = batches.first + step * batches.batch_size
    rows = np.empty(min(batches.batch_size, samples - first), np.int64)
    batch_order(rows, first, samples, batches.order)
    return rows, (X[rows], y[rows], None if sample_weight is None else sample_weight[rows])


def settings_of_step(spec: UpdateSpec, step: int) -> UpdateSpec:
    """The update of one step of an epoch: its own rates, and its number."""
    spec = copy.copy(spec)
    spec.step += step
    spec.applied = False
    spec.lr, spec.weight_decay = (
        rate if isinstance(rate, float) else float(rate[step]) for rate in (spec.lr, spec.weight_decay)
    )
    return spec


def buckets(ops: Array, grads: Array) -> Iterator[Array]:
    """Views of the flat gradients of consecutive ops, each of at least BUCKET_BYTES but for the last."""
    begin = end = 0
    for op in ops[ops["begin"] < ops["end"]]:
        begin, end = (begin if begin < end else int(op["begin"])), int(op["end"])
        if (end - begin) * grads.itemsize >= BUCKET_BYTES:
            yield grads[begin:end]
            begin = end
    if begin < end:
        yield grads[begin:end]


def reduce_gradients(reducer: Reducer, header: Array, ops: Array, grads: Array) -> None:
    """Sum a step's header and its gradients over the processes; then make the gradients those of the mean."""
    reducer.begin(header)
    for bucket in buckets(ops, grads):
        reducer.reduce(bucket)
    reducer.wait()
    grads *= grads.dtype.type(1 / header[0] if header[0] else 0)
