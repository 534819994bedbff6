"""Learning-rate schedules: functions of the number of optimizer steps done so far, t = 0, 1, 2, ..."""

from __future__ import annotations

import math
from typing import Any

from fastbp.data.arrays import check_int, check_number
from fastbp.settings import Settings

#: fastbp's own schedules by the names of their classes, for reading checkpoints.
SCHEDULES: dict[str, type[Schedule]] = {}


class Schedule(Settings):
    """The base of all schedules: ``schedule(t)`` is the learning rate of the step after t steps."""

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, for checkpoints."""
        return self._settings()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == __name__:  # a file can name no class of the user's own
            SCHEDULES[cls.__name__] = cls

    def __call__(self, t: int) -> float:
        raise NotImplementedError


class Constant(Schedule):
    """``lr``, always."""

    def __init__(self, lr: float) -> None:
        self.lr = check_number("lr", lr, 0)

    def __call__(self, t: int) -> float:
        return self.lr


class Step(Schedule):
    """``lr * gamma ** (t // step_size)``."""

    def __init__(self, lr: float, step_size: int, gamma: float = 0.1) -> None:
        self.lr = check_number("lr", lr, 0)
        self.step_size = check_int("step_size", step_size)
        self.gamma = check_number("gamma", gamma, 0)

    def __call__(self, t: int) -> float:
        return self.lr * _power(self.gamma, t // self.step_size)


class Exponential(Schedule):
    """``lr * gamma ** t``."""

    def __init__(self, lr: float, gamma: float) -> None:
        self.lr = check_number("lr", lr, 0)
        self.gamma = check_number("gamma", gamma, 0)

    def __call__(self, t: int) -> float:
        return self.lr * _power(self.gamma, t)


class Cosine(Schedule):
    """Half a cosine from ``lr`` down to ``min_lr`` over ``total_steps``, then ``min_lr`` (Loshchilov & Hutter 2017)."""

    def __init__(self, lr: float, total_steps: int, min_lr: float = 0.0) -> None:
        self.lr = check_number("lr", lr, 0)
        self.total_steps = check_int("total_steps", total_steps)
        self.min_lr = check_number("min_lr", min_lr, 0)

    def __call__(self, t: int) -> float:
        return _cosine(self.lr, self.min_lr, min(1.0, t / self.total_steps))


class OneCycle(Schedule):
    """Up from ``max_lr / div_factor`` to ``max_lr``, then down to ``max_lr / div_factor / final_div_factor``.

    Both ways along a cosine (Smith & Topin 2018), with PyTorch's parameters and its steps: the peak is at step
    ``pct_start * total_steps - 1`` and the end at ``total_steps - 1``.
    """

    def __init__(
        self,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        self.max_lr = check_number("max_lr", max_lr, 0)
        self.total_steps = check_int("total_steps", total_steps)
        self.pct_start = check_number("pct_start", pct_start, 0, 1, open_low=True)
        self.div_factor = check_number("div_factor", div_factor, 0, open_low=True)
        self.final_div_factor = check_number("final_div_factor", final_div_factor, 0, open_low=True)

    def __call__(self, t: int) -> float:
        start = self.max_lr / self.div_factor
        peak, end = self.pct_start * self.total_steps - 1, self.total_steps - 1
        if t < peak:
            return _cosine(start, self.max_lr, t / peak)
        return _cosine(self.max_lr, start / self.final_div_factor, min(1.0, (t - peak) / (end - peak)))


class InverseScaling(Schedule):
    """``lr / (t + 1) ** power``."""

    def __init__(self, lr: float, power: float = 0.5) -> None:
        self.lr = check_number("lr", lr, 0)
        self.power = check_number("power", power, 0)

    def __call__(self, t: int) -> float:
        return self.lr / _power(t + 1, self.power)


def _power(base: float, exponent: float) -> float:
    """``base**exponent``, infinite where it is too large for a float, which no learning rate may be."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def resolve(lr: float | Schedule) -> Schedule:
    """The schedule that a learning rate stands for."""
    return lr if isinstance(lr, Schedule) else Constant(lr)
