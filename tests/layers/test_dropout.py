"""Dropout beyond its kernel."""

import numpy as np
import pytest

import fastbp as fb


def around(dropout):
    """Behind a layer, in front of one, at the end of a branch that is copied or added to, and twice."""
    return [
        *dropout(),
        fb.Dense(7, 32, "relu"),
        *dropout(),
        *dropout(),
        fb.Residual([fb.Dense(32, 32), *dropout()]),
        fb.Concatenate([fb.Dense(32, 32), *dropout()], dropout(), [*dropout(), fb.Dense(32, 3)]),
        *dropout(),
        fb.Dense(67, 2),
        *dropout(),
    ]


@pytest.mark.parametrize("batch", [1, 40, 1500])
def test_inference_is_that_without_it(any_backend, dtype, rng, batch):
    X = rng.standard_normal((batch, 7)).astype(dtype)
    with_dropout = fb.Sequential(around(lambda: [fb.Dropout(0.5)]), dtype=dtype)
    without = fb.Sequential(around(list), dtype=dtype)
    for own, other in zip(with_dropout.parameters(), without.parameters(), strict=True):
        own[:] = other
    expected = without.predict(X)
    assert with_dropout.predict(X).tobytes() == expected.tobytes()
    with_dropout.fit(X, np.ones((batch, 2)), "mse", fb.SGD(with_dropout.parameters(), lr=0.0), verbose=0)
    assert with_dropout.predict(X).tobytes() == expected.tobytes()
