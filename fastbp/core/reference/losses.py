"""Losses and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fastbp.core.plan import Array, LossSpec
from fastbp.core.reference.activations import sigmoid

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Elementwise losses by name: (pred, target, parameter) -> (loss, gradient), entry by entry.
ELEMENTWISE: dict[str, Callable[[Array, Array, Any], tuple[Array, Array]]] = {}


def _elementwise(function: _Function) -> _Function:
    ELEMENTWISE[function.__name__] = function
    return function


@_elementwise
def binary_cross_entropy(p: Array, t: Array, parameter: Array | float) -> tuple[Array, Array]:
    """The parameter is the weight of positive targets less one."""
    log_term, s = np.log1p(np.exp(-np.abs(p))), sigmoid(p)
    loss = np.maximum(p, 0) - p * t + log_term
    return loss + parameter * t * (log_term + np.maximum(-p, 0)), s - t + parameter * t * (s - 1)


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
def quantile(p: Array, t: Array, parameter: Array | float) -> tuple[Array, Array]:
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

    The target of cross-entropy are labels (B,) int64, or probabilities (B, O); its mean is over samples. That of all
    other losses has the shape of pred; their mean is over all entries. With weights of classes w, of samples s (B,) or
    of entries (B, O) the mean is weighted, as in PyTorch: sum_i s_i w[label_i] loss_i / sum_i s_i w[label_i].
    """
    return summed_loss(dpred, pred, target, sample_weight, spec, total_weight(pred, target, sample_weight, spec))


def sample_losses(
    losses: Array, dpred: Array, pred: Array, target: Array, sample_weight: Array | None, spec: LossSpec, threads: int
) -> None:
    """losses (B,): that of each sample, times its weight; dpred (B, O) is the gradient of their sum."""
    share, losses[:] = np.empty_like(dpred[:1]), 0
    for i in range(len(pred)):
        row = slice(i, i + 1)
        weight = None if sample_weight is None else sample_weight[row]
        losses[i] = summed_loss(share, pred[row], target[row], weight, spec, 1.0)
        dpred[row] = share


def total_weight(pred: Array, target: Array, sample_weight: Array | None, spec: LossSpec) -> float:
    """What a sum of losses is divided by: the weights of a batch's samples, labels and entries; or their number."""
    if not spec.normalized:
        return float(len(pred))
    return float(_weights(pred, target, sample_weight, spec).mean(axis=1).sum())


def _weights(pred: Array, target: Array, sample_weight: Array | None, spec: LossSpec) -> Array:
    """The weights of samples (B, 1) or, where entries have their own or are missing, of entries (B, O)."""
    weights = np.ones((len(pred), 1))
    if sample_weight is not None:
        weights = sample_weight.astype(np.float64).reshape(len(pred), -1)
    if spec.missing:
        weights = weights * ~np.isnan(target)
    if spec.class_weight is None:
        return weights
    classes = spec.class_weight.astype(np.float64)
    if spec.name != "cross_entropy":
        return weights * (classes[0] + (classes[1] - classes[0]) * np.nan_to_num(target))
    return weights * (classes[target] if target.ndim == 1 else target @ classes)[:, None]


def summed_loss(
    dpred: Array, pred: Array, target: Array, sample_weight: Array | None, spec: LossSpec, divisor: float
) -> float:
    """The sum of the samples' losses, each with its weight, over a divisor; dpred (B, O) is its gradient.

    A sample's loss is the mean over its outputs. With ``total_weight`` as the divisor this is the mean, with 1 the sum;
    with 0 there is neither loss nor gradient.
    """
    divisor = divisor or np.inf
    if spec.name == "cross_entropy":
        weights = np.ones(len(pred)) if sample_weight is None else sample_weight.astype(np.float64)
        return _cross_entropy(dpred, pred, target, spec, weights, divisor)
    if spec.name not in ELEMENTWISE:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {spec.name!r}")
    share = _weights(pred, target, sample_weight, spec) / (divisor * pred.shape[1])
    entries, gradient = ELEMENTWISE[spec.name](pred, *_target_and_parameter(target, spec))
    dpred[:] = gradient * share
    return float((entries * share).sum())


def _target_and_parameter(target: Array, spec: LossSpec) -> tuple[Array, Array | float]:
    """Smoothed targets, of which missing ones are 0, and the parameter, of each output where they differ."""
    target = np.nan_to_num(target) if spec.missing else target
    if spec.name != "binary_cross_entropy":
        return target, spec.parameter if spec.parameters is None else spec.parameters
    target = target * (1 - spec.smoothing) + spec.smoothing / 2 if spec.smoothing else target
    return target, 0.0 if spec.parameters is None else spec.parameters - 1


def _cross_entropy(
    dlogits: Array, logits: Array, target: Array, spec: LossSpec, sample_weights: Array, divisor: float
) -> float:
    """Softmax cross-entropy of logits (B, C) and labels (B,) or probabilities (B, C)."""
    classes = logits.shape[1]
    weight = np.ones(classes) if spec.class_weight is None else spec.class_weight.astype(np.float64)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    share = np.full(logits.shape, spec.smoothing / classes) * weight
    if target.ndim == 2:
        share += (1 - spec.smoothing) * weight * target
    else:
        share[np.arange(len(target)), target] += (1 - spec.smoothing) * weight[target]
    share *= sample_weights[:, None]
    dlogits[:] = (np.exp(log_p) * share.sum(axis=1, keepdims=True) - share) / divisor
    return float(-(share * log_p).sum() / divisor)


def softmax(y: Array, logits: Array, threads: int) -> None:
    """y = softmax(logits), both (B, C), which may be one array."""
    np.exp(logits - logits.max(axis=1, keepdims=True), out=y)
    y /= y.sum(axis=1, keepdims=True)


def correct(pred: Array, target: Array, spec: LossSpec) -> int:
    """Rows whose largest logit is the label's, or whose every output is on its target's side; 0 for a regression."""
    if spec.name == "cross_entropy":
        return int(np.count_nonzero(pred.argmax(axis=1) == (target if target.ndim == 1 else target.argmax(axis=1))))
    if spec.name == "binary_cross_entropy":
        right = (pred > 0) == (target > 0.5)
        return int(np.count_nonzero((right | np.isnan(target) if spec.missing else right).all(axis=1)))
    return 0
