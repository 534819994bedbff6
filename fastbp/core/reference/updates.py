"""The optimizers' update rules over flat vectors.

A rule gets the parameters, its state vectors, the gradient (already scaled), and the numbers of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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


def update(param: Array, grad: Array, spec: UpdateSpec, grad_scale: float, threads: int) -> None:
    """One step of a rule over flat vectors (n,); the spec's rates are numbers. Clipping by value changes grad."""
    if spec.rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {spec.rule!r}")
    if spec.clip_value > 0:
        np.clip(grad, -spec.clip_value, spec.clip_value, out=grad)
    changed = [param, *(vector for vector in spec.state if vector is not None)]
    before, begin = [vector.copy() for vector in changed], 0
    undecayed = () if spec.undecayed is None else spec.undecayed
    try:
        for low, high in [*undecayed, (param.size, param.size)]:
            for part, weight_decay in ((slice(begin, low), float(spec.weight_decay)), (slice(low, high), 0.0)):
                state = (None if vector is None else vector[part] for vector in spec.state)
                RULES[spec.rule](param[part], *state, grad[part] * grad_scale, spec, float(spec.lr), weight_decay)
            begin = high
    except BaseException:  # an interrupt: the step has not been
        for vector, old in zip(changed, before, strict=True):
            vector[:] = old
        raise
    spec.applied = True
