"""Callbacks: what ``fit`` calls at the beginning, after every epoch, and at the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fastbp.data.arrays import Array, check_choice, check_int, check_number
from fastbp.formats import npz
from fastbp.layers import Layer
from fastbp.losses import LossLike
from fastbp.metrics import Metrics
from fastbp.model import DtypeName, Model
from fastbp.optim import Optimizer
from fastbp.parameters import Parameters
from fastbp.schedules import Constant
from fastbp.settings import Settings
from fastbp.training.history import History

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from fastbp.data.sampling import SlicedByRows, Source


class ModelInTraining(Protocol):
    """What a callback sees of the ``Sequential`` in training."""

    model: Model
    stop_training: bool
    epochs: int
    history: History | None

    @property
    def layers(self) -> tuple[Layer, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    def forward(self, x: ArrayLike, training: bool = False, upto: int | None = None) -> Array: ...
    def backward(
        self,
        dy: ArrayLike,
        input_gradient: bool = False,
        parameter_gradients: bool = True,
        accumulate: bool = False,
    ) -> Array | None: ...
    def predict(self, x: ArrayLike) -> Array: ...
    def predict_proba(self, x: ArrayLike, loss: LossLike | None = None) -> Array: ...
    def evaluate(
        self,
        X: Source,
        y: ArrayLike | SlicedByRows | None,
        loss: LossLike,
        sample_weight: ArrayLike | SlicedByRows | None = None,
        metrics: Metrics = (),
    ) -> dict[str, float]: ...
    def train_on_batch(
        self,
        xb: ArrayLike,
        yb: ArrayLike,
        loss: LossLike,
        optimizer: Optimizer,
        sample_weight: ArrayLike | None = None,
    ) -> float: ...
    @property
    def fit(self) -> Callable[..., History]: ...
    def parameters(self) -> Parameters: ...
    def summary(self) -> str: ...
    def save(self, path: npz.File) -> None: ...
    def astype(self, dtype: DtypeName) -> ModelInTraining: ...
    def with_outputs(self, outputs: int, seed: int | None = None) -> ModelInTraining: ...
    def snapshot(self) -> tuple[Array, Array]: ...
    def restore(self, snapshot: tuple[Array, Array]) -> None: ...


#: What ``fit`` tells a callback.
TOLD = ("model", "optimizer", "log_names", "greater_is_better", "callbacks")


class Callback:
    """The base of all callbacks; override what you need.

    Attributes
    ----------
    model : Sequential
        The model in training. Setting ``model.stop_training = True`` ends ``fit`` after this epoch.
    optimizer : Optimizer or None
        The optimizer in use; None with scikit-learn's lbfgs.
    log_names : list of str
        The names of the values that every epoch will log.
    greater_is_better : mapping from str to bool
        For those of them whose direction is known.
    callbacks : list of Callback
        All of them.
    """

    model: ModelInTraining
    optimizer: Optimizer | None
    log_names: list[str]
    greater_is_better: Mapping[str, bool] = MappingProxyType({"loss": False, "val_loss": False})
    callbacks: list[Callback]
    #: Whether it is called after the others.
    last = False

    def on_train_begin(self) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Before epoch number ``epoch``, counted from 0; scikit-learn's lbfgs has iterations, and calls it not."""

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """After step number ``batch`` of an epoch, counted from 0, with ``logs["loss"]``, the loss of its batch.

        Overriding it makes the core take one step at a time, which a small network notices; else it costs nothing.
        """

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """After epoch number ``epoch``, counted from 0, with what it logs, such as ``logs["val_loss"]``."""

    def on_train_end(self) -> None:
        """When training ends, in reverse order of the callbacks, also by an error or an interrupt.

        Not called then of a callback that is ``last``: it would see an epoch that was not finished.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __getstate__(self) -> dict[str, Any]:
        """Copies do not bring along what ``fit`` has told."""
        return {name: value for name, value in dict(vars(self)).items() if name not in TOLD}

    def state(self) -> dict[str, Any]:
        """What a ``Checkpoint`` keeps of this callback: numbers, strings, None and arrays, by name."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a ``state``; called after ``on_train_begin`` in a ``fit`` that resumes."""


def check_callbacks(callbacks: Iterable[Callback]) -> list[Callback]:
    """``callbacks`` as a list, if they are callbacks, in the order in which they are called."""
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks: expected a list of callbacks, got {callbacks!r}")
    callbacks = list(callbacks)
    for i, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks[{i}]: expected a Callback, got {callback!r}")
    return sorted(callbacks, key=lambda callback: callback.last)


