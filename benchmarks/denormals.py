"""How much slower a training is whose numbers are denormal, most of them: 1.0 is not at all.

    python benchmarks denormals [--rounds 20]

A network of 256-256-10 in float32, on ordinary data, and with features, weights and targets times 1e-20, so that their
products are denormal; some epochs of each in turns, the best of all rounds counts.
"""

import time

import numpy as np
from nets import DENORMALS
from report import options

import fastbp as fb


def run(scale, epochs=5):
    """A function that trains for some epochs and returns the seconds."""
    rng = np.random.default_rng(0)
    widths, batch, steps = DENORMALS
    X = (rng.standard_normal((batch * steps, widths[0])) * scale).astype("f4")
    y = (rng.standard_normal((batch * steps, widths[-1])) * scale).astype("f4")
    model = fb.Sequential([fb.Dense(*widths[:2], activation="relu"), fb.Dense(*widths[1:])], seed=0)
    model.parameters().values[:] *= scale
    optimizer = fb.Adam(model.parameters(), lr=0.0)  # the weights stay as they are

    def seconds():
        start = time.perf_counter()
        model.fit(X, y, "mse", optimizer, epochs=epochs, batch_size=batch, verbose=0)
        return time.perf_counter() - start

    return seconds


def main(arguments: list[str]) -> None:
    parser = options(__name__, __doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args(arguments).rounds
    for backend in fb.core.available_backends():
        with fb.use_backend(backend):
            both = run(1), run(1e-20)
            times = np.array([[seconds() for seconds in both] for _ in range(3 if backend == "numpy" else rounds)])
            ordinary, denormal = times.min(axis=0)
            print(f"{backend:8} {ordinary * 1e3:8.1f} ms {denormal * 1e3:8.1f} ms  ratio {denormal / ordinary:.2f}")
