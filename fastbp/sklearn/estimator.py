"""MLPClassifier and MLPRegressor: scikit-learn's estimators on fastbp's core.

Parameters, attributes, warnings and errors are scikit-learn's, and so are the numbers: with the same ``random_state``
the weights begin alike and every batch has the same samples, so that a fit follows scikit-learn's to rounding. What it
lacks is a keyword away: dropout, batch normalisation, class weights, an activation per layer, a validation set of one's
own, callbacks.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special
import sklearn.neural_network
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d, compute_sample_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
    type_of_target,
    unique_labels,
)
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fastbp import losses, schedules
from fastbp.callbacks import Callback, begin, listed
from fastbp.core import get_num_threads, set_num_threads
from fastbp.core.plan import ACTIVATIONS
from fastbp.core.threads import MAX_THREADS
from fastbp.data import Array, Samples, choice, real_number, shaped, taken
from fastbp.divergence import DivergenceError
from fastbp.layers import Activation, BatchNorm, Dense, Dropout, Layer
from fastbp.optim import SGD, Adam, Optimizer
from fastbp.training import Sequential

_ACTIVATIONS: dict[str, str | None] = {"identity": None, "logistic": "sigmoid"}
_ACTIVATIONS |= {name: name for name in ACTIVATIONS if name}
_Method = TypeVar("_Method", bound=Callable[..., Any])
_SPARSE_BLOCK = 1 << 22  # entries of a sparse X that are made dense at a time


class _Objective(NamedTuple):
    """A loss as scikit-learn sees it: it sums over the outputs where fastbp takes the mean, and halves a square."""

    criterion: losses.Loss
    gradient: float  # scikit-learn's gradient, in multiples of the criterion's
    report: float  # the loss that it reports, likewise
    constant: float = 0.0  # and what it adds to that


class _Data(NamedTuple):
    """Samples for the core: a dense X (n, I) as it is, a sparse one made dense some rows at a time."""

    X: Any
    target: Array
    weight: Array | None

    def blocks(self, rows: Array, batch_size: int) -> Iterator[tuple[Samples, Array | None]]:
        """The rows as samples and the order to take them in; whole batches, but for the last."""
        if not scipy.sparse.issparse(self.X):
            yield self, rows
            return
        size = max(1, _SPARSE_BLOCK // self.X.shape[1] // batch_size) * batch_size
        for first in range(0, len(rows), size):
            X, target, weight = _Data(*taken(self, rows[first : first + size]))
            yield (X.toarray(), target, weight), None


@functools.cache  # they are the same in every epoch
def _sizes(samples: int, batch_size: int) -> Array:
    """How many samples every batch has (steps,)."""
    return np.minimum(batch_size, samples - np.arange(0, samples, batch_size)).astype(np.float64)


@functools.lru_cache
def _equal_penalties(alpha: float, samples: int, batch_size: int) -> Array:
    """The penalty of every batch (steps,) where all samples weigh alike."""
    return np.asarray(alpha / _sizes(samples, batch_size))


def _penalties(alpha: float, weight: Array, batch_size: int) -> Array:
    """The penalty of every batch (steps,) where samples have weights; none where all of them are zero."""
    masses = np.add.reduceat(weight, np.arange(0, len(weight), batch_size), dtype=np.float64)
    return np.divide(alpha, masses, out=np.zeros_like(masses), where=masses > 0)


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    if n is None:
        yield
        return
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


class _Adam(Adam):
    """Adam with its epsilon where scikit-learn has it."""

    def recipe(self) -> tuple[str, tuple[Array | None, ...], dict[str, Any]]:
        rule, state, settings = super().recipe()
        return rule, state, settings | {"eps_hat": True}


class _MLP(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: the doors, the network, the solvers, and when to stop."""

    n_outputs_: int
    validation_scores_: Any  # a list and a float with early stopping, else None, as in scikit-learn
    best_validation_score_: Any
    best_loss_: Any
    _model: Sequential
    _live: tuple[list[Array], list[Array]]  # the weights and biases of the model's own

    def fit(self, X: Any, y: Any, sample_weight: Any = None, eval_set: tuple[Any, Any] | None = None) -> Self:
        """Fit the network to X and y.

        Parameters
        ----------
        X : array_like or sparse (n_samples, n_features)
            float32 is computed in as it comes, anything else as float64.
        y : array_like (n_samples,) or (n_samples, n_outputs)
        sample_weight : array_like (n_samples,) or None
            Non-negative.
        eval_set : (Xv, yv) or None
            Its loss after every epoch goes to ``validation_loss_curve_``, and the weights that had the least are
            restored at the end. With ``early_stopping`` it is scored in place of a part of X that is held out.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter does not fit; the estimator is as it was then.
        """
        return self._fit(X, y, sample_weight, eval_set, incremental=False)

    def _check_solver(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError("partial_fit is only available for stochastic optimizers. lbfgs is not stochastic.")
        return True

    def _fit(self, X: Any, y: Any, sample_weight: Any, eval_set: Any, incremental: bool) -> Self:
        before = dict(self.__dict__)
        try:  # until training begins, an error leaves the estimator as it was
            self._validate_params()
            callbacks = listed(self.callbacks or ())
            self._random_state = check_random_state(self.random_state)
            goes_on = incremental or self.warm_start
            X, y = self._validated(X, y, reset=not (goes_on and hasattr(self, "_model")))
            target = self._encoded(y, goes_on, exactly=self.warm_start)
            weight = self._weights(X, y, sample_weight, incremental)
            self._begin(X, goes_on)
            data, held_out = self._data(X, target, weight), self._held_out(eval_set)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        message = (
            "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
        )
        try:
            with _threads(self.n_threads), self._model._alone():
                if self.solver == "lbfgs":
                    self._fit_lbfgs(data, callbacks)
                else:
                    self._fit_stochastic(data, held_out, callbacks, incremental)
        except DivergenceError as error:
            raise ValueError(f"{message}be preprocessed: {error}") from error
        if not np.isfinite(self._model.parameters().values).all():
            raise ValueError(f"{message}be preprocessed.")
        return self

    # --- doors --------------------------------------------------------------------------------------------------------

    def _validated(self, X: Any, y: Any, reset: bool) -> tuple[Any, Array]:
        dtype = np.float64 if self.solver == "lbfgs" else [np.float64, np.float32]
        regression = isinstance(self, RegressorMixin)
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=dtype,
            order="C",
            multi_output=True,
            y_numeric=regression,
            reset=reset,
        )
        if scipy.sparse.issparse(y):
            y = y.toarray()
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _encoded(self, y: Array, goes_on: bool, exactly: bool = False) -> Array:
        """y as the targets (n,) or (n, n_outputs_) of the loss; learns what there is to know about it."""
        raise NotImplementedError

    def _weights(self, X: Any, y: Array, sample_weight: Any, incremental: bool) -> Array | None:
        if sample_weight is None:
            return None
        weight: Array = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        if not weight.any():
            raise ValueError("sample_weight: expected a positive weight among them, got zeros only")
        return weight

    def _data(self, X: Any, target: Array, weight: Array | None) -> _Data:
        """Everything in the network's dtype, but class labels (n,), which are integers."""
        dtype = self._model.dtype
        target = np.ascontiguousarray(target, np.int64 if target.ndim == 1 else dtype)
        return _Data(X.astype(dtype, copy=False), target, None if weight is None else np.asarray(weight, dtype))

    def _held_out(self, eval_set: Any) -> _Data | None:
        if eval_set is None:
            return None
        if not isinstance(eval_set, (tuple, list)) or len(eval_set) != 2:
            raise TypeError("eval_set: expected a pair (Xv, yv)")
        if self.solver == "lbfgs":
            raise ValueError("eval_set: expected none with solver='lbfgs', which has no epochs")
        try:
            X, y = self._validated(eval_set[0], eval_set[1], reset=False)
            return self._data(X, self._encoded(y, goes_on=True), None)
        except ValueError as error:
            raise ValueError(f"eval_set: {error}") from error

    def _per_layer(self, name: str, value: Any, layers: int) -> list[Any]:
        values = [value] * layers if np.ndim(value) == 0 else list(value)
        if len(values) != layers:
            raise ValueError(f"{name}: expected one or, for {layers} hidden layers, {layers} of them, got {value!r}")
        return values

    # --- the network --------------------------------------------------------------------------------------------------

    def _begin(self, X: Any, goes_on: bool) -> None:
        """Make the network, or take up the one there is, with what the user has put into ``coefs_``."""
        hidden = np.atleast_1d(np.asarray(self.hidden_layer_sizes, dtype=int)).tolist()
        if any(size < 1 for size in hidden):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        widths = [X.shape[1], *hidden, self.n_outputs_]
        if goes_on and hasattr(self, "_model"):
            if [array.shape for array in self._live[0]] != list(pairwise(widths)):
                raise ValueError(f"hidden_layer_sizes: expected those of the fit that this one continues, got {hidden}")
            self._sync()
            return
        given = {name: getattr(self, name) for name in ("coefs_", "intercepts_") if goes_on and hasattr(self, name)}
        self._model = self._network(widths, X.dtype)
        self._bind()
        self.__dict__.update(given)
        self._sync()
        self.n_layers_, self.n_iter_, self.t_ = len(widths), 0, 0
        self._optimizer: Optimizer | None = None
        self._best: tuple[Array, Array] | None = None
        self._no_improvement_count, self._least_validation_loss, self._stopped = 0, np.inf, False
        if self.solver != "lbfgs":
            self.loss_curve_: list[float] = []
            self.validation_loss_curve_: list[float] = []
            self.best_loss_ = None if self.early_stopping else np.inf
            self.validation_scores_ = [] if self.early_stopping else None
            self.best_validation_score_ = -np.inf if self.early_stopping else None

    def _network(self, widths: list[int], dtype: Any) -> Sequential:
        """The layers, with scikit-learn's initial weights: uniform (Glorot & Bengio 2010), biases too."""
        names = [
            choice("activation", name, _ACTIVATIONS)
            for name in self._per_layer("activation", self.activation, len(widths) - 2)
        ]
        rates = [real_number("dropout", p, 0, 1) for p in self._per_layer("dropout", self.dropout, len(widths) - 2)]
        if self.solver == "lbfgs" and (self.batch_norm or any(rates)):
            raise ValueError("solver: expected 'sgd' or 'adam' with dropout or batch_norm, got 'lbfgs'")
        layers: list[Layer] = []
        for (inputs, outputs), name, rate in zip(pairwise(widths), names, rates, strict=False):
            activation = _ACTIVATIONS[name]
            layers.append(Dense(inputs, outputs, activation=None if self.batch_norm else activation))
            if self.batch_norm:
                layers += [BatchNorm(outputs), *([Activation(activation)] if activation else [])]
            if rate:
                layers.append(Dropout(rate))
        layers.append(Dense(widths[-2], widths[-1]))
        random = self._random_state
        model = Sequential(layers, dtype=np.dtype(dtype).name, seed=random.randint(2**31) if any(rates) else 0)
        names.append(names[-1] if names else self.activation)
        for layer, name in zip(_dense(model), names, strict=True):
            bound = np.sqrt((2 if name in ("logistic", "sigmoid") else 6) / (layer.in_features + layer.out_features))
            layer.weight = random.uniform(-bound, bound, (layer.in_features, layer.out_features))
            layer.bias = random.uniform(-bound, bound, layer.out_features)
        return model

    def _bind(self) -> None:
        """``coefs_`` and ``intercepts_`` are the network's own arrays."""
        dense = _dense(self._model)
        self._live = [layer.weight for layer in dense], [layer.bias for layer in dense if layer.bias is not None]
        self.coefs_, self.intercepts_ = list(self._live[0]), list(self._live[1])

    def _sync(self) -> None:
        """Arrays that the user has put in their place become the network's weights."""
        given = {}
        for name, live in zip(("coefs_", "intercepts_"), self._live, strict=True):
            arrays = getattr(self, name)
            if len(arrays) != len(live):
                raise ValueError(f"{name}: expected {len(live)} arrays, got {len(arrays)}")
            for i, (array, own) in enumerate(zip(arrays, live, strict=True)):
                if array is not own:
                    given[name, i] = own, shaped(f"{name}[{i}]", array, own.shape, own.dtype)
        for own, array in given.values():
            own[:] = array
        if given:
            self.coefs_, self.intercepts_ = list(self._live[0]), list(self._live[1])

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if "_model" not in state:
            return state
        self._sync()
        return {name: value for name, value in state.items() if name not in ("coefs_", "intercepts_", "_live")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_model"):
            self._bind()

    def _outputs(self, X: Any) -> Array:
        """What the last layer gives (n, n_outputs_) for an X that was checked."""
        if not scipy.sparse.issparse(X):
            return self._model.predict(X)
        data = _Data(X, np.empty(X.shape[0]), None)
        return np.concatenate([self._model.predict(part[0]) for part, _ in data.blocks(np.arange(X.shape[0]), 1)])

    def _checked_outputs(self, X: Any) -> Array:
        check_is_fitted(self, "n_layers_")
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], order="C", reset=False)
        self._sync()
        with _threads(self.n_threads):
            return self._outputs(X)

    # --- lbfgs --------------------------------------------------------------------------------------------------------

    def _fit_lbfgs(self, data: _Data, callbacks: list[Callback]) -> None:
        """L-BFGS-B (Zhu et al. 1997) over all samples at once, by SciPy."""
        X, target, weight = data
        X = X.toarray() if scipy.sparse.issparse(X) else X
        model, parameters, objective = self._model, self._model.parameters(), self._objective(data)
        decay = np.full(parameters.values.size, self.alpha / (len(X) if weight is None else weight.sum()))
        for low, high in parameters.vectors:
            decay[low:high] = 0

        def loss_and_gradient(values: Array) -> tuple[float, Array]:
            parameters.values[:] = values
            loss, dpred = objective.criterion.compute(model._forward(X, True), target, weight)
            model._backward(dpred)
            penalty = decay * values
            self.loss_ = objective.report * loss + objective.constant + 0.5 * values @ penalty
            return objective.gradient * loss + 0.5 * values @ penalty, objective.gradient * parameters.grads + penalty

        def end_iteration(intermediate_result: scipy.optimize.OptimizeResult) -> None:
            self.n_iter_ += 1
            if self.verbose:
                print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
            for callback in callbacks:
                callback.on_epoch_end(self.n_iter_ - 1, {"loss": self.loss_})
            if model.stop_training:
                raise StopIteration

        self.n_iter_ = 0
        begin(callbacks, model, None, ["loss"])
        result = scipy.optimize.minimize(
            loss_and_gradient,
            parameters.values.copy(),
            method="L-BFGS-B",
            jac=True,
            callback=end_iteration,
            options={"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol},
        )
        self.n_iter_ = min(result.nit, self.max_iter)
        loss_and_gradient(result.x)
        for callback in reversed(callbacks):
            callback.on_train_end()
        if result.status != 0 and not model.stop_training:
            warnings.warn(
                f"lbfgs failed to converge after {self.n_iter_} iteration(s) (status={result.status}): "
                f"{result.message}. Increase the number of iterations (max_iter) or scale the data.",
                ConvergenceWarning,
                stacklevel=3,
            )

    # --- sgd and adam -------------------------------------------------------------------------------------------------

    def _fit_stochastic(
        self, data: _Data, held_out: _Data | None, callbacks: list[Callback], incremental: bool
    ) -> None:
        rows = np.arange(len(data.target))
        if self.early_stopping and held_out is None:
            rows, held_out = self._split(data)
        batch_size = min(200, len(rows)) if self.batch_size == "auto" else self.batch_size
        if batch_size > len(rows):
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=4
            )
            batch_size = len(rows)
        objective = self._objective(data)
        optimizer = self._begin_optimizer(objective, incremental)
        figures = ["loss", "lr", "samples_per_second", *([] if held_out is None else ["val_loss"])]
        begin(callbacks, self._model, optimizer, figures)
        self.n_iter_ = 0
        try:
            for epoch in range(1 if incremental else self.max_iter):
                if self.shuffle:
                    order = np.arange(len(rows))
                    self._random_state.shuffle(order)
                    rows = rows[order]
                start = time.perf_counter()
                self.loss_ = self._epoch(data, rows, batch_size, objective, optimizer)
                logs = {"loss": self.loss_, "lr": self._rate}
                logs["samples_per_second"] = len(rows) / (time.perf_counter() - start)
                self.n_iter_, self.t_ = epoch + 1, self.t_ + len(rows)
                self._model.epochs += 1
                self.loss_curve_.append(self.loss_)
                if self.verbose:
                    print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
                if held_out is not None:
                    logs["val_loss"] = self._evaluate(held_out, objective)
                self._judge(logs.get("val_loss"))
                for callback in callbacks:
                    callback.on_epoch_end(epoch, logs)
                if self.solver == "sgd" and self.learning_rate == "invscaling":
                    self._set_rate(optimizer, self.learning_rate_init / (self.t_ + 1) ** self.power_t, objective)
                if self._no_improvement_count > self.n_iter_no_change and self._gives_up(optimizer, objective):
                    self._stopped = self.early_stopping
                    break
                if self._model.stop_training:
                    break
                if epoch + 1 == self.max_iter and not incremental:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                        "hasn't converged yet.",
                        ConvergenceWarning,
                        stacklevel=4,
                    )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        for callback in reversed(callbacks):
            callback.on_train_end()
        if self._best is not None and (self._stopped or not incremental):
            self._model.restore(self._best)

    def _split(self, data: _Data) -> tuple[Array, _Data]:
        """The rows to train on, and the samples that are held out; stratified for two classes, as in scikit-learn."""
        two_classes = isinstance(self, ClassifierMixin) and self.n_outputs_ == 1
        rows, held_out = train_test_split(
            np.arange(len(data.target)),
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=data.target if two_classes else None,
        )
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return rows, _Data(*taken(data, held_out))

    def _begin_optimizer(self, objective: _Objective, incremental: bool) -> Optimizer:
        """An optimizer with the present parameters, and the state of the one before if it goes on with the network."""
        parameters, before = self._model.parameters(), self._optimizer
        if self.solver == "sgd":
            nesterov = self.nesterovs_momentum and self.momentum > 0
            optimizer: Optimizer = SGD(
                parameters, self.learning_rate_init, self.momentum, nesterov=nesterov, decay_bias=False
            )
        else:  # its steps do not depend on the gradient's scale, but for epsilon
            optimizer = _Adam(
                parameters,
                self.learning_rate_init,
                (self.beta_1, self.beta_2),
                self.epsilon / objective.gradient,
                decay_bias=False,
            )
        if type(before) is type(optimizer):
            optimizer.steps, optimizer._state = before.steps, before._state
        else:
            self._rate = self.learning_rate_init
        rate = self.learning_rate_init
        if incremental and self.solver == "sgd" and self.learning_rate != "constant":
            rate = self._rate
        self._set_rate(optimizer, rate, objective)
        self._optimizer = optimizer
        return optimizer

    def _set_rate(self, optimizer: Optimizer, rate: float, objective: _Objective) -> None:
        """Set the learning rate.

        scikit-learn's velocity keeps the rates that went into it. PyTorch's, which is the core's, is multiplied with
        the rate of now, and so is rescaled.
        """
        if "velocity" in optimizer._state:
            optimizer._state["velocity"] *= self._rate / rate
        self._rate = rate
        optimizer.schedule = schedules.Constant(rate * (objective.gradient if self.solver == "sgd" else 1))

    def _epoch(self, data: _Data, rows: Array, batch_size: int, objective: _Objective, optimizer: Optimizer) -> float:
        """One pass over the rows in their order; the loss with its penalty, averaged over the batches."""
        recipe = objective.criterion.recipe(self.n_outputs_, self._model.dtype)
        total, squares = 0.0, self._squares()
        for samples, order in data.blocks(rows, batch_size):
            weight, count = samples[2], len(samples[1] if order is None else order)
            if weight is not None and order is not None:
                weight = weight[order]
            if weight is None:
                penalties = _equal_penalties(self.alpha, count, batch_size)
            else:
                penalties = _penalties(self.alpha, weight, batch_size)
            decays = penalties / objective.gradient if self.alpha else None
            optimizer.weight_decay = float(self.alpha > 0)  # that there is some; how much is another in every step
            loss, _ = self._model._steps_in_core(
                samples, recipe, optimizer, order, 0, len(penalties), batch_size, decays
            )
            before, squares = squares, self._squares()
            # the weights' squares change little meanwhile: the mean of both ends stands for every step
            penalty = float(_sizes(count, batch_size) @ penalties) * (before + squares) / 4
            total += objective.report * loss + count * objective.constant + penalty
        return total / len(rows)

    def _squares(self) -> float:
        return sum(float(np.vdot(w, w)) for w in self._live[0]) if self.alpha else 0.0

    def _evaluate(self, held_out: _Data, objective: _Objective) -> float:
        """The loss of what is held out; for early stopping its score is taken down too."""
        pred = self._outputs(held_out.X)
        loss = objective.report * objective.criterion.compute(pred, *held_out[1:])[0] + objective.constant
        self.validation_loss_curve_.append(loss)
        if self.verbose:
            print(f"Validation loss: {loss:.6f}")
        if self.early_stopping:
            score = self._score(pred, *held_out[1:]) if np.isfinite(pred).all() else np.nan
            self.validation_scores_.append(score)
            if self.verbose:
                print(f"Validation score: {score:f}")
        return loss

    def _judge(self, validation_loss: float | None) -> None:
        """Count the epochs without an improvement by tol, and keep the weights that did best on what is held out."""
        if self.early_stopping:
            score = self.validation_scores_[-1]
            improved = not score < self.best_validation_score_ + self.tol
            if score > self.best_validation_score_:
                self.best_validation_score_, self._best = score, self._model.snapshot()
        else:
            improved = not self.loss_ > self.best_loss_ - self.tol
            self.best_loss_ = min(self.best_loss_, self.loss_)
            if validation_loss is not None and validation_loss < self._least_validation_loss:
                self._least_validation_loss, self._best = validation_loss, self._model.snapshot()
        self._no_improvement_count = 0 if improved else self._no_improvement_count + 1

    def _gives_up(self, optimizer: Optimizer, objective: _Objective) -> bool:
        """Whether training ends for want of improvement; an adaptive learning rate is made smaller first."""
        what = "Validation score" if self.early_stopping else "Training loss"
        message = f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
        if self.solver == "adam" or self.learning_rate != "adaptive":
            message, stops = f"{message} Stopping.", True
        elif self._rate <= 1e-6:
            message, stops = f"{message} Learning rate too small. Stopping.", True
        else:
            self._set_rate(optimizer, self._rate / 5, objective)
            self._no_improvement_count = 0
            message, stops = f"{message} Setting learning rate to {self._rate:f}", False
        if self.verbose:
            print(message)
        return stops

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, eval_set: Any) -> Self:
        if getattr(self, "_stopped", False):
            warnings.warn("partial_fit: early stopping has ended the training; fit starts anew", stacklevel=3)
            return self
        return self._fit(X, y, sample_weight, eval_set, incremental=True)

    def _objective(self, data: _Data) -> _Objective:
        """The loss and how it relates to scikit-learn's."""
        raise NotImplementedError

    def _score(self, pred: Array, target: Array, weight: Array | None) -> float:
        """scikit-learn's score of the network's outputs."""
        raise NotImplementedError

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _stochastic(method: _Method) -> _Method:
    """The method, which an estimator has with a stochastic solver alone."""
    there: _Method = available_if(_MLP._check_solver)(method)
    return there


