"""Estimators: ``fastbp.sklearn`` beside scikit-learn's own on its own data, with default parameters.

    python benchmarks estimators [--quick] [--write]

Both fit in turns, from the same random state, in float64: they draw the same weights and batches, so that the fitted
networks are compared before their times are.
"""

from __future__ import annotations

import statistics
import time
import warnings

import numpy as np
import sklearn.datasets
import sklearn.neural_network
from report import figure, in_rounds, machine, table, write
from sklearn.exceptions import ConvergenceWarning

import fastbp as fb
import fastbp.sklearn

#: The data, the estimator, and how far the networks may be from each other after so many epochs of rounding.
TASKS = {
    "digits": ("MLPClassifier", 1e-6),
    "breast_cancer": ("MLPClassifier", 1e-6),
    "wine": ("MLPClassifier", 1e-6),
    "iris": ("MLPClassifier", 1e-6),
    "diabetes": ("MLPRegressor", 1e-6),
}


def fitted(module, kind: str, X: np.ndarray, y: np.ndarray):
    """A fitted estimator and the seconds it took."""
    estimator = getattr(module, kind)(random_state=0)
    start = time.perf_counter()
    estimator.fit(X, y)
    return estimator, time.perf_counter() - start


def measure(data: str, rounds: int) -> list[str]:
    """The row of one data set."""
    kind, tolerance = TASKS[data]
    X, y = getattr(sklearn.datasets, f"load_{data}")(return_X_y=True)
    seconds: dict = {fastbp.sklearn: [], sklearn.neural_network: []}
    for i in range(rounds):
        pair = {module: fitted(module, kind, X, y) for module in seconds}
        if i == 0:
            ours, theirs = (estimator for estimator, _ in pair.values())
            assert ours.n_iter_ == theirs.n_iter_
            for a, b in zip(ours.coefs_, theirs.coefs_, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
        for module, (_, elapsed) in pair.items():
            seconds[module].append(elapsed)
    ours, theirs = ((1e3 * min(s), 1e3 * statistics.median(s)) for s in seconds.values())
    cells = [f"{figure(best)} ({figure(median)})" for best, median in (ours, theirs)]
    return [data, kind, f"{X.shape[0]:,} x {X.shape[1]}", *cells, f"{theirs[0] / ours[0]:.1f}"]


def main(arguments: list[str]) -> None:
    chosen = in_rounds(__name__, __doc__, arguments, quick=2, rounds=10)
    rounds = chosen.rounds
    warnings.simplefilter("ignore", ConvergenceWarning)
    text = f"{machine('numpy', 'scikit-learn')} Milliseconds of `fit`, best (median) of {rounds} rounds in turns, "
    text += f"{fb.get_num_threads()} threads, float64.\n\n"
    head = ["data", "estimator", "samples", "fastbp", "scikit-learn", "ratio"]
    text += table(head, [measure(data, rounds) for data in TASKS], 3)
    print(text)
    if chosen.write:
        write("estimators", text)
