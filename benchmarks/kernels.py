"""Every product and update against its NumPy reference and against the machine's fused multiply-add peak.

    python benchmarks kernels [--quick] [--write]

Each row is verified against the reference first, then both are timed in turns, best of N, so that a neighbour's load
hits both. ``--write`` puts the tables into benchmarks/README.md. NumPy's threads are set to the same number.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import numpy as np
from report import options, table, write
from threadpoolctl import threadpool_info, threadpool_limits

import fastbp as fb
from fastbp import ops
from fastbp.core import backend, backend_name
from fastbp.core.plan import UpdateSpec
from fastbp.profiling import fma_peak

Row = tuple[str, int, float, float, float]  # what, threads, our rate, NumPy's rate, peak or 0


def best_of(functions: dict[str, Callable[[], object]], rounds: int, budget: float) -> list[float]:
    """The least seconds of each backend's function, run in turns for `rounds` rounds of `budget` seconds."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            with fb.use_backend(name):
                function()
                end = time.perf_counter() + budget
                while True:
                    start = time.perf_counter()
                    function()
                    now = time.perf_counter()
                    best[name] = min(best[name], now - start)
                    if now > end:
                        break
    return list(best.values())


def products(dtype: np.dtype, sizes: list[tuple[int, int, int]], threads: int, rounds: int, peak_1: float) -> list[Row]:
    """x W, dy W^T and x^T dy for (m, n, k), in GFLOP/s."""
    rng, rows = np.random.default_rng(0), []
    for m, n, k in sizes:
        for name, shape_a, shape_b in (("x W", (m, k), (k, n)), ("dy W^T", (m, k), (n, k)), ("x^T dy", (k, m), (k, n))):
            a, b = rng.standard_normal(shape_a).astype(dtype), rng.standard_normal(shape_b).astype(dtype)
            a, b = (a.T if name == "x^T dy" else a), (b.T if name == "dy W^T" else b)
            ours, theirs = np.empty((m, n), dtype), np.empty((m, n), dtype)
            ops.matmul(ours, a, b, threads)
            np.matmul(a, b, out=theirs)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=64 * np.finfo(dtype).eps * np.sqrt(k))
            functions = {
                backend_name(): lambda c=ours, a=a, b=b: ops.matmul(c, a, b, threads),
                "numpy": lambda c=theirs, a=a, b=b: np.matmul(a, b, out=c),
            }
            times = best_of(functions, rounds, 0.1)
            work = 2.0 * m * n * k / 1e9
            rows.append((f"{name} {m}x{n}x{k}", threads, work / times[0], work / times[1], threads * peak_1))
    return rows


UPDATES = {  # the rule, its state vectors, how many vectors are read and written, and its settings
    "sgd": ("sgd", 0, 3, {}),
    "sgd momentum": ("sgd", 1, 5, dict(momentum=0.9)),
    "adam": ("adam", 2, 7, dict(beta1=0.9, beta2=0.999, eps=1e-8, step=10)),
    "rmsprop": ("rmsprop", 1, 5, dict(alpha=0.99, eps=1e-8)),
    "adagrad": ("adagrad", 1, 5, dict(eps=1e-10)),
}


def updates(dtype: np.dtype, sizes: list[int], threads: int, rounds: int) -> list[Row]:
    """The optimizers over flat vectors, in GB/s of the traffic that one pass needs."""
    rows = []
    for size in sizes:
        for label, (rule, states, traffic, settings) in UPDATES.items():
            functions, results = {}, []
            for which in (backend_name(), "numpy"):
                rng = np.random.default_rng(0)
                param, grad = (scale * rng.standard_normal(size).astype(dtype) for scale in np.array([1, 1e-3], dtype))
                state = (*(np.zeros(size, dtype) for _ in range(states)), None)  # None: no velocity
                spec = UpdateSpec(rule, state[: 2 if rule in ("adam", "rmsprop") else 1], 1e-3, **settings)

                def call(param=param, grad=grad, spec=spec):
                    backend().update(param, grad, spec, 1.0, threads)

                with fb.use_backend(which):
                    call()
                results.append(param.copy())
                functions[which] = call
            np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-6)
            times = best_of(functions, rounds, 0.05)
            moved = traffic * size * dtype.itemsize / 1e9
            rows.append((f"{label} {size:,}", threads, moved / times[0], moved / times[1], 0.0))
    return rows


def section(title: str, unit: str, rows: list[Row]) -> str:
    head = ["kernel", "threads", f"fastbp {unit}", f"NumPy {unit}", "ratio"]
    cells = [
        [name, str(threads), f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}"]
        for name, threads, ours, theirs, _ in rows
    ]
    if any(row[4] for row in rows):
        head.append("of peak")
        for line, (_, _, ours, _, limit) in zip(cells, rows, strict=True):
            line.append(f"{ours / limit:.2f}")
    return f"### {title}\n\n{table(head, cells, 1)}"


def main(arguments: list[str]) -> None:
    parser = options(__name__, __doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds instead of twelve")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    chosen = parser.parse_args(arguments)
    if backend_name() == "numpy":
        parser.error("nothing to compare: the numpy backend is forced")
    rounds = 2 if chosen.quick else 12
    squares = [(512, 512, 512), (1024, 1024, 1024)]
    layers = [(32, 64, 64), (64, 128, 784), (128, 512, 784), (256, 1024, 1024)]
    team = sorted({1, min(2, fb.get_num_threads())})
    blas = ", ".join(
        sorted({f"{i['internal_api']} {i.get('architecture')}" for i in threadpool_info() if i["user_api"] == "blas"})
    )
    parts = [
        f"fastbp {fb.__version__}, backend {backend_name()}; NumPy {np.__version__} with {blas}; "
        f"{os.cpu_count()} cores, {platform.machine()}. Best of {rounds} rounds, in turns.\n"
    ]
    for name in ("float32", "float64"):
        dtype = np.dtype(name)
        one = max(fma_peak(backend_name(), dtype) for _ in range(rounds)) / 1e9
        rows: list[Row] = []
        streams: list[Row] = []
        for threads in team:
            with threadpool_limits(threads):
                rows += products(dtype, squares + layers, threads, rounds, one)
                streams += updates(dtype, [10_000, 1_000_000], threads, rounds)
        parts.append(section(f"Products, {name}; peak {one:.0f} GFLOP/s a core", "GFLOP/s", rows))
        parts.append(section(f"Updates, {name}", "GB/s", streams))
    report = "\n".join(parts)
    print(report)
    if chosen.write:
        write("kernels", report)
