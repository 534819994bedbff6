"""``check_gradients`` itself."""

import numpy as np

import fastbp as fb

TOLERANCE = 1e-6


def test_a_wrong_gradient_is_found(rng):
    model = fb.Sequential([fb.Dense(4, 2)], seed=0)

    def wrong(pred, target):
        return float(np.mean((pred - target) ** 2)), (pred - target) / pred.size  # a factor of 2 is missing

    assert fb.check_gradients(model, rng.standard_normal((5, 4)), rng.standard_normal((5, 2)), wrong) > 0.1


def test_the_model_is_left_as_it_was(rng):
    model = fb.Sequential([fb.Dense(4, 3), fb.BatchNorm(3), fb.Dropout(0.5), fb.Dense(3, 2)], seed=0)
    before = model.parameters().values.tobytes(), model.layers[1].running_mean.tobytes()
    assert fb.check_gradients(model, rng.standard_normal((5, 4)), rng.standard_normal((5, 2)), "mse") < TOLERANCE
    assert before == (model.parameters().values.tobytes(), model.layers[1].running_mean.tobytes())
