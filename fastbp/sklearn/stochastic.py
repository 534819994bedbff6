"""SGD and Adam as scikit-learn runs them: epochs, the penalty, learning rates, and when to stop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastbp import schedules
from fastbp.core import thread_limit
from fastbp.core.plan import UpdateSpec
from fastbp.data.arrays import Array
from fastbp.divergence import DivergenceError
from fastbp.optim import SGD, Adam, Optimizer
from fastbp.sklearn.objective import batch_penalties
from fastbp.sklearn.task import Data, Fitted, Task, predict
from fastbp.training.callbacks import Callback, after_batches, called
from fastbp.training.sequential import warn_of_single_rows
from fastbp.training.trainer import Trainer


class StochasticFitted(Fitted, Protocol):
    """The attributes of an estimator that this solver keeps up to date while it runs."""

    t_: int
    loss_curve_: list[float]
    validation_loss_curve_: list[float]
    best_loss_: Any  # a float, but None with early stopping
    validation_scores_: Any  # a list and a float with early stopping, else None
    best_validation_score_: Any


@dataclass
class SolverState:
    """What a fit with ``warm_start``, or ``partial_fit``, continues from."""

    optimizer: Optimizer | None = None
    learning_rate: float = math.nan
    best_weights: tuple[Array, Array] | None = None  # a snapshot of the model
    least_validation_loss: float = math.inf
    epochs_without_improvement: int = 0
    stopped_early: bool = False
    incremental: bool = False  # whether it is that of partial_fit, which goes on from call to call

    def of_next_fit(self, incremental: bool) -> SolverState:
        """What the next fit begins with: the optimizer and, of partial_fit after partial_fit, all the rest."""
        if incremental and self.incremental:
            return replace(self)  # a copy, as a shallow copy of the estimator has this one
        return SolverState(self.optimizer, self.learning_rate, incremental=incremental)


class ScikitSGD(SGD):
    """SGD whose learning rate is that of scikit-learn's gradient, which has another scale."""

    resumable = False
    _gradient_scale = 1.0

    def update_spec(self, lr: Array | float, weight_decay: Array | float | None = None) -> UpdateSpec:
        return super().update_spec(lr * self._gradient_scale, weight_decay)


class ScikitAdam(Adam):
    """Adam with its epsilon where scikit-learn has it: it is added before the bias correction."""

    resumable = False

    def update_spec(self, lr: Array | float, weight_decay: Array | float | None = None) -> UpdateSpec:
        spec = super().update_spec(lr, weight_decay)
        spec.eps_hat = True
        return spec


