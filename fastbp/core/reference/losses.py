"""Losses and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fastbp.core.plan import Array, LossSpec
from fastbp.core.reference.activations import sigmoid

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Elementwise losses by name: (pred, target, parameter) -> (loss, gradient), entry by entry.
ELEMENTWISE: dict[str, Callable[[Array, Array, float], tuple[Array, Array]]] = {}


def _elementwise(function: _Function) -> _Function:
    ELEMENTWISE[function.__name__] = function
    return function


@_elementwise
def binary_cross_entropy(p: Array, t: Array, parameter: float) -> tuple[Array, Array]:
    return np.maximum(p, 0) - p * t + np.log1p(np.exp(-np.abs(p))), sigmoid(p) - t


@_elementwise
def mse(p: Array, t: Array, parameter: float) -> tuple[Array, Array]:
    e = p - t
    return e * e, 2 * e


@_elementwise
def mae(p: Array, t: Array, parameter: float) -> tuple[Array, Array]:
    e = p - t
    return np.abs(e), np.sign(e)


@_elementwise
def huber(p: Array, t: Array, parameter: float) -> tuple[Array, Array]:
    """Huber 1964; the parameter is delta."""
    e = p - t
    inside = np.abs(e) <= parameter
    loss = np.where(inside, 0.5 * e * e, parameter * (np.abs(e) - 0.5 * parameter))
    return loss, np.clip(e, -parameter, parameter)


@_elementwise
def quantile(p: Array, t: Array, parameter: float) -> tuple[Array, Array]:
    """The pinball loss (Koenker & Bassett 1978); the parameter is the quantile."""
    e = p - t
    loss = np.where(e > 0, (1 - parameter) * e, -parameter * e)
    return loss, np.where(e > 0, 1 - parameter, np.where(e < 0, -parameter, 0))


@_elementwise
def poisson(p: Array, t: Array, parameter: float) -> tuple[Array, Array]:
    return np.exp(p) - t * p, np.exp(p) - t


#: The names of all losses.
LOSSES = ("cross_entropy", *ELEMENTWISE)


def loss(dpred: Array, pred: Array, target: Array, sample_weight: Array | None, spec: LossSpec, threads: int) -> float:
    """The mean of a loss of pred and target; dpred (B, O) is its gradient with respect to pred (B, O).

    The target of cross-entropy are labels (B,) int64; its mean is over samples. That of all other losses has the shape
    of pred; their mean is over all entries. With weights of classes w, for cross-entropy, or of samples s the mean is
    weighted, as in PyTorch: sum_i s_i w[label_i] loss_i / sum_i s_i w[label_i].
    """
    return summed_loss(dpred, pred, target, sample_weight, spec, total_weight(target, sample_weight, spec))


def total_weight(target: Array, sample_weight: Array | None, spec: LossSpec) -> float:
    """The sum of the weights of a batch's samples, or their number; with weights of classes those of their labels."""
    weights = _sample_weights(target, sample_weight)
    if spec.name == "cross_entropy" and spec.class_weight is not None:
        weights = weights * spec.class_weight.astype(np.float64)[target]
    return float(weights.sum())


def _sample_weights(target: Array, sample_weight: Array | None) -> Array:
    return np.ones(len(target)) if sample_weight is None else sample_weight.astype(np.float64)


def summed_loss(
    dpred: Array, pred: Array, target: Array, sample_weight: Array | None, spec: LossSpec, divisor: float
) -> float:
    """The sum of the samples' losses, each with its weight, over a divisor; dpred (B, O) is its gradient.

    A sample's loss is the mean over its outputs. With ``total_weight`` as the divisor this is the mean, with 1 the sum;
    with 0 there is neither loss nor gradient.
    """
    divisor = divisor or np.inf
    weights = _sample_weights(target, sample_weight)
    if spec.name == "cross_entropy":
        return _cross_entropy(dpred, pred, target, spec.class_weight, weights, spec.parameter, divisor)
    if spec.name not in ELEMENTWISE:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {spec.name!r}")
    entries, gradient = ELEMENTWISE[spec.name](pred, target, spec.parameter)
    share = weights[:, None] / (divisor * pred.shape[1])
    dpred[:] = gradient * share
    return float((entries * share).sum())


def _cross_entropy(
    dlogits: Array,
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    sample_weights: Array,
    label_smoothing: float,
    divisor: float,
) -> float:
    """Softmax cross-entropy of logits (B, C) and labels (B,)."""
    n, classes = logits.shape
    weight = np.ones(classes) if class_weight is None else class_weight.astype(np.float64)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    target = np.full(logits.shape, label_smoothing / classes) * weight
    target[np.arange(n), labels] += (1 - label_smoothing) * weight[labels]
    target *= sample_weights[:, None]
    dlogits[:] = (np.exp(log_p) * target.sum(axis=1, keepdims=True) - target) / divisor
    return float(-(target * log_p).sum() / divisor)


def correct(pred: Array, target: Array, spec: LossSpec) -> int:
    """Rows whose largest logit is the label's, or whose every output is on its target's side; 0 for a regression."""
    if spec.name == "cross_entropy":
        return int(np.count_nonzero(pred.argmax(axis=1) == target))
    if spec.name == "binary_cross_entropy":
        return int(np.count_nonzero(((pred > 0) == (target > 0.5)).all(axis=1)))
    return 0
