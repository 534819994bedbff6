"""What the estimator hands to a solver: the model, the objective and the samples, sparse ones too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse

from fastbp.data.arrays import Array, Samples, take_rows
from fastbp.sklearn.objective import Objective
from fastbp.training import Sequential

SPARSE_BLOCK = 1 << 22  # entries of a sparse X that are made dense at a time


class Data(NamedTuple):
    """Samples in the model's dtype: X (n, I) dense or sparse, targets (n,) or (n, O), weights (n,) or None."""

    X: Any
    target: Array
    weight: Array | None

    def take(self, rows: Array) -> Data:
        """Copies of these rows."""
        return Data(*take_rows(self, rows))

    def dense(self) -> Samples:
        """All samples, X dense."""
        return (self.X.toarray() if scipy.sparse.issparse(self.X) else self.X), self.target, self.weight

    def blocks(self, rows: Array, batch_size: int) -> Iterator[tuple[Samples, Array | None]]:
        """The rows as dense samples and the order to visit them in; None is the order in which they lie.

        A dense X is one block. A sparse one comes in blocks of whole batches, but for the last.
        """
        if not scipy.sparse.issparse(self.X):
            yield self, rows
            return
        size = max(1, SPARSE_BLOCK // self.X.shape[1] // batch_size) * batch_size
        for first in range(0, len(rows), size):
            yield self.take(rows[first : first + size]).dense(), None


def predict(model: Sequential, X: Any, threads: int | None) -> Array:
    """The model's outputs (n, O) for a dense or sparse X (n, I); None threads are ``get_num_threads()``."""
    if not scipy.sparse.issparse(X):
        return _predict(model, X, threads)
    data = Data(X, np.empty(X.shape[0]), None)
    return np.concatenate([_predict(model, block[0], threads) for block, _ in data.blocks(np.arange(X.shape[0]), 1)])


def _predict(model: Sequential, X: Array, threads: int | None) -> Array:
    X = model.model.check_features("x", X)
    with model.model.shared(threads) as share:
        return model.model.predict(X, share)


@dataclass(frozen=True)
class Task:
    """A model to train, and what on."""

    model: Sequential
    objective: Objective
    data: Data
    rows: Array  # of data, to train on
    validation: Data | None
    score: Callable[[Array, Data], float]  # of the outputs for some samples, and these
    random_state: np.random.RandomState


class Fitted(Protocol):
    """The attributes of an estimator that every solver keeps up to date while it runs: callbacks may read them."""

    n_iter_: int
    loss_: float
