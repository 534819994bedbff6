"""Sequential: a model that is trained. ``fit`` repeats the four steps until the epochs are over.

Forward, loss, backward, update: ``_train_step`` is those four lines, for a loss that is a Python callable; with all
others the core takes the same steps. Everything else here deals out batches, counts and reports.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp import losses, profiling
from fastbp.core import backend, get_num_threads
from fastbp.data.arrays import (
    Array,
    Samples,
    as_generator,
    check_choice,
    check_int,
    check_memory,
    check_weights,
    take_rows,
)
from fastbp.data.sampling import BUFFER, NAMES, Names, Part, Stream, epoch_key, epoch_rows, opened, parts
from fastbp.divergence import DivergenceError, in_gradient, in_model, in_parameters
from fastbp.formats import npz
from fastbp.losses import Loss, LossFunction
from fastbp.metrics import Metric, Metrics, measured, resolve
from fastbp.model import Model
from fastbp.optim import Optimizer
from fastbp.training import run_state
from fastbp.training.callbacks import Best, Callback, begin, listed
from fastbp.training.history import Bars, History, line

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastbp.data.arrays import Seed
    from fastbp.data.sampling import SlicedByRows, Source

    ValidationData = tuple[Any, ...] | list[Any] | Callable[[], Iterable[tuple[Any, ...]]] | None

LossLike = str | Loss | LossFunction
Data = Samples | Stream

EVALUATED = 16384  # samples of data that is read are evaluated at a time

_STEPS = 4096  # that the engine takes at a time: an epoch's learning rates need not all be in memory


class Sequential(Model):
    """A feedforward network: layers, one after the other.

    Parameters
    ----------
    layers : sequence of Layer
        Each with the width that the one before gives.
    dtype : {"float32", "float64"}
        Of parameters and computation.
    seed : int or None
        Of initial weights, dropout, and the order of samples in ``fit``. The same seed gives the same bits on the same
        backend, for any number of threads.

    Raises
    ------
    TypeError, ValueError
        If the layers do not fit each other, one is used twice, or the dtype is another.
    """

    #: Set by a callback to end ``fit``.
    stop_training = False
    #: How many epochs ``fit`` has trained this model for.
    epochs = 0
    #: What the last ``fit`` returned or, after an interrupt or an error, its finished epochs.
    history: History | None = None

    def _check_batch(
        self, X: Any, y: Any, sample_weight: Any, criterion: Loss, names: Names = ("xb", "yb", "sample_weight")
    ) -> Samples:
        X = self._features(names[0], X)
        target = criterion.check(names[1], y, X.shape[0], self.outputs, self.dtype)
        return X, target, check_weights(names[2], sample_weight, X.shape[0], self.dtype)

    def _open(self, data: tuple[Any, Any, Any], criterion: Loss, buffer_size: int, names: Names = NAMES) -> Data:
        """X, y and weights to train or to evaluate with, checked; what does not fit into memory is when it is read."""

        def check(chunk: tuple[Any, Any, Any], names: Names) -> Samples:
            return self._check_batch(*chunk, criterion, names)

        checked = opened(data, check, buffer_size, names)
        if not isinstance(checked, Stream) and checked[2] is not None and not checked[2].any():  # as a batch may do
            raise ValueError(f"{names[2]}: expected a positive weight among them, got zeros only")
        return checked

    def _open_validation(self, data: Any, criterion: Loss) -> Data:
        if callable(data):
            data = data, None
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise TypeError(
                "validation_data: expected (Xv, yv), (Xv, yv, sample_weight) or a function that gives chunks, got "
                f"{type(data).__name__}"
            )
        names = "validation_data[0]", "validation_data[1]", "validation_data[2]"
        return self._open((data[0], data[1], data[2] if len(data) == 3 else None), criterion, EVALUATED, names)

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an Optimizer such as fb.SGD(...), got {optimizer!r}")
        if optimizer.params is not self.parameters():
            raise ValueError("optimizer: it was made for the parameters of another model")

    def _train_step(self, batch: Samples, criterion: Loss, optimizer: Optimizer) -> float:
        """Forward, loss, backpropagation, gradient descent; the loss before the update."""
        xb, yb, weight = batch
        before = self._stats.copy(), self._step
        pred = self._forward(xb, True)
        ready = self._ready
        try:
            loss, dpred = criterion.compute(pred, yb, weight)
            if self._ready is not ready:  # the callable has trained the model
                raise RuntimeError("backward: another pass has run since the forward pass of this step")
            if not math.isfinite(loss):
                raise self._divergence(loss, xb, self._step, optimizer, optimizer.lr)
            self._backward(dpred)
            optimizer.step()
        except BaseException:  # the user's, or divergence, or there is no memory
            self._stats[:], self._step = before
            raise
        return loss

    def train_on_batch(
        self,
        xb: ArrayLike,
        yb: ArrayLike,
        loss: LossLike,
        optimizer: Optimizer,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """The four steps on one batch.

        Parameters
        ----------
        xb : array_like (B, I)
        yb : array_like
            (B,) integer labels for cross-entropy, (B, O) or, with one output, (B,) elsewhere.
        loss : str, Loss or callable
            A callable takes ``(pred, target)`` and returns ``(loss, dpred)``.
        optimizer : Optimizer
            Made for this model's parameters.
        sample_weight : array_like (B,) or None
            Non-negative, of the mean over the batch; a callable gets it as its third argument.

        Returns
        -------
        float
            The loss before the update.
        """
        criterion = losses.resolve(loss)
        self._check_optimizer(optimizer)
        batch = self._check_batch(xb, yb, sample_weight, criterion)
        spec = criterion.spec(self.outputs, self.dtype)
        self._gate.enter_alone()
        try:
            if spec is None:
                return self._train_step(batch, criterion, optimizer)
            return self._steps_in_core(batch, spec, optimizer, None, 0, 1, len(batch[0]))[0] / len(batch[0])
        finally:
            self._gate.leave()

    def evaluate(
        self,
        X: Source,
        y: ArrayLike | SlicedByRows | None,
        loss: LossLike,
        sample_weight: ArrayLike | SlicedByRows | None = None,
        metrics: Metrics = (),
    ) -> dict[str, float]:
        """The loss, for classification the accuracy, and the metrics, of the predictions for X (N, I).

        The data is given as for ``fit``. sample_weight (N,) weighs the loss; the accuracy is the share of the samples
        that are right, and metrics, as in ``fit``, count every sample alike.
        """
        criterion, measures = losses.resolve(loss), resolve(metrics)
        data = self._open((X, y, sample_weight), criterion, EVALUATED)
        self._gate.enter_shared()
        try:
            return self._evaluate(data, criterion, measures)
        finally:
            self._gate.leave()

    def _evaluate(self, data: Data, criterion: Loss, measures: Mapping[str, Metric]) -> dict[str, float]:
        loss, total_weight, right, samples = 0.0, 0.0, 0, 0
        outputs: list[tuple[Array, Array]] = []
        with closing(parts(data, None, 1)) as all_of_it:
            for (X, y, weight), _, size in all_of_it:
                pred = self._predict(X)
                part_weight = criterion.total_weight(pred, y, weight)
                total_weight, samples = total_weight + part_weight, samples + size
                loss += (float(criterion.compute(pred, y, weight)[0]) - loss) * (
                    part_weight / total_weight if total_weight else 0.0
                )
                right += criterion.correct(pred, y) if criterion.classifies else 0
                if measures:
                    outputs.append((pred, y))
        logs = {"loss": loss} | ({"accuracy": right / samples} if criterion.classifies else {})
        if total_weight == 0:
            raise ValueError("sample_weight: expected a positive weight among them, got zeros only")
        if measures:
            pred, y = (np.concatenate(columns) for columns in zip(*outputs, strict=True))
            logs |= {name: measured(name, measure, pred, y) for name, measure in measures.items()}
        return logs

    def fit(
        self,
        X: Source,
        y: ArrayLike | SlicedByRows | None,
        loss: LossLike,
        optimizer: Optimizer,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: ValidationData = None,
        callbacks: Iterable[Callback] = (),
        verbose: int | str = 1,
        shuffle: bool = True,
        seed: Seed = None,
        sample_weight: ArrayLike | SlicedByRows | None = None,
        metrics: Metrics = (),
        buffer_size: int = BUFFER,
        on_divergence: str = "raise",
        resume: npz.Path | None = None,
    ) -> History:
        """Train: for every epoch, for every batch, forward, loss, backward, update.

        Parameters
        ----------
        X : array_like (N, I), what is read by slices of rows, or what gives chunks
            Used without a copy if it lies in memory as a C-contiguous array of the model's dtype. ``np.memmap`` and,
            for example, HDF5 data sets are read in blocks of rows. A function that returns an iterable of chunks
            ``(X, y)`` or ``(X, y, sample_weight)`` is called in every epoch, in a thread of its own that reads ahead.
        y : array_like
            (N,) integer labels for cross-entropy, (N, O) or, with one output, (N,) elsewhere; None with chunks.
        loss : str, Loss or callable
            ``"cross_entropy"``, ``fb.MSE()``, or a callable ``(pred, target) -> (loss, dpred)``.
        optimizer : Optimizer
            Made for this model's parameters; calling ``fit`` again goes on with its state.
        epochs, batch_size : int
            At least 1. The last batch of an epoch has what is left.
        validation_data : (Xv, yv), (Xv, yv, sample_weight), a function that gives chunks, or None
            Evaluated after every epoch; other iterables of chunks are given as ``(chunks, None)``.
        callbacks : sequence of Callback
            Called after every epoch.
        verbose : {1, "bar", 0}
            1 prints a line per epoch, "bar" shows a bar that moves within it (needs tqdm), 0 nothing.
        shuffle : bool
            Whether every epoch has a new order.
        seed : int, numpy.random.Generator or None
            Of the orders, as in ``fb.batches``; None goes on with the model's own generator.
        sample_weight : array_like (N,) or None
            Non-negative. A batch's loss is the mean weighted with these; the accuracy counts every sample alike.
        metrics : sequence of str, or mapping from name to callable
            Names in ``fb.metrics``, or ``{name: callable}`` with ``(pred, target) -> float``, of the predictions (N, O)
            for validation_data after every epoch: ``history["val_auc"]``. The targets are (N,) labels for
            cross-entropy and (N, O) elsewhere. NaN if the predictions are not finite.
        buffer_size : int
            For data that is read: how many samples are shuffled together, which need three times their memory. Blocks
            of neighbouring rows are drawn at random, a sixteenth of it each; chunks come in their own order. An array
            that is no larger is shuffled as a whole.
        on_divergence : {"raise", "stop", "restore"}
            What happens when the loss, the gradient or the parameters are not finite any more: an error, or a warning
            and the end of the training, with the weights of the last step or with the best ones, by validation loss or,
            without it, by loss. The optimizer stays as it is.
        resume : str, path or None
            The file of a ``Checkpoint`` of the same run: it goes on after the epochs done, which ``epochs`` includes,
            as if it had never stopped, with that file's learning rate. From the beginning if there is no such file.

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; nothing has changed then. Of data that is read each chunk is checked when it
            comes; one that does not fit ends ``fit`` after the steps before it.
        DivergenceError
            If training diverges; the step that shows it is not taken.
        FileFormatError, OSError
            If the file to resume from is damaged, or cannot be read.
        """
        criterion, measures = losses.resolve(loss), resolve(metrics)
        self._check_optimizer(optimizer)
        epochs, batch_size = check_int("epochs", epochs), check_int("batch_size", batch_size)
        data = self._open((X, y, sample_weight), criterion, check_int("buffer_size", buffer_size))
        validation = None if validation_data is None else self._open_validation(validation_data, criterion)
        if measures and validation is None:
            raise ValueError("metrics: expected validation_data to compute them from, got None")
        callbacks, verbose = listed(callbacks), check_choice("verbose", verbose, (0, 1, "bar"))
        best = (
            Best() if check_choice("on_divergence", on_divergence, ("raise", "stop", "restore")) == "restore" else None
        )
        callbacks = [best, *callbacks] if best else callbacks
        bars = Bars(epochs, None if isinstance(data, Stream) else len(data[0])) if verbose == "bar" else None
        rng = as_generator(seed) if seed is not None else self._rng
        figures = ["loss", "accuracy"] if criterion.classifies else ["loss"]
        figures += [f"val_{name}" for name in dict.fromkeys([*figures, *measures]) if validation is not None]
        figures += ["lr", "samples_per_second"]

        with self._alone():
            self._orders = rng
            run = None if resume is None else run_state.load_of(resume, Sequential, self, optimizer, callbacks, figures)
            begin(callbacks, self, optimizer, figures)
            self.history = history = History()
            if run is not None:
                run_state.restore(run, self, optimizer, callbacks)
                run = None  # a second model would be in memory
            ending = callbacks
            try:
                for epoch in range(len(history), epochs):
                    if self.stop_training:
                        break
                    if bars is not None:
                        bars.begin(epoch)
                    logs = self._train_epoch(
                        data, validation, criterion, measures, optimizer, epoch_key(shuffle, rng), batch_size, bars
                    )
                    history.append(logs)
                    self.epochs += 1
                    if bars is not None:
                        bars.end(logs)
                    elif verbose:
                        print(line(epoch, epochs, logs), flush=True)
                    for callback in callbacks:
                        callback.on_epoch_end(epoch, logs)
            except DivergenceError as error:
                error.epoch = len(history) + 1
                if on_divergence == "raise":
                    raise
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)
                ending = [callback for callback in callbacks if not callback.last]  # no checkpoint of a broken epoch
            for callback in reversed(ending):  # a checkpoint before the best weights are restored
                callback.on_train_end()
            if best is not None and ending is not callbacks:
                best.restore()
            return history

    def _train_epoch(
        self,
        data: Data,
        validation: Data | None,
        criterion: Loss,
        measures: Mapping[str, Metric],
        optimizer: Optimizer,
        key: int | None,
        batch_size: int,
        bars: Bars | None,
    ) -> dict[str, float]:
        """One pass over the data in the order of key, batch after batch, then validation; the epoch's figures."""
        start = time.perf_counter()
        profile = profiling.active()
        if profile and criterion.spec(self.outputs, self.dtype) is not None:
            total, correct, samples = profile.train(
                lambda model, optimizer: model._steps(data, criterion, optimizer, key, batch_size, None),
                self,
                optimizer,
                batch_size,
            )
            if bars is not None:  # at once: what is timed here, and again by compare, is the engine alone
                bars.advance(samples, total)
        else:
            total, correct, samples = self._steps(data, criterion, optimizer, key, batch_size, bars)
        if not backend().all_finite(self._parameters.values):  # since the last step, which no loss has seen
            step = optimizer.steps
            raise DivergenceError("parameters", *in_parameters(self._parameters), step, optimizer.schedule(step - 1))
        logs = {"loss": total / samples}
        if criterion.classifies:
            logs["accuracy"] = correct / samples
        logs["samples_per_second"] = samples / (time.perf_counter() - start)
        if validation is not None:
            of_validation = self._evaluate(validation, criterion, measures)
            logs |= {f"val_{name}": value for name, value in of_validation.items()}
        return logs | {"lr": optimizer.lr}

    def _steps(
        self, data: Data, criterion: Loss, optimizer: Optimizer, key: int | None, batch_size: int, bars: Bars | None
    ) -> tuple[float, int, int]:
        """An epoch's steps: the loss summed over the samples, how many were right, and how many there were."""
        total, correct, samples = 0.0, 0, 0
        spec = criterion.spec(self.outputs, self.dtype)
        with closing(parts(data, key, batch_size)) as all_of_it:
            for part in all_of_it:
                if spec is None:
                    loss, right = self._part_in_python(part, criterion, optimizer, batch_size, bars), 0
                else:
                    loss, right = self._part_in_core(part, spec, optimizer, batch_size, bars)
                total, correct, samples = total + loss, correct + right, samples + part.size
        return total, correct, samples

    def _part_in_core(
        self, part: Part, spec: Any, optimizer: Optimizer, batch_size: int, bars: Bars | None
    ) -> tuple[float, int]:
        """A part of an epoch in the compiled engine: the loss summed over the samples, and how many were right."""
        total, correct, first, most = 0.0, 0, 0, _STEPS if bars is None else 1
        while first < part.size:
            steps, start = min(most, -(-(part.size - first) // batch_size)), time.perf_counter()
            loss, right = self._steps_in_core(part.data, spec, optimizer, part.key, first, steps, batch_size)
            total, correct = total + loss, correct + right
            if bars is not None:  # as many steps at a time as let the bar move ten times a second
                bars.advance(min(steps * batch_size, part.size - first), loss)
                most = max(1, min(_STEPS, 2 * most, int(0.1 * steps / (time.perf_counter() - start))))
            first += steps * batch_size
        return total, correct

    def _steps_in_core(
        self,
        data: Samples,
        spec: Any,
        optimizer: Optimizer,
        key: int | Array | None,
        first: int,
        steps: int,
        batch_size: int,
        decays: Array | None = None,
    ) -> tuple[float, int]:
        """Steps from position first of an epoch's order: the loss summed over the samples, and how many were right.

        decays (steps,) are weight decays in place of the optimizer's one.
        """
        if batch_size > 1024:  # a few samples more or less are not the question
            check_memory("batch_size", min(batch_size, len(data[0])) * self._row_bytes)
        network, self._ready = self._network(), None
        progress: list[Any] = [0.0, 0, 0]
        update, lrs = optimizer.update_spec(), optimizer.rates(steps)
        clip_norm, threads = optimizer.clip_norm or 0.0, get_num_threads()
        try:
            network.train(
                progress,
                *data,
                key,
                first,
                steps,
                batch_size,
                spec,
                update,
                lrs,
                decays,
                clip_norm,
                self._step + 1,
                threads,
            )
        finally:  # an interrupt ends the epoch after a whole step
            self._step += progress[2]
            optimizer.steps += progress[2]
        loss, right, done = progress
        if done < steps:
            rows = epoch_rows(first + done * batch_size, batch_size, len(data[0]), key)
            lr = lrs if isinstance(lrs, float) else float(lrs[done])
            raise self._divergence(loss, data[0][rows], self._step + 1, optimizer, lr)
        return loss, right

    def _divergence(self, loss: float, x: Array, step: int, optimizer: Optimizer, lr: float) -> DivergenceError:
        """The error for a training step on the rows of x that was not taken, for its loss or its gradient."""
        if math.isfinite(loss):  # only clip_norm looks at the whole gradient before it is used
            norm = math.sqrt(backend().squared_norm(optimizer.params.grads, 1))
            return DivergenceError("gradient", norm, in_gradient(optimizer.params), optimizer.steps + 1, lr)
        return DivergenceError("loss", loss, in_model(self, x, step), optimizer.steps + 1, lr)

    def _part_in_python(
        self, part: Part, criterion: Loss, optimizer: Optimizer, batch_size: int, bars: Bars | None
    ) -> float:
        """A part of an epoch for a loss that is a Python callable: the loss summed over the samples."""
        total = 0.0
        for rows in part.batches(batch_size):
            loss = self._train_step(take_rows(part.data, rows), criterion, optimizer) * len(rows)
            total += loss
            if bars is not None:
                bars.advance(len(rows), loss)
        return total

    def snapshot(self) -> tuple[Array, Array]:
        """Copies of all parameters and running statistics, for ``restore``."""
        return self._parameters.values.copy(), self._stats.copy()

    def restore(self, snapshot: tuple[Array, Array]) -> None:
        """Go back to a ``snapshot`` of this model."""
        self._parameters.values[:], self._stats[:] = snapshot
