"""A model's plan, run one op at a time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastbp.core.plan import (
    ACTIVATION,
    ACTIVATIONS,
    BATCHNORM,
    DENSE,
    DROPOUT,
    EMBEDDING,
    LAYERNORM,
    Array,
    BatchPlan,
    LossSpec,
    Report,
    UpdateSpec,
    sizes,
)
from fastbp.core.reference.activations import activation_backward, activation_forward
from fastbp.core.reference.layers.dense import dense_dx, dense_forward, dense_gradients
from fastbp.core.reference.layers.dropout import dropout
from fastbp.core.reference.layers.embedding import embedding_backward, embedding_forward
from fastbp.core.reference.layers.normalization import (
    batchnorm_backward,
    batchnorm_forward,
    layernorm_backward,
    layernorm_forward,
)
from fastbp.core.reference.losses import correct, loss
from fastbp.core.reference.order import batch_order
from fastbp.core.reference.reductions import squared_norm
from fastbp.core.reference.updates import update

_NEEDS_INPUT = {activation.code for activation in ACTIVATIONS.values() if activation.needs_input}


_IN_GATHER, _IN_LOSS, _IN_WAITING, _IN_FORWARD, _IN_DX, _IN_DWEIGHT = range(6)  # phases; the last three per layer


class Network:
    """Runs a plan, one op at a time, over the flat buffers values and grads (n,) and stats (s,); tables (T,) TABLE."""

    def __init__(self, ops: Array, values: Array, grads: Array, stats: Array, tables: Array) -> None:
        self.ops, self.tables = ops, tables
        self.values, self.grads, self.stats = values, grads, stats
        self.threads = 1  # that the last epoch was given
        counts = np.array([sum(sizes(op, tables)) for op in ops])
        self._shares = counts / max(1, counts.sum())
        self._times: Array | None = None
        self._last = 0.0

    def record_times(self, times: Array | None) -> None:
        """Add up where the time goes: seconds in gather, loss and waiting, then forward, dx and dweight of each layer.

        times (3 + 3 * layers,) float64, or None to stop. Nothing ever waits here, and the gradients of batch norm and
        layer norm, which come with their dx, are charged to it.
        """
        self._times = times

    def _charge_time(self, phases: int | slice, share: float | Array = 1.0) -> None:
        """Charge the time since the last call to a phase, or a share of it to each of several."""
        if self._times is not None:
            now = time.perf_counter()
            self._times[phases] += (now - self._last) * share
            self._last = now

    def _parameter(self, flat: Array, offset: int, *shape: int) -> Array:
        return flat[offset : offset + math.prod(shape)].reshape(shape) if offset >= 0 else None

    def forward(self, y: Array, x: Array, step: int, training: bool, threads: int) -> None:
        """y (B, O) = network(x (B, I)); keeps what the backward pass needs. step selects dropout's masks."""
        kept: tuple[list[Any], ...] = ([], [], [])
        batch = x.shape[0]
        for i, op in enumerate(self.ops):
            out = np.empty((batch, op["outputs"]), dtype=x.dtype)
            pre = x if op["kind"] == ACTIVATION else np.empty_like(out) if op["activation"] in _NEEDS_INPUT else None
            rows = np.empty((batch, 2), dtype=x.dtype) if op["kind"] == LAYERNORM else None
            n = int(op["inputs"])
            weight = self._parameter(self.values, op["weight"], n)
            bias = self._parameter(self.values, op["bias"], int(op["outputs"]))
            if op["kind"] == DENSE:
                weight = self._parameter(self.values, op["weight"], n, int(op["outputs"]))
                dense_forward(out, pre, x, weight, bias, op["activation"], None, threads)
            elif op["kind"] == EMBEDDING:
                embedding_forward(out, x, self.values, self.tables, threads)
            elif op["kind"] == ACTIVATION:
                activation_forward(out, x, op["activation"], threads)
            elif op["kind"] == DROPOUT:
                dropout(out, x, float(op["p"]) if training else 0.0, int(op["key"]), step, threads)
            elif op["kind"] == BATCHNORM:
                stats = self._parameter(self.stats, op["stats"], 4, n)
                batchnorm_forward(out, stats, x, weight, bias, op["momentum"], op["eps"], training, threads)
            elif op["kind"] == LAYERNORM:
                layernorm_forward(out, rows, x, weight, bias, op["eps"], threads)
            else:
                raise ValueError(f"ops: unknown layer kind {op['kind']}")
            self._charge_time(_IN_FORWARD + 3 * i)
            for values, value in zip(kept, (x, pre, rows), strict=True):
                values.append(value)
            x = out
        kept[0].append(x)
        y[:] = x
        if training:  # else a backward pass may wait for what is kept, and other threads are here
            (self._inputs, self._pre, self._rows), self._step = kept, step

    def layer_outputs(self) -> list[Array]:
        """The outputs of every op, of the last forward pass in training."""
        return self._inputs[1:]

    def backward(self, dx: Array | None, dy: Array, threads: int) -> None:
        """Fill grads from dy (B, O), the gradient of the last forward's y, and dx (B, I) if it is not None."""
        for i in reversed(range(len(self.ops))):
            op = self.ops[i]
            x, y, pre = self._inputs[i], self._inputs[i + 1], self._pre[i]
            if op["activation"] and not (i + 1 < len(self.ops) and self.ops[i + 1]["input_activation"]):
                dz = np.empty_like(y)
                activation_backward(dz, dy, y, pre, op["activation"], threads)
                dy = dz
                self._charge_time(_IN_DX + 3 * i)
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
                x_z = self._pre[i - 1] if op["input_activation"] else None
                dense_gradients(dweight, dbias, dy, x)  # dense_backward, in halves that are timed separately
                self._charge_time(_IN_DWEIGHT + 3 * i)
                if out is not None:
                    dense_dx(out, dy, x, x_z, weight, op["input_activation"], threads)
            elif op["kind"] == EMBEDDING:
                embedding_backward(self.grads, out, dy, x, self.tables, threads)
            elif op["kind"] == DROPOUT:
                if out is not None:
                    dropout(out, dy, float(op["p"]), int(op["key"]), self._step, threads)
            elif op["kind"] == BATCHNORM:
                stats = self._parameter(self.stats, op["stats"], 4, n)
                batchnorm_backward(dweight, dbias, out, dy, x, stats, weight, threads)
            elif op["kind"] == LAYERNORM:
                layernorm_backward(dweight, dbias, out, dy, x, self._rows[i], weight, threads)
            elif op["kind"] == ACTIVATION:
                if out is not None:  # a first layer that is an activation
                    out[:] = dy
            else:
                raise ValueError(f"ops: unknown layer kind {op['kind']}")
            self._charge_time(_IN_DX + 3 * i)
            if out is not None:
                dy = out

    def train(
        self,
        report: Report,
        data: tuple[Array, Array, Array | None],
        batches: BatchPlan,
        loss_specs: Sequence[LossSpec],
        update_spec: UpdateSpec,
        threads: int,
    ) -> None:
        """Steps of one epoch over the rows that a BatchPlan names; report is filled, after an interrupt too.

        data is ``(X (n, I), y, sample_weight (n,) or None)``. A step whose loss, or whose gradient where it is clipped
        by its norm, is not finite is not applied, nor any after it.
        """
        (loss_spec,) = loss_specs
        X, y, sample_weight = data
        self.threads, self._last = threads, time.perf_counter()
        order = batches.order
        samples = len(order) if isinstance(order, np.ndarray) else len(X)
        for t in range(batches.steps):
            first = batches.first + t * batches.batch_size
            rows = np.empty(min(batches.batch_size, samples - first), np.int64)
            batch_order(rows, first, samples, order)
            batch = X[rows], y[rows], None if sample_weight is None else sample_weight[rows]
            self._charge_time(_IN_GATHER)
            spec = copy.copy(update_spec)
            spec.step += t
            spec.lr, spec.weight_decay = (
                rate if isinstance(rate, float) else float(rate[t]) for rate in (spec.lr, spec.weight_decay)
            )
            value, right, applied = self._train_step(batch, batches.dropout_step + t, loss_spec, spec, threads)
            if not applied:
                report.loss += value
                return
            report.loss += value * len(rows)
            report.correct += right
            report.steps += 1

    def _train_step(
        self,
        batch: tuple[Array, Array, Array | None],
        dropout_step: int,
        loss_spec: LossSpec,
        update_spec: UpdateSpec,
        threads: int,
    ) -> tuple[float, int, bool]:
        """Forward, loss, backward, update: the loss, how many were right, and whether the numbers were finite.

        If they were not, nothing has changed.
        """
        xb, yb, weight = batch
        pred = np.empty((len(xb), int(self.ops[-1]["outputs"])), xb.dtype)
        dpred = np.empty_like(pred)
        stats = self.stats.copy()
        self.forward(pred, xb, dropout_step, True, threads)
        value = loss(dpred, pred, yb, weight, loss_spec, threads)
        right = correct(pred, yb, loss_spec)
        self._charge_time(_IN_LOSS)
        norm, clip_norm = 0.0, update_spec.clip_norm
        if math.isfinite(value):
            self.backward(None, dpred, threads)
            norm = math.sqrt(squared_norm(self.grads, threads)) if clip_norm > 0 else 0.0
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.stats[:] = stats
            return value, 0, False
        scale = min(1.0, clip_norm / (norm + 1e-6)) if clip_norm > 0 else 1.0
        update(self.values, self.grads, update_spec, scale, threads)
        # the update is one pass over all parameters: each layer is charged for as many as are its own
        self._charge_time(slice(_IN_DWEIGHT, None, 3), self._shares)
        return value, right, True
