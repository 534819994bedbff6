"""What the estimator hands to a solver: the model, the objective and the samples, sparse ones too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastbp.data.arrays import Array, Samples, take_rows
from fastbp.sklearn.objective import Objective
from fastbp.training import Sequential


class Data(NamedTuple):
    """Samples in the model's dtype: X (n, I) dense or sparse, targets (n,) or (n, O), weights (n,) or None."""

    X: Any
    target: Array
    weight: Array | None

    def take(self, rows: Array) -> Data:
        """Copies of these rows."""
        return Data(*take_rows(self, rows))


def predict(model: Sequential, X: Any, threads: int | None) -> Array:
    """The model's outputs (n, O) for a dense or sparse X (n, I); None threads are ``get_num_threads()``."""
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

    def samples(self) -> Samples:
        """The data as the core takes it."""
        X, target, weight = self.data
        return self.model.model.check_features("X", X), target, weight


class Fitted(Protocol):
    """The attributes of an estimator that every solver keeps up to date while it runs: callbacks may read them."""

    n_iter_: int
    loss_: float