def after_batches(callbacks: Sequence[Callback]) -> Callable[[float], None] | None:
    """What tells an epoch's losses to those callbacks that ask for them; None if none does."""
    asking = [callback for callback in callbacks if type(callback).on_batch_end is not Callback.on_batch_end]
    if not asking:
        return None
    numbers = itertools.count()

    def after_batch(loss: float) -> None:
        batch = next(numbers)
        for callback in asking:
            callback.on_batch_end(batch, {"loss": loss})

    return after_batch


@contextmanager
def called(
    callbacks: list[Callback],
    model: ModelInTraining,
    optimizer: Optimizer | None,
    log_names: list[str],
    greater_is_better: Mapping[str, bool],
) -> Iterator[None]:
    """Tell the callbacks what is about to be trained, what is logged, and of which metrics among it more is better.

    When the block ends, by whatever, those that began are told: each of them, whatever another one raises.
    """
    model.stop_training = False
    known = {"loss": False, "accuracy": True, **greater_is_better}
    greater = {name: known[own] for name in log_names if (own := name.removeprefix("val_")) in known}
    begun: list[Callback] = []
    finished = False
    try:
        for callback in callbacks:
            callback.model, callback.optimizer, callback.log_names = model, optimizer, log_names
            callback.greater_is_better, callback.callbacks = greater, callbacks
            callback.on_train_begin()
            begun.append(callback)
        yield
        finished = True
    finally:
        with ExitStack() as ends:  # calls them in reverse order
            for callback in begun:
                if finished or not callback.last:
                    ends.callback(callback.on_train_end)


Mode = Literal["min", "max"]
Ties = Literal["first", "last"]


