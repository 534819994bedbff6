"""Training that diverges: what the error says, that the step is not applied, and what is restored."""

import pickle

import numpy as np
import pytest

import fastbp as fb

# NumPy, as a backend, says so when numbers overflow
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 5)).astype(np.float32)
Y = (3 * X[:, :1] + X[:, 1:3]).astype(np.float32)  # (200, 2)


def network(**settings):
    layers = [fb.Dense(5, 16, activation="relu"), fb.BatchNorm(16), fb.Dropout(0.1), fb.Dense(16, 2)]
    return fb.Sequential(layers, seed=0, **settings)


def callable_mse(pred, target):
    error = pred.astype(np.float64) - target
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.mean(error**2)), np.clip(2 * error / error.size, -1e30, 1e30)


def state(model, optimizer):
    """What a step changes."""
    norm = model.layers[1]
    arrays = [model.parameters().values, norm.running_mean, norm.running_var, *optimizer.state_vectors.values()]
    return [array.tobytes() for array in arrays], model.model.training_step, optimizer.steps


@pytest.mark.parametrize("loss", ["mse", callable_mse])
@pytest.mark.parametrize("where", ["fit", "train_on_batch"])
def test_a_step_whose_loss_is_not_finite_is_not_applied(any_backend, loss, where):
    model = network()
    optimizer = fb.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.fit(X, Y, "mse", optimizer, epochs=2, batch_size=40, verbose=0)
    model.layers[3].weight[0, 1] = 1e30  # its square is beyond float32, and that times a few beyond float64's mean
    model.layers[3].weight[1, 1] = np.inf
    act = {
        "fit": lambda: model.fit(X, Y, loss, optimizer, batch_size=40, shuffle=False, verbose=0),
        "train_on_batch": lambda: model.train_on_batch(X[:40], Y[:40], loss, optimizer),
    }
    before = state(model, optimizer)
    with pytest.raises(fb.DivergenceError) as caught:
        act[where]()
    error = caught.value
    assert state(model, optimizer) == before
    assert (error.what, error.layer, error.step, error.lr) == ("loss", "layers[3].weight", 11, 0.01)
    assert error.epoch == (1 if where == "fit" else None)
    assert not np.isfinite(error.value)
    assert ("epoch 1, step 11" if where == "fit" else "at step 11") in str(error)
    assert "with a learning rate of 0.01, first in layers[3].weight" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_layer_is_where_it_begins(any_backend):
    model = fb.Sequential([fb.Dense(5, 4, activation="relu"), fb.Dense(4, 4), fb.Activation("relu"), fb.Dense(4, 2)])
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    for layer in (0, 1, 3):
        model.layers[layer].weight[:] = 1e15
    with pytest.raises(fb.DivergenceError) as caught:
        model.fit(np.ones((8, 5)), np.ones((8, 2)), "mse", optimizer, verbose=0)
    assert caught.value.layer == "layers[3]"  # 1e45; layers[1] gives 1e31
    model.layers[3].weight[:] = 1  # finite outputs of 1e31, whose square is not
    with pytest.raises(fb.DivergenceError) as caught:
        model.fit(np.ones((8, 5)), np.ones((8, 2)), "mse", optimizer, verbose=0)
    assert caught.value.layer == "the loss"


def test_a_table_is_named_too(any_backend):
    model = fb.Sequential([fb.TabularInput(1, [3, 4], 2), fb.Dense(5, 1)], seed=0)
    model.layers[0].weights[1][2] = np.inf
    with pytest.raises(fb.DivergenceError, match=r"first in layers\[0\].weights\[1\]"):
        model.fit([[0.5, 1, 2]], [1.0], "mse", fb.SGD(model.parameters(), lr=0.1), verbose=0)


