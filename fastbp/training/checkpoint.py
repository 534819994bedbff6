"""Checkpoint: a model with everything that training goes on from, in the file format of ``save``."""

from __future__ import annotations

import os

from fastbp.data.arrays import check_bool, check_int
from fastbp.formats import npz
from fastbp.formats.writing import remove_leftovers
from fastbp.optim import Optimizer
from fastbp.training import run_state
from fastbp.training.callbacks import Mode, Monitor, Ties
from fastbp.training.sequential import Sequential, from_model


class Checkpoint(Monitor):
    """Write model, optimizer, schedule, random state, history and the other callbacks to a file after epochs.

    ``fit(..., resume=path)`` goes on from it, with the same bits as if it had never stopped; ``Checkpoint.load`` gives
    model and optimizer back, and ``fb.load`` the model alone. The file is written beside its place, synced and renamed:
    a kill or a full disk leaves the one before.

    Parameters
    ----------
    path : str or path
    every : int
        Write after so many epochs of ``fit``, and after its last one.
    best_only : bool
        Write only after epochs in which the monitored value improved.
    monitor, min_delta, mode, ties
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
    >>> model.fit(X, y, "mse", optimizer, epochs=10, callbacks=[fb.Checkpoint("run.npz")], resume="run.npz")
    """

    last = True  # what the others have done in this epoch belongs to it

    def __init__(
        self,
        path: npz.Path,
        *,
        best_only: bool = False,
        monitor: str | None = None,
        min_delta: float = 0.0,
        every: int = 1,
        mode: Mode | None = None,
        ties: Ties = "first",
    ) -> None:
        super().__init__(monitor, min_delta, mode, ties)
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path: expected a path, got {path!r}")
        self.path = path
        self.best_only = check_bool("best_only", best_only)
        self.every = check_int("every", every)

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._resumable = self.optimizer is not None and self.optimizer.resumable
        if self._resumable:
            run_state.check_storable(self.model, self.optimizer)
        remove_leftovers(self.path)
        self._written = self._seen = -1

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        for other in self.callbacks:  # what is written has the state of all after this epoch
            if isinstance(other, Checkpoint):
                other._observe(epoch, logs)
        due = (epoch + 1) % self.every == 0 or self.model.stop_training
        if self._improved if self.best_only else due:
            self._write()

    def _observe(self, epoch: int, logs: dict[str, float]) -> None:
        if self._seen != epoch:
            self._seen, self._improved = epoch, self.improves(epoch, logs)

    def on_train_end(self) -> None:
        if not self.best_only and self._written != self.model.epochs:
            self._write()

    def _write(self) -> None:
        if self._resumable and self.optimizer is not None:
            run_state.write(self.path, self.model, self.optimizer, self.callbacks)
        else:  # in an estimator, which goes on by warm_start
            self.model.save(self.path)
        self._written = self.model.epochs

    @staticmethod
    def load(path: npz.File) -> tuple[Sequential, Optimizer, int]:
        """The model, its optimizer, and how many epochs it was trained for.

        ``fit`` without a seed goes on with the orders where they were.

        Raises
        ------
        FileFormatError
            If the file is damaged, cut short, of another kind, without a checkpoint, or from a newer fastbp.
        OSError
            If it cannot be read.
        """
        run = run_state.load(path)
        return from_model(run.model, run.epochs), run.optimizer, run.epochs
