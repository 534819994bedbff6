"""How much slower a training is whose numbers are denormal, most of them: 1.0 is not at all.

    python benchmarks/denormals.py [rounds]

A network of 256-256-10 in float32, on ordinary data, and with features, weights and targets times 1e-20, so that their
products are denormal; some epochs of each in turns, the best of all rounds counts.
"""

import sys
import time

import numpy as np

import fastbp as fb


def run(scale, epochs=5):
    """A function that trains for some epochs and returns the seconds."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((2048, 256)) * scale).astype("f4")
    y = (rng.standard_normal((2048, 10)) * scale).astype("f4")
    model = fb.Sequential([fb.Dense(256, 256, activation="relu"), fb.Dense(256, 10)], seed=0)
    model.parameters().values[:] *= scale
    optimizer = fb.Adam(model.parameters(), lr=0.0)  # the weights stay as they are

    def seconds():
        start = time.perf_counter()
        model.fit(X, y, "mse", optimizer, epochs=epochs, batch_size=64, verbose=0)
        return time.perf_counter() - start

    return seconds


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for backend in fb.core.available_backends():
        with fb.use_backend(backend):
            both = run(1), run(1e-20)
            times = np.array([[seconds() for seconds in both] for _ in range(3 if backend == "numpy" else rounds)])
            ordinary, denormal = times.min(axis=0)
            print(f"{backend:8} {ordinary * 1e3:8.1f} ms {denormal * 1e3:8.1f} ms  ratio {denormal / ordinary:.2f}")


if __name__ == "__main__":
    main()
