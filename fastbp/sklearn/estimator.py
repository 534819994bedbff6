"""What classifier and regressor share: validation, the network with ``coefs_`` and ``intercepts_``, and pickling."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Self, TypeVar

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import check_scoring
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fastbp.core.threads import MAX_THREADS
from fastbp.data.arrays import Array, check_weights
from fastbp.divergence import DivergenceError
from fastbp.sklearn.lbfgs import fit_lbfgs
from fastbp.sklearn.network import Coefficients, build_network, rebuilt_network
from fastbp.sklearn.objective import Objective
from fastbp.sklearn.stochastic import SolverState, StochasticSolver
from fastbp.sklearn.task import Data, Task, predict
from fastbp.training import Sequential
from fastbp.training.callbacks import check_callbacks

_Method = TypeVar("_Method", bound=Callable[..., Any])

#: Of the parameters that scikit-learn does not have, or not like this.
CONSTRAINTS: dict[str, Any] = {
    "activation": [str, "array-like"],
    "momentum": [Interval(Real, 0, 1, closed="left")],
    "dropout": [Interval(Real, 0, 1, closed="left"), "array-like"],
    "batch_norm": ["boolean"],
    "n_threads": [Interval(Integral, 1, MAX_THREADS, closed="both"), None],
    "callbacks": [list, tuple, None],
    "scoring": [str, callable, None],
}


class BaseMLP(BaseEstimator):  # type: ignore[misc]
    """The estimator without what depends on the kind of targets."""

    n_outputs_: int
    scoring: Any
    _model: Sequential
    _coefficients: Coefficients
    _solver_state: SolverState

    def fit(self, X: Any, y: Any, sample_weight: Any = None, eval_set: tuple[Any, Any] | None = None) -> Self:
        """Fit the network to X and y.

        Parameters
        ----------
        X : array_like or sparse (n_samples, n_features)
            float32 is computed in as it comes, anything else as float64.
        y : array_like (n_samples,) or (n_samples, n_outputs)
        sample_weight : array_like (n_samples,) or None
            Non-negative.
        eval_set : (Xv, yv), (Xv, yv, sample_weight) or None
            Its loss after every epoch goes to ``validation_loss_curve_``, and the weights that had the least are
            restored at the end. With ``early_stopping`` it is scored in place of a part of X that is held out. The
            weights of classes are those of the training samples.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter does not fit; the estimator is as it was then.
        """
        return self._fit(X, y, sample_weight, eval_set, incremental=False)

    def _fit(self, X: Any, y: Any, sample_weight: Any, eval_set: Any, incremental: bool) -> Self:
        """What ``fit`` and ``partial_fit`` call, both directly: warnings point at the line that called them."""
        if incremental and hasattr(self, "_solver_state") and self._stopped_early():
            warnings.warn("partial_fit: early stopping has ended the training; fit starts anew", stacklevel=3)
            return self
        if incremental and self.early_stopping and eval_set is None:
            raise ValueError("partial_fit does not support early_stopping=True without an eval_set")
        before = dict(self.__dict__)
        try:  # until training begins, an error leaves the estimator as it was
            self._validate_params()
            callbacks = check_callbacks(self.callbacks or ())
            task = self._prepare(X, y, sample_weight, eval_set, incremental)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        message = "Solver produced non-finite parameter weights. The input data may contain large values and need to be"
        message += " preprocessed"
        try:
            with self._model.model.training():
                if self.solver == "lbfgs":
                    fit_lbfgs(task, settings=self, fitted=self, callbacks=callbacks)
                else:
                    self._solver_state = self._solver_state.of_next_fit(incremental)
                    solver = StochasticSolver(task, self, self, self._solver_state, incremental)
                    solver.run(callbacks)
                    # as scikit-learn calls them: the optimizer has a ``learning_rate``
                    self._optimizer = self._solver_state
                    self._no_improvement_count = self._solver_state.epochs_without_improvement
        except DivergenceError as error:
            raise ValueError(f"{message}: {error}") from error
        if not np.isfinite(self._model.parameters().values).all():
            raise ValueError(f"{message}.")
        return self

    def _stopped_early(self) -> bool:
        """Whether earlier calls of partial_fit have ended the training."""
        return self._solver_state.incremental and self._solver_state.stopped_early

    # --- validation ---------------------------------------------------------------------------------------------------

    def _prepare(self, X: Any, y: Any, sample_weight: Any, eval_set: Any, incremental: bool) -> Task:
        """Check the arguments and the parameters, and make the network or take up the one there is."""
        self._random_state = check_random_state(self.random_state)
        continues = incremental or self.warm_start
        X, y = self._check_data(X, y, reset=not (continues and hasattr(self, "_model")))
        target = self._encode_target(y, continues, same_classes=self.warm_start)
        weight = self._check_sample_weight(X, y, sample_weight, incremental)
        self._prepare_network(X, continues, incremental)
        data, validation = self._cast(X, target, weight), self._check_eval_set(eval_set)
        rows = np.arange(len(data.target))
        if self.early_stopping and validation is None and self.solver != "lbfgs":
            rows, validation = self._hold_out(data)
        return Task(self._model, self._objective(data), data, rows, validation, self._score, self._random_state)

    def _check_data(self, X: Any, y: Any, reset: bool) -> tuple[Any, Array]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=np.float64 if self.solver == "lbfgs" else [np.float64, np.float32],
            order="C",
            multi_output=True,
            y_numeric=isinstance(self, RegressorMixin),
            reset=reset,
        )
        if scipy.sparse.issparse(y):
            y = y.toarray()
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _encode_target(self, y: Array, continues: bool, same_classes: bool = False) -> Array:
        """y as the targets (n,) or (n, n_outputs_) of the loss; sets ``n_outputs_`` and the like."""
        raise NotImplementedError

    def _check_sample_weight(self, X: Any, y: Array, sample_weight: Any, incremental: bool) -> Array | None:
        return self._apply_class_weight(self._given_weight(X, sample_weight), y, incremental)

    def _given_weight(self, X: Any, sample_weight: Any) -> Array | None:
        if sample_weight is None:
            return None
        weight: Array = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weight.any():
            raise ValueError("sample_weight: expected a positive weight among them, got zeros only")
        return weight

    def _apply_class_weight(self, weight: Array | None, y: Array, incremental: bool) -> Array | None:
        return weight

    def _cast(self, X: Any, target: Array, weight: Array | None) -> Data:
        """Everything in the network's dtype, but class labels (n,), which are integers."""
        dtype = self._model.dtype
        if weight is not None:
            weight = check_weights("sample_weight", weight, X.shape[0], dtype, part=True)
        target = np.ascontiguousarray(target, np.int64 if target.ndim == 1 else dtype)
        return Data(X.astype(dtype, copy=False), target, weight)

    def _check_eval_set(self, eval_set: Any) -> Data | None:
        if eval_set is None:
            return None
        if not isinstance(eval_set, (tuple, list)) or len(eval_set) not in (2, 3):
            raise TypeError("eval_set: expected (Xv, yv) or (Xv, yv, sample_weight)")
        if self.solver == "lbfgs":
            raise ValueError("eval_set: expected none with solver='lbfgs', which has no epochs")
        try:
            X, y = self._check_data(eval_set[0], eval_set[1], reset=False)
            target = self._encode_target(y, continues=True)
            return self._cast(X, target, self._eval_weight(X, y, *eval_set[2:]))
        except ValueError as error:
            raise ValueError(f"eval_set: {error}") from error

    def _eval_weight(self, X: Any, y: Array, sample_weight: Any = None) -> Array | None:
        """The weights of eval_set's samples."""
        return self._given_weight(X, sample_weight)

    def _hold_out(self, data: Data) -> tuple[Array, Data]:
        """The rows to train on, and the validation data; stratified for two classes, as in scikit-learn."""
        two_classes = isinstance(self, ClassifierMixin) and self.n_outputs_ == 1
        try:
            rows, held_out = train_test_split(
                np.arange(len(data.target)),
                random_state=self._random_state,
                test_size=self.validation_fraction,
                stratify=data.target.astype(bool) if two_classes else None,
            )
        except ValueError as error:
            if two_classes and "least populated" in str(error):  # scikit-learn says True of the second class
                counts = ", ".join(f"{c!r}: {n}" for c, n in zip(self.classes_.tolist(), _counts(data), strict=True))
                raise ValueError(f"{error}; y has of each class {{{counts}}}") from error
            raise
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return rows, data.take(held_out)

    def _objective(self, data: Data) -> Objective:
        """The loss and how it relates to scikit-learn's."""
        raise NotImplementedError

    def _score(self, pred: Array, data: Data) -> float:
        """The score by which early stopping goes: ``scoring``, or scikit-learn's own, of the network's outputs."""
        if self.scoring is None:
            return self._score_outputs(pred, data.target, data.weight)
        weighted = {} if data.weight is None else {"sample_weight": data.weight}
        return float(check_scoring(self, self.scoring)(self, data.X, self._decode_target(data.target), **weighted))

    def _score_outputs(self, pred: Array, target: Array, weight: Array | None) -> float:
        """scikit-learn's score of the network's outputs."""
        raise NotImplementedError

    def _decode_target(self, target: Array) -> Array:
        """What the user gave as y, from the targets of the loss."""
        raise NotImplementedError

    # --- the network --------------------------------------------------------------------------------------------------

    def _prepare_network(self, X: Any, continues: bool, incremental: bool) -> None:
        """Make the network, or take up the one there is, with what the user has put into ``coefs_``."""
        sizes = np.atleast_1d(np.asarray(self.hidden_layer_sizes))
        if sizes.ndim != 1 or (sizes.size and sizes.dtype.kind not in "iu"):
            raise ValueError(f"hidden_layer_sizes: expected integers, got {self.hidden_layer_sizes!r}")
        hidden = sizes.astype(int).tolist()
        if any(size < 1 for size in hidden):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        widths = [X.shape[1], *hidden, self.n_outputs_]
        if continues and hasattr(self, "_model"):
            if [array.shape for array in self._coefficients.weights] != list(pairwise(widths)):
                raise ValueError(f"hidden_layer_sizes: expected those of the fit that this one continues, got {hidden}")
            self._read_coefs()
            self._take_up_network(widths)
        else:
            self._make_network(widths, X.dtype, continues)
        if self.solver != "lbfgs" and (not continues or not hasattr(self, "loss_curve_")):
            self._reset_curves()
        if not incremental or not self._solver_state.incremental:
            self._reset_best()

    def _make_network(self, widths: list[int], dtype: np.dtype[Any], continues: bool) -> None:
        given = {name: getattr(self, name) for name in ("coefs_", "intercepts_") if continues and hasattr(self, name)}
        self._model = build_network(widths, self, dtype, self._random_state)
        self._bind_coefs()
        self.__dict__.update(given)
        self._read_coefs()
        self._solver_state = SolverState()
        self.n_layers_, self.n_iter_, self.t_ = len(widths), 0, 0

    def _take_up_network(self, widths: list[int]) -> None:
        """Where parameters ask for other layers than before, make these, with the weights and biases there are."""
        model = rebuilt_network(self._model, widths, self)
        if model is self._model:
            return
        if model.parameters().shapes != self._model.parameters().shapes:
            self._solver_state = SolverState()  # the optimizer's vectors are those of other parameters
        self._model = model
        self._bind_coefs()

    def _reset_curves(self) -> None:
        self.loss_curve_: list[float] = []
        self.validation_loss_curve_: list[float] = []
        self.validation_scores_: list[float] | None = None

    def _reset_best(self) -> None:
        """What is the best so far belongs to one fit."""
        if self.solver == "lbfgs":
            return
        self.best_loss_ = None if self.early_stopping else np.inf
        self.best_validation_score_ = -np.inf if self.early_stopping else None
        if not self.early_stopping:
            self.validation_scores_ = None
        elif self.validation_scores_ is None:
            self.validation_scores_ = []

    @property
    def model_(self) -> Sequential:
        """The fitted network itself, whose outputs are logits, or logarithms of rates with ``loss="poisson"``."""
        check_is_fitted(self, "n_layers_")
        with self._model.model.shared():
            self._read_coefs()
        return self._model

    def _bind_coefs(self) -> None:
        """``coefs_`` and ``intercepts_`` list the network's own arrays."""
        self._coefficients = Coefficients(self._model)
        self.coefs_, self.intercepts_ = self._coefficients.lists()

    def _read_coefs(self) -> None:
        """Copy arrays that the user has put into ``coefs_`` and ``intercepts_`` into the network."""
        if self._coefficients.read(self.coefs_, self.intercepts_):
            self.coefs_, self.intercepts_ = self._coefficients.lists()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if "_model" not in state:
            return state
        with self._model.model.shared():
            self._read_coefs()
        return {name: value for name, value in state.items() if name not in ("coefs_", "intercepts_", "_coefficients")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_model"):
            self._bind_coefs()

    def _outputs(self, X: Any) -> Array:
        """What the last layer gives (n, n_outputs_)."""
        check_is_fitted(self, "n_layers_")
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], order="C", reset=False)
        with self._model.model.shared():  # from the first block to the last
            self._read_coefs()
            return predict(self._model, X, self.n_threads)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _counts(data: Data) -> list[int]:
    """How many samples the two classes have."""
    second = int(np.count_nonzero(data.target))
    return [len(data.target) - second, second]


def stochastic_only(method: _Method) -> _Method:
    """Decorates a method that an estimator has with a stochastic solver only."""
    decorated: _Method = available_if(_check_solver)(method)
    return decorated


def _check_solver(estimator: BaseMLP) -> bool:
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit is only available for stochastic optimizers. lbfgs is not stochastic.")
    return True
