"""MLPRegressor: values by squared error, or counts by Poisson deviance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import scipy.special
import sklearn.neural_network
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from fastbp.data.arrays import Array
from fastbp.losses import MSE, Poisson
from fastbp.sklearn.estimator import CONSTRAINTS, BaseMLP, stochastic_only
from fastbp.sklearn.objective import Objective
from fastbp.sklearn.task import Data
from fastbp.training.callbacks import Callback


class MLPRegressor(RegressorMixin, BaseMLP):  # type: ignore[misc]
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
        sklearn.neural_network.MLPRegressor._parameter_constraints | CONSTRAINTS
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
        scoring: Any = None,
    ) -> None:
        # scikit-learn: every parameter is an attribute of the same name, unchanged
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})

    @stochastic_only
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, eval_set: Any = None) -> Self:
        """One epoch over X and y; the arguments are those of ``fit``."""
        return self._fit(X, y, sample_weight, eval_set, incremental=True)

    def _encode_target(self, y: Array, continues: bool, same_classes: bool = False) -> Array:
        y = y.reshape(len(y), -1)
        if self.loss == "poisson" and y.min() < 0:
            raise ValueError(f"y: expected non-negative values with loss='poisson', got {y.min()}")
        if continues and hasattr(self, "_model") and y.shape[1] != self.n_outputs_:
            raise ValueError(f"y: expected {self.n_outputs_} outputs as before, got {y.shape[1]}")
        self.n_outputs_, self.out_activation_ = y.shape[1], "exp" if self.loss == "poisson" else "identity"
        return y

    def _objective(self, data: Data) -> Objective:
        outputs = self.n_outputs_
        if self.loss == "squared_error":
            return Objective(MSE(), outputs / 2, 0.5)
        y = data.target.astype(np.float64)
        constant = np.average(scipy.special.xlogy(y, y) - y, axis=0, weights=data.weight).sum()
        return Objective(Poisson(), outputs, outputs, float(constant))

    def _score_outputs(self, pred: Array, target: Array, weight: Array | None) -> float:
        return float(r2_score(target, np.exp(pred) if self.loss == "poisson" else pred, sample_weight=weight))

    def _decode_target(self, target: Array) -> Array:
        return target[:, 0] if self.n_outputs_ == 1 else target

    def predict(self, X: Any) -> Array:
        """The values (n_samples,), or (n_samples, n_outputs) if there are several."""
        outputs = self._outputs(X)
        if self.loss == "poisson":
            outputs = np.exp(outputs)
        return outputs[:, 0] if self.n_outputs_ == 1 else outputs
