"""L-BFGS-B (Zhu et al. 1997) over all samples at once, by SciPy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning

from fastbp.core import thread_limit
from fastbp.data.arrays import Array
from fastbp.sklearn.task import Fitted, Task
from fastbp.training.callbacks import Callback, called


def fit_lbfgs(task: Task, settings: Any, fitted: Fitted, callbacks: list[Callback]) -> None:
    """Minimise the objective over the model's parameters.

    ``settings`` has scikit-learn's parameters. The caller has the model to itself.
    """
    model, objective, parameters = task.model, task.objective, task.model.parameters()
    X, target, weight = task.samples()
    decay = np.full(parameters.values.size, settings.alpha / (len(X) if weight is None else weight.sum()))
    for name, shape in parameters.shapes.items():
        if len(shape) == 1:  # biases and the like have no penalty
            parameters.view(decay, name)[:] = 0

    def loss_and_gradient(values: Array) -> tuple[float, Array]:
        parameters.values[:] = values
        threads = settings.n_threads or thread_limit()
        loss, dpred = objective.criterion.compute_with(model.model.forward(X, threads), target, weight, threads)
        model.model.backward(dpred, threads)
        penalty_gradient = decay * values
        penalty = 0.5 * values @ penalty_gradient
        fitted.loss_ = objective.reported(loss) + penalty
        gradient = objective.gradient_scale * parameters.grads + penalty_gradient
        return objective.gradient_scale * loss + penalty, gradient

    def end_iteration(intermediate_result: scipy.optimize.OptimizeResult) -> None:
        parameters.values[:] = intermediate_result.x  # what a callback sees; the line search may have tried another
        fitted.n_iter_ += 1
        model.epochs += 1
        if settings.verbose:
            print(f"Iteration {fitted.n_iter_}, loss = {fitted.loss_:.8f}")
        for callback in callbacks:
            callback.on_epoch_end(fitted.n_iter_ - 1, {"loss": fitted.loss_})
        if model.stop_training:
            raise StopIteration

    fitted.n_iter_ = 0
    with called(callbacks, model, None, ["loss"], {}):
        result = scipy.optimize.minimize(
            loss_and_gradient,
            parameters.values.copy(),
            method="L-BFGS-B",
            jac=True,
            callback=end_iteration,
            options={"maxfun": settings.max_fun, "maxiter": settings.max_iter, "gtol": settings.tol},
        )
        fitted.n_iter_ = min(result.nit, settings.max_iter)
        loss_and_gradient(result.x)  # the last point that the line search tried may be another
    if result.status != 0 and not model.stop_training:
        warnings.warn(
            f"lbfgs failed to converge after {fitted.n_iter_} iteration(s) (status={result.status}): "
            f"{result.message}. Increase the number of iterations (max_iter) or scale the data.",
            ConvergenceWarning,
            stacklevel=4,  # fit_lbfgs, _fit, fit, and the line that called it
        )
