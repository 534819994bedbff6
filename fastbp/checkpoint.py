"""Checkpoint: a model with everything that training goes on from, in the file format of ``save``."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbp import files, optim, schedules
from fastbp.callbacks import Monitor
from fastbp.data import positive_int
from fastbp.training import Sequential


class Checkpoint(Monitor):
    """Write the model, the optimizer, its schedule, the epoch and the random state to a file after every epoch.

    ``Checkpoint.load`` gives them back, and ``fb.load`` the model alone. The file is replaced whole: an interrupt
    leaves the one before.

    Parameters
    ----------
    path : str or path
    best_only : bool
        Write only after epochs in which the figure improved.
    monitor, min_delta
        See ``fb.callbacks.Monitor``; for ``best_only``.

    Raises
    ------
    TypeError
        From ``fit``, before it trains, if the optimizer, its schedule or the generator of the orders is of a kind that
        a file cannot hold: one of the user's own, or a bit generator other than NumPy's default.
    OSError
        From ``fit``, if the file cannot be written.

    Examples
    --------
    >>> model.fit(X, y, "mse", optimizer, epochs=3, callbacks=[fb.Checkpoint("run.npz")])
    >>> model, optimizer, epochs_done = fb.Checkpoint.load("run.npz")
    >>> model.fit(X, y, "mse", optimizer, epochs=10 - epochs_done)  # as if it had never been interrupted
    """

    def __init__(
        self, path: files.Path, best_only: bool = False, monitor: str | None = None, min_delta: float = 0.0
    ) -> None:
        super().__init__(monitor, min_delta)
        self.path = path
        self.best_only = bool(best_only)

    def on_train_begin(self) -> None:
        super().on_train_begin()
        optimizer = self.optimizer
        if optimizer is None or getattr(optim, type(optimizer).__name__, None) is not type(optimizer):
            raise TypeError(f"optimizer: expected one of fastbp's with Checkpoint, got {optimizer!r}")
        if getattr(schedules, type(optimizer.schedule).__name__, None) is not type(optimizer.schedule):
            raise TypeError(f"lr: expected a number or one of fb.schedules with Checkpoint, got {optimizer.schedule!r}")
        if not isinstance(self.model._orders.bit_generator, np.random.PCG64):
            raise TypeError(f"seed: expected a generator on PCG64 with Checkpoint, got {self.model._orders!r}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if self.improves(epoch, logs) or not self.best_only:
            self._write()

    def _write(self) -> None:
        model, optimizer = self.model, self.optimizer
        assert optimizer is not None
        hidden = ("params", "schedule", "steps")
        settings = {k: v for k, v in vars(optimizer).items() if k not in hidden and not k.startswith("_")}
        checkpoint = {
            "epoch": model.epochs,
            "optimizer": [type(optimizer).__name__, settings],
            "schedule": [type(optimizer.schedule).__name__, vars(optimizer.schedule)],
            "steps": optimizer.steps,
            "step": model._step,
            "orders": model._orders.bit_generator.state,
        }
        state = {f"checkpoint.{name}": array for name, array in optimizer._state.items()}
        arrays = model._arrays() | state | {"checkpoint.keys": model._ops["key"]}
        header = {"dtype": model.dtype.name, "layers": model._config(), "checkpoint": checkpoint}
        files.write(self.path, header, arrays)

    @staticmethod
    def load(path: files.Path) -> tuple[Sequential, optim.Optimizer, int]:
        """The model, its optimizer, and how many epochs it was trained for.

        ``fit`` without a seed goes on with the orders where they were.

        Raises
        ------
        FileFormatError
            If the file is damaged, cut short, of another kind, without a checkpoint, or from a newer fastbp.
        OSError
            If it cannot be read.
        """
        header, arrays = files.read(path)
        if "checkpoint" not in header:
            raise files.FileFormatError(f"path: expected a checkpoint, got a model alone in {path!r}; use fb.load")
        state = {name: arrays.pop(name) for name in list(arrays) if name.startswith("checkpoint.")}
        try:
            return _resumed(header, arrays, {name.removeprefix("checkpoint."): a for name, a in state.items()})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError) as error:
            raise files.unreadable(path, error) from error


def _resumed(
    header: dict[str, Any], arrays: dict[str, Any], state: dict[str, Any]
) -> tuple[Sequential, optim.Optimizer, int]:
    saved = header["checkpoint"]
    model = Sequential._build(header["layers"], header["dtype"], arrays)
    keys, own = state.pop("keys"), model._ops["key"]
    if keys.shape != own.shape or keys.dtype.kind != "u":
        raise ValueError(f"keys: expected {own.shape} unsigned integers, got {keys.dtype} of {keys.shape}")
    own[:] = keys
    model._step, model.epochs = (positive_int(name, saved[name], low=0) for name in ("step", "epoch"))
    model._rng.bit_generator.state = saved["orders"]
    kind, settings = saved["schedule"]
    schedule = _of_kind(schedules, schedules.Schedule, kind)(**settings)
    kind, settings = saved["optimizer"]
    optimizer: optim.Optimizer = _of_kind(optim, optim.Optimizer, kind)(model.parameters(), schedule, **settings)
    optimizer.load_state_dict({"steps": saved["steps"], **state})
    return model, optimizer, model.epochs


def _of_kind(module: Any, base: type, name: str) -> Any:
    """The class of that name; nothing else in the module can be called by a file."""
    found = getattr(module, name)
    if not (isinstance(found, type) and issubclass(found, base)) or found is base:
        raise ValueError(f"{name!r} is no {base.__name__}")
    return found
