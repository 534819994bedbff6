"""Seven networks x three optimizers: a training step of fastbp against every peer, on two threads.

    python benchmarks train_grid [--quick] [--write] [--nets tiny,wide] [--peers JAX]

Every system has a process of its own, bound to the same two cores. In each cell all of them first train for four epochs
from the same weights on the same batches, and their losses must agree; then they run shuffled epochs in turns, so that
a neighbour's load hits all. ``--write`` puts the figures into results/, and tables and the plot into README.md. Peers
that are not installed are left out.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from nets import NETS, net_label
from report import HERE, OF_README, figure, machine, microseconds, options, table, write
from results import committed, keep
from systems import CORES, LR, TOLERANCE, Worker, installed

from fastbp.benchmark import operations
from fastbp.core import backend_name

PEERS = ["NumPy", "PyTorch", "torch.compile", "JAX", "scikit-learn"]


class Rival:
    """A system in the grid: its worker, and what it measured in the present cell."""

    def __init__(self, name: str, system: str, cores: int = CORES, dtype: str = "float32") -> None:
        self.name, self.dtype = name, dtype
        self.worker = Worker(system, cores)
        self.seconds: list[float] = []


def verified(rivals: list[Rival], net: str, optimizer: str, steps: int) -> None:
    """Prepare a cell; raise unless all systems computed the same losses, and the losses moved."""
    expected: list[float] = []
    for rival in rivals:
        rival.seconds = []
        widths, batch, _ = NETS[net]
        rival.worker.prepare(widths=widths, batch=batch, optimizer=optimizer, dtype=rival.dtype)
        if rival.dtype == "float64":
            continue  # it has other data
        losses = rival.worker.losses(steps=min(4, steps), epochs=4)
        expected = expected or losses
        if any(abs(a - b) > TOLERANCE * b for a, b in zip(losses, expected, strict=True)):
            raise SystemExit(f"{net} {optimizer}: {rival.name} has the losses {losses}, {rivals[0].name} {expected}")
    if abs(expected[0] - expected[-1]) < 10 * TOLERANCE * expected[0]:
        raise SystemExit(f"{net} {optimizer}: nothing was learned: {expected}")


def measured(rivals: list[Rival], net: str, optimizer: str, rounds: int, seconds: float, steps: int) -> dict:
    """One cell: microseconds per step of every system, and the FMA peak."""
    verified(rivals, net, optimizer, steps)
    peak = 0.0
    for _ in range(rounds):
        peak = max(peak, rivals[0].worker.peak())
        for rival in rivals:
            rival.seconds += rival.worker.epochs(steps=steps, seconds=seconds)
    return {
        "net": net,
        "optimizer": optimizer,
        "operations": operations(*NETS[net][:2]),
        "peak_gflops": peak / 1e9,
        "rounds": rounds,
        "microseconds": {rival.name: microseconds(rival.seconds) for rival in rivals},
    }


def report(cells: list[dict], peers: list[str]) -> str:
    """The tables: every system's best and median, then what fastbp makes of its hardware."""
    rows, own = [], []
    for cell in cells:
        best = {name: times["best"] for name, times in cell["microseconds"].items()}
        ours = best["fastbp"]
        share = cell["operations"] / ours / 1e3 / cell["peak_gflops"]
        fastest = min((best[name] for name in peers), default=float("nan"))
        times = [
            f"{figure(times['best'])} ({figure(times['median'])})"
            for name, times in cell["microseconds"].items()
            if name == "fastbp" or name in peers
        ]
        rows.append([net_label(cell["net"]), cell["optimizer"], *times, f"{fastest / ours:.2f}", f"{share:.2f}"])
        if "one thread" in best:
            alone, double = best["one thread"], best["float64"]
            own.append(
                [net_label(cell["net"]), cell["optimizer"], figure(ours), figure(alone), f"{alone / ours:.2f}",
                 figure(double), f"{double / ours:.2f}"]
            )  # fmt: skip
    text = table(["net, batch", "optimizer", "fastbp", *peers, "best peer / fastbp", "of FMA peak"], rows, 2)
    if own:
        head = ["net, batch", "optimizer", "2 threads", "1 thread", "ratio", "2 threads, float64", "ratio"]
        text += "\n" + table(head, own, 2)
    return text


