"""Widths 8 to 2048, batches 1 to 4096, depths 1 to 8: fit, single steps and predictions against every peer.

    python benchmarks sizes [--quick] [--write] [--widths 37,1024] [--batches 1,32] [--depths 1,3] [--peers JAX]

A cell is a network of so many layers of one width, ReLU between them, and 10 outputs; Adam. Every system has a process
of its own, bound to the same two cores. In each cell all of them first train from the same weights on the same batches,
and their losses and predictions must agree; then they run in turns. A table has the time of the best peer in fastbp's,
of every cell; below 1 fastbp is slower. Peers that are not installed are left out.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
from report import figure, machine, options, table, write
from results import keep
from systems import CORES, TOLERANCE, Worker, installed

WIDTHS, BATCHES, DEPTHS = (8, 37, 64, 100, 256, 600, 1024, 2048), (1, 4, 32, 128, 512, 4096), (1, 3, 8)
LARGEST = 2048 * 2048 * 4096  # of weights of a layer and rows: a step of this size takes a second
OUTPUTS = 10
PEERS = ["NumPy", "PyTorch", "JAX", "scikit-learn", "onnxruntime"]
#: What is measured: the systems of ours and the peers that take part.
MODES = {
    "fit": ("fastbp", ("NumPy", "PyTorch", "JAX", "scikit-learn")),
    "train_on_batch": ("fastbp", ("NumPy", "PyTorch", "JAX")),
    "four calls": ("fastbp, four calls", ("NumPy", "PyTorch", "JAX")),
    "predict": ("fastbp", ("NumPy", "PyTorch", "JAX", "onnxruntime")),
}


def verified(workers: dict[str, Worker], **task: object) -> None:
    """Prepare a cell; raise unless all systems predict the same and have the same losses."""
    expected: dict[str, list[float]] = {}
    for name, worker in workers.items():
        worker.prepare(**task)
        found = {}
        if name != "scikit-learn":  # which predicts classes
            found["prediction"] = worker.prediction()
        if name != "onnxruntime":
            found["losses"] = worker.losses(steps=3, epochs=2)
        for what, values in found.items():
            np.testing.assert_allclose(
                values, expected.setdefault(what, values), rtol=TOLERANCE, atol=1e-4, err_msg=f"{name} {task}"
            )


def measured(workers: dict[str, Worker], batch: int, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Seconds of a step or a prediction, by mode and system."""
    best: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
    steps = max(4, min(64, 4096 // batch))
    for _, (mode, (own, peers)) in itertools.product(range(rounds), MODES.items()):
        for name in (own, *peers):
            if name not in workers:
                continue
            if mode == "fit":
                found = workers[name].epochs(steps=steps, seconds=seconds)
            elif mode == "predict":
                found = workers[name].predictions(seconds=seconds, rows=batch)
            else:
                found = workers[name].steps(seconds=seconds)
            best[mode][name] = min(best[mode].get(name, float("inf")), *found)
    return best


def ratio(best: dict[str, float], own: str) -> tuple[float, str]:
    """The time of the best peer in ours, and which peer it is."""
    return min((seconds / best[own], name) for name, seconds in best.items() if name != own)


def report(cells: list[dict], batches: list[int]) -> str:
    """For every mode a table: a row for each network, a column for each batch."""
    text = ""
    for mode, (own, _) in MODES.items():
        rows, all_ratios = [], []
        for depth, width in dict.fromkeys((cell["depth"], cell["width"]) for cell in cells):
            row = [str(depth), str(width)]
            for batch in batches:
                found = [c for c in cells if (c["depth"], c["width"], c["batch"]) == (depth, width, batch)]
                ratios = [ratio(cell["seconds"][mode], own) for cell in found]
                all_ratios += ratios
                row.append(f"{ratios[0][0]:.2f}" if ratios else "")
            rows.append(row)
        slower = sum(value < 1 for value, _ in all_ratios)
        text += f"\n### {mode}: {slower} of {len(all_ratios)} cells are slower than a peer\n\n"
        text += table(["layers", "width", *(f"batch {batch:,}" for batch in batches)], rows, 0)
    return text


def main(arguments: list[str]) -> None:
    parser = options("sizes", __doc__)
    parser.add_argument("--quick", action="store_true", help="one round, few sizes")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/")
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--depths", default=",".join(map(str, DEPTHS)))
    parser.add_argument("--peers", default=",".join(PEERS), help="some of the peers")
    chosen = parser.parse_args(arguments)
    begin = time.perf_counter()
    sizes = [[int(size) for size in part.split(",")] for part in (chosen.widths, chosen.batches, chosen.depths)]
    rounds, seconds = 4, 0.2  # a turn is longer than the peers' threads spin, which end a team of ours (contention)
    if chosen.quick:
        sizes, rounds, seconds = [[37, 256], [1, 128], [3]], 2, 0.03
    widths, batches, depths = sizes

    names = ["fastbp", "fastbp, four calls", *(name for name in chosen.peers.split(",") if installed(name))]
    workers = {name: Worker(name, CORES) for name in names}
    cells = []
    for depth, width, batch in itertools.product(depths, widths, batches):
        if width * width * batch * depth > LARGEST:
            continue
        verified(workers, widths=[*[width] * depth, OUTPUTS], batch=batch, optimizer="Adam")
        best = measured(workers, batch, rounds, seconds)
        cells.append({"depth": depth, "width": width, "batch": batch, "seconds": best})
        told = []
        for mode, (own, _) in MODES.items():
            value, name = ratio(best[mode], own)
            told.append(f"{mode} {figure(1e6 * best[mode][own])} us, {name} {value:.2f}")
        print(f"{depth} x {width}, batch {batch}: {'; '.join(told)}", flush=True)
    for worker in workers.values():
        worker.close()
    head = machine("numpy", "torch", "jax", "scikit-learn", "onnxruntime")
    text = f"{head} Two threads, float32, Adam; the time of the best peer in fastbp's.\n{report(cells, batches)}"
    print(f"\n{text}\n{time.perf_counter() - begin:.0f} s")
    if chosen.write:
        keep("sizes", {"machine": head, "threads": CORES, "cells": cells})
        write("sizes", text)