def test_a_rate_that_is_too_large(any_backend):
    """The last steps before are finite, so the step that shows it is one after; fit names its epoch."""
    model = fb.Sequential([fb.Dense(5, 2)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=30.0)
    with pytest.raises(fb.DivergenceError, match=r"the loss became (inf|nan) at epoch") as caught:
        model.fit(X, Y, "mse", optimizer, epochs=1000, batch_size=40, verbose=0)
    epochs = len(model.history.history["loss"])
    assert caught.value.epoch == epochs + 1
    assert caught.value.step == optimizer.steps + 1 > 5 * epochs
    assert np.isfinite(model.history.history["loss"]).all()


def test_parameters_after_the_last_step(any_backend):
    """A gradient that only the last step has seen: the loss is finite, the update is not."""
    model = fb.Sequential([fb.Dense(5, 2)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=3e38)
    with pytest.raises(
        fb.DivergenceError, match=r"parameters became (-?inf|nan) at epoch 1, step 1 .*layers\[0\].weight"
    ):
        model.fit(100 * X, Y, "mse", optimizer, batch_size=200, verbose=0)


def test_a_gradient_that_is_clipped_by_its_norm(any_backend):
    """Its norm is looked at before the update: fit and the explicit loop stop there, with nothing updated."""
    model = fb.Sequential([fb.Dense(2, 2), fb.Dense(2, 2)])
    model.layers[0].weight[:], model.layers[1].weight[:] = 1e-30, 1e17
    optimizer, x, y = fb.SGD(model.parameters(), lr=1e-3, clip_norm=1.0), 1e30 * np.ones((4, 2)), np.zeros((4, 2))
    # hidden units of 2 and outputs of 4e17, whose square is finite; dy W^T x is 1e17 * 1e17 * 1e30
    before = model.parameters().values.copy()
    with pytest.raises(fb.DivergenceError, match=r"the gradient became inf at epoch 1, step 1.*layers\[0\].dweight"):
        model.fit(x, y, "mse", optimizer, verbose=0)
    _, dy = fb.MSE()(model.forward(x, training=True), y)
    model.backward(dy)
    with pytest.raises(fb.DivergenceError, match=r"the gradient became inf at step 1 .*layers\[0\].dweight"):
        optimizer.step()
    assert np.array_equal(model.parameters().values, before)
    assert optimizer.steps == 0


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("how", ["stop", "restore"])
def test_stop_and_restore(any_backend, how, validated):
    class Watch(fb.Callback):
        def on_train_begin(self):
            self.weights, self.losses_seen, self.ended = [], [], False

        def on_epoch_end(self, epoch, logs):
            self.weights.append(self.model.parameters().values.copy())
            self.losses_seen.append(logs["val_loss" if validated else "loss"])

        def on_train_end(self):
            self.ended = True

    model = fb.Sequential([fb.Dense(5, 2)], seed=0)
    rate = fb.schedules.Exponential(0.01, 1.5)  # learns, then diverges
    watch, optimizer = Watch(), fb.SGD(model.parameters(), rate)
    with pytest.warns(RuntimeWarning, match="training has diverged"):
        history = model.fit(
            X, Y, "mse", optimizer, epochs=100, batch_size=100, verbose=0, callbacks=[watch], on_divergence=how,
            validation_data=(X, Y) if validated else None,
        )  # fmt: skip
    assert watch.ended
    assert len(history.history["loss"]) == len(watch.weights) < 100
    best = int(np.argmin(watch.losses_seen))
    assert 0 < best < len(watch.weights) - 1
    if how == "restore":
        assert np.array_equal(model.parameters().values, watch.weights[best])
    else:
        assert not np.array_equal(model.parameters().values, watch.weights[best])


def test_restore_without_a_finished_epoch(any_backend):
    model = fb.Sequential([fb.Dense(5, 2)], seed=0)
    before = model.parameters().values.copy()
    optimizer = fb.SGD(model.parameters(), lr=3e38)
    with pytest.warns(RuntimeWarning, match="the parameters became"):
        model.fit(100 * X, Y, "mse", optimizer, batch_size=200, verbose=0, on_divergence="restore")
    assert np.array_equal(model.parameters().values, before)


def test_on_divergence_is_checked():
    model = fb.Sequential([fb.Dense(5, 2)], seed=0)
    with pytest.raises(ValueError, match="on_divergence: unknown value 'rise'; did you mean 'raise'"):
        model.fit(X, Y, "mse", fb.SGD(model.parameters(), lr=1.0), on_divergence="rise")
