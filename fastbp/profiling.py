"""fb.profile: where the time of ``fit`` goes, layer by layer, beside what this machine could do in it."""

from __future__ import annotations

import copy
import functools
import os
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from fastbp.core import available_backends, backend, backend_name, plan, use_backend
from fastbp.layers.layer import Cost, Work
from fastbp.model import Model
from fastbp.optim import Optimizer
from fastbp.plotting import new_figure


class Trained(Protocol):
    """What training for an epoch gives."""

    samples: int


R = TypeVar("R", bound=Trained)

_ACTIVATIONS = {activation.code: name for name, activation in plan.ACTIVATIONS.items()}
_PHASES = ("forward", "backward dx", "backward dw + update")
_MARKERS = dict(zip(_PHASES, "ovs", strict=True))
_NOTHING = "nothing was trained by fit with a built-in loss in this block"


class Row(NamedTuple):
    """One phase of one layer, or of the whole network: its time and what it had to do, as in ``fb.profile``."""

    layer: str
    phase: str
    seconds: float
    operations: int
    bytes: int


class Table:
    """The epochs of one model with one optimizer, batch size, backend and number of threads, added up.

    Attributes
    ----------
    backend : str
    threads : int
        That worked; a small network takes fewer than it may.
    steps, samples, batch_size : int
    seconds : float
        Of wall time, in all epochs.
    others : dict of str to Table
        The same work on the backends that it was compared with.
    """

    def __init__(self, model: Model, optimizer: Optimizer, batch_size: int) -> None:
        self.model, self.optimizer, self.batch_size, self.backend = model, optimizer, batch_size, backend_name()
        self.threads = self.steps = self.samples = 0
        self.seconds = 0.0
        self._stored = 0.0  # the samples, each times the share of its entries that is stored
        self.others: dict[str, Table] = {}
        self._times = np.zeros(3 + 3 * len(model.program))
        self._epochs: list[Callable[[Model, Optimizer], Trained]] = []  # to do again

    def _train(self, epoch: Callable[[Model, Optimizer], R]) -> R:
        """Run an epoch and add its times; one that is interrupted does not count."""
        network, times = self.model.network(), np.zeros_like(self._times)
        start = time.perf_counter()
        try:
            network.record_times(times)
            result = epoch(self.model, self.optimizer)
        finally:
            network.record_times(None)
        self.seconds += time.perf_counter() - start
        self.threads = max(self.threads, network.threads)
        self.steps += -(-result.samples // self.batch_size)
        self.samples += result.samples
        self._stored += result.samples * network.density
        self._times += times
        self._epochs.append(epoch)
        self.others.clear()  # they have not done this one
        return result

    def _compare(self, name: str) -> None:
        """Do it all again on the active backend, with copies."""
        other = Table(*copy.deepcopy((self.model, self.optimizer)), self.batch_size)
        for epoch in self._epochs:
            other._train(epoch)
        self.others[name] = other

    def _costs(self, i: int) -> tuple[Cost, Cost, Cost]:
        """The operations of an op's forward, dx and dweight with its update, and how many numbers each has to move."""
        op, spec = self.model.program[i], self.optimizer.update_spec(0.0)
        vectors = 1 + sum(vector is not None for vector in spec.state)
        density = self._stored / self.samples if op["src"] == 0 and self.samples else 1.0
        work = Work(self.samples, self.steps, vectors, spec.idle, density)
        has_dx = bool(self.model.slots[op["src"]]["learned"])
        return self.model.places[i].layer.costs(op, work, has_dx)

    def _label(self, i: int) -> str:
        """``Dense 784x128 relu``, ``BatchNorm 128``; with the path in front where there are branches."""
        op, place = self.model.program[i], self.model.places[i]
        path = f"{place.path} " if any("." in place.path for place in self.model.places) else ""
        return f"{path}{place.layer.label(op)} {_ACTIVATIONS[int(op['activation'])] or ''}".rstrip()

    def rows(self) -> list[Row]:
        """Gather; forward, dx and dweight of each layer; loss, waiting; and the total, which is wall time."""
        ops, size = self.model.program, self.model.dtype.itemsize
        products = [op["outputs"] for op, place in zip(ops, self.model.places, strict=True) if place.layer.flop()]
        network = "-".join(str(width) for width in [self.model.inputs, *products])
        gather, loss, waiting, *layer_times = self._times.tolist()
        gathered = 2 * int(self._stored * self.model.inputs) * size  # of sparse rows only their columns are read
        rows = [Row(network, "gather", gather, 0, gathered)]
        for i in range(len(ops)):
            times = layer_times[3 * i : 3 * i + 3]
            for phase, seconds, (operations, numbers) in zip(_PHASES, times, self._costs(i), strict=True):
                rows.append(Row(self._label(i), phase, seconds, operations, numbers * size))
        rows.append(Row(network, "loss", loss, 0, 2 * self.samples * self.model.outputs * size))
        rows.append(Row(network, "waiting", waiting, 0, 0))
        total = sum(row.operations for row in rows), sum(row.bytes for row in rows)
        return [*rows, Row(network, "total", self.seconds, *total)]

    def title(self) -> str:
        """``784-128-10, float32, avx512, 2 threads, 938 steps x 64``"""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        network, dtype = self.rows()[-1].layer, self.model.dtype.name
        return f"{network}, {dtype}, {self.backend}, {threads}, {self.steps:,} steps x {self.batch_size}"

    def __str__(self) -> str:
        cells = [["layer", "phase", "ms", "share", "GFLOP/s", "of peak", "GB/s"]]
        for name in self.others:
            cells[0] += [f"{name} ms", "ratio"]
        peak = self.threads * _peak(self.backend, self.model.dtype)
        others = [other.rows() for other in self.others.values()]
        for row, *same in zip(self.rows(), *others, strict=True):
            if row.bytes == 0 and row.seconds < 5e-3 * self.seconds:
                continue  # a phase that the layer does not have
            flops = row.operations / row.seconds if row.seconds else 0
            cells.append([row.layer, row.phase, f"{1e3 * row.seconds:,.1f}", f"{row.seconds / self.seconds:.1%}"])
            cells[-1] += [f"{flops / 1e9:,.1f}", f"{flops / peak:.1%}"] if flops else ["-", "-"]
            cells[-1] += [f"{row.bytes / row.seconds / 1e9:,.1f}" if row.bytes and row.seconds else "-"]
            for other in same:
                cells[-1] += [f"{1e3 * other.seconds:,.1f}"]
                cells[-1] += [f"{other.seconds / row.seconds:,.1f}" if row.seconds else "-"]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(f"{c:{'<' if i < 2 else '>'}{widths[i]}}" for i, c in enumerate(line)) for line in cells]
        return "\n".join([self.title(), *lines])


