"""Learning-rate schedules: functions of the number of optimizer steps done so far, t = 0, 1, 2, ...

Durations are in steps or, with ``epochs=``, in epochs, which ``fit`` turns into steps; a warm-up is in the same unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastbp.data.arrays import check_int, check_number
from fastbp.settings import Settings

#: fastbp's own schedules by the names of their classes, for reading checkpoints.
SCHEDULES: dict[str, type[Schedule]] = {}


class Schedule(Settings):
    """The base of all schedules: ``schedule(t)`` is the learning rate of the step after t steps."""

    #: How long something lasts, in one of the units; neither where nothing ends.
    steps: int | None = None
    epochs: float | None = None
    #: In the unit of the schedule: the rate rises along a line to that of ``schedule(0)`` without a warm-up.
    warmup: float = 0.0
    _steps_per_epoch: int | None = None
    _whole: float = math.inf  # how long it lasts, in its unit

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, for checkpoints."""
        return self._settings()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == __name__ and not cls.__name__.startswith("_"):  # a file can name no class of the user's
            SCHEDULES[cls.__name__] = cls

    def __call__(self, t: int) -> float:
        raise NotImplementedError

    def bind(self, steps_per_epoch: int) -> None:
        """Say how many steps an epoch has; ``fit`` does so, and a loop of one's own has to before the first step."""
        self._steps_per_epoch = check_int("steps_per_epoch", steps_per_epoch)

    def ended(self, t: int) -> bool:
        """Whether it has reached its end after t steps, and stays there; it has to know the steps of an epoch."""
        return t >= self._whole * self._unit()

    def _lasts(self, steps: int | None, epochs: float | None, least: float = 0.0) -> float:
        """Keep how long something lasts, in its unit, of which one is given; more than ``least``, the warm-up."""
        if (steps is None) is (epochs is None):
            raise TypeError(f"steps, epochs: expected one of them, got steps={steps}, epochs={epochs}")
        duration = check_int("steps", steps) if steps is not None else check_number("epochs", epochs, 0, open_low=True)
        if duration <= least:
            unit = "steps" if steps else "epochs"
            raise ValueError(f"warmup: expected less than {unit}, {duration:g}, got {least:g}")
        self.steps, self.epochs = steps, epochs
        self._steps_per_epoch = None  # has its place from the start, as a copy may read while fit binds
        return duration

    def _unit(self) -> int:
        """The steps in one unit of time."""
        if self.epochs is None:
            return 1
        if self._steps_per_epoch is None:
            raise RuntimeError(
                "lr: a schedule in epochs has to know how many steps these have; fit tells it, in a loop of your own "
                "call schedule.bind(steps_per_epoch), or give it in steps"
            )
        return self._steps_per_epoch

    def _after_warmup(self, t: int, peak: float) -> tuple[float | None, float]:
        """The rate of a step of the warm-up, else None; and the steps done since it ended."""
        warm = self.warmup * self._unit()
        return (peak * (t + 1) / (warm + 1), 0.0) if t < warm else (None, t - warm)


class Constant(Schedule):
    """``lr``, always; after a warm-up of so many steps, where there is one."""

    def __init__(self, lr: float, *, warmup: float = 0.0) -> None:
        self.lr = check_number("lr", lr, 0)
        self.warmup = check_number("warmup", warmup, 0)

    def __call__(self, t: int) -> float:
        if not self.warmup:  # the usual case, of every single step
            return self.lr
        rate, _ = self._after_warmup(t, self.lr)
        return self.lr if rate is None else rate


