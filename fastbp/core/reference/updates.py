"""The optimizers' update rules over flat vectors.

A rule gets the parameters, its state vectors, the gradient (already scaled), and the numbers of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from fastbp.core.plan import Array, UpdateSpec

_Rule = TypeVar("_Rule", bound=Callable[..., Any])

#: By name: rule(param, *state, g, u, lr, weight_decay), which changes param and state in place.
RULES: dict[str, Callable[..., None]] = {}


def _rule(function: _Rule) -> _Rule:
    RULES[function.__name__] = function
    return function


@_rule
def sgd(param: Array, velocity: Array | None, g: Array, u: UpdateSpec, lr: float, weight_decay: float) -> None:
    """v = momentum v + g, param -= lr (g + momentum v if nesterov else v), with weight_decay param added to g."""
    g = g + weight_decay * param
    if velocity is not None:
        velocity *= u.momentum
        velocity += g
        g = g + u.momentum * velocity if u.nesterov else velocity
    param -= lr * g


@_rule
def adam(param: Array, m: Array, v: Array, g: Array, u: UpdateSpec, lr: float, weight_decay: float) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1); decoupled weight decay makes it AdamW (Loshchilov & Hutter 2019).

    u.step counts from 1. u.eps_hat adds eps before the bias correction, as in the form at the end of their section 2.
    """
    if u.decoupled:
        param *= 1 - lr * weight_decay
    else:
        g += weight_decay * param
    m += (1 - u.beta1) * (g - m)
    v += (1 - u.beta2) * (g * g - v)
    correction = math.sqrt(1 - u.beta2**u.step)
    param -= (lr / (1 - u.beta1**u.step)) * m / (np.sqrt(v) / correction + (u.eps / correction if u.eps_hat else u.eps))


@_rule
def rmsprop(
    param: Array, square: Array, velocity: Array | None, g: Array, u: UpdateSpec, lr: float, weight_decay: float
) -> None:
    """square = alpha square + (1 - alpha) g^2, param -= lr g / (sqrt(square) + eps), through a velocity if given."""
    g = g + weight_decay * param
    square += (1 - u.alpha) * (g * g - square)
    g = g / (np.sqrt(square) + u.eps)
    if velocity is not None:
        velocity *= u.momentum
        velocity += g
        g = velocity
    param -= lr * g


@_rule
def adagrad(param: Array, total: Array, g: Array, u: UpdateSpec, lr: float, weight_decay: float) -> None:
    """total += g^2, param -= lr g / (sqrt(total) + eps) (Duchi, Hazan & Singer 2011)."""
    g = g + weight_decay * param
    total += g * g
    param -= lr * g / (np.sqrt(total) + u.eps)


def _rates(u: UpdateSpec, lr: float = 1.0, weight_decay: float = 1.0, l1: float = 1.0) -> tuple[float, float, float]:
    """Learning rate, weight decay and L1 penalty of a group, whose multipliers are given."""
    return float(u.lr) * lr, float(u.weight_decay) * weight_decay, u.l1 * l1


def _ranges(u: UpdateSpec, size: int) -> Iterator[tuple[slice, tuple[float, float, float]]]:
    """Parts of the flat buffers, each with its rates; parts that are frozen are left out."""
    begin = 0
    for low, high, *multipliers in () if u.groups is None else u.groups.tolist():
        yield slice(begin, low), _rates(u)
        if multipliers[0] != 0:
            yield slice(low, high), _rates(u, *multipliers)
        begin = high
    yield slice(begin, size), _rates(u)


def update(param: Array, grad: Array, spec: UpdateSpec, grad_scale: float, threads: int) -> None:
    """One step of a rule over flat vectors (n,); the spec's rates are numbers. Clipping by value changes grad.

    An L1 penalty adds ``l1 sign(param)`` to the gradient. With decoupled weight decay it is a proximal step after the
    update, the soft threshold ``sign(param) max(|param| - lr l1, 0)`` (Parikh & Boyd 2014, section 6.5.2).
    """
    if spec.rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {spec.rule!r}")
    changed = [param, *(vector for vector in spec.state if vector is not None)]
    before = [vector.copy() for vector in changed]
    try:
        for part, (lr, weight_decay, l1) in _ranges(spec, param.size):
            state = (None if vector is None else vector[part] for vector in spec.state)
            if spec.clip_value > 0:
                np.clip(grad[part], -spec.clip_value, spec.clip_value, out=grad[part])
            values, g = param[part], grad[part] * grad_scale
            if l1 and not spec.decoupled:
                g += l1 * np.sign(values)
            RULES[spec.rule](values, *state, g, spec, lr, weight_decay)
            if l1 and spec.decoupled:
                values[:] = np.sign(values) * np.maximum(np.abs(values) - lr * l1, 0)
    except BaseException:  # an interrupt: the step has not been
        for vector, old in zip(changed, before, strict=True):
            vector[:] = old
        raise
    spec.applied = True
