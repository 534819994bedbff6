"""The network of an estimator: its layers, scikit-learn's initial weights, and the arrays behind ``coefs_``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import numpy as np

from fastbp.core.plan import ActivationName
from fastbp.data.arrays import Array, check_array, check_choice, check_number
from fastbp.layers import Activation, BatchNorm, Dense, Dropout, Layer
from fastbp.layers.layer import Parametric
from fastbp.training import Sequential

#: scikit-learn's names of activations, and fastbp's, with what ``Dense`` calls them.
ACTIVATIONS: dict[str, ActivationName | None] = {"identity": None, "logistic": "sigmoid"}
ACTIVATIONS |= {name: name for name in get_args(ActivationName)}


def build_network(widths: list[int], settings: Any, dtype: np.dtype[Any], random: np.random.RandomState) -> Sequential:
    """The model for an estimator's parameters, ``settings``; widths are those of inputs, hidden layers and outputs."""
    names, rates = _hidden_settings(settings, len(widths) - 2)
    layers = _layers(widths, names, rates, settings.batch_norm)
    model = Sequential(layers, dtype=dtype, seed=random.randint(2**31) if any(rates) else 0)
    names.append(names[-1] if names else settings.activation)  # the last layer begins like the one before
    for layer, name in zip(dense_layers(model), names, strict=True):
        _initialise(layer, name, random)
    return model


def rebuilt_network(model: Sequential, widths: list[int], settings: Any) -> Sequential:
    """The model if its layers are those that the settings ask for; else one of these, with its tensors."""
    layers = _layers(widths, *_hidden_settings(settings, len(widths) - 2), settings.batch_norm)
    if [layer.config() for layer in layers] == model.model.config():
        return model
    other = Sequential(layers, dtype=model.dtype, seed=0)
    other.epochs = model.epochs
    for kind in (Dense, BatchNorm):  # one after the other: between them there may be others than before
        pairs = zip(_of_kind(other, kind), _of_kind(model, kind), strict=False)
        for own, given in pairs:
            own.weight, own.bias = given.weight, given.bias
            if isinstance(own, BatchNorm) and isinstance(given, BatchNorm):
                own.running_mean[:], own.running_var[:] = given.running_mean, given.running_var
    other.model.generator = model.model.generator
    return other


def _of_kind(model: Sequential, kind: type[Parametric]) -> list[Parametric]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def _hidden_settings(settings: Any, hidden: int) -> tuple[list[str], list[float]]:
    """The names of the hidden layers' activations, and their rates of dropout."""
    names = [
        check_choice("activation", name, ACTIVATIONS) for name in _per_layer("activation", settings.activation, hidden)
    ]
    rates = [check_number("dropout", rate, 0, 1) for rate in _per_layer("dropout", settings.dropout, hidden)]
    if settings.solver == "lbfgs" and (settings.batch_norm or any(rates)):
        raise ValueError("solver: expected 'sgd' or 'adam' with dropout or batch_norm, got 'lbfgs'")
    return names, rates


def dense_layers(model: Sequential) -> list[Dense]:
    """The layers that have weights and biases."""
    return [layer for layer in model.layers if isinstance(layer, Dense)]


class Coefficients:
    """A network's own weights and biases: the arrays behind ``coefs_`` and ``intercepts_``."""

    def __init__(self, model: Sequential) -> None:
        dense = dense_layers(model)
        self.weights = [layer.weight for layer in dense]
        self.biases = [layer.bias for layer in dense if layer.bias is not None]

    def lists(self) -> tuple[list[Array], list[Array]]:
        """New lists of the arrays."""
        return list(self.weights), list(self.biases)

    def read(self, coefs: list[Any], intercepts: list[Any]) -> bool:
        """Copy the arrays that are not the network's own into these; whether there were any."""
        changes = [*_replaced("coefs_", coefs, self.weights), *_replaced("intercepts_", intercepts, self.biases)]
        for own, array in changes:  # after all checks: an array that does not fit changes nothing
            own[:] = array
        return bool(changes)


def _replaced(name: str, given: list[Any], own: list[Array]) -> list[tuple[Array, Array]]:
    """For every array in ``given`` that is not the network's own, that one and the checked array to copy into it."""
    if len(given) != len(own):
        raise ValueError(f"{name}: expected {len(own)} arrays, got {len(given)}")
    return [
        (target, check_array(f"{name}[{i}]", array, target.shape, target.dtype))
        for i, (array, target) in enumerate(zip(given, own, strict=True))
        if array is not target
    ]


def _per_layer(name: str, value: Any, layers: int) -> list[Any]:
    values = [value] * layers if np.ndim(value) == 0 else list(value)
    if len(values) != layers:
        raise ValueError(f"{name}: expected one or, for {layers} hidden layers, {layers} of them, got {value!r}")
    return values


def _layers(widths: list[int], names: list[str], rates: list[float], batch_norm: bool) -> list[Layer]:
    layers: list[Layer] = []
    activations = [ACTIVATIONS[name] for name in names]
    for (inputs, outputs), activation, rate in zip(pairwise(widths), activations, rates, strict=False):
        layers.append(Dense(inputs, outputs, activation=None if batch_norm else activation))
        if batch_norm:
            layers += [BatchNorm(outputs), *([Activation(activation)] if activation else [])]
        if rate:
            layers.append(Dropout(rate))
    return [*layers, Dense(widths[-2], widths[-1])]


def _initialise(layer: Dense, activation: str, random: np.random.RandomState) -> None:
    """scikit-learn's initial values: uniform (Glorot & Bengio 2010), biases too."""
    factor = 2 if activation in ("logistic", "sigmoid") else 6
    bound = np.sqrt(factor / (layer.in_features + layer.out_features))
    layer.weight = random.uniform(-bound, bound, (layer.in_features, layer.out_features))
    layer.bias = random.uniform(-bound, bound, layer.out_features)
