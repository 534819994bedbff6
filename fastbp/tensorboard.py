"""TensorBoard: a callback that writes what every epoch logs, for TensorBoard to show."""

from __future__ import annotations

import os
from typing import Any

from fastbp.settings import Settings
from fastbp.training.callbacks import TOLD, Callback


class TensorBoard(Settings, Callback):
    """Write what every epoch logs as scalars; ``tensorboard --logdir log_dir`` shows them.

    Those of training and of validation are two runs in the directory, ``train`` and ``validation``, so that ``loss`` is
    one chart with two lines. Steps are epochs, counted from 1; a callback that is used again counts on.

    Parameters
    ----------
    log_dir : str or path
        Made if it is not there.

    Raises
    ------
    ImportError
        If tensorboard is not installed: ``pip install fastbp[tensorboard]``.
    OSError
        From ``fit``, if the directory cannot be written.
    """

    _kept = (*TOLD, "_epochs", "_writers")

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        try:
            import tensorboard.summary  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "TensorBoard: it needs tensorboard; install it with: pip install fastbp[tensorboard]"
            ) from error
        self.log_dir = os.fspath(log_dir)
        self._epochs: int | None = None
        self._writers: dict[str, Any] = {}

    def on_train_begin(self) -> None:
        from tensorboard.summary import Writer

        if self._epochs is None:
            self._epochs = self.model.epochs
        runs = ["train", "validation"] if any(name.startswith("val_") for name in self.log_names) else ["train"]
        self._writers = {run: Writer(os.path.join(self.log_dir, run)) for run in runs}

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        assert self._epochs is not None
        self._epochs += 1
        for name, value in logs.items():
            run = "validation" if name.startswith("val_") else "train"
            self._writers[run].add_scalar(name.removeprefix("val_"), value, self._epochs)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def state(self) -> dict[str, Any]:
        return {"epochs": self._epochs}

    def set_state(self, state: dict[str, Any]) -> None:
        self._epochs = int(state["epochs"])
