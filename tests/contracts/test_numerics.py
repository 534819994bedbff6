"""Long runs, and numbers next to nothing."""

import signal

import numpy as np
import pytest

import fastbp as fb
from fastbp import ops
from fastbp.core import backend

EPOCHS, BATCH, STEPS = 62_500, 4, 16  # a million steps; STEPS of them are an epoch


def sgd(params):
    return fb.SGD(params, lr=0.01, momentum=0.9, weight_decay=0.01)


def smooth_adam(params):
    return fb.Adam(params, lr=1e-3, eps=1e-2, weight_decay=0.01)


def adam(params):
    return fb.Adam(params, lr=1e-3, weight_decay=0.01)


def trained(make_optimizer, dtype, epochs):
    """The parameters of a 2-4-1 network that learns a smooth function; data and first weights are float32 numbers."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((BATCH * STEPS, 2)).astype("f4")
    y = np.tanh(X[:, :1] - 0.5 * X[:, 1:]).astype("f4")
    model = fb.Sequential([fb.Dense(2, 4, activation="tanh"), fb.Dense(4, 1)], dtype=dtype, seed=1)
    for p in model.parameters():
        p[:] = p.astype("f4")
    optimizer = make_optimizer(model.parameters())
    model.fit(X, y, "mse", optimizer, epochs=epochs, batch_size=BATCH, shuffle=False, verbose=0)
    assert optimizer.steps == epochs * STEPS
    return np.concatenate([p.astype("f8").ravel() for p in model.parameters()])


@pytest.mark.parametrize("make_optimizer", [sgd, smooth_adam, adam])
def test_float64_follows_the_reference(compiled, make_optimizer):
    """2,000 steps: compiled float64 may be the yardstick of a run that takes NumPy minutes."""
    with fb.use_backend("numpy"):
        expected = trained(make_optimizer, "float64", 125)
    np.testing.assert_allclose(trained(make_optimizer, "float64", 125), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("make_optimizer", "bound"), [(sgd, 1e-5), (smooth_adam, 1e-5), (adam, 1e-2)])
def test_a_million_steps_do_not_drift(make_optimizer, bound):
    """float32 ends where float64 does.

    Weight decay and the unbroken order of the batches make an epoch a contraction near the minimum: two runs that round
    differently are pulled together in every step by a share of lr * 0.01 / (1 - momentum) = 1e-3 at least, so what a
    step's rounding adds, 6e-8 of a weight of about one, stays below 6e-5 in the worst case, were all errors of one
    sign, however long the run. They are not: 1e-5 is asked for, where 1e-6 is seen. A sum that lost small addends, or a
    bias correction that drifted, would add up to more than that in a million steps.

    Adam with an eps of 1e-8 is no contraction: at the minimum it divides the noise of the gradient by itself and
    wanders by some steps of lr = 1e-3, in float64 too. Ten of them are its bound.
    """
    single, double = (trained(make_optimizer, dtype, EPOCHS) for dtype in ("float32", "float64"))
    assert np.abs(double).max() > 0.1  # it has learned something that could drift
    assert np.abs(single - double).max() < bound


TINY = np.float32(1e-39)  # below the smallest normal float32


def flushes_here():
    """Whether this thread treats denormal numbers as zero, as a task of the core does."""
    return not (np.full(4, TINY) * np.float32(0.5)).any()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_function_flushes_denormals(compiled, threads):
    fb.set_num_threads(threads)
    tiny, eye = np.full((1000, 300), TINY), np.eye(300, dtype="f4")
    y = np.ones_like(tiny)
    ops.matmul(y, tiny, eye)
    assert not y.any()
    y[:] = 1
    ops.dense_forward(y, None, tiny, eye, None)
    assert not y.any()
    y[:] = 1
    ops.dropout(y, tiny, 0.5, key=1, step=1)
    assert not y.any()
    param = np.zeros(tiny.size, "f4")
    ops.sgd_update(param, None, tiny.reshape(-1), 0.5)
    assert not param.any()
    assert backend().squared_norm(tiny.reshape(-1), None, threads) == 0
    assert not flushes_here()


@pytest.mark.parametrize("make_optimizer", [lambda p: fb.SGD(p, lr=1e-6, momentum=0.9), fb.Adam])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_denormal_data_trains_as_zeros_do(compiled, make_optimizer, threads):
    """Adam divides a gradient by its size: whatever came of a denormal number would move the first layer's weights."""
    fb.set_num_threads(threads)
    ended = []
    for value in (TINY, np.float32(0)):
        model = fb.Sequential([fb.Dense(300, 300, activation="leaky_relu"), fb.Dense(300, 200)], seed=0)
        optimizer = make_optimizer(model.parameters())
        X, y = np.full((130, 300), value), np.full((130, 200), 1e3, "f4")
        model.fit(X, y, "mse", optimizer, epochs=2, batch_size=60, verbose=0)
        model.train_on_batch(X, y, "mse", optimizer)
        assert not flushes_here()
        ended.append((model.parameters().values.tobytes(), model.predict(X).tobytes()))
    assert ended[0] == ended[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_state_is_restored_after_an_interrupt(compiled, alarms, threads):
    fb.set_num_threads(threads)
    X, y = np.ones((200_000, 64), "f4"), np.zeros((200_000, 64), "f4")
    model = fb.Sequential([fb.Dense(64, 128, activation="relu"), fb.Dense(128, 64)], seed=0)

    alarms(signal.default_int_handler, 0.2)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y, "mse", fb.SGD(model.parameters(), lr=0.01), epochs=1000, batch_size=64, verbose=0)
    assert not flushes_here()


def test_denormals_are_flushed_and_the_callers_state_is_restored(compiled):
    """1e-39 is below the smallest normal float32: the core treats it as zero on every thread, NumPy does not."""
    tiny = np.full((1000, 300), 1e-39, "f4")
    model = fb.Sequential([fb.Dense(300, 300, bias=False)], seed=0)
    model.layers[0].weight = np.eye(300)
    for threads in (1, 2):
        fb.set_num_threads(threads)
        assert not model.predict(tiny).any()
        assert (tiny[0] * np.float32(0.5)).all()
