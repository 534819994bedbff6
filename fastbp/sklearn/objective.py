"""The objective that scikit-learn minimises: a loss in its own scale, and an L2 penalty on the weights."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from fastbp.data.arrays import Array
from fastbp.losses import Loss


class Objective(NamedTuple):
    """A loss in scikit-learn's scale: it sums over the outputs where fastbp averages, and halves a squared error."""

    criterion: Loss
    gradient_scale: float  # scikit-learn's gradient divided by the criterion's
    loss_scale: float  # the loss that scikit-learn reports, likewise
    constant: float = 0.0  # is added to the reported loss

    def reported(self, loss: float) -> float:
        """The loss that scikit-learn reports where the criterion has this value."""
        return self.loss_scale * loss + self.constant


@functools.cache  # they are the same in every epoch
def batch_sizes(samples: int, batch_size: int) -> Array:
    """How many samples every batch has (steps,)."""
    return np.minimum(batch_size, samples - np.arange(0, samples, batch_size)).astype(np.float64)


@functools.lru_cache
def _equal_penalties(alpha: float, samples: int, batch_size: int) -> Array:
    return np.asarray(alpha / batch_sizes(samples, batch_size))


def batch_penalties(alpha: float, samples: int, weight: Array | None, batch_size: int) -> Array:
    """What every batch (steps,) multiplies the squared weights with: alpha divided by the batch's total weight.

    It is zero for a batch whose samples all have weight (samples,) zero.
    """
    if weight is None:
        return _equal_penalties(alpha, samples, batch_size)
    total_weights = np.add.reduceat(weight, np.arange(0, samples, batch_size), dtype=np.float64)
    return np.divide(alpha, total_weights, out=np.zeros_like(total_weights), where=total_weights > 0)