class StochasticSolver:
    """One fit by SGD or Adam.

    Parameters
    ----------
    task : Task
        The caller has its model to itself.
    settings
        Has scikit-learn's parameters as attributes.
    fitted : StochasticFitted
        Where the progress is reported.
    state : SolverState
        From the fit that this one continues; it is updated.
    incremental : bool
        Whether this is ``partial_fit``: one epoch.
    """

    def __init__(
        self, task: Task, settings: Any, fitted: StochasticFitted, state: SolverState, incremental: bool
    ) -> None:
        self.task, self.settings, self.fitted, self.state = task, settings, fitted, state
        self.samples = task.samples()
        self.incremental = incremental
        samples = len(task.rows)
        self.batch_size = min(200, samples) if settings.batch_size == "auto" else settings.batch_size
        if self.batch_size > samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=4
            )
            self.batch_size = samples
        if self.batch_size == 1:
            warn_of_single_rows(task.model.layers, stacklevel=5)
        self.optimizer = self._create_optimizer()
        self._continue_optimizer()
        self.trainer = Trainer(task.model.model, self.optimizer, task.objective.criterion, settings.n_threads)

    def run(self, callbacks: list[Callback]) -> None:
        """Train until the epochs are over, there is no improvement, or a callback or the user ends it."""
        model = self.task.model
        log_names = ["loss", "lr", "samples_per_second"]
        if self.task.validation is not None:
            log_names += ["val_loss", "val_score"] if self.settings.early_stopping else ["val_loss"]
        if self.settings.early_stopping and self.state.best_weights is None:
            self.state.best_weights = model.snapshot()  # if there will be no better ones
        self.fitted.n_iter_ = 0
        try:
            with called(callbacks, model, self.optimizer, log_names, {"score": True}):
                self._run_epochs(callbacks)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        except DivergenceError as error:
            if self.state.best_weights is None:
                raise
            self.state.stopped_early = True
            self._note_divergence()
            warnings.warn(f"{error}. The best weights are restored.", ConvergenceWarning, stacklevel=4)
        finally:
            if self.state.best_weights is not None and (self.state.stopped_early or not self.incremental):
                model.restore(self.state.best_weights)

    def _run_epochs(self, callbacks: list[Callback]) -> None:
        settings, rows = self.settings, self.task.rows
        for epoch in range(1 if self.incremental else settings.max_iter):
            if settings.shuffle:
                rows = rows[self._random_order()]
            for callback in callbacks:
                callback.on_epoch_begin(epoch)
            logs = self._run_epoch(epoch, rows, after_batches(callbacks))
            for callback in callbacks:
                callback.on_epoch_end(epoch, logs)
            if settings.solver == "sgd" and settings.learning_rate == "invscaling":
                self._set_learning_rate(settings.learning_rate_init / (self.fitted.t_ + 1) ** settings.power_t)
            if self._check_convergence() or self.task.model.stop_training:
                break
            if epoch + 1 == settings.max_iter and not self.incremental:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({settings.max_iter}) reached and the optimization "
                    "hasn't converged yet.",
                    ConvergenceWarning,
                    stacklevel=5,
                )

    # --- the optimizer and its learning rate --------------------------------------------------------------------------

    def _create_optimizer(self) -> Optimizer:
        settings, parameters = self.settings, self.task.model.parameters()
        rate = settings.learning_rate_init
        if settings.solver == "sgd":
            nesterov = settings.nesterovs_momentum and settings.momentum > 0
            sgd = ScikitSGD(parameters, rate, settings.momentum, nesterov=nesterov, decay_bias=False)
            sgd._gradient_scale = self.task.objective.gradient_scale
            return sgd
        betas = settings.beta_1, settings.beta_2
        # Adam's steps do not depend on the gradient's scale, except for epsilon
        epsilon = settings.epsilon / self.task.objective.gradient_scale
        return ScikitAdam(parameters, rate, betas=betas, eps=epsilon, decay_bias=False)

    def _continue_optimizer(self) -> None:
        """Go on from the state of the previous fit's optimizer if it was of the same kind; set the learning rate."""
        settings, state, optimizer = self.settings, self.state, self.optimizer
        previous, state.optimizer = state.optimizer, optimizer
        if previous is not None and type(previous) is type(optimizer):
            optimizer.take_state(previous)
        else:
            state.learning_rate = settings.learning_rate_init
        keeps_rate = self.incremental and settings.solver == "sgd" and settings.learning_rate != "constant"
        self._set_learning_rate(state.learning_rate if keeps_rate else settings.learning_rate_init)

    def _set_learning_rate(self, rate: float) -> None:
        """Set the learning rate.

        scikit-learn's velocity contains the learning rates of the steps that it sums up. The core's, like PyTorch's,
        is multiplied with the present learning rate, and so is rescaled when that changes.
        """
        velocity = self.optimizer.state_vectors.get("velocity")
        if velocity is not None:
            velocity *= self.state.learning_rate / rate if rate else 0
        self.state.learning_rate = rate
        self.optimizer.schedule = schedules.Constant(rate)

    def _note_divergence(self) -> None:
        """The epoch that was not finished has a loss and a score that are no numbers."""
        fitted = self.fitted
        fitted.loss_curve_.append(math.nan)
        fitted.validation_loss_curve_.append(math.nan)
        if fitted.validation_scores_ is not None:
            fitted.validation_scores_.append(math.nan)

    # --- an epoch -----------------------------------------------------------------------------------------------------

    def _random_order(self) -> Array:
        order = np.arange(len(self.task.rows))
        self.task.random_state.shuffle(order)
        return order

    def _run_epoch(self, epoch: int, rows: Array, after_batch: Callable[[float], None] | None) -> dict[str, float]:
        """Train on the rows in their order, evaluate and report; the logged values."""
        fitted, start = self.fitted, time.perf_counter()
        if self.optimizer.lr != self.state.learning_rate:  # a callback has set it
            self._set_learning_rate(self.optimizer.lr)
        fitted.loss_ = self._train(rows, after_batch)
        logs = {"loss": fitted.loss_, "lr": self.state.learning_rate}
        logs["samples_per_second"] = len(rows) / (time.perf_counter() - start)
        fitted.n_iter_, fitted.t_ = epoch + 1, fitted.t_ + len(rows)
        self.task.model.epochs += 1
        fitted.loss_curve_.append(fitted.loss_)
        if self.settings.verbose:
            print(f"Iteration {fitted.n_iter_}, loss = {fitted.loss_:.8f}")
        if self.task.validation is not None:
            logs |= self._evaluate(self.task.validation)
        self._check_improvement(logs.get("val_loss"))
        return logs

    def _train(self, rows: Array, after_batch: Callable[[float], None] | None) -> float:
        """One pass over the rows in their order; the loss with its penalty, averaged over the samples."""
        objective, alpha, total = self.task.objective, self.settings.alpha, 0.0
        weight, count = self.task.data.weight, len(rows)
        penalties = batch_penalties(alpha, count, None if weight is None else weight[rows], self.batch_size)
        decays = penalties / objective.gradient_scale if alpha else None
        steps = len(penalties) if after_batch is None else 1
        for step in range(0, len(penalties), steps):
            of_steps = None if decays is None else decays[step : step + steps]
            first = step * self.batch_size
            report = self.trainer.run_steps(self.samples, rows, first, steps, self.batch_size, of_steps)
            total += objective.loss_scale * report.loss + 0.5 * objective.gradient_scale * report.penalty
            if after_batch is not None:
                after_batch(objective.reported(report.loss / min(self.batch_size, count - first)))
        return (total + count * objective.constant) / count

    def _evaluate(self, data: Data) -> dict[str, float]:
        """The validation loss and, with early stopping, the score."""
        objective, fitted, threads = self.task.objective, self.fitted, self.settings.n_threads or thread_limit()
        pred = predict(self.task.model, data.X, threads)
        loss = objective.reported(objective.criterion.compute_with(pred, data.target, data.weight, threads)[0])
        fitted.validation_loss_curve_.append(loss)
        if self.settings.verbose:
            print(f"Validation loss: {loss:.6f}")
        if not self.settings.early_stopping:
            return {"val_loss": loss}
        score = self.task.score(pred, data) if np.isfinite(pred).all() else math.nan
        fitted.validation_scores_.append(score)
        if self.settings.verbose:
            print(f"Validation score: {score:f}")
        return {"val_loss": loss, "val_score": score}

    # --- when to stop -------------------------------------------------------------------------------------------------

    def _check_improvement(self, validation_loss: float | None) -> None:
        """Count the epochs without an improvement by ``tol``, and keep the weights that are best on validation data."""
        fitted, state, tol = self.fitted, self.state, self.settings.tol
        if self.settings.early_stopping:
            score = fitted.validation_scores_[-1]
            improved = not score < fitted.best_validation_score_ + tol
            if score > fitted.best_validation_score_:
                fitted.best_validation_score_, state.best_weights = score, self.task.model.snapshot()
        else:
            improved = not fitted.loss_ > fitted.best_loss_ - tol
            fitted.best_loss_ = min(fitted.best_loss_, fitted.loss_)
            if validation_loss is not None and validation_loss < state.least_validation_loss:
                state.least_validation_loss, state.best_weights = validation_loss, self.task.model.snapshot()
        state.epochs_without_improvement = 0 if improved else state.epochs_without_improvement + 1

    def _check_convergence(self) -> bool:
        """Whether to stop, as there is no improvement any more; an adaptive learning rate is reduced first."""
        settings, state = self.settings, self.state
        if state.epochs_without_improvement <= settings.n_iter_no_change:
            return False
        what = "Validation score" if settings.early_stopping else "Training loss"
        message = f"{what} did not improve more than tol={settings.tol:f} for {settings.n_iter_no_change}"
        stops = True
        if settings.solver == "adam" or settings.learning_rate != "adaptive":
            action = "Stopping."
        elif state.learning_rate <= 1e-6:
            action = "Learning rate too small. Stopping."
        else:
            self._set_learning_rate(state.learning_rate / 5)
            state.epochs_without_improvement, stops = 0, False
            action = f"Setting learning rate to {state.learning_rate:f}"
        if settings.verbose:
            print(f"{message} consecutive epochs. {action}")
        if stops:
            state.stopped_early = settings.early_stopping
        return stops
