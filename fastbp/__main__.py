"""``fastbp`` or ``python -m fastbp``: train 64-128-10 on handwritten digits, then the same on plain NumPy.

``python -m fastbp bench`` times a training step of networks of all sizes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import fastbp as fb
from fastbp import benchmark
from fastbp.core import backend_name

NETWORK, EPOCHS, BATCH_SIZE = "64-128-10", 30, 32


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and held-out digits, scaled to [0, 1]: a fixed split, one fifth held out."""
    X, y = fb.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(X))
    held_out, train = order[: len(X) // 5], order[len(X) // 5 :]
    X /= 16
    return (X[train], y[train]), (X[held_out], y[held_out])


def train(X: np.ndarray, y: np.ndarray, verbose: int) -> tuple[fb.Sequential, float]:
    """The main job: the trained model, and the seconds that ``fit`` took."""
    model = fb.Sequential([fb.Dense(64, 128, activation="relu"), fb.Dense(128, 10)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1, momentum=0.9)
    start = time.perf_counter()
    model.fit(X, y, loss="cross_entropy", optimizer=optimizer, epochs=EPOCHS, batch_size=BATCH_SIZE, verbose=verbose)
    return model, time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fastbp", description="Train 64-128-10 on handwritten digits and time it.")
    parser.add_argument("--version", action="version", version=f"fastbp {fb.__version__}")
    commands = parser.add_subparsers(dest="command")
    bench = commands.add_parser("bench", help="time networks of all sizes, here and on the numpy backend")
    bench.add_argument("--seconds", type=float, default=1.0, help="for every network and backend")
    options = parser.parse_args(arguments)
    if options.command == "bench":
        benchmark.run(options.seconds)
    else:
        main_job()


def main_job() -> None:
    """Train, evaluate, and compare with NumPy."""
    training, (X_held_out, y_held_out) = digits()
    print(f"fastbp {fb.__version__}, backend {backend_name()}: {NETWORK} on {len(training[0])} digits of 8 x 8 pixels")
    model, _ = train(*training, verbose=1)
    accuracy = model.evaluate(X_held_out, y_held_out, "cross_entropy")["accuracy"]
    print(f"held-out accuracy {accuracy:.4f} on {len(X_held_out)} digits")
    times: dict[str, list[float]] = {backend_name(): [], "numpy": []}
    for _ in range(3):  # in turns, so that a neighbour's load hits both
        for backend, seconds in times.items():
            with fb.use_backend(backend):
                seconds.append(train(*training, verbose=0)[1])
    compiled, reference = min(times[backend_name()]), min(times["numpy"])
    print(
        f"{NETWORK} on {len(training[0])} digits, {EPOCHS} epochs, at most {fb.get_num_threads()} threads, best of 3: "
        f"{compiled:.3f} s on {backend_name()}, {reference:.3f} s on numpy, the reference of the same program, "
        f"{reference / compiled:.1f} times as long"
    )


if __name__ == "__main__":
    main()
