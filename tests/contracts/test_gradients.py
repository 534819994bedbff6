"""Backpropagation against central differences in float64.

check_gradients steps by 1e-6: the difference quotient is off by about 1e-12 from its curvature and by eps / 1e-6, or
2e-10 times the loss, from rounding. Relative to the largest derivative that stays below 1e-6 for the nets here; a wrong
formula is off by far more.
"""

from itertools import pairwise

import numpy as np
import pytest

import fastbp as fb
from fastbp.core.plan import ACTIVATIONS
from fastbp.losses import LOSSES

TOLERANCE = 1e-6
NAMES = [name for name in ACTIVATIONS if name]


def targets_for(loss, rng, batch, outputs):
    if loss == "cross_entropy" or isinstance(loss, fb.CrossEntropy):
        return rng.integers(0, outputs, batch)
    return rng.random((batch, outputs))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["inside", "last", "after norm", "first"])
def test_activations(any_backend, rng, name, where):
    layers = {
        "inside": [fb.Dense(5, 7, activation=name), fb.Dense(7, 3)],
        "last": [fb.Dense(5, 7), fb.Dense(7, 3, activation=name)],
        "after norm": [fb.Dense(5, 7), fb.LayerNorm(7), fb.Activation(name), fb.Dense(7, 3)],
        "first": [fb.Activation(name), fb.Dense(5, 3)],
    }[where]
    model = fb.Sequential(layers, dtype="float64", seed=1)
    x, y = rng.standard_normal((6, 5)), rng.standard_normal((6, 3))
    assert fb.check_gradients(model, x, y, "mse") < TOLERANCE


@pytest.mark.parametrize(
    "layer",
    [fb.Dropout(0.4), fb.BatchNorm(7), fb.LayerNorm(7), fb.Activation("tanh"), fb.Dense(7, 7, bias=False)],
    ids=repr,
)
@pytest.mark.parametrize("where", ["first", "inside", "last"])
def test_layers(any_backend, rng, layer, where):
    import copy

    layer = copy.deepcopy(layer)
    layers = {
        "first": [layer, fb.Dense(7, 7, activation="tanh"), fb.Dense(7, 7)],
        "inside": [fb.Dense(7, 7, activation="silu"), layer, fb.Dense(7, 7)],
        "last": [fb.Dense(7, 7, activation="tanh"), fb.Dense(7, 7), layer],
    }[where]
    model = fb.Sequential(layers, dtype="float64", seed=2)
    x, y = rng.standard_normal((9, 7)), rng.integers(0, 7, 9)
    assert fb.check_gradients(model, x, y, "cross_entropy") < TOLERANCE


@pytest.mark.parametrize(
    "loss",
    [*LOSSES, fb.CrossEntropy(0.1, [1, 2, 0.5]), fb.CrossEntropy(class_weight={1: 3.0}), fb.Huber(0.3),
     fb.Quantile(0.2)],
    ids=lambda loss: loss if isinstance(loss, str) else type(loss).__name__,
)  # fmt: skip
def test_losses(any_backend, rng, loss):
    model = fb.Sequential([fb.Dense(4, 6, activation="tanh"), fb.Dense(6, 3)], dtype="float64", seed=3)
    assert fb.check_gradients(model, rng.standard_normal((8, 4)), targets_for(loss, rng, 8, 3), loss) < TOLERANCE


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(any_backend, seed):
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, 24, rng.integers(2, 6))
    layers = []
    for inputs, outputs in pairwise(widths):
        layers.append(fb.Dense(inputs, outputs, activation=rng.choice([None, "tanh", "gelu", "softplus", "elu"])))
        extra = rng.choice(["none", "dropout", "layernorm", "batchnorm", "activation"])
        if extra == "dropout":
            layers.append(fb.Dropout(0.2))
        elif extra == "layernorm" and outputs > 1:
            layers.append(fb.LayerNorm(outputs))
        elif extra == "batchnorm":
            layers.append(fb.BatchNorm(outputs))
        elif extra == "activation":
            layers.append(fb.Activation("sigmoid"))
    model = fb.Sequential(layers, dtype="float64", seed=seed)
    x, y = rng.standard_normal((11, widths[0])), rng.standard_normal((11, widths[-1]))
    assert fb.check_gradients(model, x, y, "mse") < TOLERANCE


def test_input_gradient(any_backend, rng):
    model = fb.Sequential([fb.Dense(4, 6, activation="gelu"), fb.LayerNorm(6), fb.Dense(6, 2)], dtype="float64", seed=0)
    x, y, criterion = rng.standard_normal((3, 4)), rng.standard_normal((3, 2)), fb.MSE()
    dx = model.backward(criterion(model.forward(x, training=True), y)[1], input_gradient=True)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        numeric = (criterion(model.forward(x + step), y)[0] - criterion(model.forward(x - step), y)[0]) / 2e-6
        assert dx[i] == pytest.approx(numeric, abs=1e-8)
