"""Builds of fastbp beside each other: the commit before, another compiler, the limited API, other threads.

    python benchmarks builds BUILD BUILD [...] [--repeats 3] [--rounds 10] [--seconds 1] [--nets tiny,small]

A BUILD is a source tree with a core that was built in place, or the Python of an environment in which fastbp is
installed. All train every network of the grid with SGD and Adam on one and two threads, and answer single calls, in
turns; their results are compared first. The others are compared with the first build: a ratio of 1.02 takes 2 % longer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nets import NETS, net_label
from report import figure, options, table
from systems import CORES, TOLERANCE, Worker

from fastbp.benchmark import operations

#: A row is slower if it is by more than this in every repeat.
SLOWER = 1.05
#: The most floating-point operations of an epoch, which take a second or so: of the largest network it is two steps.
LONGEST = 2e11


class Row(NamedTuple):
    """What is timed: the system of ``systems.py``, and the method of its session."""

    title: str
    net: str
    optimizer: str
    threads: int
    system: str = "fastbp"
    call: str = "epochs"

    @property
    def cells(self) -> list[str]:
        return [net_label(self.net), self.title, self.optimizer, str(self.threads)]


def rows_of(nets: list[str]) -> list[Row]:
    """The grid, and what a single call costs."""
    grid = [
        Row("fit, a step", net, optimizer, threads)
        for net in nets
        for optimizer in ("SGD", "Adam")
        for threads in (1, CORES)
    ]
    return [
        *grid,
        Row("train_on_batch", "tiny", "SGD", CORES, call="steps"),
        Row("four calls", "tiny", "SGD", CORES, "fastbp, four calls", "steps"),
        Row("predict, a row", "small", "SGD", CORES, call="predictions"),
    ]


def worker_of(build: str, row: Row) -> Worker:
    path = Path(build)
    if path.is_dir():
        return Worker(row.system, row.threads, path=str(path.resolve()))
    return Worker(row.system, row.threads, build, path="")


def results(worker: Worker, call: str) -> list[float]:
    """What the builds must agree on."""
    if call == "epochs":
        return worker.losses(steps=2, epochs=4)
    return worker.step_losses(calls=8) if call == "steps" else worker.prediction()


def compared(builds: list[str], row: Row, rounds: int, seconds: float) -> tuple[list[float], bool]:
    """The best time of every build, in microseconds, and whether all results were equal to the last bit."""
    widths, batch, steps = NETS[row.net]
    workers = [worker_of(build, row) for build in builds]
    for worker in workers:
        worker.prepare(widths=widths, batch=batch, optimizer=row.optimizer)
    expected, *others = [results(worker, row.call) for worker in workers]
    for other in others:
        np.testing.assert_allclose(other, expected, rtol=TOLERANCE, err_msg=str(row))
    longest = max(1, int(LONGEST / operations(widths, batch)))
    sizes = {"steps": min(steps, longest)} if row.call == "epochs" else {}
    turns = list(zip(workers, range(len(workers)), strict=True))
    best = [math.inf] * len(workers)
    for i in range(rounds):
        for worker, at in turns if i % 2 else reversed(turns):
            best[at] = min(best[at], *getattr(worker, row.call)(seconds=seconds / rounds, **sizes))
    for worker in workers:
        worker.close()
    return [1e6 * value for value in best], all(other == expected for other in others)


def summary(build: int, rows: list[Row], ratios: list[list[float]]) -> str:
    """The geometric mean of every repeat, and the rows that were slower in all of them; ratios by row and repeat."""
    means = [math.exp(np.mean(np.log(column))) for column in zip(*ratios, strict=True)]
    text = f"build {build}: geometric mean of {len(rows)} rows, by repeat: {', '.join(f'{m:.4f}' for m in means)}\n"
    slow = [row for row, values in zip(rows, ratios, strict=True) if min(values) > SLOWER]
    text += f"build {build}: slower by more than {SLOWER - 1:.0%} in all repeats: {len(slow) or 'no row'}\n"
    return text + "".join(f"  {', '.join(row.cells)} threads\n" for row in slow)


def main(arguments: list[str]) -> None:
    parser = options(__name__, __doc__)
    parser.add_argument("builds", nargs="+", metavar="BUILD")
    parser.add_argument("--repeats", type=int, default=3, help="of the whole table, with new processes")
    parser.add_argument("--rounds", type=int, default=10, help="in which the builds take turns; the best one counts")
    parser.add_argument("--seconds", type=float, default=1.0, help="that each build has for each row, in all rounds")
    parser.add_argument("--nets", default=",".join(NETS), help="some of the networks")
    chosen = parser.parse_args(arguments)
    rows = rows_of(chosen.nets.split(","))
    for i, build in enumerate(chosen.builds):
        worker = worker_of(build, rows[0])
        print(f"build {i + 1}: {worker.build()}", flush=True)
        worker.close()

    times: list[list[list[float]]] = [[] for _ in rows]  # of every row, repeat and build
    same = True
    for repeat in range(chosen.repeats):
        for row, repeats in zip(rows, times, strict=True):
            best, equal = compared(chosen.builds, row, chosen.rounds, chosen.seconds)
            repeats.append(best)
            same &= equal
            print(f"repeat {repeat + 1}, {', '.join(row.cells)}: {', '.join(map(figure, best))}", flush=True)

    head = ["network", "call", "optimizer", "threads", "build 1, us"]
    lines = [[*row.cells, figure(min(best[0] for best in repeats))] for row, repeats in zip(rows, times, strict=True)]
    text = ""
    for i in range(1, len(chosen.builds)):
        ratios = [[best[i] / best[0] for best in repeats] for repeats in times]
        head += [f"{i + 1} / 1, repeat {k + 1}" for k in range(chosen.repeats)]
        for line, values in zip(lines, ratios, strict=True):
            line += [f"{value:.3f}" for value in values]
        text += summary(i + 1, rows, ratios)
    print(f"\n{table(head, lines, 3)}\nresults equal to the last bit in all rows: {'yes' if same else 'no'}\n{text}")
