"""Backpropagation against central differences in float64.

check_gradients steps by 1e-6: the difference quotient is off by about 1e-12 from its curvature and by eps / 1e-6, or
2e-10 times the loss, from rounding. Relative to the largest derivative that stays below 1e-6 for the nets here; a wrong
formula is off by far more.
"""

import copy
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastbp as fb
from fastbp.core import available_backends
from fastbp.core.plan import ACTIVATIONS
from fastbp.losses import LOSSES
from fastbp.lowering.tensors import infer_widths

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


SMOOTH = st.sampled_from([None, "tanh", "gelu", "silu", "softplus", "sigmoid"])


@st.composite
def trees(draw, width, depth=3):
    """Layers of every kind that take this width, with what makes for gentle derivatives, and the width that they give.

    The norms have a large eps: what they divide by is nearly zero where features are nearly constant.
    """
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(
            st.sampled_from(["dense", "activation", "norm", "dropout", *["residual", "concatenate"] * (depth > 0)])
        )
        if kind == "dense":
            before, width = width, draw(st.integers(1, 6))
            layers.append(fb.Dense(before, width, draw(SMOOTH), bias=draw(st.booleans())))
        elif kind == "activation":
            layers.append(fb.Activation(draw(SMOOTH.filter(bool))))
        elif kind == "norm":
            layers.append(draw(st.sampled_from([fb.LayerNorm, fb.BatchNorm]))(width, eps=0.5))
        elif kind == "dropout":
            layers.append(fb.Dropout(0.2))
        elif kind == "residual":
            inside, given = draw(trees(width, depth - 1))
            back = [] if given == width else [fb.Dense(given, width, draw(SMOOTH))]
            layers.append(fb.Residual([*inside, *back]))
        else:
            branches = draw(st.lists(st.one_of(st.just(([], width)), trees(width, depth - 1)), min_size=1, max_size=3))
            named = {"b": branches.pop()} if draw(st.booleans()) else {}
            width = sum(given for _, given in [*branches, *named.values()])
            layers.append(fb.Concatenate(*(b for b, _ in branches), **{name: b for name, (b, _) in named.items()}))
    return layers, width


def first_layers():
    """What a tree may begin with, and the width that it gives."""
    table = st.builds(lambda: ([fb.TabularInput(2, [3, 4], [2, 1])], 5))
    return st.one_of(table, st.builds(lambda: ([fb.Dense(4, 5, "tanh")], 5)), st.just(([], 4)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), backend=st.sampled_from(available_backends()), seed=st.integers(0, 2**32))
def test_trees(data, backend, seed):
    """Parameters by check_gradients, the input by differences of a sum of the outputs."""
    begin, width = data.draw(first_layers())
    layers, width = data.draw(trees(width))
    layers = copy.deepcopy([*begin, *layers, fb.Dense(width, 2)])
    rng = np.random.default_rng(seed)
    with fb.use_backend(backend):
        model = fb.Sequential(layers, dtype="float64", seed=seed)
        x, y = rng.standard_normal((6, 4)), rng.standard_normal((6, 2))
        if begin and isinstance(layers[0], fb.TabularInput):
            x[:, 2:] = rng.integers(0, 3, (6, 2))
        assert fb.check_gradients(model, x, y, "mse") < TOLERANCE
        check_input_gradient(model, x, fb.MSE(), y, 2 if isinstance(layers[0], fb.TabularInput) else 4)


READERS = {  # of what an activation gave, in several orders
    "two dense": lambda: [fb.Concatenate([fb.Dense(5, 2)], [fb.Dense(5, 3)])],
    "dense and input": lambda: [fb.Concatenate([fb.Dense(5, 2)], [])],
    "input and dense": lambda: [fb.Concatenate([], [fb.Dense(5, 2)])],
    "norm, then dense": lambda: [fb.Concatenate([fb.LayerNorm(5)], [fb.Dense(5, 2)])],
    "dense, then norm": lambda: [fb.Concatenate([fb.Dense(5, 2)], [fb.BatchNorm(5)])],
    "residual": lambda: [fb.Residual([fb.Dense(5, 5, "gelu")])],
    "residual of a norm": lambda: [fb.Residual([fb.LayerNorm(5), fb.Dense(5, 5)])],
    "activation and dense": lambda: [
        fb.Concatenate([fb.Activation("silu")], [fb.Dense(5, 2)], [fb.Activation("tanh")])
    ],
    "in each other": lambda: [
        fb.Residual([fb.Residual([fb.Dense(5, 5)]), fb.Concatenate([fb.Dense(5, 2)], [fb.Dense(5, 3)])])
    ],
    "branches that end with one": lambda: [
        fb.Concatenate([fb.Dense(5, 2, "gelu")], [fb.Activation("silu")]),
        fb.Activation("elu"),
    ],
}


@pytest.mark.parametrize("readers", READERS)
@pytest.mark.parametrize("writer", ["fused", "fused, from its input", "alone", "alone, from its input", "input"])
def test_several_readers_of_an_activation(any_backend, rng, readers, writer):
    begin = {
        "fused": [fb.Dense(4, 5, "tanh")],
        "fused, from its input": [fb.Dense(4, 5, "gelu")],
        "alone": [fb.Dense(4, 5), fb.LayerNorm(5), fb.Activation("softplus")],
        "alone, from its input": [fb.Dense(4, 5), fb.LayerNorm(5), fb.Activation("silu")],
        "input": [fb.Activation("gelu")],
    }[writer]
    layers = [*begin, *READERS[readers]()]
    width = infer_widths(layers)[str(len(layers) - 1)]
    model = fb.Sequential([*layers, fb.Dense(width, 2)], dtype="float64", seed=1)
    x, y = rng.standard_normal((7, model.inputs)), rng.standard_normal((7, 2))
    assert fb.check_gradients(model, x, y, "mse") < TOLERANCE
    check_input_gradient(model, x, fb.MSE(), y, model.inputs)


def check_input_gradient(model, x, criterion, y, columns):
    """The gradient of the first columns of x, in training, where dropout has one mask."""

    def loss(x):
        model.model.training_step = 0
        return criterion(model.forward(x, training=True), y)

    dx = model.backward(loss(x)[1], input_gradient=True, parameter_gradients=False)
    assert not dx[:, columns:].any()
    for i in np.ndindex(len(x), columns):
        step = np.zeros_like(x)
        step[i] = 1e-6
        numeric = (loss(x + step)[0] - loss(x - step)[0]) / 2e-6
        assert abs(dx[i] - numeric) < TOLERANCE * max(1, abs(dx).max())


def test_input_gradient(any_backend, rng):
    model = fb.Sequential([fb.Dense(4, 6, activation="gelu"), fb.LayerNorm(6), fb.Dense(6, 2)], dtype="float64", seed=0)
    x, y, criterion = rng.standard_normal((3, 4)), rng.standard_normal((3, 2)), fb.MSE()
    dx = model.backward(criterion(model.forward(x, training=True), y)[1], input_gradient=True)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        numeric = (criterion(model.forward(x + step), y)[0] - criterion(model.forward(x - step), y)[0]) / 2e-6
        assert dx[i] == pytest.approx(numeric, abs=1e-8)