class Monitor(Settings, Callback):
    """The base of callbacks that watch whether a logged value gets better.

    Parameters
    ----------
    monitor : str or None
        The name of a logged value; None is ``val_loss``, or ``loss`` without validation data.
    min_delta : float
        What counts as an improvement.
    mode : {"min", "max"} or None
        Whether less or more is better. None is what the value says of itself: less of losses, more of the accuracy,
        and for metrics their attribute ``greater_is_better``, which those of ``fb.metrics`` have.
    ties : {"first", "last"}
        Which of several epochs with the best value is the best one.

    Attributes
    ----------
    best, best_epoch : float, int
        The best value and its epoch, counted from 0.

    Raises
    ------
    ValueError
        If the mode is another; from ``fit``, before it trains, if no value of that name will be logged, or if it does
        not say what is better and there is no mode.
    """

    _kept = (*TOLD, "best", "best_epoch")

    def __init__(
        self,
        monitor: str | None = None,
        min_delta: float = 0.0,
        mode: Mode | None = None,
        ties: Ties = "first",
    ) -> None:
        if monitor is not None and not isinstance(monitor, str):
            raise TypeError(f"monitor: expected the name of a logged value or None, got {monitor!r}")
        self.monitor = monitor
        self.mode: Mode | None = check_choice("mode", mode, [None, "min", "max"])
        self.ties: Ties = check_choice("ties", ties, ["first", "last"])
        self.min_delta = check_number("min_delta", min_delta, 0)

    def on_train_begin(self) -> None:
        self._name = self.monitor or ("val_loss" if "val_loss" in self.log_names else "loss")
        if self._name not in self.log_names:
            raise ValueError(f"monitor: expected one of {', '.join(self.log_names)}, got {self._name!r}")
        if self.mode is None and self._name not in self.greater_is_better:
            raise ValueError(f"mode: expected 'min' or 'max', as {self._name!r} does not say which is better, got None")
        self._greater = self.mode == "max" if self.mode else self.greater_is_better[self._name]
        self.best, self.best_epoch = float("nan"), -1

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def set_state(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = float(state["best"]), int(state["best_epoch"])

    def improves(self, epoch: int, logs: dict[str, float]) -> bool:
        """Whether this epoch is the best so far; NaN never is."""
        value = logs[self._name]
        gain = value - self.best if self._greater else self.best - value
        if value == value and (self.best_epoch < 0 or gain > self.min_delta):
            self.best, self.best_epoch = value, epoch
            return True
        if self.ties == "last" and gain == 0:
            self.best_epoch = epoch
            return True
        return False


class BestWeights(Callback):
    """Keeps the weights, running statistics included, of the epoch with the least validation loss, or loss."""

    def on_train_begin(self) -> None:
        self._least, self._weights = float("inf"), self.model.snapshot()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        loss = logs.get("val_loss", logs["loss"])
        if loss < self._least:
            self._least, self._weights = loss, self.model.snapshot()

    def restore(self) -> None:
        """Go back to them; to those of the beginning if there was no epoch."""
        self.model.restore(self._weights)

    def state(self) -> dict[str, Any]:
        return {"least": self._least, "values": self._weights[0], "stats": self._weights[1]}

    def set_state(self, state: dict[str, Any]) -> None:
        self._least, self._weights = float(state["least"]), (state["values"], state["stats"])


class EarlyStopping(Monitor):
    """Stop when a logged value has not improved for ``patience`` epochs, and restore the best epoch's weights.

    The best weights, running statistics included, are restored at the end of ``fit`` in any case: after an error or an
    interrupt too.

    Parameters
    ----------
    patience : int
        Epochs without improvement, at least 1.
    monitor, min_delta, mode, ties
        See ``fb.callbacks.Monitor``. Of a tie the later epoch's weights count with ``ties="last"``; neither kind ends
        the patience.
    start_from_epoch : int
        Epochs before this one, counted from 0, are not looked at.
    baseline : float or None
        Only a value that is better than this one, by ``min_delta``, is an improvement.

    Attributes
    ----------
    best, best_epoch : float, int
        The best value and its epoch, counted from 0.
    """

    def __init__(
        self,
        patience: int = 5,
        monitor: str | None = None,
        min_delta: float = 0.0,
        mode: Mode | None = None,
        *,
        start_from_epoch: int = 0,
        baseline: float | None = None,
        ties: Ties = "first",
    ) -> None:
        super().__init__(monitor, min_delta, mode, ties)
        self.patience = check_int("patience", patience)
        self.start_from_epoch = check_int("start_from_epoch", start_from_epoch, low=0)
        self.baseline = None if baseline is None else check_number("baseline", baseline, -math.inf)

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._weights: tuple[Array, Array] | None = None
        self._since = self.start_from_epoch - 1  # the last epoch that was an improvement

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if epoch < self.start_from_epoch:
            return
        best, first = self.best, self.best_epoch < 0
        if self._beats_baseline(logs) and self.improves(epoch, logs):
            self._weights = self.model.snapshot()
        if self.best_epoch >= 0 and (first or self.best != best):
            self._since = epoch
        elif epoch - self._since >= self.patience:
            self.model.stop_training = True

    def _beats_baseline(self, logs: dict[str, float]) -> bool:
        if self.baseline is None:
            return True
        gain = logs[self._name] - self.baseline
        return (gain if self._greater else -gain) > self.min_delta

    def on_train_end(self) -> None:
        if self._weights is not None:
            self.model.restore(self._weights)

    def state(self) -> dict[str, Any]:
        values, stats = self._weights or (None, None)
        return super().state() | {"values": values, "stats": stats, "since": self._since}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._since = int(state.get("since", self.best_epoch))  # older files have none
        self._weights = None if state["values"] is None else (state["values"], state["stats"])


class ReduceLROnPlateau(Monitor):
    """Multiply the learning rate with ``factor`` whenever a logged value has not improved for ``patience`` epochs.

    Parameters
    ----------
    factor : float
        In (0, 1).
    patience : int
        Epochs without improvement, at least 1, counted anew after every reduction.
    monitor, min_delta, mode
        See ``fb.callbacks.Monitor``.
    min_lr : float
        The least learning rate.
    cooldown : int
        Epochs after a reduction that do not count as epochs without improvement.

    Raises
    ------
    ValueError
        From ``fit``, before it trains, if the optimizer's learning rate follows a schedule of its own.
    """

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        monitor: str | None = None,
        min_delta: float = 0.0,
        min_lr: float = 0.0,
        mode: Mode | None = None,
        *,
        cooldown: int = 0,
    ) -> None:
        super().__init__(monitor, min_delta, mode)
        self.cooldown = check_int("cooldown", cooldown, low=0)
        self.factor = check_number("factor", factor, 0, 1, open_low=True)
        self.patience = check_int("patience", patience)
        self.min_lr = check_number("min_lr", min_lr, 0)

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._since = -1
        if self.optimizer is None or type(self.optimizer.schedule) is not Constant:
            raise ValueError("optimizer: expected a constant learning rate with ReduceLROnPlateau")

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if self.improves(epoch, logs):
            self._since = max(epoch, self._since)
        elif epoch - self._since >= self.patience and self.optimizer is not None:
            self._since, schedule = epoch + self.cooldown, self.optimizer.schedule
            if isinstance(schedule, Constant):
                lr = min(schedule.lr, max(schedule.lr * self.factor, self.min_lr))
                self.optimizer.lr = Constant(lr, warmup=schedule.warmup)

    def state(self) -> dict[str, Any]:
        return super().state() | {"since": self._since}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._since = int(state["since"])