def draw(cells: list[dict], peers: list[str]) -> None:
    """Times of a step relative to fastbp's, one panel per optimizer."""
    import matplotlib.pyplot as plt

    optimizers = list(dict.fromkeys(cell["optimizer"] for cell in cells))
    panes = plt.subplots(1, len(optimizers), figsize=(4 * len(optimizers), 4), sharey=True, squeeze=False)
    for axes, optimizer in zip(panes[1][0], optimizers, strict=True):
        column = [cell for cell in cells if cell["optimizer"] == optimizer]
        nets = [cell["net"] for cell in column]
        for name, mark in zip(peers, "osD^v", strict=False):
            ratios = [cell["microseconds"][name]["best"] / cell["microseconds"]["fastbp"]["best"] for cell in column]
            axes.plot(nets, ratios, mark, label=name)
        axes.axhline(1, color="black", label="fastbp")
        axes.set(yscale="log", title=optimizer)
        axes.grid(axis="y", which="both", alpha=0.3)
    panes[1][0][0].set_ylabel("time of a step, in fastbp's")
    panes[1][0][-1].legend()
    panes[0].tight_layout()
    panes[0].savefig(HERE / "train_grid.png", dpi=100)


def rivals_of(peers: list[str], quick: bool = False) -> list[Rival]:
    """fastbp first, then the peers, and then fastbp with one thread and in float64."""
    rivals = [Rival("fastbp", "fastbp"), *(Rival(peer, peer) for peer in peers)]
    if not quick:
        rivals += [Rival("one thread", "fastbp", cores=1), Rival("float64", "fastbp", dtype="float64")]
    return rivals


def cells_of(
    rivals: list[Rival], nets: list[str], optimizers: list[str], rounds: int, seconds: float, shorter: int = 1
) -> Iterator[dict]:
    """The cells, printed as they come; an epoch has the grid's number of steps or a part of it."""
    for net, optimizer in itertools.product(nets, optimizers):
        cell = measured(rivals, net, optimizer, rounds, seconds, NETS[net][2] // shorter)
        times = ", ".join(f"{name} {figure(t['best'])}" for name, t in cell["microseconds"].items())
        print(f"{net_label(net)} {optimizer}: {times}", flush=True)
        yield cell
    for rival in rivals:
        rival.worker.close()


def committed_cells(grid: dict) -> dict[tuple[str, str], dict]:
    """The cells of an earlier run by network and optimizer."""
    return {(cell["net"], cell["optimizer"]): cell for cell in grid.get("cells", [])}


def main(arguments: list[str]) -> None:
    parser = options(__name__, __doc__)
    parser.add_argument("--quick", action="store_true", help="SGD, short epochs, one round, no compiler: a minute")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/")
    parser.add_argument("--nets", default=",".join(NETS), help="some of the networks")
    parser.add_argument("--optimizers", default=",".join(LR), help="some of the optimizers")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of the peers; '' is fastbp alone")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    begin = time.perf_counter()

    peers = [peer for peer in chosen.peers.split(",") if installed(peer)]
    optimizers, rounds, seconds, shorter = chosen.optimizers.split(","), chosen.rounds, 0.4, 1
    if chosen.quick:  # compiling takes torch.compile ten seconds a cell
        peers, optimizers = [peer for peer in peers if peer != "torch.compile"], ["SGD"]
        rounds, seconds, shorter = 1, 0.05, 4

    head = machine("numpy", "torch", "jax", "scikit-learn")
    before = committed("train_grid")  # a run with some of the networks leaves the others of the same versions
    cells = committed_cells(before) if chosen.write and before.get("machine") == head else {}
    rivals = rivals_of(peers, chosen.quick)
    for cell in cells_of(rivals, chosen.nets.split(","), optimizers, rounds, seconds, shorter):
        cells[cell["net"], cell["optimizer"]] = cell
        if chosen.write:
            keep("train_grid", {"machine": head, "threads": CORES, "cells": list(cells.values())})

    ordered = [cells[key] for key in itertools.product(NETS, LR) if key in cells]
    text = (
        f"{head} Microseconds a step, best (median) of at least {min(cell['rounds'] for cell in ordered)} rounds in "
        f"turns, two threads, float32; FMA peak "
        f"{max(cell['peak_gflops'] for cell in ordered):.0f} GFLOP/s on two cores.\n\n{report(ordered, peers)}"
    )
    print(f"\n{text}\n{time.perf_counter() - begin:.0f} s")
    if chosen.write:
        write("train_grid", text)
        if backend_name() == OF_README:
            draw(ordered, peers)
