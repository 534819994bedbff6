"""check_gradients: backpropagation against finite differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastbp import losses
from fastbp.core import thread_limit
from fastbp.losses import LossLike
from fastbp.training import Sequential
from fastbp.training.inputs import check_batch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def check_gradients(
    model: Sequential,
    X: ArrayLike,
    y: ArrayLike,
    loss: LossLike,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Compare the gradients of a model with central differences of its loss, in float64.

    Works on a float64 copy: the model and its running statistics stay as they are. Dropout keeps one mask. Of each
    tensor up to 200 entries, spread evenly, are tried.

    Parameters
    ----------
    model : Sequential
    X : array_like (B, I)
    y : array_like
        Targets as for ``fit``.
    loss : str, Loss or callable
    sample_weight : array_like (B,) or None

    Returns
    -------
    float
        The largest difference of a derivative, relative to the largest derivative. Correct gradients of a smooth loss
        give about 1e-8; at a kink (ReLU at 0, MAE at 0) the derivative does not exist and any value may come out.
    """
    criterion = losses.resolve(loss)
    double = model.astype("float64")
    x, target, weight = check_batch(double.model, criterion, X, y, sample_weight, ("X", "y", "sample_weight"))
    step, threads = double.model.training_step, thread_limit()

    def loss_and_gradient() -> tuple[float, np.ndarray]:
        double.model.training_step = step  # the same dropout masks every time
        return criterion.compute_with(double.model.forward(x, threads), target, weight, threads)

    double.model.backward(loss_and_gradient()[1], threads)
    worst, largest = 0.0, float(np.abs(double.parameters().grads).max())
    epsilon = 1e-6
    for name in double.parameters().shapes:
        value, grad = double.parameters().value(name).reshape(-1), double.parameters().grad(name).reshape(-1)
        for i in np.unique(np.linspace(0, value.size - 1, 200).astype(int)):
            at = value[i]
            value[i] = at + epsilon
            above = loss_and_gradient()[0]
            value[i] = at - epsilon
            below = loss_and_gradient()[0]
            value[i] = at
            numeric = (above - below) / (2 * epsilon)
            worst, largest = max(worst, abs(numeric - grad[i])), max(largest, abs(numeric))
    return worst / largest if largest > 0 else worst
