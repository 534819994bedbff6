"""BatchNorm beyond its kernel."""

import numpy as np
import pytest

import fastbp as fb


def test_a_batch_of_one_leaves_running_statistics_alone(any_backend):
    model = fb.Sequential([fb.Dense(3, 4), fb.BatchNorm(4), fb.Dense(4, 2)], seed=0)
    before = model.layers[1].running_mean.copy(), model.layers[1].running_var.copy()
    model.train_on_batch(np.ones((1, 3)), [1], "cross_entropy", fb.SGD(model.parameters(), lr=0.1))
    np.testing.assert_array_equal(model.layers[1].running_mean, before[0])
    np.testing.assert_array_equal(model.layers[1].running_var, before[1])
    assert np.isfinite(model.parameters().values).all()


@pytest.mark.parametrize("eps", [1e-9, 1e-5, 3e-5, 0.1])
def test_the_running_variance_is_that_of_the_batch(any_backend, dtype, rng, eps):
    """Of a constant feature it goes to zero from above; 1/std of float32 knows it only as far as eps leaves it."""
    X = rng.standard_normal((40, 3)).astype(dtype)
    X[:, 1] = 2.5
    model = fb.Sequential([fb.BatchNorm(3, momentum=0.25, eps=eps)], dtype=dtype)
    expected = np.ones(3)
    for _ in range(60):
        model.forward(X, training=True)
        expected += 0.25 * (X.var(axis=0, ddof=1, dtype=np.float64) - expected)
    running = model.layers[0].running_var
    assert running[1] >= 0
    # every step rounds to the dtype, and later steps forget: at most 1 / 0.25 roundings stay
    np.testing.assert_allclose(running, expected, rtol=8 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).tiny)
