"""What is learned: classical problems, a pinned curve of losses, and the same on every backend."""

import numpy as np
import pytest
from networks import blobs, everything

import fastbp as fb


def test_pinned_loss_curve(any_backend):
    """Ten steps of a small float64 net from weights written as formulas: values that must never move.

    The values were computed with PyTorch 2.13 from the same formulas, not with fastbp.
    """
    model = fb.Sequential([fb.Dense(3, 5, activation="tanh"), fb.Dense(5, 3)], dtype="float64")
    model.layers[0].weight = np.sin(np.arange(15.0)).reshape(3, 5)
    model.layers[1].weight = np.cos(np.arange(15.0)).reshape(5, 3)
    X = np.sin(np.arange(24.0) ** 2).reshape(8, 3)
    y = np.arange(8) % 3
    optimizer = fb.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses = [model.train_on_batch(X, y, "cross_entropy", optimizer) for _ in range(10)]
    np.testing.assert_allclose(losses, PINNED, rtol=1e-12)


PINNED = [
    1.4364491374386341,
    1.188248557658474,
    0.970803701148498,
    0.8932906841912898,
    0.8511858421323432,
    0.7760107394457638,
    0.6807192509556698,
    0.6553491536211976,
    0.6276588908120105,
    0.5097960672529946,
]


def test_xor_is_learned(any_backend, dtype):
    X, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype), np.array([0, 1, 1, 0])
    model = fb.Sequential([fb.Dense(2, 8, activation="tanh"), fb.Dense(8, 1)], dtype=dtype, seed=0)
    history = model.fit(
        X, y, "binary_cross_entropy", fb.Adam(model.parameters(), lr=0.05), epochs=200, batch_size=4, verbose=0
    )
    assert history.history["accuracy"][-1] == 1
    assert history.history["loss"][-1] < 0.05
    assert ((model.predict(X)[:, 0] > 0) == y).all()


def test_two_spirals_are_learned(any_backend):
    """Lang & Witbrock 1988: 97 points on each of two interlocking spirals."""
    i = np.arange(97)
    angle, radius = i * np.pi / 16, (104 - i) / 104
    one = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    X, y = np.concatenate([one, -one]), np.repeat([0, 1], 97)
    first = fb.Dense(2, 64, activation="silu", init=lambda rng, shape: rng.normal(0, 4, shape))
    model = fb.Sequential([first, fb.Dense(64, 64, activation="silu"), fb.Dense(64, 2)], seed=0)
    optimizer = fb.Adam(model.parameters(), lr=fb.schedules.Cosine(0.02, 1000))
    model.fit(X, y, "cross_entropy", optimizer, epochs=500, batch_size=97, verbose=0)
    assert model.evaluate(X, y, "cross_entropy")["accuracy"] == 1


def test_regression_with_a_column_of_targets(any_backend):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 3))
    y = X @ [1.0, -2.0, 0.5] + 0.3
    model = fb.Sequential([fb.Dense(3, 1)], seed=0)
    model.fit(X, y, "mse", fb.SGD(model.parameters(), lr=0.1), epochs=40, verbose=0)
    np.testing.assert_allclose(model.layers[0].weight[:, 0], [1, -2, 0.5], atol=1e-3)
    assert model.layers[0].bias[0] == pytest.approx(0.3, abs=1e-3)


def test_backends_learn_the_same(compiled):
    X, y = blobs(dtype=np.float64)
    curves = []
    for name in (compiled, "numpy"):
        with fb.use_backend(name):
            model = everything("float64")
            optimizer = fb.Adam(model.parameters(), lr=0.01)
            curves.append(model.fit(X, y, "cross_entropy", optimizer, epochs=3, verbose=0, seed=2).history["loss"])
    np.testing.assert_allclose(*curves, rtol=1e-9)