class Profile:
    """What ``fb.profile`` hands out; ``print`` shows its tables.

    Attributes
    ----------
    tables : list of Table
        One for each model, optimizer, batch size, backend and number of threads.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[object, ...], Table] = {}

    @property
    def tables(self) -> list[Table]:
        return list(self._tables.values())

    def train(
        self, epoch: Callable[[Model, Optimizer], R], model: Model, optimizer: Optimizer, batch_size: int, threads: int
    ) -> R:
        """Run an epoch of ``fit``, of any copy of the pair, and keep its times, the model, the optimizer, the data."""
        key = id(model), id(optimizer), batch_size, backend_name(), threads
        table = self._tables.get(key) or Table(model, optimizer, batch_size)
        result = table._train(epoch)
        self._tables[key] = table
        return result

    def compare(self, backend: str) -> None:
        """Train the same batches again on another backend, and add its columns: milliseconds, and how many times ours.

        It works on copies, so model and optimizer stay as they are; the copies go on from what they are now. As many
        threads as are set now may work; NumPy's matrix products have threads of their own.

        Parameters
        ----------
        backend : {"avx512", "avx2", "neon", "generic", "numpy"}

        Raises
        ------
        RuntimeError
            If there is nothing to compare with, or the backend cannot run on this machine.
        ValueError
            If there is no backend of that name.
        """
        with use_backend(backend):
            for table in self._trained("compare"):
                table._compare(backend)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the matrix products on a roofline (Williams, Waterman & Patterson 2009) and save it; needs matplotlib.

        Speed in GFLOP/s over FLOP per byte of the traffic that cannot be avoided. The roof is the measured FMA peak
        times the threads, its slope the measured bandwidth of the memory; work that stays in the caches may beat that.

        Parameters
        ----------
        path : str or path
            The file; its extension says what is written, such as ``.png`` or ``.svg``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        RuntimeError
            If nothing was recorded.
        """
        tables = self._trained("plot")
        figure = new_figure(10, 5)
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
        for table in tables:
            peak = table.threads * _peak(table.backend, table.model.dtype)
            bandwidth = _bandwidth(table.backend, table.model.dtype, table.threads)
            points = [row for row in table.rows()[:-1] if row.operations and row.seconds]
            reach = np.array([peak / bandwidth, *(row.operations / row.bytes for row in points)])
            x = np.array([reach.min() / 4, peak / bandwidth, reach.max() * 4])
            axes.plot(x, np.minimum(peak, bandwidth * x) / 1e9, label=table.title())
            for row in points:
                at = row.operations / row.bytes, row.operations / row.seconds / 1e9
                axes.plot(*at, _MARKERS[row.phase], label=f"{row.layer}, {row.phase}")
        figure.legend(loc="outside right upper", fontsize="small")
        figure.savefig(path)

    def _trained(self, asked_by: str) -> list[Table]:
        if not self._tables:
            raise RuntimeError(f"{asked_by}: expected epochs in the profile, but {_NOTHING}")
        return self.tables

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables)) or _NOTHING