class Step(Schedule):
    """``lr * gamma ** (t // steps)``: times ``gamma`` after every so many steps, or epochs."""

    def __init__(
        self,
        lr: float,
        steps: int | None = None,
        gamma: float = 0.1,
        *,
        epochs: float | None = None,
        warmup: float = 0.0,
    ) -> None:
        self.lr = check_number("lr", lr, 0)
        self.gamma = check_number("gamma", gamma, 0)
        self.warmup = check_number("warmup", warmup, 0)
        self._every = self._lasts(steps, epochs)

    def __call__(self, t: int) -> float:
        rate, since = self._after_warmup(t, self.lr)
        return self.lr * _power(self.gamma, since // (self._every * self._unit())) if rate is None else rate


class Exponential(Schedule):
    """``lr * gamma ** (t / steps)``: by ``gamma`` in every step, in so many steps, or in so many epochs."""

    def __init__(
        self,
        lr: float,
        gamma: float,
        steps: int | None = None,
        *,
        epochs: float | None = None,
        warmup: float = 0.0,
    ) -> None:
        self.lr = check_number("lr", lr, 0)
        self.gamma = check_number("gamma", gamma, 0)
        self.warmup = check_number("warmup", warmup, 0)
        self._every = self._lasts(1 if steps is None and epochs is None else steps, epochs)
        self.steps = steps

    def __call__(self, t: int) -> float:
        rate, since = self._after_warmup(t, self.lr)
        return self.lr * _power(self.gamma, since / (self._every * self._unit())) if rate is None else rate


class Cosine(Schedule):
    """Half a cosine from ``lr`` down to ``min_lr`` over ``steps`` or ``epochs``, then ``min_lr``.

    (Loshchilov & Hutter 2017.) The warm-up is a part of these: ``Cosine(0.1, epochs=20, warmup=2)`` rises for two
    epochs and falls for eighteen.
    """

    def __init__(
        self,
        lr: float,
        steps: int | None = None,
        min_lr: float = 0.0,
        *,
        epochs: float | None = None,
        warmup: float = 0.0,
    ) -> None:
        self.lr = check_number("lr", lr, 0)
        self.min_lr = check_number("min_lr", min_lr, 0)
        self.warmup = check_number("warmup", warmup, 0)
        self._whole = self._lasts(steps, epochs, self.warmup)

    def __call__(self, t: int) -> float:
        rate, since = self._after_warmup(t, self.lr)
        falls = (self._whole - self.warmup) * self._unit()
        return _cosine(self.lr, self.min_lr, min(1.0, since / falls)) if rate is None else rate


class OneCycle(Schedule):
    """Up from ``max_lr / div_factor`` to ``max_lr``, then down to ``max_lr / div_factor / final_div_factor``.

    Both ways along a cosine (Smith & Topin 2018), with PyTorch's parameters and its steps: the peak is at step
    ``pct_start * steps - 1`` and the end at ``steps - 1``.
    """

    def __init__(
        self,
        max_lr: float,
        steps: int | None = None,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        *,
        epochs: float | None = None,
    ) -> None:
        self.max_lr = check_number("max_lr", max_lr, 0)
        self.pct_start = check_number("pct_start", pct_start, 0, 1, open_low=True)
        self.div_factor = check_number("div_factor", div_factor, 0, open_low=True)
        self.final_div_factor = check_number("final_div_factor", final_div_factor, 0, open_low=True)
        self._whole = self._lasts(steps, epochs)

    def __call__(self, t: int) -> float:
        start, steps = self.max_lr / self.div_factor, self._whole * self._unit()
        peak, end = self.pct_start * steps - 1, steps - 1
        if t < peak:
            return _cosine(start, self.max_lr, t / peak)
        return _cosine(self.max_lr, start / self.final_div_factor, min(1.0, (t - peak) / (end - peak)))


class InverseScaling(Schedule):
    """``lr / (t + 1) ** power``, after a warm-up of so many steps where there is one."""

    def __init__(self, lr: float, power: float = 0.5, *, warmup: float = 0.0) -> None:
        self.lr = check_number("lr", lr, 0)
        self.power = check_number("power", power, 0)
        self.warmup = check_number("warmup", warmup, 0)

    def __call__(self, t: int) -> float:
        rate, since = self._after_warmup(t, self.lr)
        return self.lr / _power(since + 1, self.power) if rate is None else rate


class _Function(Schedule):
    """A callable of the user's own; files cannot hold it."""

    def __init__(self, function: Callable[[int], float]) -> None:
        self.function = function

    def __call__(self, t: int) -> float:
        return self.function(t)

    def __repr__(self) -> str:
        return repr(self.function)


def _power(base: float, exponent: float) -> float:
    """``base**exponent``, infinite where it is too large for a float, which no learning rate may be."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


#: What stands for a learning rate: a number, a schedule, or a callable of the number of steps done.
LearningRate = float | Schedule | Callable[[int], float]


def resolve(lr: LearningRate) -> Schedule:
    """The schedule that a learning rate stands for."""
    if isinstance(lr, Schedule):
        return lr
    if isinstance(lr, type):
        raise TypeError(f"lr: expected a number, a schedule or a callable of the step, got the class {lr.__name__}")
    return _Function(lr) if callable(lr) else Constant(lr)
