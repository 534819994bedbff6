"""Normalisation over the batch and over the features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastbp.data.arrays import Array, check_int, check_normal, check_number
from fastbp.layers.layer import Parametric


class _Norm(Parametric):
    """Batch and layer norm's common part: a scale that starts at one and a shift that starts at zero."""

    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.n = self.width = check_int("n", n)
        self.eps = check_number("eps", eps, 0, open_low=True)

    def check_dtype(self, access: str, dtype: np.dtype[Any]) -> None:
        check_normal(f"{access}.eps", self.eps, dtype)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.n,), "bias": (self.n,)}

    def settings(self) -> dict[str, Any]:
        return {"n": self.n, "eps": self.eps}

    def fields(self) -> dict[str, float]:
        return {"eps": self.eps}

    def initial_values(self, rng: np.random.Generator) -> dict[str, Array]:
        return {"weight": np.ones(self.n)}


class BatchNorm(_Norm):
    """Normalise each feature over the batch (Ioffe & Szegedy 2015), then scale by ``weight`` and shift by ``bias``.

    Training uses the batch's mean and variance and moves the running ones towards them (the variance unbiased, as in
    PyTorch); inference uses the running ones. A batch of one sample, which has no variance, leaves them alone.

    Parameters
    ----------
    n : int
        Features.
    momentum : float
        Share of the batch in the running statistics, in [0, 1].
    eps : float
        Added to the variance.

    Attributes
    ----------
    running_mean, running_var : ndarray (n,)
        Views; they can be written in place.
    """

    kind = "batchnorm"
    gradients_with_dx = True

    def __init__(self, n: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(n, eps)
        self.momentum = check_number("momentum", momentum, 0, math.nextafter(1, 2))
        self._statistics: Array | None = None

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"momentum": self.momentum}

    def fields(self) -> dict[str, float]:
        return super().fields() | {"momentum": self.momentum}

    def statistics_shape(self) -> tuple[int, ...]:
        return (4, self.n)  # running mean and variance, batch mean and 1/std

    def running_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"running_mean": (self.n,), "running_var": (self.n,)}

    def bind_statistics(self, statistics: Array) -> None:
        self._statistics = statistics
        statistics[:] = 0
        statistics[1] = 1

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_statistics": None}

    def _running(self, row: int) -> Array:
        self._owner()  # raises where there are no arrays yet
        assert self._statistics is not None
        view: Array = self._statistics[row]
        return view

    @property
    def running_mean(self) -> Array:
        return self._running(0)

    @property
    def running_var(self) -> Array:
        return self._running(1)


class LayerNorm(_Norm):
    """Normalise each sample over its features (Ba, Kiros & Hinton 2016), then scale and shift.

    Parameters
    ----------
    n : int
        Features.
    eps : float
        Added to the variance.
    """

    kind = "layernorm"

    def __init__(self, n: int, eps: float = 1e-5) -> None:
        super().__init__(n, eps)
