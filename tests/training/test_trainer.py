"""``fit``: sample weights, callables as losses, and an interrupt in the middle of an epoch."""

import signal

import numpy as np
import pytest
from networks import bits, blobs, everything

import fastbp as fb


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_weight_of_two_is_the_sample_twice(any_backend, loss):
    X, y = blobs(dtype="f8")
    y = np.eye(4)[y] if loss == "mse" else y
    weight = np.random.default_rng(3).integers(0, 3, len(X))
    weighted, repeated = (fb.Sequential([fb.Dense(7, 4)], dtype="float64", seed=0) for _ in range(2))
    for model, times, w in ((weighted, 1, weight), (repeated, weight, None)):
        x, t = np.repeat(X, times, axis=0), np.repeat(y, times, axis=0)
        optimizer = fb.SGD(model.parameters(), lr=0.1)
        model.fit(x, t, loss, optimizer, epochs=5, batch_size=len(x), verbose=0, sample_weight=w)
    # one matrix product sums the same terms in another order, once per epoch
    np.testing.assert_allclose(weighted.layers[0].weight, repeated.layers[0].weight, rtol=0, atol=1e-13)


def test_a_callable_gets_the_sample_weights():
    X, y = blobs()
    weight = np.random.default_rng(3).random(len(X))
    models = [everything(), everything()]
    for model, loss in zip(models, ["cross_entropy", lambda *given: fb.CrossEntropy()(*given)], strict=True):
        optimizer = fb.SGD(model.parameters(), lr=0.1)
        model.fit(X, y, loss, optimizer, seed=0, verbose=0, sample_weight=weight)
    assert bits(models[0]) == bits(models[1])


def test_a_callable_is_a_loss_anywhere(any_backend):
    def squared(pred, target):
        return float(np.mean((pred - target) ** 2)), 2 * (pred - target) / pred.size

    X, y = blobs()
    targets = np.eye(4, dtype=np.float32)[y]
    ours, named = everything(), everything()
    a = ours.fit(X, targets, squared, fb.SGD(ours.parameters(), lr=0.1), epochs=2, verbose=0, seed=1)
    b = named.fit(X, targets, "mse", fb.SGD(named.parameters(), lr=0.1), epochs=2, verbose=0, seed=1)
    np.testing.assert_allclose(a.history["loss"], b.history["loss"], rtol=1e-4)
    assert "accuracy" not in a.history
    assert ours.evaluate(X, targets, squared)["loss"] == pytest.approx(
        ours.evaluate(X, targets, "mse")["loss"], rel=1e-4
    )


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer on this system")
def test_an_interrupt_leaves_whole_steps(any_backend):
    """Ctrl-C in the middle of an epoch: what was trained is the state after some number of whole steps."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((500_000, 20)).astype("f4"), rng.integers(0, 4, 500_000)
    model = fb.Sequential([fb.Dense(20, 64, activation="relu"), fb.Dropout(0.2), fb.Dense(64, 4)], seed=0)
    optimizer = fb.Adam(model.parameters())

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, y, "cross_entropy", optimizer, epochs=1000, batch_size=50, shuffle=False, verbose=0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    steps = optimizer.steps
    assert 0 < steps == model.model.training_step
    assert (steps - 1) // 10_000 <= len(model.history) == model.epochs <= steps // 10_000  # of 10,000 steps
    if any_backend != "numpy":  # NumPy may be stopped between the lines of a step
        replica = fb.Sequential([fb.Dense(20, 64, activation="relu"), fb.Dropout(0.2), fb.Dense(64, 4)], seed=0)
        its_optimizer = fb.Adam(replica.parameters())
        for step in range(steps):
            rows = slice(step % 10_000 * 50, step % 10_000 * 50 + 50)
            replica.train_on_batch(X[rows], y[rows], "cross_entropy", its_optimizer)
        assert bits(replica) == bits(model)
    model.fit(X[:100], y[:100], "cross_entropy", optimizer, verbose=0)
    assert optimizer.steps == steps + 4


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer on this system")
def test_an_interrupt_counts_every_step_that_was_applied(compiled):
    """Of short calls into the core, which end before they look for signals: the bias is the number of steps applied."""
    X, y = np.zeros((32, 2)), np.full(32, 1e9)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(40):
            model = fb.Sequential([fb.Dense(2, 1)], dtype="float64", seed=0)
            optimizer = fb.SGD(model.parameters(), lr=1.0)

            def train(model=model, optimizer=optimizer, seconds=0.003 + 0.0001 * i):
                signal.setitimer(signal.ITIMER_REAL, seconds)
                model.fit(X, y, "mae", optimizer, epochs=10**6, batch_size=2, verbose=0)

            with pytest.raises(KeyboardInterrupt):
                train()
            assert model.layers[0].bias[0] == optimizer.steps == model.model.training_step
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
