"""Metrics: scikit-learn's, of what a network gives. For ``evaluate`` and ``fit``, by name or as they are.

Each takes ``(pred, target)``: predictions (N, O) as ``predict`` returns them, so the logits of a classifier, and the
targets that the loss had, labels (N,) for more than one class, else (N, O) or, with one output, (N,). Labels are
decided by the greatest logit, those of a binary loss by its sign. They need scikit-learn: ``pip install
fastbp[sklearn]``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp.data.arrays import Array, as_array, check_choice, check_int

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Metric = Callable[[Any, Any], float]
Metrics = Iterable[str] | Mapping[str, Metric]

TRIED_TARGETS = 1000  # with which fit looks whether a metric can work


def _sklearn() -> Any:
    try:
        import sklearn.metrics
    except ImportError as error:
        raise ImportError("metrics: they need scikit-learn; install it with: pip install fastbp[sklearn]") from error
    return sklearn.metrics


def _arrays(pred: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    """Predictions (N, O) and targets, of which one column is (N,)."""
    pred, target = _numbers("pred", pred), _numbers("target", target)
    if target.ndim not in (1, 2) or target.size == 0:
        raise ValueError(f"target: expected shape (N,) or (N, O) with at least one entry, got {target.shape}")
    if pred.ndim != 2 or len(pred) != len(target) or pred.size == 0:
        raise ValueError(f"pred: expected shape (N, O) with N of {len(target)} targets, got {pred.shape}")
    return pred, target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target


def _numbers(name: str, value: ArrayLike) -> Array:
    array = as_array(name, value)
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected numbers, got an array of dtype {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return array


def _classes(pred: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    """Predictions and the targets of a classification: labels of several logits, else from 0 to 1 for each output."""
    pred, target = _arrays(pred, target)
    if target.ndim == 1 and pred.shape[1] > 1:
        if target.min() < 0 or target.max() >= pred.shape[1] or (target != np.floor(target)).any():
            raise ValueError(f"target: expected labels from 0 to {pred.shape[1] - 1}, got others")
    elif target.shape[1:] != pred.shape[1:] and target.ndim == 2:
        raise ValueError(f"target: expected the shape of the predictions, {pred.shape}, got {target.shape}")
    elif target.min() < 0 or target.max() > 1:
        raise ValueError(f"target: expected classes as numbers from 0 to 1, got {target.min()} to {target.max()}")
    return pred, target


def _values(pred: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    """Predictions and the targets of a regression, of one shape."""
    pred, target = _arrays(pred, target)
    if target.ndim == 1:
        target = target[:, None]
    if target.shape != pred.shape:
        raise ValueError(f"target: expected a number for every output, {pred.shape}, got {target.shape}")
    return pred, target


def _decided(pred: ArrayLike, target: ArrayLike) -> tuple[Array, Array, str]:
    """Targets and predictions as labels, and scikit-learn's word for how to average over them."""
    pred, target = _classes(pred, target)
    if target.ndim == 2:
        return target > 0.5, pred > 0, "macro"
    if pred.shape[1] == 1:
        return target > 0.5, pred[:, 0] > 0, "binary"
    return target, pred.argmax(axis=1), "macro" if pred.shape[1] > 2 else "binary"


def accuracy(pred: ArrayLike, target: ArrayLike) -> float:
    """The share of samples that are right, with every label where there are several."""
    labels, decided, _ = _decided(pred, target)
    return float(_sklearn().accuracy_score(labels, decided))


def top_k_accuracy(pred: ArrayLike, target: ArrayLike, k: int = 5) -> float:
    """The share of samples whose class is among the k greatest logits: 1 where there are no more than k classes."""
    pred, target = _classes(pred, target)
    k, classes = check_int("k", k), np.arange(pred.shape[1])
    if target.ndim == 2 or len(classes) == 1:
        raise ValueError("pred: expected logits of at least two classes, and labels")
    if len(classes) == 2:  # scikit-learn wants one score for two classes
        return accuracy(pred, target) if k == 1 else 1.0
    return float(_sklearn().top_k_accuracy_score(target, pred, k=k, labels=classes))


