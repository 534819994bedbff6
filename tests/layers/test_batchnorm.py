"""BatchNorm beyond its kernel."""

import numpy as np

import fastbp as fb


def test_a_batch_of_one_leaves_running_statistics_alone(any_backend):
    model = fb.Sequential([fb.Dense(3, 4), fb.BatchNorm(4), fb.Dense(4, 2)], seed=0)
    before = model.layers[1].running_mean.copy(), model.layers[1].running_var.copy()
    model.train_on_batch(np.ones((1, 3)), [1], "cross_entropy", fb.SGD(model.parameters(), lr=0.1))
    np.testing.assert_array_equal(model.layers[1].running_mean, before[0])
    np.testing.assert_array_equal(model.layers[1].running_var, before[1])
    assert np.isfinite(model.parameters().values).all()
