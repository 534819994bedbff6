"""Divergence: training whose numbers are not finite any more, and where in the network that shows first."""

from __future__ import annotations

import numpy as np

from fastbp.data.arrays import Features
from fastbp.model import Model
from fastbp.parameters import Parameters


class DivergenceError(ArithmeticError):
    """Training has diverged: the loss, the gradient or the parameters are not finite any more.

    A step whose loss is not finite is left out: the model is as the step before left it.

    Attributes
    ----------
    what, value : str, float
        ``loss``, ``gradient`` or ``parameters``, and what it became.
    layer : str
        Where the numbers are not finite first: ``layers[2].weight``, ``layers[0].dbias``, in a branch
        ``layers[3].layers[0].weight`` or ``layers[3].branches["policy"][0].weight``, ``layers[1]`` for its outputs, or
        ``the loss`` itself, of finite outputs.
    epoch : int or None
        Of ``fit``, counted from 1.
    step : int
        The optimizer's, counted from 1.
    lr : float
        The learning rate of that step.
    """

    def __init__(self, what: str, value: float, layer: str, step: int, lr: float) -> None:
        super().__init__(what, value, layer, step, lr)  # for pickle
        self.what, self.value, self.layer, self.step, self.lr = what, value, layer, step, lr
        self.epoch: int | None = None

    def __str__(self) -> str:
        when = f"step {self.step}" if self.epoch is None else f"epoch {self.epoch}, step {self.step}"
        return (
            f"training has diverged: the {self.what} became {self.value} at {when} with a learning rate of "
            f"{self.lr:g}, first in {self.layer}; try a smaller one, clip_norm, or features scaled to unit variance"
        )


def _written(parameters: Parameters, name: str, prefix: str = "") -> str:
    """How a user writes the tensor of that name: ``layers[0].dweight``, or ``layers[0].weights[1]`` of a table."""
    layer, own_name = parameters.owners[name]
    tensor, *table = own_name.split(".")
    return f"{layer}.{prefix}{tensor}" + "".join(f"[{number}]" for number in table)


def in_gradient(parameters: Parameters) -> str:
    """The first gradient, in the order of backpropagation, that is not finite."""
    for name in reversed(parameters.shapes):
        if not np.isfinite(parameters.grad(name)).all():
            return _written(parameters, name, "d")
    return "the norm of the gradient"  # whose square is beyond float64


def in_parameters(parameters: Parameters) -> tuple[float, str]:
    """The first entry of a parameter that is not finite, and where it is; there has to be one."""
    for name in parameters.shapes:
        bad = parameters.value(name)[~np.isfinite(parameters.value(name))]
        if bad.size:
            return float(bad[0]), _written(parameters, name)
    raise ValueError("parameters: expected one that is not finite")


def in_model(model: Model, x: Features, step: int) -> str:
    """The first parameter, or else the first layer's outputs for x (B, I) in that training step, that is not finite."""
    if not np.isfinite(model.params.values).all():
        return in_parameters(model.params)[1]
    for place, y in model.layer_outputs(x, step):
        if not np.isfinite(y).all():
            return place.access
    return "the loss"