def f1(pred: ArrayLike, target: ArrayLike) -> float:
    """The harmonic mean of precision and recall, 0 where there are neither; the mean over classes or labels."""
    labels, decided, average = _decided(pred, target)
    return float(_sklearn().f1_score(labels, decided, average=average, zero_division=0.0))


def auc(pred: ArrayLike, target: ArrayLike) -> float:
    """The area under the ROC curve: the mean over labels, or over classes, each against all others.

    NaN, with scikit-learn's warning, where a class has no sample.
    """
    pred, target = _classes(pred, target)
    if target.ndim == 2 or pred.shape[1] == 1:
        return float(_sklearn().roc_auc_score(target > 0.5, pred))
    if pred.shape[1] == 2:
        return float(_sklearn().roc_auc_score(target, np.subtract(pred[:, 1], pred[:, 0], dtype=np.float64)))
    p = np.exp(pred - pred.max(axis=1, keepdims=True), dtype=np.float64)
    p /= p.sum(axis=1, keepdims=True)
    return float(_sklearn().roc_auc_score(target, p, multi_class="ovr", labels=np.arange(pred.shape[1])))


def mae(pred: ArrayLike, target: ArrayLike) -> float:
    """The mean absolute error."""
    pred, target = _values(pred, target)
    return float(_sklearn().mean_absolute_error(target, pred))


def rmse(pred: ArrayLike, target: ArrayLike) -> float:
    """The root of the mean squared error; the mean over the outputs."""
    pred, target = _values(pred, target)
    return float(_sklearn().root_mean_squared_error(target, pred))


def r2(pred: ArrayLike, target: ArrayLike) -> float:
    """The coefficient of determination; the mean over the outputs."""
    pred, target = _values(pred, target)
    return float(_sklearn().r2_score(target, pred))


def measured(name: str, metric: Metric, pred: Array, target: Array) -> float:
    """A metric of predictions (N, O) and targets that a loss has checked; NaN for predictions that are not finite."""
    if not np.isfinite(pred).all():
        return math.nan
    try:
        return float(metric(pred, target))
    except ValueError as error:  # scikit-learn's messages do not say which
        raise ValueError(f"metrics[{name!r}]: {error}") from error


def check_measurable(metrics: Mapping[str, Metric], target: Array, outputs: int) -> None:
    """Raise unless those of these metrics that are fastbp's own can measure such targets, of which a few are tried."""
    few = target[:: max(1, len(target) // TRIED_TARGETS)]
    pred = np.zeros((len(few), outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is not among the few
        for name, metric in metrics.items():
            if metric in METRICS.values():
                measured(name, metric, pred, few)


METRICS: dict[str, Metric] = {}
for _function in (accuracy, top_k_accuracy, f1, auc, mae, rmse, r2):
    METRICS[_function.__name__] = _function
    vars(_function)["greater_is_better"] = _function not in (mae, rmse)


def directions(metrics: Mapping[str, Metric]) -> dict[str, bool]:
    """Whether more is better, for those that say so by an attribute ``greater_is_better``."""
    said = {name: getattr(metric, "greater_is_better", None) for name, metric in metrics.items()}
    return {name: bool(greater) for name, greater in said.items() if greater is not None}


def resolve(metrics: Metrics) -> Mapping[str, Metric]:
    """The functions that names stand for."""
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        raise TypeError(f"metrics: expected a list of names or a dict of callables, got {metrics!r}")
    metrics = metrics if isinstance(metrics, Mapping) else list(metrics)
    if any(callable(metric) for metric in metrics):
        raise TypeError(f"metrics: expected callables as a dict {{name: callable}}, got {metrics!r}")
    if "loss" in metrics:
        raise ValueError("metrics: expected another name than 'loss', which is there already")
    if not isinstance(metrics, Mapping):
        metrics = {name: METRICS[check_choice("metrics", name, METRICS)] for name in metrics}
        if metrics:
            _sklearn()
    for name, metric in metrics.items():
        if not callable(metric):
            raise TypeError(f"metrics[{name!r}]: expected a callable (pred, target) -> float, got {metric!r}")
    return metrics
