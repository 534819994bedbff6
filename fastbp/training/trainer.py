"""Trainer: a model, an optimizer and a loss; their steps, epochs and evaluation.

Forward, loss, backward, update: ``step`` is those four lines, for a loss that is a Python callable; with all others the
core takes the same steps. Everything else here deals out batches and counts.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np

from fastbp import profiling
from fastbp.core import backend, thread_limit
from fastbp.core.plan import BatchPlan, LossSpec, Reducer, Report
from fastbp.data.arrays import Array, Features, Samples, take_rows
from fastbp.data.sampling import NAMES, Part, epoch_rows, parts
from fastbp.divergence import DivergenceError, in_gradient, in_model, in_parameters
from fastbp.losses import Loss
from fastbp.metrics import Metric, check_measurable, measured
from fastbp.model import SMALL_BATCH, Model
from fastbp.optim import OPTIMIZERS, Optimizer
from fastbp.training.history import Bars
from fastbp.training.inputs import Data, check_batch, no_weight


class Totals:
    """Sums over samples: of their losses, each with its weight, of these weights, of right predictions."""

    def __init__(self) -> None:
        self.loss, self.weight, self.correct, self.samples = 0.0, 0.0, 0, 0

    def add(self, loss: float, weight: float, correct: int, samples: int) -> None:
        """Add the sums over some samples."""
        self.loss, self.weight = self.loss + loss, self.weight + weight
        self.correct, self.samples = self.correct + correct, self.samples + samples

    @property
    def mean_loss(self) -> float:
        """The weighted mean; 0 while there is no weight."""
        return self.loss / self.weight if self.weight else 0.0

    def logs(self, criterion: Loss) -> dict[str, float]:
        """The loss and, for classification, the accuracy, which counts every sample alike."""
        accuracy = {"accuracy": self.correct / self.samples} if criterion.classifies else {}
        return {"loss": self.mean_loss} | accuracy


class EpochPlan(NamedTuple):
    """How an epoch goes over its samples.

    In the order of ``key``, at most so many steps, each of ``accumulate`` batches. ``after_batch`` is told the loss of
    every step; with it the core is called for every one.
    """

    key: int | None
    batch_size: int
    drop_last: bool = False
    steps: int | None = None
    accumulate: int = 1
    bars: Bars | None = None
    after_batch: Callable[[float], None] | None = None


MAX_STEPS_PER_CALL = 4096  # of the core: an epoch's learning rates need not all be in memory
BAR_SECONDS = 0.1  # between two movements of a bar


def _example(given: object) -> str:
    """How the optimizer is made of which the name or the class was given, or else Adam."""
    name = given if isinstance(given, str) else getattr(given, "__name__", "")
    own = next((own for own in OPTIMIZERS if own.lower() == name.lower()), "Adam")
    return f"fb.{own}(model.parameters(), lr={0.1 if own == 'SGD' else 0.001})"


class Trainer:
    """Trains a model by an optimizer on a loss, with so many threads of the core.

    If threads is None, there are as many as ``get_num_threads`` says when they are called. With a reducer a step is one
    of several processes, on a built-in loss.

    Raises
    ------
    TypeError, ValueError
        If it is no optimizer, or one of another model's parameters.
    """

    __slots__ = (  # one is made for every single batch
        "_loss_spec", "criterion", "last_lr", "model", "optimizer", "reducer", "threads",
    )  # fmt: skip

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        criterion: Loss,
        threads: int | None = None,
        *,
        reducer: Reducer | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an Optimizer such as {_example(optimizer)}, got {optimizer!r}")
        if optimizer.params is not model.params:
            raise ValueError("optimizer: it was made for the parameters of another model")
        self.model, self.optimizer, self.criterion = model, optimizer, criterion
        self.threads, self.reducer = threads, reducer
        self._loss_spec: LossSpec | None = None
        self.last_lr = 0.0  # of the last step

    @property
    def loss_spec(self) -> LossSpec | None:
        """The loss for the core; None for a Python callable. Made when it is first used: the data are checked first."""
        if self._loss_spec is None:
            self._loss_spec = self.criterion.spec(self.model.outputs, self.model.dtype)
        return self._loss_spec

    def step(self, batches: Sequence[Samples]) -> Report:
        """Forward, loss, backpropagation, gradient descent; what the loss was before the update.

        Of several batches the gradient is that of the mean over all their samples.
        """
        if self.reducer is not None:
            raise ValueError(f"loss: expected a built-in one with a reducer, got {self.criterion!r}")
        model, optimizer, threads, report = self.model, self.optimizer, self.threads or thread_limit(), Report()
        empty = np.empty((0, model.outputs), model.dtype)
        weights = [self.criterion.total_weight(empty, yb, weight) for _, yb, weight in batches]
        report.weight, whole = sum(weights), np.zeros_like(model.params.grads) if len(batches) > 1 else None
        with model.lock.exclusive():
            statistics, training_step, steps = model.statistics.copy(), model.training_step, optimizer.steps
            try:
                for (xb, yb, weight), of_batch in zip(batches, weights, strict=True):
                    pred = model.forward(xb, threads)
                    loss, dpred = self.criterion.compute_with(pred, yb, weight, threads)
                    if not math.isfinite(loss):
                        raise self._divergence(loss, xb, model.training_step, optimizer.lr)
                    if whole is not None:  # its share of the mean
                        dpred = dpred * model.dtype.type(of_batch / report.weight if report.weight else 0)
                    model.backward(dpred, threads)
                    if whole is not None:
                        whole += model.params.grads
                    if self.criterion.classifies:
                        report.correct += self.criterion.correct(pred, yb)
                    report.weighted_loss += loss * of_batch
                if whole is not None:
                    model.params.grads[:] = whole
                self.last_lr = optimizer.apply(threads)
                model.link = self.criterion.link
            except BaseException:  # the user's, an interrupt, or divergence, or there is no memory
                if optimizer.steps == steps:  # no call may stand here, which an interrupt could end
                    model.statistics[:], model.training_step = statistics, training_step
                raise
        report.loss = loss if whole is None else report.weighted_loss / (report.weight or 1)
        return report

    def run_steps(
        self,
        data: Samples,
        order: int | Array | None,
        first: int,
        steps: int,
        batch_size: int,
        decays: Array | None = None,
    ) -> Report:
        """Steps in the core from position first of an epoch's order, a key, row numbers, or None for no shuffling.

        decays (steps,) are weight decays in place of the optimizer's one.
        """
        model, optimizer = self.model, self.optimizer
        if batch_size > SMALL_BATCH:
            model.check_rows("batch_size", data[0], min(batch_size, len(data[0])))
        with model.lock.exclusive():
            network, model.pending_forward, model.link = model.network(), None, self.criterion.link
            (rates, error), report = optimizer.rates(steps), Report()
            if error is not None and not isinstance(rates, float):  # of a later step, which raises it
                steps = len(rates)
                decays = None if decays is None else decays[:steps]
            update = optimizer.update_spec(rates, decays)
            batches = BatchPlan(order, first, steps, batch_size, model.training_step + 1)
            try:
                threads = self.threads or thread_limit()
                network.train(report, data, batches, [self.loss_spec], update, self.reducer, threads)
            finally:  # an interrupt ends the epoch after a whole step; no call may stand here, which one could end
                model.training_step += report.steps
                optimizer.__dict__["steps"] += report.steps
        if report.stopped:
            raise KeyboardInterrupt("a process that shares the work has to stop")
        if report.invalid_row >= 0:
            raise self._changed(data, report.invalid_row)
        if report.steps < steps:
            rows = epoch_rows(first + report.steps * batch_size, batch_size, len(data[0]), order)
            lr = rates if isinstance(rates, float) else float(rates[report.steps])
            raise self._divergence(report.loss, data[0][rows], model.training_step + 1, lr)
        self.last_lr = rates if isinstance(rates, float) else float(rates[-1])
        if error is not None:
            raise error
        return report

    def _changed(self, data: Samples, row: int) -> ValueError:
        """The error for a row whose label, or whose ids, have become others since they were checked."""
        try:
            check_batch(self.model, self.criterion, data[0][row : row + 1], data[1][row : row + 1], None, NAMES)
        except ValueError as error:
            return ValueError(f"{error}, in row {row}, which was written to while the model was trained on it")
        return ValueError(f"X, y: row {row} was written to while the model was trained on it")  # and once more

    def _divergence(self, loss: float, x: Features, step: int, lr: float) -> DivergenceError:
        """The error for a training step on the rows of x that was not applied, for its loss or its gradient."""
        params, number = self.model.params, self.optimizer.steps + 1
        if math.isfinite(loss):  # only clip_norm looks at the whole gradient before it is used
            norm = math.sqrt(backend().squared_norm(params.grads, self.optimizer.group_records, 1))
            return DivergenceError("gradient", norm, in_gradient(params), number, lr)
        return DivergenceError("loss", loss, in_model(self.model, x, step), number, lr)

    def _part_in_core(self, totals: Totals, part: Part, plan: EpochPlan) -> None:
        """A part of an epoch in the core."""
        batch_size, bars = plan.batch_size, plan.bars
        first, most = 0, MAX_STEPS_PER_CALL if bars is None and plan.after_batch is None else 1
        while first < part.size:
            steps, start = min(most, -(-(part.size - first) // batch_size)), time.perf_counter()
            report = self.run_steps(part.data, part.key, first, steps, batch_size)
            samples = min(steps * batch_size, part.size - first)
            totals.add(report.weighted_loss, report.weight, report.correct, samples)
            if bars is not None:
                bars.advance(samples, totals.mean_loss)
            if plan.after_batch is not None:
                plan.after_batch(report.loss / samples)
            elif bars is not None:
                in_time = int(BAR_SECONDS * steps / (time.perf_counter() - start))
                most = max(1, min(MAX_STEPS_PER_CALL, 2 * most, in_time))
            first += steps * batch_size

    def _part_in_python(self, totals: Totals, part: Part, plan: EpochPlan) -> None:
        """A part of an epoch for a loss that is a Python callable, or with steps of several batches."""
        batches = part.batches(plan.batch_size)
        while rows := list(itertools.islice(batches, plan.accumulate)):
            report, samples = self.step([take_rows(part.data, of_batch) for of_batch in rows]), sum(map(len, rows))
            totals.add(report.weighted_loss, report.weight, report.correct, samples)
            if plan.bars is not None:
                plan.bars.advance(samples, totals.mean_loss)
            if plan.after_batch is not None:
                plan.after_batch(report.loss)

    def run_epoch(self, data: Data, plan: EpochPlan) -> Totals:
        """An epoch's steps."""
        totals = Totals()
        in_core = self.loss_spec is not None and plan.accumulate == 1
        run_part = self._part_in_core if in_core else self._part_in_python
        dealt = parts(data, plan.key, plan.batch_size, plan.drop_last, plan.steps, plan.accumulate)
        with closing(dealt) as whole:
            for part in whole:
                run_part(totals, part, plan)
        return totals

    def _profiled_epoch(self, profile: profiling.Profile, data: Data, plan: EpochPlan) -> Totals:
        """``run_epoch`` with its times in the profile, which may do it again with copies of model and optimizer."""

        def epoch(model: Model, optimizer: Optimizer) -> Totals:
            reducer = self.reducer if model is self.model else None  # copies are on their own
            trainer = Trainer(model, optimizer, self.criterion, self.threads, reducer=reducer)
            unseen = EpochPlan(plan.key, plan.batch_size, plan.drop_last, plan.steps, plan.accumulate)
            return trainer.run_epoch(data, unseen)

        totals = profile.train(epoch, self.model, self.optimizer, plan.batch_size, self.threads or thread_limit())
        if plan.bars is not None:  # at once: what is timed here, and again by compare, is the core alone
            plan.bars.advance(totals.samples, totals.mean_loss)
        return totals

    def train_epoch(self, data: Data, plan: EpochPlan) -> dict[str, float]:
        """One pass over the data, batch after batch; its loss, accuracy and speed."""
        start = time.perf_counter()
        profile = profiling.active()
        if profile and self.loss_spec is not None and plan.accumulate == 1 and plan.after_batch is None:
            totals = self._profiled_epoch(profile, data, plan)
        else:
            totals = self.run_epoch(data, plan)
        if totals.weight == 0:  # of data that is read; arrays are checked before
            raise no_weight("y", "sample_weight")
        if not backend().all_finite(self.model.params.values):  # since the last step, which no loss has seen
            value, where = in_parameters(self.model.params)
            step = self.optimizer.steps
            raise DivergenceError("parameters", value, where, step, self.optimizer.schedule(step - 1))
        speed = totals.samples / (time.perf_counter() - start)
        return totals.logs(self.criterion) | {"samples_per_second": speed}


def evaluate(model: Model, data: Data, criterion: Loss, measures: Mapping[str, Metric]) -> dict[str, float]:
    """The loss, for classification the accuracy, and the metrics."""
    totals = Totals()
    outputs: list[tuple[Array, Array]] = []
    measurable = not measures
    with closing(parts(data, None, 1)) as whole:
        for (X, y, weight), _, _ in whole:
            if not measurable:  # before the pass
                check_measurable(measures, criterion.labels(y), model.outputs)
                measurable = True
            with model.shared() as threads:
                pred = model.predict(X, threads)
                part_weight = criterion.total_weight(pred, y, weight)
                loss = float(criterion.compute_with(pred, y, weight, threads)[0]) * part_weight
            totals.add(loss, part_weight, criterion.correct(pred, y) if criterion.classifies else 0, len(pred))
            if measures:
                outputs.append((pred, criterion.labels(y)))
    if totals.weight == 0:
        raise no_weight("y", "sample_weight")
    logs = totals.logs(criterion)
    if measures:
        pred, y = (np.concatenate(columns) for columns in zip(*outputs, strict=True))
        logs |= {name: measured(name, measure, pred, y) for name, measure in measures.items()}
    return logs
