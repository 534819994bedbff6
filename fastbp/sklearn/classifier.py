"""MLPClassifier: classes by a softmax or a logistic output, labels by several logistic outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import scipy.special
import sklearn.neural_network
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import compute_class_weight, compute_sample_weight
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
    type_of_target,
    unique_labels,
)

from fastbp.data.arrays import Array
from fastbp.losses import BinaryCrossEntropy, CrossEntropy
from fastbp.sklearn.estimator import CONSTRAINTS, BaseMLP, stochastic_only
from fastbp.sklearn.objective import Objective
from fastbp.sklearn.task import Data
from fastbp.training.callbacks import Callback


def _balanced(y: Array) -> dict[Any, float]:
    """The classes that there are, and weights that make them count alike."""
    classes = np.unique(y)
    return dict(zip(classes.tolist(), compute_class_weight("balanced", classes=classes, y=y).tolist(), strict=True))


class MLPClassifier(ClassifierMixin, BaseMLP):  # type: ignore[misc]
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
        How many threads to use; None is ``fb.get_num_threads()``, of which small networks take fewer where that is
        faster.
    callbacks : list of fb.callbacks.Callback or None
        Called after every epoch, or iteration of lbfgs. They see learning rates as they are given here, the values
        ``loss``, ``lr``, ``val_loss`` and, with early stopping, ``val_score``. A ``Checkpoint`` keeps the network.
    scoring : str, callable or None
        What ``early_stopping`` goes by, as in scikit-learn's model selection: ``"roc_auc"``, or a function of
        ``(estimator, X, y)``. None is the accuracy, or R^2 of a regressor.

    Attributes
    ----------
    coefs_, intercepts_ : list of ndarray
        The network's own weights (I, O) and biases (O,): writing into them, or putting other arrays in their place,
        changes the network. With ``warm_start`` or ``partial_fit`` they may be set before the first fit too.
    model_ : fb.Sequential
        The network itself, with logits as outputs, for ``fb`` and its files: ``fastbp.onnx.export(clf, path)``.
    validation_loss_curve_ : list of float
        After every epoch, the loss of ``eval_set`` or of what early stopping holds out, without the penalty.

    Notes
    -----
    ``warm_start`` keeps the optimizer's state too; what is the best so far, and for how long, belongs to one ``fit``.
    Parameters that have changed since the last one take effect, but for ``hidden_layer_sizes``. ``partial_fit`` with
    ``early_stopping`` needs and scores an ``eval_set``; when that has not improved for ``n_iter_no_change`` calls, the
    best weights are restored and further calls change nothing. Training that diverges ends with the best weights and a
    warning where there is an ``eval_set`` or early stopping, and with an error elsewhere.

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
        **CONSTRAINTS,
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
        scoring: Any = None,
    ) -> None:
        # scikit-learn: every parameter is an attribute of the same name, unchanged
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})

    @stochastic_only
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
            return self._fit(X, y, sample_weight, eval_set, incremental=True)
        except BaseException:
            if first and not hasattr(self, "_model"):
                del self.classes_
            raise

    def _encode_target(self, y: Array, continues: bool, same_classes: bool = False) -> Array:
        multilabel = type_of_target(y, input_name="y", raise_unknown=True) == "multilabel-indicator"
        if y.ndim == 2 and not multilabel:
            raise ValueError(
                f"y: multioutput target data is not supported, got shape {y.shape}; expected labels (n,) or 0 and 1"
            )
        check_classification_targets(y)
        classes = unique_labels(y)
        if not continues or not hasattr(self, "classes_"):
            self.classes_ = classes
        elif same_classes and set(classes) != set(self.classes_):
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

    def _apply_class_weight(self, weight: Array | None, y: Array, incremental: bool) -> Array | None:
        if self.class_weight is None:
            return weight
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit, which sees a part of the samples; give the "
                "weights that sklearn.utils.class_weight.compute_class_weight has for all of them"
            )
        self._class_weights = self._weights_of_classes(y)
        return self._times_class_weight(weight, y)

    def _eval_weight(self, X: Any, y: Array, sample_weight: Any = None) -> Array | None:
        return self._times_class_weight(self._given_weight(X, sample_weight), y)

    def _weights_of_classes(self, y: Array) -> Any:
        """The weight of each class (C,) or, for labels, a mapping for each of these."""
        if y.ndim == 2 and self.class_weight == "balanced":
            return [_balanced(column) for column in y.T]
        if y.ndim == 2:
            return self.class_weight
        given = _balanced(y) if self.class_weight == "balanced" else self.class_weight
        return self._mapped_weights(given)

    def _times_class_weight(self, weight: Array | None, y: Array) -> Array | None:
        if self.class_weight is None:
            return weight
        if y.ndim == 1:
            of_class = self._class_weights[np.searchsorted(self.classes_, y)]
        else:
            of_class = compute_sample_weight(self._class_weights, y)
        return np.asarray(of_class if weight is None else of_class * weight)

    def _decode_target(self, target: Array) -> Array:
        if target.ndim == 2 and self.n_outputs_ > 1:  # labels
            return target.astype(int)
        return np.asarray(self.classes_[target.astype(int).reshape(-1)])

    def _mapped_weights(self, given: Mapping[Any, float]) -> Array:
        """The weights of all classes; those that are left out weigh 1."""
        classes = self.classes_.tolist()
        left_out, unknown = [c for c in classes if c not in given], [c for c in given if c not in classes]
        if left_out and unknown:  # as scikit-learn: a name is misspelt
            raise ValueError(f"class_weight: expected classes among {classes}, got {unknown}")
        return np.array([given.get(c, 1.0) for c in classes])

    def _objective(self, data: Data) -> Objective:
        if self.out_activation_ == "softmax":
            return Objective(CrossEntropy(), 1, 1)
        return Objective(BinaryCrossEntropy(), self.n_outputs_, self.n_outputs_)

    def _score_outputs(self, pred: Array, target: Array, weight: Array | None) -> float:
        decided = pred.argmax(axis=1) if self.out_activation_ == "softmax" else scipy.special.expit(pred) > 0.5
        return float(accuracy_score(target, decided, sample_weight=weight))

    def predict_proba(self, X: Any) -> Array:
        """The probabilities (n_samples, n_classes) of the classes, or (n_samples, n_labels) of the labels."""
        outputs = self._outputs(X)
        if self.out_activation_ == "softmax":
            return np.asarray(scipy.special.softmax(outputs, axis=1))
        p = np.asarray(scipy.special.expit(outputs))
        return np.hstack([1 - p, p]) if self.n_outputs_ == 1 else p

    def predict_log_proba(self, X: Any) -> Array:
        """Their logarithms."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.predict_proba(X)))

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
