"""``python -m fastbp bench``: a training step of networks of all sizes, on the active backend and on plain NumPy."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastbp.core import backend_name, get_num_threads, use_backend
from fastbp.data.arrays import Array
from fastbp.layers import Dense
from fastbp.losses import LossName
from fastbp.optim import SGD, Adam
from fastbp.profiling import fma_peak
from fastbp.training import Sequential

#: Widths, batch size, steps per epoch. ReLU between the layers; one output is trained with the mean squared error, ten
#: with cross-entropy.
NETS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "tiny": ((8, 16, 16, 1), 32, 512),
    "small": ((64, 64, 10), 32, 512),
    "tab": ((32, 128, 128, 1), 128, 128),
    "mnist": ((784, 128, 10), 64, 128),
    "mnist2": ((784, 512, 512, 10), 128, 32),
    "wide": ((1024, 1024, 1024, 1024, 10), 256, 16),
}
OPTIMIZERS: dict[str, Any] = {"SGD": SGD, "Adam": Adam}


class Run:
    """A network, its data and its optimizer on one backend."""

    def __init__(self, where: str, net: str, optimizer: str) -> None:
        self.where = where
        widths, self.batch, steps = NETS[net]
        rng = np.random.default_rng(0)
        # half an epoch is enough to see how long a step takes, and NumPy takes its time
        self.X = rng.standard_normal((self.batch * steps // 2, widths[0]), dtype=np.float32)
        layers = [Dense(a, b, "relu") for a, b in pairwise(widths[:-1])] + [Dense(widths[-2], widths[-1])]
        self.model = Sequential(layers, seed=0)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters(), lr=1e-3)
        self.loss: LossName = "mse" if widths[-1] == 1 else "cross_entropy"
        self.y: Array = rng.integers(0, widths[-1], len(self.X))
        if self.loss == "mse":
            self.y = self.X[:, 0]
        self.best = math.inf

    def epoch(self) -> float:
        """Train for one epoch; the loss."""
        with use_backend(self.where):
            history = self.model.fit(
                self.X, self.y, self.loss, self.optimizer, batch_size=self.batch, verbose=0
            ).history
        self.best = min(self.best, self.batch / history["samples_per_second"][0])
        return float(history["loss"][0])


def operations(widths: Sequence[int], batch: int) -> int:
    """Of a step's products: forward, dweight, and dx for all layers but the first."""
    sizes = [a * b for a, b in pairwise(widths)]
    return 2 * batch * (3 * sum(sizes) - sizes[0])


def run(seconds: float) -> None:
    """Print a table: microseconds a step, best of the epochs of so many seconds, the two backends in turns."""
    if backend_name() == "numpy":
        raise SystemExit("bench: nothing to compare: the numpy backend is forced")
    limit = fma_peak(backend_name(), np.dtype("float32")) * get_num_threads() / 1e9
    print(f"backend {backend_name()}, {get_num_threads()} threads, float32; FMA peak {limit:.0f} GFLOP/s")
    print(f"{'network':24} batch  optimizer  {backend_name():>8} us   numpy us   ratio  GFLOP/s  of peak")
    for net, (widths, batch, _) in NETS.items():
        for optimizer in OPTIMIZERS:
            runs = [Run(where, net, optimizer) for where in (backend_name(), "numpy")]
            losses = [each.epoch() for each in runs]
            if not math.isclose(*losses, rel_tol=1e-3):
                raise SystemExit(f"bench: {net}, {optimizer}: the backends have different losses: {losses}")
            end = time.perf_counter() + 2 * seconds
            while time.perf_counter() < end:
                for each in runs:
                    each.epoch()
            ours, theirs = (each.best for each in runs)
            rate = operations(widths, batch) / ours / 1e9
            print(
                f"{'-'.join(map(str, widths)):24} {batch:5}  {optimizer:9} {1e6 * ours:11,.1f} {1e6 * theirs:10,.0f} "
                f"{theirs / ours:7.1f} {rate:8.1f} {rate / limit:8.2f}",
                flush=True,
            )
