"""A model's program, run one op at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from fastbp.core.plan import Array, BatchPlan, LossSpec, Reducer, Report, UpdateSpec
from fastbp.core.reference.activations import activation_backward
from fastbp.core.reference.engine import Batch, gather, reduce_gradients, settings_of_step
from fastbp.core.reference.layers import KINDS
from fastbp.core.reference.layers.record import Buffers, Call, Kind
from fastbp.core.reference.losses import correct, summed_loss, total_weight
from fastbp.core.reference.reductions import squared_norm
from fastbp.core.reference.updates import update
from fastbp.core.sparse import CSR

_IN_GATHER, _IN_LOSS, _IN_WAITING, _IN_FORWARD, _IN_DX, _IN_DWEIGHT = range(6)  # phases; the last three per op


class Network:
    """Runs a program over flat buffers: ops (k,) OP, slots (m,) SLOT, tables (t,) TABLE, values and grads (n,), stats.

    Every slot has memory of its own here, whatever a slot says that it may share.
    """

    def __init__(self, ops: Array, slots: Array, tables: Array, values: Array, grads: Array, stats: Array) -> None:
        self.ops, self.slots = ops, slots
        self.values, self.grads, self.stats = values, grads, stats
        self.threads = 1  # that the last epoch was given
        self.density = 1.0  # of its input: the share of the entries that is stored
        self.passes = 0  # forward passes in training
        self._buffers = Buffers(values, grads, stats, tables)
        names = [op["kind"].decode() for op in ops]
        for name in names:
            if name not in KINDS:
                raise ValueError(f"ops: expected one of the kinds {', '.join(KINDS)}, got {name!r}")
        self._kinds = [KINDS[name] for name in names]
        self._kinds_on_sparse = [
            KINDS["sparse" if op["src"] == 0 else name] for op, name in zip(ops, names, strict=True)
        ]
        counts = ops["end"] - ops["begin"]
        self._shares = counts / max(1, counts.sum())
        self._calls: list[Call] = []  # of the last forward pass in training, and the values of its slots
        self._slot_values: list[Array] = []
        self._times: Array | None = None
        self._last = 0.0

    def record_times(self, times: Array | None) -> None:
        """Add up where the time goes: seconds in gather, loss and waiting, then forward, dx and dweight of each op.

        times (3 + 3 * ops,) float64, or None to stop. Only a reducer is waited for here, and the gradients of batch
        norm and layer norm, which come with their dx, are charged to it.
        """
        self._times = times

    def _charge_time(self, phases: int | slice, share: float | Array = 1.0) -> None:
        """Charge the time since the last call to a phase, or a share of it to each of several."""
        if self._times is not None:
            now = time.perf_counter()
            self._times[phases] += (now - self._last) * share
            self._last = now

    def _kinds_of(self, x: Array | CSR) -> list[Kind]:
        """The kind of every op for such an input."""
        return self._kinds_on_sparse if isinstance(x, CSR) else self._kinds

    def forward(self, y: Array, x: Array | CSR, step: int, training: bool, threads: int) -> None:
        """y (B, O) = network(x (B, I)); keeps what the backward pass needs. step selects dropout's masks."""
        stats = self.stats.copy()
        try:
            slots, calls = self._forward(x, step, training, threads)
            y[:] = slots[self.ops[-1]["dst"]]
        except BaseException:  # an interrupt: the pass has not been
            if training:
                self.stats[:] = stats
            raise
        if training:  # else a backward pass may wait for what is kept, and other threads are here
            self._calls, self._slot_values = calls, slots
            self.passes += 1

    def _forward(self, x: Array | CSR, step: int, training: bool, threads: int) -> tuple[list[Array], list[Call]]:
        """The values of all slots, and what every op was called with."""
        slots = [x, *(np.empty((len(x), width), x.dtype) for width in self.slots["width"][1:].tolist())]
        calls = []
        for i, (op, kind) in enumerate(zip(self.ops, self._kinds_of(x), strict=True)):
            z = slots[op["z"]] if op["z"] >= 0 else None
            call = Call(op, self._buffers, slots[op["src"]], _written(slots, op), z, step, training, threads)
            kind.forward(call)
            self._charge_time(_IN_FORWARD + 3 * i)
            calls.append(call)
        return slots, calls

    def publish(self) -> None:
        """Bring the parameters up to date in the middle of an epoch: here they are."""

    def layer_outputs(self) -> list[Array]:
        """The outputs of every op, of the last forward pass in training."""
        return [call.y for call in self._calls]

    def backward(self, dx: Array | None, dy: Array, parameter_gradients: bool, threads: int) -> None:
        """Fill grads from dy (B, O), the gradient of the last forward's y, and dx (B, I) if it is not None.

        Without parameter_gradients grads stay as they are.
        """
        gradients: dict[int, Array] = {int(self.ops[-1]["dst"]): dy.copy()}  # of the slots
        kinds = self._kinds_of(self._slot_values[0])
        for i in reversed(range(len(self.ops))):
            op, kind, call = self.ops[i], kinds[i], self._calls[i]
            src, dst = int(op["src"]), int(op["dst"])
            if dst not in gradients:
                continue  # no parameters lie before it
            call.parameter_gradients = parameter_gradients
            of_output = _written(gradients, op)
            if op["derivative"]:
                activation_backward(of_output, of_output, call.y, call.z, op["activation"], threads)
                self._charge_time(_IN_DX + 3 * i)
            if parameter_gradients and kind.gradients is not None:
                kind.gradients(call, of_output)
                self._charge_time(_IN_DWEIGHT + 3 * i)
            needed = dx is not None or bool(self.slots[src]["learned"])
            of_input = np.empty(call.x.shape, dy.dtype) if needed else None
            kind.backward(call, of_input, of_output)
            if of_input is not None:
                if op["accumulates"]:
                    of_input += gradients[src]
                gradients[src] = of_input
                if op["input_activation"]:
                    z = self._slot_values[op["input_z"]] if op["input_z"] >= 0 else None
                    activation_backward(of_input, of_input, call.x, z, op["input_activation"], threads)
            self._charge_time(_IN_DX + 3 * i)
        if dx is not None:
            dx[:] = gradients[0]

    def train(
        self,
        report: Report,
        data: Batch,
        batches: BatchPlan,
        loss_specs: Sequence[LossSpec],
        update_spec: UpdateSpec,
        reducer: Reducer | None,
        threads: int,
    ) -> None:
        """Steps of one epoch over the rows that a BatchPlan names; report is filled, after an interrupt too.

        data is ``(X (n, I), y, sample_weight (n,) or None)``. A step whose loss, or whose gradient where it is clipped
        by its norm, is not finite is not applied, nor any after it. With a reducer it is one step of all processes, and
        the gradients that stay are those of the mean over all of their samples; an exception of the reducer's is
        raised, and its step is not applied; nor is one that an interrupt ends.
        """
        (loss_spec,) = loss_specs
        self.threads, self._last = abs(threads), time.perf_counter()
        self.density = data[0].density if isinstance(data[0], CSR) else 1.0
        for t in range(batches.steps):
            rows, batch = gather(data, batches, t)
            self._charge_time(_IN_GATHER)
            samples, at = len(rows), self._invalid_sample(batch, loss_spec)
            stats, spec = self.stats.copy(), settings_of_step(update_spec, t)
            value, right, weight, squares = math.nan, 0, 0.0, 0.0
            if isinstance(update_spec.weight_decay, np.ndarray):
                squares = self._squared_weights()
            try:
                if at < 0:
                    step = batches.dropout_step + t
                    value, right, weight = self._gradients(batch, step, loss_spec, reducer is None, threads)
                if reducer is not None:  # also of a loss that is not finite: the other processes wait for it
                    value, weight = self._reduce(report, reducer, value, weight)
                if not report.stopped and math.isfinite(value):
                    self._apply_gradients(spec, threads)
            finally:  # without a call, which an interrupt could end: a step is done and counted, or neither
                if spec.applied:
                    report.loss += value * samples
                    report.weighted_loss += value * weight
                    report.weight += weight
                    report.penalty += spec.weight_decay * samples * squares
                    report.correct += right
                    report.steps += 1
                else:
                    self.stats[:] = stats
            if not spec.applied:
                report.invalid_row = int(rows[at]) if at >= 0 else -1
                report.loss += 0.0 if report.stopped else value
                return

    def _squared_weights(self) -> float:
        """The squares of all weights that are matrices."""
        total = 0.0
        for op, kind in zip(self.ops, self._kinds, strict=True):
            if op["weight"] >= 0 and kind.gradients is not None:  # those of normalisations come with their dx
                matrix = self.values[op["weight"] :][: op["inputs"] * op["outputs"]].astype(np.float64)
                total += float(matrix @ matrix)
        return total

    def _invalid_sample(self, batch: Batch, loss_spec: LossSpec) -> int:
        """A sample whose label or ids have become others than those that were checked, or -1."""
        xb, yb, _ = batch
        checks = [kind.check for op, kind in zip(self.ops, self._kinds_of(xb), strict=True) if op["src"] == 0]
        found = [check(xb, self._buffers) for check in checks if check is not None]
        if loss_spec.name == "cross_entropy" and yb.ndim == 1:
            wrong = (yb < 0) | (yb >= self.slots[self.ops[-1]["dst"]]["width"])
            found.append(int(wrong.argmax()) if wrong.any() else -1)
        return max(found, default=-1)

    def _gradients(
        self, batch: Batch, dropout_step: int, loss_spec: LossSpec, mean: bool, threads: int
    ) -> tuple[float, int, float]:
        """Forward, loss, backward: the loss, a mean or a sum, how many were right, and the total weight.

        grads are filled if the loss is finite.
        """
        xb, yb, weight = batch
        pred = np.empty((len(xb), int(self.slots[self.ops[-1]["dst"]]["width"])), xb.dtype)
        dpred, total = np.empty_like(pred), total_weight(pred, yb, weight, loss_spec)
        self.forward(pred, xb, dropout_step, True, threads)
        value = summed_loss(dpred, pred, yb, weight, loss_spec, total if mean else 1.0)
        right = correct(pred, yb, loss_spec)
        self._charge_time(_IN_LOSS)
        if math.isfinite(value):
            self.backward(None, dpred, True, threads)
        return value, right, total

    def _reduce(self, report: Report, reducer: Reducer, value: float, total: float) -> tuple[float, float]:
        """Sum loss, weight and gradients over the processes: the mean of the loss, and the total weight."""
        header = np.array([total, value, not math.isfinite(value), False], np.float64)
        reduce_gradients(reducer, header, self.ops, self.grads)
        self._charge_time(_IN_WAITING)
        total, value, diverged, stops = header.tolist()
        report.stopped = stops > 0
        if diverged > 0:
            return math.nan, total
        return value / total if total else 0.0, total

    def _apply_gradients(self, spec: UpdateSpec, threads: int) -> None:
        """Clip and update; nothing changes if the norm of the gradient is not finite."""
        scale = 1.0
        if spec.clip_norm > 0:
            norm = math.sqrt(squared_norm(self.grads, spec.groups, threads))
            if not math.isfinite(norm):
                return
            scale = min(1.0, spec.clip_norm / (norm + 1e-6))
        update(self.values, self.grads, spec, scale, threads)
        # the update is one pass over all parameters: each op is charged for as many as are its own
        self._charge_time(slice(_IN_DWEIGHT, None, 3), self._shares)


def _written(slots: Sequence[Array] | dict[int, Array], op: np.void) -> Array:
    """The columns of dst that the op writes."""
    return slots[int(op["dst"])][:, op["column"] : op["column"] + op["outputs"]]
