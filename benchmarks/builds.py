"""Builds of fastbp beside each other: the limited API, another compiler, other threads, the commit before.

    python benchmarks/builds.py PYTHON PYTHON [...] [--seconds 2]

Each PYTHON is the interpreter of an environment in which one build is installed. They train the same networks in turns,
after their losses were found equal; the first one is what the others are compared with.
"""

from __future__ import annotations

import argparse

import numpy as np
from report import NETS, figure, label, table
from systems import Worker
from train_grid import CORES, TOLERANCE

#: What is timed: the system of ``systems.py``, the method of its session, and whether an optimizer makes a difference.
CALLS = {
    "fit, a step": ("fastbp", "epochs", True),
    "train_on_batch": ("fastbp", "steps", True),
    "four calls": ("fastbp, four calls", "steps", False),
    "predict, a row": ("fastbp", "predictions", False),
}
ROUNDS = 10


def compared(pythons: list[str], system: str, call: str, net: str, optimizer: str, seconds: float) -> list[float]:
    """The best time of every build, in microseconds."""
    widths, batch, steps = NETS[net]
    workers = [Worker(system, CORES, python) for python in pythons]
    for worker in workers:
        worker.prepare(widths=widths, batch=batch, optimizer=optimizer)
    expected, *others = [worker.step_losses(calls=8) for worker in workers]
    for losses in others:
        np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)
    sizes = {"steps": steps} if call == "epochs" else {}
    best = [float("inf")] * len(workers)
    for _ in range(ROUNDS):
        for i, worker in enumerate(workers):
            best[i] = min(best[i], *getattr(worker, call)(seconds=seconds / ROUNDS, **sizes))
    for worker in workers:
        worker.close()
    return [1e6 * value for value in best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--nets", nargs="+", default=["tiny", "small", "tab", "mnist", "mnist2"], choices=NETS)
    parser.add_argument("--seconds", type=float, default=2.0, help="that each build has for each row")
    arguments = parser.parse_args()
    rows = []
    for net in arguments.nets:
        for title, (system, call, of_optimizer) in CALLS.items():
            if call != "epochs" and net not in ("tiny", "small"):
                continue  # what a call costs beyond the epoch's step is lost in larger networks
            for optimizer in ("SGD", "Adam") if of_optimizer else ("SGD",):
                best = compared(arguments.pythons, system, call, net, optimizer, arguments.seconds)
                ratios = [f"{value / best[0]:.3f}" for value in best[1:]]
                rows.append([label(NETS[net][0]), title, optimizer, *map(figure, best), *ratios])
    builds = [f"build {i + 1}" for i in range(len(arguments.pythons))]
    print(table(["network", "call", "optimizer", *builds, *(f"{b} / 1" for b in builds[1:])], rows, 3))


if __name__ == "__main__":
    main()