def _dense(model: Sequential) -> list[Dense]:
    return [layer for layer in model.layers if isinstance(layer, Dense)]


_CONSTRAINTS: dict[str, Any] = {
    "activation": [str, "array-like"],
    "momentum": [Interval(Real, 0, 1, closed="left")],
    "dropout": [Interval(Real, 0, 1, closed="left"), "array-like"],
    "batch_norm": ["boolean"],
    "n_threads": [Interval(Integral, 1, MAX_THREADS, closed="both"), None],
    "callbacks": [list, tuple, None],
}


class MLPClassifier(ClassifierMixin, _MLP):  # type: ignore[misc]
    """scikit-learn's MLPClassifier on fastbp's core.

    The parameters up to ``max_fun`` and the attributes that they lead to are those of
    ``sklearn.neural_network.MLPClassifier``. Two classes have one logistic output, more a softmax, and an indicator
    matrix as y one logistic output per label.

    Parameters
    ----------
    activation : str or sequence of str
        Of all hidden layers, or one for each: ``identity``, ``logistic``, ``tanh``, ``relu``, or any other of
        ``fb.Dense``.
    dropout : float or sequence of float
        The share of each hidden layer's outputs that is dropped in training (Srivastava et al. 2014).
    batch_norm : bool
        Whether to normalise every hidden layer before its activation (Ioffe & Szegedy 2015).
    class_weight : {"balanced"}, dict, list of dict or None
        Weights of the classes, which multiply the samples', as in scikit-learn's other classifiers.
    n_threads : int or None
        How many threads to use; None is ``fb.get_num_threads()``.
    callbacks : list of fb.callbacks.Callback or None
        Called after every epoch, or iteration of lbfgs.

    Attributes
    ----------
    coefs_, intercepts_ : list of ndarray
        The network's own weights (I, O) and biases (O,): writing into them, or putting other arrays in their place,
        changes the network. With ``warm_start`` or ``partial_fit`` they may be set before the first fit too.
    validation_loss_curve_ : list of float
        After every epoch, the loss of ``eval_set`` or of what early stopping holds out, without the penalty.

    Notes
    -----
    ``warm_start`` keeps the optimizer's state too. ``partial_fit`` with ``early_stopping`` scores ``eval_set``, or a
    part of every call's samples; when that has not improved for ``n_iter_no_change`` calls, the best weights are
    restored and further calls change nothing.

    Examples
    --------
    >>> from fastbp.sklearn import MLPClassifier
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = MLPClassifier((64, 32), early_stopping=True, dropout=0.1, random_state=0).fit(X / 16, y)
    >>> clf.predict(X[:1] / 16)
    array([0])
    """

    __module__ = "fastbp.sklearn"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **sklearn.neural_network.MLPClassifier._parameter_constraints,
        **_CONSTRAINTS,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str | Sequence[str] = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: float | Sequence[float] = 0.0,
        batch_norm: bool = False,
        class_weight: Any = None,
        n_threads: int | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> None:
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})

    @_stochastic
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None, eval_set: Any = None) -> Self:
        """One epoch over X and y.

        Parameters
        ----------
        X, y, sample_weight, eval_set
            As for ``fit``.
        classes : array_like (n_classes,) or None
            All there will be; needed in the first call.

        Returns
        -------
        self
        """
        first = _check_partial_fit_first_call(self, classes)
        try:
            return self._partial_fit(X, y, sample_weight, eval_set)
        except BaseException:
            if first and not hasattr(self, "_model"):
                del self.classes_
            raise

    def _encoded(self, y: Array, goes_on: bool, exactly: bool = False) -> Array:
        multilabel = type_of_target(y, input_name="y", raise_unknown=True) == "multilabel-indicator"
        if y.ndim == 2 and not multilabel:
            raise ValueError(
                f"y: multioutput target data is not supported, got shape {y.shape}; expected labels (n,) or 0 and 1"
            )
        check_classification_targets(y)
        classes = unique_labels(y)
        if not goes_on or not hasattr(self, "classes_"):
            self.classes_ = classes
        elif exactly and set(classes) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {classes}"
            )
        elif len(np.setdiff1d(classes, self.classes_)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
            )
        if multilabel:
            self.n_outputs_, self.out_activation_ = y.shape[1], "logistic"
            return y
        if len(self.classes_) <= 2:
            self.n_outputs_, self.out_activation_ = 1, "logistic"
            return (y[:, None] == self.classes_[1:2]) if len(self.classes_) == 2 else np.zeros((len(y), 1))
        self.n_outputs_, self.out_activation_ = len(self.classes_), "softmax"
        return np.searchsorted(self.classes_, y)

    def _weights(self, X: Any, y: Array, sample_weight: Any, incremental: bool) -> Array | None:
        weight = super()._weights(X, y, sample_weight, incremental)
        if self.class_weight is None:
            return weight
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit, which sees a part of the samples; give the "
                "weights that sklearn.utils.class_weight.compute_class_weight has for all of them"
            )
        of_class: Array = compute_sample_weight(self.class_weight, y)
        return of_class if weight is None else of_class * weight

    def _objective(self, data: _Data) -> _Objective:
        if self.out_activation_ == "softmax":
            return _Objective(losses.CrossEntropy(), 1, 1)
        return _Objective(losses.BinaryCrossEntropy(), self.n_outputs_, self.n_outputs_)

    def _score(self, pred: Array, target: Array, weight: Array | None) -> float:
        decided = pred.argmax(axis=1) if self.out_activation_ == "softmax" else scipy.special.expit(pred) > 0.5
        return float(accuracy_score(target, decided, sample_weight=weight))

    def predict_proba(self, X: Any) -> Array:
        """The probabilities (n_samples, n_classes) of the classes, or (n_samples, n_labels) of the labels."""
        outputs = self._checked_outputs(X)
        if self.out_activation_ == "softmax":
            return np.asarray(scipy.special.softmax(outputs, axis=1))
        p = np.asarray(scipy.special.expit(outputs))
        return np.hstack([1 - p, p]) if self.n_outputs_ == 1 else p

    def predict_log_proba(self, X: Any) -> Array:
        """Their logarithms, precise where the probabilities are too small to be told from zero."""
        outputs = self._checked_outputs(X)
        if self.out_activation_ == "softmax":
            return np.asarray(scipy.special.log_softmax(outputs, axis=1))
        log_p = np.asarray(scipy.special.log_expit(outputs))
        return np.hstack([np.asarray(scipy.special.log_expit(-outputs)), log_p]) if self.n_outputs_ == 1 else log_p

    def predict(self, X: Any) -> Array:
        """The classes (n_samples,), or the labels (n_samples, n_labels) as 0 and 1."""
        p = self.predict_proba(X)
        if self.out_activation_ == "logistic" and self.n_outputs_ > 1:
            return (p > 0.5).astype(int)
        return np.asarray(self.classes_[p[:, : len(self.classes_)].argmax(axis=1)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, _MLP):  # type: ignore[misc]
    """scikit-learn's MLPRegressor on fastbp's core.

    The parameters up to ``max_fun`` and the attributes that they lead to are those of
    ``sklearn.neural_network.MLPRegressor``; the others are those of ``MLPClassifier`` here.

    Parameters
    ----------
    loss : {"squared_error", "poisson"}
        Half the squared error, or half the Poisson deviance of ``exp(output)``, which needs ``y >= 0``.

    Examples
    --------
    >>> from fastbp.sklearn import MLPRegressor
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = MLPRegressor(solver="lbfgs", max_iter=1000, random_state=0).fit(X, y)
    >>> reg.predict(X[:2]).shape
    (2,)
    """

    __module__ = "fastbp.sklearn"

    _parameter_constraints: ClassVar[dict[str, Any]] = (
        sklearn.neural_network.MLPRegressor._parameter_constraints | _CONSTRAINTS
    )

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str | Sequence[str] = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: float | Sequence[float] = 0.0,
        batch_norm: bool = False,
        n_threads: int | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> None:
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})

    @_stochastic
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, eval_set: Any = None) -> Self:
        """One epoch over X and y; the arguments are those of ``fit``."""
        return self._partial_fit(X, y, sample_weight, eval_set)

    def _encoded(self, y: Array, goes_on: bool, exactly: bool = False) -> Array:
        y = y.reshape(len(y), -1)
        if self.loss == "poisson" and y.min() < 0:
            raise ValueError(f"y: expected non-negative values with loss='poisson', got {y.min()}")
        if goes_on and hasattr(self, "_model") and y.shape[1] != self.n_outputs_:
            raise ValueError(f"y: expected {self.n_outputs_} outputs as before, got {y.shape[1]}")
        self.n_outputs_, self.out_activation_ = y.shape[1], "exp" if self.loss == "poisson" else "identity"
        return y

    def _objective(self, data: _Data) -> _Objective:
        outputs = self.n_outputs_
        if self.loss == "squared_error":
            return _Objective(losses.MSE(), outputs / 2, 0.5)
        y = data.target.astype(np.float64)
        constant = np.average(scipy.special.xlogy(y, y) - y, axis=0, weights=data.weight).sum()
        return _Objective(losses.Poisson(), outputs, outputs, float(constant))

    def _score(self, pred: Array, target: Array, weight: Array | None) -> float:
        return float(r2_score(target, np.exp(pred) if self.loss == "poisson" else pred, sample_weight=weight))

    def predict(self, X: Any) -> Array:
        """The values (n_samples,), or (n_samples, n_outputs) if there are several."""
        outputs = self._checked_outputs(X)
        if self.loss == "poisson":
            outputs = np.exp(outputs)
        return outputs[:, 0] if self.n_outputs_ == 1 else outputs
