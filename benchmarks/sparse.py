"""Sparse rows: texts as TF-IDF of 20,000 words in a first dense layer, beside PyTorch's and scikit-learn's.

    python benchmarks sparse [--quick] [--write]

The words of a text follow Zipf's law. PyTorch has the layer as an ``EmbeddingBag``, with sparse gradients under SGD.
All train from the same weights in the same order, in turns; the losses are compared before the times are.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import scipy.sparse
import sklearn.feature_extraction.text
import sklearn.neural_network
import torch
from report import figure, in_rounds, machine, table, write
from sklearn.exceptions import ConvergenceWarning

import fastbp as fb
import fastbp.sklearn

WORDS, TEXTS, LENGTH, HIDDEN, CLASSES = 20_000, 3_000, 150, 100, 10
BATCHES = 1, 32, 200


def texts() -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """TF-IDF of texts of so many words, and a class for each."""
    rng = np.random.default_rng(0)
    frequency = rng.permutation(1 / np.arange(1, WORDS + 1))
    words = rng.choice(WORDS, (TEXTS, LENGTH), p=frequency / frequency.sum())
    counts = (np.ones(words.size, np.float32), (np.repeat(np.arange(TEXTS), LENGTH), words.ravel()))
    counted = scipy.sparse.coo_matrix(counts, (TEXTS, WORDS)).tocsr()
    X = sklearn.feature_extraction.text.TfidfTransformer().fit_transform(counted)
    return X.astype(np.float32), rng.integers(0, CLASSES, TEXTS)


class Torch(torch.nn.Module):
    """The layers of a fastbp model: a bag of words is the sum of their rows, each times its entry."""

    def __init__(self, model: fb.Sequential, sparse: bool) -> None:
        super().__init__()
        first, last = model.layers
        self.bag = torch.nn.EmbeddingBag(WORDS, HIDDEN, mode="sum", sparse=sparse)
        self.bag.weight.data = torch.from_numpy(first.weight.copy())
        self.bias = torch.nn.Parameter(torch.from_numpy(first.bias.copy()))
        self.last = torch.nn.Linear(HIDDEN, CLASSES)
        self.last.weight.data = torch.from_numpy(last.weight.T.copy())
        self.last.bias.data = torch.from_numpy(last.bias.copy())

    def forward(self, words: torch.Tensor, starts: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.bag(words, starts, per_sample_weights=entries) + self.bias))


def torch_batches(X: scipy.sparse.csr_matrix, y: np.ndarray, batch: int) -> list[tuple[torch.Tensor, ...]]:
    """What an ``EmbeddingBag`` takes, made before the clock runs."""
    parts = []
    for first in range(0, X.shape[0], batch):
        rows = X[first : first + batch]
        arrays = rows.indices, rows.indptr[:-1].astype(rows.indices.dtype), rows.data, y[first : first + batch]
        parts.append(tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
    return parts


def in_turns(sides: list[Callable[[], float]], rounds: int, tolerance: float) -> list[tuple[float, float]]:
    """Best and median seconds of each; what they give has to be equal in the first rounds."""
    seconds: list[list[float]] = [[] for _ in sides]
    for i in range(rounds):
        given = []
        for side, elapsed in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            given.append(side())
            elapsed.append(time.perf_counter() - start)
        if i < 2:  # later, what float32 has rounded differently has grown
            np.testing.assert_allclose(given, given[0], rtol=tolerance)
    return [(min(elapsed), statistics.median(elapsed)) for elapsed in seconds]


def step(X: scipy.sparse.csr_matrix, y: np.ndarray, batch: int, optimizer: str, rounds: int) -> list[str]:
    """The row of a step of ``fit``."""
    X, y = (X[: 40 * batch], y[: 40 * batch]) if batch < 32 else (X, y)
    steps = -(-X.shape[0] // batch)
    model = fb.Sequential([fb.Dense(WORDS, HIDDEN, activation="relu"), fb.Dense(HIDDEN, CLASSES)], seed=0)
    theirs = Torch(model, sparse=optimizer == "SGD")
    ours = {"SGD": fb.SGD, "Adam": fb.Adam}[optimizer](model.parameters(), lr=1e-3)
    other = (
        torch.optim.SGD(theirs.parameters(), lr=1e-3)  # the fused one takes no sparse gradients
        if optimizer == "SGD"
        else torch.optim.Adam(theirs.parameters(), lr=1e-3, fused=True)
    )
    parts = torch_batches(X, y, batch)

    def epoch_of_fastbp() -> float:
        return model.fit(X, y, "cross_entropy", ours, batch_size=batch, shuffle=False, verbose=0).history["loss"][0]

    def epoch_of_torch() -> float:
        total = 0.0
        for words, starts, entries, target in parts:
            loss = torch.nn.functional.cross_entropy(theirs(words, starts, entries), target)
            loss.backward()
            other.step()
            other.zero_grad()
            total += loss.item() * len(target)
        return total / len(y)

    own, peer = in_turns([epoch_of_fastbp, epoch_of_torch], rounds, 1e-4)
    cells = [f"{figure(1e6 * best / steps)} ({figure(1e6 * median / steps)})" for best, median in (own, peer)]
    return [f"step of {batch}, {optimizer}, us", cells[0], cells[1], "", f"{peer[0] / own[0]:.1f}"]


def estimator(X: scipy.sparse.csr_matrix, y: np.ndarray, rounds: int) -> list[str]:
    """The row of five epochs of the classifiers with default parameters."""

    def fitted(module) -> float:
        classifier = module.MLPClassifier((HIDDEN,), max_iter=5, random_state=0)
        return classifier.fit(X, y).loss_

    sides = [lambda module=module: fitted(module) for module in (fastbp.sklearn, sklearn.neural_network)]
    own, peer = in_turns(sides, rounds, 1e-4)
    cells = [f"{figure(1e3 * best)} ({figure(1e3 * median)})" for best, median in (own, peer)]
    return ["5 epochs of `MLPClassifier`, ms", cells[0], "", cells[1], f"{peer[0] / own[0]:.1f}"]


def prediction(X: scipy.sparse.csr_matrix, rounds: int) -> list[str]:
    """The row of ``predict`` for all texts."""
    model = fb.Sequential([fb.Dense(WORDS, HIDDEN, activation="relu"), fb.Dense(HIDDEN, CLASSES)], seed=0)
    theirs = Torch(model, sparse=False).eval()
    ((words, starts, entries, _),) = torch_batches(X, np.zeros(TEXTS), TEXTS)

    def of_torch() -> float:
        with torch.inference_mode():
            return float(theirs(words, starts, entries).abs().mean())

    own, peer = in_turns([lambda: float(np.abs(model.predict(X)).mean()), of_torch], rounds, 1e-4)
    cells = [f"{figure(1e6 * best)} ({figure(1e6 * median)})" for best, median in (own, peer)]
    return [f"`predict` of {TEXTS:,}, us", cells[0], cells[1], "", f"{peer[0] / own[0]:.1f}"]


def main(arguments: list[str]) -> None:
    chosen = in_rounds(__name__, __doc__, arguments, quick=3, rounds=10)
    rounds = chosen.rounds
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(fb.get_num_threads())
    X, y = texts()
    text = f"{machine('torch', 'scikit-learn')} Best (median) of {rounds} rounds in turns, {fb.get_num_threads()} "
    text += f"threads, float32; {TEXTS:,} texts of {X.nnz / TEXTS:.0f} different words on average, of {WORDS:,}; "
    text += f"{HIDDEN} hidden units, {CLASSES} classes.\n\n"
    rows = [step(X, y, batch, optimizer, rounds) for batch in BATCHES for optimizer in ("SGD", "Adam")]
    rows += [prediction(X, rounds), estimator(X, y, rounds)]
    text += table(["what", "fastbp", "PyTorch", "scikit-learn", "ratio"], rows, 1)
    print(text)
    if chosen.write:
        write("sparse", text)
