"""Sequential: a model that is trained. ``fit`` repeats the four steps until the epochs are over.

Forward, loss, backward, update: ``_train_step`` is those four lines, for a loss that is a Python callable; with all
others the core takes the same steps. Everything else here deals out batches, counts and reports.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastbp import losses, profiling
from fastbp.callbacks import Callback, begin, listed
from fastbp.core import get_num_threads
from fastbp.data import Array, Samples, choice, epoch_key, epoch_rows, generator, positive_int, taken, weights
from fastbp.history import Bars, History, line
from fastbp.losses import Loss, LossFunction
from fastbp.model import Model
from fastbp.optim import Optimizer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastbp.data import Seed

LossLike = str | Loss | LossFunction

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

    def _check_batch(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        criterion: Loss,
        names: tuple[str, str, str] = ("xb", "yb", "sample_weight"),
    ) -> Samples:
        X = self._features(names[0], X)
        target = criterion.check(names[1], y, X.shape[0], self.outputs, self.dtype)
        return X, target, weights(names[2], sample_weight, X.shape[0], self.dtype)

    def _check_data(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        criterion: Loss,
        names: tuple[str, str, str] = ("X", "y", "sample_weight"),
    ) -> Samples:
        data = self._check_batch(X, y, sample_weight, criterion, names)
        if data[2] is not None and not data[2].any():  # as a single batch may do
            raise ValueError(f"{names[2]}: expected a positive weight among them, got zeros only")
        return data

    def _check_validation(self, data: object, criterion: Loss) -> Samples:
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise TypeError("validation_data: expected (Xv, yv) or (Xv, yv, sample_weight)")
        names = "validation_data[0]", "validation_data[1]", "validation_data[2]"
        return self._check_data(data[0], data[1], data[2] if len(data) == 3 else None, criterion, names)

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
        try:
            loss, dpred = criterion.compute(pred, yb, weight)
        except BaseException:  # of the user's
            self._stats[:], self._step = before
            raise
        self._backward(dpred)
        optimizer.step()
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
        recipe = criterion.recipe(self.outputs, self.dtype)
        if recipe is None:
            return self._train_step(batch, criterion, optimizer)
        return self._steps_in_core(batch, recipe, optimizer, None, 0, 1, len(batch[0]))[0] / len(batch[0])

    def evaluate(
        self, X: ArrayLike, y: ArrayLike, loss: LossLike, sample_weight: ArrayLike | None = None
    ) -> dict[str, float]:
        """The loss, and for classification the accuracy, of the predictions for X (N, I).

        sample_weight (N,) weighs the loss; the accuracy is the share of the samples that are right.
        """
        criterion = losses.resolve(loss)
        return self._evaluate(self._check_data(X, y, sample_weight, criterion), criterion)

    def _evaluate(self, data: Samples, criterion: Loss) -> dict[str, float]:
        X, y, weight = data
        pred = self.predict(X)
        logs = {"loss": float(criterion.compute(pred, y, weight)[0])}
        return logs | {"accuracy": criterion.correct(pred, y) / len(X)} if criterion.classifies else logs

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        loss: LossLike,
        optimizer: Optimizer,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike | None] | None = None,
        callbacks: Iterable[Callback] = (),
        verbose: int | str = 1,
        shuffle: bool = True,
        seed: Seed = None,
        sample_weight: ArrayLike | None = None,
    ) -> History:
        """Train: for every epoch, for every batch, forward, loss, backward, update.

        Parameters
        ----------
        X : array_like (N, I)
            Used without a copy if it is a C-contiguous array of the model's dtype.
        y : array_like
            (N,) integer labels for cross-entropy, (N, O) or, with one output, (N,) elsewhere.
        loss : str, Loss or callable
            ``"cross_entropy"``, ``fb.MSE()``, or a callable ``(pred, target) -> (loss, dpred)``.
        optimizer : Optimizer
            Made for this model's parameters; calling ``fit`` again goes on with its state.
        epochs, batch_size : int
            At least 1. The last batch of an epoch has what is left.
        validation_data : (Xv, yv), (Xv, yv, sample_weight) or None
            Evaluated after every epoch.
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

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; nothing has changed then.
        """
        criterion = losses.resolve(loss)
        self._check_optimizer(optimizer)
        epochs, batch_size = positive_int("epochs", epochs), positive_int("batch_size", batch_size)
        data = self._check_data(X, y, sample_weight, criterion)
        validation = None if validation_data is None else self._check_validation(validation_data, criterion)
        callbacks, verbose = listed(callbacks), choice("verbose", verbose, (0, 1, "bar"))
        bars = Bars(epochs, len(data[0])) if verbose == "bar" else None
        rng = self._orders = self._rng if seed is None else generator(seed)

        figures = ["loss", "accuracy"] if criterion.classifies else ["loss"]
        figures += [f"val_{name}" for name in figures if validation is not None] + ["lr", "samples_per_second"]
        history = History()
        begin(callbacks, self, optimizer, figures)
        for epoch in range(epochs):
            if bars is not None:
                bars.begin(epoch)
            logs = self._train_epoch(data, criterion, optimizer, epoch_key(shuffle, rng), batch_size, bars)
            if validation is not None:
                logs |= {f"val_{name}": value for name, value in self._evaluate(validation, criterion).items()}
            logs["lr"] = optimizer.lr
            history.append(logs)
            self.epochs += 1
            if bars is not None:
                bars.end(logs)
            elif verbose:
                print(line(epoch, epochs, logs), flush=True)
            for callback in callbacks:
                callback.on_epoch_end(epoch, logs)
            if self.stop_training:
                break
        for callback in callbacks:
            callback.on_train_end()
        return history

    def _train_epoch(
        self,
        data: Samples,
        criterion: Loss,
        optimizer: Optimizer,
        key: int | Array | None,
        batch_size: int,
        bars: Bars | None,
    ) -> dict[str, float]:
        """One pass over the data in the order of key, batch after batch; the epoch's figures."""
        start, samples = time.perf_counter(), len(data[0])
        recipe = criterion.recipe(self.outputs, self.dtype)
        if recipe is None:
            total, correct = self._steps_in_python(data, criterion, optimizer, key, batch_size, bars), 0
        elif profile := profiling.active():
            total, correct = profile.train(
                lambda model, optimizer: model._epoch_in_core(data, recipe, optimizer, key, batch_size, None),
                self,
                optimizer,
                samples,
                batch_size,
            )
            if bars is not None:  # at once: what is timed here, and again by compare, is the engine alone
                bars.advance(samples, total)
        else:
            total, correct = self._epoch_in_core(data, recipe, optimizer, key, batch_size, bars)
        logs = {"loss": total / samples}
        if criterion.classifies:
            logs["accuracy"] = correct / samples
        logs["samples_per_second"] = samples / (time.perf_counter() - start)
        return logs

    def _epoch_in_core(
        self,
        data: Samples,
        recipe: Any,
        optimizer: Optimizer,
        key: int | Array | None,
        batch_size: int,
        bars: Bars | None,
    ) -> tuple[float, int]:
        """The epoch in the compiled engine: the loss summed over the samples, and how many were right."""
        total, correct, first, samples, most = 0.0, 0, 0, len(data[0]), _STEPS if bars is None else 1
        while first < samples:
            steps, start = min(most, -(-(samples - first) // batch_size)), time.perf_counter()
            loss, right = self._steps_in_core(data, recipe, optimizer, key, first, steps, batch_size)
            total, correct = total + loss, correct + right
            if bars is not None:  # as many steps at a time as let the bar move ten times a second
                bars.advance(min(steps * batch_size, samples - first), loss)
                most = max(1, min(_STEPS, 2 * most, int(0.1 * steps / (time.perf_counter() - start))))
            first += steps * batch_size
        return total, correct

    def _steps_in_core(
        self,
        data: Samples,
        recipe: Any,
        optimizer: Optimizer,
        key: int | Array | None,
        first: int,
        steps: int,
        batch_size: int,
    ) -> tuple[float, int]:
        """Steps from position first of an epoch's order: the loss summed over the samples, and how many were right."""
        network, self._ready = self._network(), None
        progress: list[Any] = [0.0, 0, 0]
        update, lrs = optimizer.recipe(), optimizer.rates(steps)
        clip_norm, threads = optimizer.clip_norm or 0.0, get_num_threads()
        try:
            network.train(
                progress, *data, key, first, steps, batch_size, recipe, update, lrs, clip_norm, self._step + 1, threads
            )
        finally:  # an interrupt ends the epoch after a whole step
            self._step += progress[2]
            optimizer.steps += progress[2]
        return progress[0], progress[1]

    def _steps_in_python(
        self,
        data: Samples,
        criterion: Loss,
        optimizer: Optimizer,
        key: int | Array | None,
        batch_size: int,
        bars: Bars | None,
    ) -> float:
        """The epoch for a loss that is a Python callable: the loss summed over the samples."""
        total, samples = 0.0, len(data[0])
        for first in range(0, samples, batch_size):
            rows = epoch_rows(first, batch_size, samples, key)
            loss = self._train_step(taken(data, rows), criterion, optimizer) * len(rows)
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