_active: ContextVar[Profile | None] = ContextVar("fastbp_profile", default=None)


def active() -> Profile | None:
    """The profile of the innermost block that this thread is in."""
    return _active.get()


@contextmanager
def profile() -> Iterator[Profile]:
    """Measure what ``fit`` does inside of a ``with`` block, by layer and phase: ``print`` what it gives.

    Covered are whole epochs of ``fit`` with a built-in loss, in the thread that opened the block; losses that are
    Python callables, the explicit loop, evaluation and interrupted epochs are not. In nested blocks the innermost one
    measures. The profile keeps models, optimizers and data alive, for ``compare``.

    Times are those of the first thread. ``forward``, ``backward dx`` (with the activation's derivative) and ``backward
    dw + update`` are a layer's; batch norm and wide layers wait for the other threads within them. The whole network's
    are ``gather``, which fetches a batch, ``loss``, and ``waiting`` for the other threads, with the packing of weights
    before and after an epoch. ``total`` is wall time.

    GFLOP/s count the multiplications and additions of the matrix products alone; their peak is that of fused
    multiply-adds without memory, measured on one thread, times the threads. GB/s count the traffic that cannot be
    avoided, each array once: x, parameters and y in ``forward``; dy, weight and dx; x, dy, and the parameters and the
    optimizer's state, both read and written, in ``dw + update``; x, read and written, in ``gather``; predictions and
    their gradient in ``loss``; nothing for an activation's derivative; of an embedding's tables the rows that are used,
    and those that are updated. Most of it comes from the caches, so it may be more than the memory could deliver.

    Yields
    ------
    Profile
        With ``compare(backend)`` and ``plot(path)``.
    """
    measured, before = Profile(), active()
    try:
        _active.set(measured)
        yield measured
    finally:
        _active.set(before)


def _kernels(name: str) -> ModuleType:
    """The backend's kernels; NumPy is measured against the best ones that this machine can run."""
    with use_backend(available_backends()[0] if name == "numpy" else name):
        return backend()


def fma_peak(name: str, dtype: np.dtype[Any]) -> float:
    """FLOP/s of one thread of a backend: fused multiply-adds that touch no memory."""
    run = functools.partial(_kernels(name).peak_flops, dtype, 1_000_000)
    return float(run()) / min(timeit.repeat(run, number=1, repeat=10))


_peak = functools.cache(fma_peak)


@functools.cache
def _bandwidth(name: str, dtype: np.dtype[Any], threads: int) -> float:
    """Bytes/s of an SGD update, which reads and writes the one and reads the other of two vectors of 64 MB."""
    param, grad = np.ones((2, 2**26 // dtype.itemsize), dtype)
    spec = plan.UpdateSpec("sgd", (None,), 1e-3)
    run = functools.partial(_kernels(name).update, param, grad, spec, 1.0, threads)
    return float(3 * param.nbytes / min(timeit.repeat(run, number=1, repeat=10)))
