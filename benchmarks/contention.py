"""A training step while other processes keep the cores busy: what a team of threads loses against a single one.

    python benchmarks contention [--write]

Each figure is the best of five runs of some tenths of a second; the results are compared first.
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
from nets import CONTENTION, label
from report import figure, machine, options, table, write

import fastbp as fb

WIDTHS, BATCH, STEPS = CONTENTION
EPOCHS, ROUNDS = 50, 5


def run(threads: int) -> tuple[float, bytes]:
    """Microseconds a step, and what was learned."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((STEPS * BATCH, WIDTHS[0]), np.float32), rng.integers(0, WIDTHS[-1], STEPS * BATCH)
    fb.set_num_threads(threads)
    model = fb.Sequential([fb.Dense(*WIDTHS[:2], activation="relu"), fb.Dense(*WIDTHS[1:])], seed=0)
    optimizer, start = fb.Adam(model.parameters()), time.perf_counter()
    model.fit(X, y, "cross_entropy", optimizer, epochs=EPOCHS, batch_size=BATCH, verbose=0)
    return 1e6 * (time.perf_counter() - start) / (STEPS * EPOCHS), model.parameters().values.tobytes()


def main(arguments: list[str]) -> None:
    parser = options(__name__, __doc__)
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/README.md")
    chosen = parser.parse_args(arguments)
    most = fb.get_num_threads()
    expected, rows = run(1)[1], []
    for busy in range(3):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            found: dict[int, list[float]] = {1: [], most: []}
            for _ in range(ROUNDS):
                for threads, times in found.items():
                    microseconds, learned = run(threads)
                    assert learned == expected
                    times.append(microseconds)
        finally:
            for other in others:
                other.kill()
        best = [min(times) for times in found.values()]
        rows.append([str(busy), *map(figure, best), f"{best[-1] / best[0]:.2f}"])
    text = f"{machine()} Microseconds a step of {label(WIDTHS)}, batch {BATCH}, Adam, best of {ROUNDS} in turns.\n\n"
    text += table(["busy processes beside it", "1 thread", f"{most} threads", "ratio"], rows, 0)
    print(text)
    if chosen.write:
        write("contention", text)
