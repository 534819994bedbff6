"""History: what ``fit`` returns; and what it shows meanwhile, a line per epoch or a bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from fastbp.data.arrays import check_bool
from fastbp.plotting import new_figure
from fastbp.settings import Settings

_NOT_METRICS = "lr", "samples_per_second"  # logged values that do not say how good the model is


MARKED_EPOCHS = 50  # of a plot: more points would hide the line


class History(Settings):
    """What ``fit`` returns.

    Attributes
    ----------
    history : dict of str to list of float
        For every epoch: ``loss`` and, for classification, ``accuracy``, the means over its samples, the loss with their
        weights, as they were when their batch was trained; ``val_loss``, ``val_accuracy`` and metrics after it; ``lr``
        of its last step; ``samples_per_second``.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def __len__(self) -> int:
        """The number of epochs."""
        return len(self.history.get("loss", ()))

    def __getitem__(self, name: str) -> list[float]:
        """The values of that name, one for each epoch: ``history["val_auc"]``."""
        if name not in self.history:
            raise KeyError(f"{name!r}: expected one of {', '.join(self.history) or 'nothing, as there was no epoch'}")
        return self.history[name]

    def __contains__(self, name: object) -> bool:
        return name in self.history

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.history)

    def __repr__(self) -> str:
        """``History(20 epochs, the last with loss 0.1234, val_loss 0.2345)``"""
        last = _formatted({name: values[-1] for name, values in self.history.items()})
        values = ", ".join(f"{name} {value}" for name, value in last.items())
        return (
            f"History({len(self)} epoch{'' if len(self) == 1 else 's'}{', the last with ' if values else ''}{values})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies: a dict of its own, as another thread may add an epoch while this one is read."""
        return {**vars(self), "history": {name: list(values) for name, values in dict(self.history).items()}}

    def append(self, logs: dict[str, float]) -> None:
        """Add what one epoch logs."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def plot(self, path: str | os.PathLike[str] | None = None, log: bool = False) -> Any:
        """Draw loss, accuracy and metrics over the epochs, of training and validation; needs matplotlib.

        Parameters
        ----------
        path : str, path or None
            The file to save it to; its extension says what is written, such as ``.png`` or ``.svg``.
        log : bool
            Whether the losses have a logarithmic scale.

        Returns
        -------
        matplotlib.figure.Figure
            Which a notebook shows.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        RuntimeError
            If there was no epoch.
        TypeError
            If ``log`` is neither True nor False.
        """
        check_bool("log", log)
        names = list(dict.fromkeys(name.removeprefix("val_") for name in self.history if name not in _NOT_METRICS))
        if not names:
            raise RuntimeError("plot: there is nothing to draw before the first epoch")
        figure = new_figure(5 * len(names), 4)
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for label, key in (("training", name), ("validation", f"val_{name}")):
                if key in self.history:
                    values = self.history[key]
                    style = ".-" if len(values) <= MARKED_EPOCHS else "-"
                    axes.plot(range(1, len(values) + 1), values, style, linewidth=1, label=label)
            axes.set(xlabel="epoch", ylabel=name, yscale="log" if log and name == "loss" else "linear")
            axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure


def epoch_line(epoch: int, epochs: int, logs: dict[str, float]) -> str:
    """``epoch  3/20  loss 0.1234  accuracy 0.9567  123,456 samples/s``"""
    speed = f"{logs['samples_per_second']:,.0f} samples/s"
    return "  ".join([_title(epoch, epochs), *(f"{name} {value}" for name, value in _formatted(logs).items()), speed])


def _title(epoch: int, epochs: int) -> str:
    return f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}"


def _formatted(logs: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in logs.items() if name not in _NOT_METRICS}


class Bars:
    """A bar per epoch, by tqdm, which draws them in notebooks too."""

    def __init__(self, epochs: int, samples: int | None) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("verbose='bar': it needs tqdm; install it with: pip install fastbp[progress]") from error
        self._new, self._epochs, self._samples = tqdm, epochs, samples

    def shown(self, epoch: int, train: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Train for an epoch under its bar, which stays with what the epoch logs; closed, whatever ends it.

        An epoch of data that is read tells how many samples there are.
        """
        self._bar = self._new(desc=_title(epoch, self._epochs), total=self._samples, unit=" samples", unit_scale=True)
        try:
            logs = train()
            self._samples = self._bar.n
            self._bar.set_postfix(_formatted(logs))
            return logs
        finally:
            self._bar.close()

    def advance(self, samples: int, loss: float) -> None:
        """So many samples more were trained; loss is the mean of the epoch so far."""
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update(samples)
