"""Whole trainings: what is learned, and that the same run gives the same bits however it is driven."""

import contextvars
import copy
import pickle
import signal
import threading
import tracemalloc

import numpy as np
import pytest

import fastbp as fb


def blobs(samples=203, inputs=7, classes=4, dtype=np.float32):
    """Points around `classes` centres; 203 is no multiple of any batch size used here."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, classes, samples)
    return (rng.standard_normal((classes, inputs))[y] * 2 + rng.standard_normal((samples, inputs))).astype(dtype), y


def everything(dtype="float32", seed=0):
    """A model with every kind of layer."""
    return fb.Sequential(
        [fb.Dense(7, 33, activation="relu"), fb.Dropout(0.2), fb.Dense(33, 20), fb.BatchNorm(20),
         fb.Activation("silu"), fb.Dense(20, 17, activation="gelu"), fb.LayerNorm(17), fb.Dense(17, 4)],
        dtype=dtype, seed=seed,
    )  # fmt: skip


def bits(model):
    return model.parameters().values.tobytes() + model._stats.tobytes()


OPTIMIZERS = [
    lambda p: fb.SGD(p, lr=0.05),
    lambda p: fb.SGD(p, lr=fb.schedules.Cosine(0.05, 20), momentum=0.9, nesterov=True, clip_norm=1.0),
    lambda p: fb.Adam(p, lr=0.01),
    lambda p: fb.AdamW(p, lr=0.01),
    lambda p: fb.AdamW(p, lr=0.01, weight_decay=0.3, decay_bias=False),
    lambda p: fb.RMSprop(p, lr=0.01, momentum=0.5),
    lambda p: fb.Adagrad(p, lr=0.01),
]


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
def test_fit_and_the_four_steps_give_the_same_bits(any_backend, dtype, make_optimizer):
    X, y = blobs(dtype=dtype)
    fitted, by_hand = everything(dtype), everything(dtype)
    history = fitted.fit(
        X, y, "cross_entropy", make_optimizer(fitted.parameters()), epochs=3, batch_size=32, seed=11, verbose=0
    )
    criterion, optimizer = fb.CrossEntropy(), make_optimizer(by_hand.parameters())
    rng = np.random.default_rng(11)
    for epoch in range(3):
        total = 0.0
        for xb, yb in fb.batches(X, y, batch_size=32, seed=rng):
            logits = by_hand.forward(xb, training=True)
            loss, dlogits = criterion(logits, yb)
            by_hand.backward(dlogits)
            optimizer.step()
            total += loss * len(xb)
        assert history.history["loss"][epoch] == total / len(X)
    assert bits(fitted) == bits(by_hand)
    assert fitted.predict(X).tobytes() == by_hand.predict(X).tobytes()


@pytest.mark.parametrize("loss", [fb.CrossEntropy(0.1, [1, 0, 2, 0.5]), fb.Huber()])
def test_weighted_fit_and_the_four_steps_give_the_same_bits(any_backend, dtype, loss):
    """With batches among them that weigh nothing."""
    X, y = blobs(dtype=dtype)
    weight = np.random.default_rng(3).choice([0, 0, 0.5, 3], len(X))
    if isinstance(loss, fb.Huber):
        y = np.eye(4)[y]
    fitted, by_hand, stepwise = everything(dtype), everything(dtype), everything(dtype)
    history = fitted.fit(
        X, y, loss, fb.Adam(fitted.parameters()), batch_size=3, seed=11, verbose=0, sample_weight=weight,
        validation_data=(X, y, weight),
    )  # fmt: skip
    optimizer, of_steps = fb.Adam(by_hand.parameters()), fb.Adam(stepwise.parameters())
    total, weighs_nothing = 0.0, 0
    for xb, yb, wb in fb.batches(X, y, 3, seed=11, sample_weight=weight):
        value, dpred = loss(by_hand.forward(xb, training=True), yb, wb)
        by_hand.backward(dpred)
        optimizer.step()
        assert stepwise.train_on_batch(xb, yb, loss, of_steps, wb) == value * len(xb) / len(xb)  # the sum's share
        total, weighs_nothing = total + value * len(xb), weighs_nothing + (wb.sum() == 0)
    assert weighs_nothing > 0
    assert bits(fitted) == bits(by_hand) == bits(stepwise)
    assert history.history["loss"][0] == total / len(X)
    assert history.history["val_loss"][0] == fitted.evaluate(X, y, loss, sample_weight=weight)["loss"]


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


WIDE_OPTIMIZERS = [
    lambda p: fb.SGD(p, lr=0.05, momentum=0.9, clip_norm=0.5),
    lambda p: fb.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    lambda p: fb.SGD(p, lr=0.05, weight_decay=0.3, decay_bias=False),
    lambda p: fb.AdamW(p, lr=0.01),
    lambda p: fb.AdamW(p, lr=0.01, weight_decay=0.3, decay_bias=False),
    lambda p: fb.RMSprop(p, lr=0.01, momentum=0.5),
]


@pytest.mark.parametrize("make_optimizer", WIDE_OPTIMIZERS)
@pytest.mark.parametrize("steps", [3, 7])
def test_the_engine_keeps_the_bits_of_wide_layers(compiled, dtype, make_optimizer, steps):
    """Their weights live in panels during an epoch and, in a longer one, their state in blocks; widths have tails."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((50 * steps - 13, 131)).astype(dtype)
    y = rng.standard_normal((len(X), 3)).astype(dtype)

    def build():
        layers = [fb.Dense(131, 301, activation="relu"), fb.Dense(301, 77, activation="silu"), fb.Dense(77, 3)]
        model = fb.Sequential(layers, dtype=dtype, seed=2)
        return model, make_optimizer(model.parameters())

    (by_hand, optimizer), criterion, order = build(), fb.MSE(), np.random.default_rng(9)
    for _ in range(2):
        for xb, yb in fb.batches(X, y, batch_size=50, seed=order):
            by_hand.backward(criterion(by_hand.forward(xb, training=True), yb)[1])
            optimizer.step()
    for threads in (1, 2, 5):
        fb.set_num_threads(threads)
        fitted, other = build()
        fitted.fit(X, y, criterion, other, epochs=2, batch_size=50, seed=9, verbose=0)
        assert bits(fitted) == bits(by_hand)
        assert fitted.parameters().grads.tobytes() == by_hand.parameters().grads.tobytes()
        state, expected = other.state_dict(), optimizer.state_dict()
        assert all(np.array_equal(state[name], expected[name]) for name in expected)


STACKS = [
    lambda: [fb.Dense(40, 1)],
    lambda: [fb.Dense(40, 300, activation="relu"), fb.Dense(300, 1, activation="softplus")],
    lambda: [fb.BatchNorm(40), fb.Dense(40, 64, activation="relu"), fb.Dense(64, 1)],
    lambda: [fb.Activation("tanh"), fb.LayerNorm(40), fb.Dense(40, 300, activation="gelu"), fb.Dense(300, 1)],
]


@pytest.mark.parametrize("layers", STACKS)
@pytest.mark.parametrize("batch_size", [1, 50])
def test_the_engine_keeps_the_bits_of_one_output(compiled, dtype, layers, batch_size):
    """Whatever kind of layer is first, and with more threads than rows or panels."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((2 * batch_size + batch_size // 2, 40)).astype(dtype)
    y = rng.standard_normal((len(X), 1)).astype(dtype)
    by_hand, criterion, order = fb.Sequential(layers(), dtype=dtype, seed=2), fb.MSE(), np.random.default_rng(9)
    optimizer = fb.Adam(by_hand.parameters())
    for xb, yb in fb.batches(X, y, batch_size=batch_size, seed=order):
        by_hand.backward(criterion(by_hand.forward(xb, training=True), yb)[1])
        optimizer.step()
    for threads in (1, 2, 5):
        fb.set_num_threads(threads)
        fitted = fb.Sequential(layers(), dtype=dtype, seed=2)
        fitted.fit(X, y, criterion, fb.Adam(fitted.parameters()), batch_size=batch_size, seed=9, verbose=0)
        assert bits(fitted) == bits(by_hand)


def test_an_epochs_order_is_a_permutation_on_every_backend(any_backend):
    from fastbp.core import reference
    from fastbp.sampling import epoch_rows

    for samples in (1, 2, 3, 5, 255, 256, 257, 1000, 65_537):
        rows = epoch_rows(0, samples, samples, 12345678901234567890)
        assert np.array_equal(np.sort(rows), np.arange(samples))
        assert np.array_equal(epoch_rows(samples // 3, 7, samples, 12345678901234567890), rows[samples // 3 :][:7])
        expected = np.empty(samples, np.int64)
        reference.order(expected, 0, samples, 12345678901234567890)
        assert np.array_equal(rows, expected)
        assert np.array_equal(epoch_rows(0, samples, samples, None), np.arange(samples))


def test_all_orders_of_four_samples_are_equally_likely():
    """24 cells over 4,800 keys: chi-square with 23 degrees of freedom exceeds 49.7 once in a thousand."""
    from fastbp.sampling import epoch_rows

    keys = np.random.default_rng(0).integers(2**64, size=4800, dtype=np.uint64)
    _, counts = np.unique([epoch_rows(0, 4, 4, int(key)) for key in keys], axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


def test_fit_takes_no_memory_per_sample(compiled):
    """The peak of the allocator's figures for one epoch is that of ten times the samples."""

    def peak(samples):
        X, y = np.ones((samples, 8), "f4"), np.zeros((samples, 1), "f4")
        model = fb.Sequential([fb.Dense(8, 16, activation="relu"), fb.Dense(16, 1)], seed=0)
        optimizer = fb.Adam(model.parameters())
        model.fit(X[:64], y[:64], "mse", optimizer, batch_size=32, verbose=0)
        tracemalloc.start()
        model.fit(X, y, "mse", optimizer, batch_size=32, verbose=0)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert abs(peak(200_000) - peak(20_000)) < 4096


def test_fit_takes_the_memory_that_it_should(compiled):
    """State, packed copies of the weights, and what a batch needs: its inputs for every thread, y, dy, and pred."""
    inputs, hidden, outputs, batch, threads = 300, 500, 10, 64, 2
    fb.set_num_threads(threads)
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((640, inputs)).astype("f4"), rng.integers(0, outputs, 640)
    model = fb.Sequential([fb.Dense(inputs, hidden, activation="relu"), fb.Dense(hidden, outputs)], seed=0)
    tracemalloc.start()
    model.fit(X, y, "cross_entropy", fb.Adam(model.parameters()), batch_size=batch, verbose=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    parameters = model.parameters().count
    activations = batch * (threads * inputs + 2 * (hidden + outputs) + 4 * outputs)
    blocks = threads * 32 * hidden  # for reordering the state, the rows of a panel
    # rounded up: panels are up to 32 columns wide, and the Python objects take some kilobytes
    assert peak < 1.1 * 4 * (2 * parameters + 2 * parameters + activations + blocks) + 2**16


def test_denormals_are_flushed_and_the_callers_state_is_restored(compiled):
    """1e-39 is below the smallest normal float32: the core takes it for zero on every thread, NumPy does not."""
    tiny = np.full((1000, 300), 1e-39, "f4")
    model = fb.Sequential([fb.Dense(300, 300, bias=False)], seed=0)
    model.layers[0].weight = np.eye(300)
    for threads in (1, 2):
        fb.set_num_threads(threads)
        assert not model.predict(tiny).any()
        assert (tiny[0] * np.float32(0.5)).all()


def test_train_on_batch_is_a_step_of_fit(any_backend):
    X, y = blobs()
    a, b = everything(), everything()
    sa, sb = fb.Adam(a.parameters()), fb.Adam(b.parameters())
    history = a.fit(X, y, "cross_entropy", sa, batch_size=len(X), shuffle=False, verbose=0)
    loss = b.train_on_batch(X, y, "cross_entropy", sb)
    assert loss * len(X) / len(X) == history.history["loss"][0]  # an epoch's loss is summed over its samples
    assert bits(a) == bits(b)


def test_threads_do_not_change_a_bit(compiled, dtype):
    def run(threads):
        fb.set_num_threads(threads)
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((600, 300)).astype(dtype), rng.integers(0, 70, 600)
        model = fb.Sequential(
            [fb.Dense(300, 500, activation="tanh"), fb.BatchNorm(500), fb.Dropout(0.1), fb.Dense(500, 450),
             fb.LayerNorm(450), fb.Activation("gelu"), fb.Dense(450, 70)], dtype=dtype, seed=1,
        )  # fmt: skip
        optimizer = fb.Adam(model.parameters(), clip_norm=1.0)
        history = model.fit(X, y, "cross_entropy", optimizer, 2, 256, verbose=0, sample_weight=rng.random(600))
        return bits(model), history.history["loss"]

    assert run(1) == run(2) == run(4)


def test_same_seed_same_bits_and_another_seed_others(any_backend):
    X, y = blobs()

    def run(seed):
        model = everything(seed=seed)
        model.fit(X, y, "cross_entropy", fb.SGD(model.parameters(), lr=0.1), epochs=2, verbose=0)
        return bits(model)

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_pinned_loss_curve(any_backend):
    """Ten steps of a small float64 net from weights written as formulas: figures that must never move.

    The figures were computed with PyTorch 2.13 from the same formulas, not with fastbp.
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
    history = model.fit(X, y, "binary_cross_entropy", fb.Adam(model.parameters(), lr=0.05), 200, 4, verbose=0)
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


def test_backends_learn_the_same(compiled):
    X, y = blobs(dtype=np.float64)
    curves = []
    for name in (compiled, "numpy"):
        with fb.use_backend(name):
            model = everything("float64")
            optimizer = fb.Adam(model.parameters(), lr=0.01)
            curves.append(model.fit(X, y, "cross_entropy", optimizer, 3, verbose=0, seed=2).history["loss"])
    np.testing.assert_allclose(*curves, rtol=1e-9)


def test_a_model_may_change_backends(compiled):
    X, y = blobs()
    model = everything()
    optimizer = fb.Adam(model.parameters())
    first = model.train_on_batch(X, y, "cross_entropy", optimizer)
    with fb.use_backend("numpy"):
        model.train_on_batch(X, y, "cross_entropy", optimizer)
    for _ in range(20):
        last = model.train_on_batch(X, y, "cross_entropy", optimizer)
    assert last < first


def test_early_stopping_restores_the_best_weights(any_backend):
    X, y = blobs()
    model = everything()
    seen = []

    class Remember(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append((logs["val_loss"], bits(self.model)))

    stopping = fb.EarlyStopping(patience=3)
    optimizer = fb.SGD(model.parameters(), lr=0.5)
    labels = np.random.default_rng(0).permutation(y)  # nothing to learn: validation soon gets worse
    history = model.fit(X, labels, "cross_entropy", optimizer, 60, 16, (X, y), [Remember(), stopping], verbose=0)
    best = min(range(len(seen)), key=lambda i: seen[i][0])
    assert stopping.best_epoch == best
    assert len(history.history["loss"]) == len(seen) == best + 4 < 60
    assert (
        bits(model)[: len(model.parameters().values.tobytes())]
        == seen[best][1][: len(model.parameters().values.tobytes())]
    )
    assert model.evaluate(X, y, "cross_entropy")["loss"] == stopping.best


def test_history_and_verbose(capsys):
    X, y = blobs()
    model = everything()
    optimizer = fb.SGD(model.parameters(), lr=fb.schedules.Constant(0.1))
    history = model.fit(X, y, "cross_entropy", optimizer, epochs=2, validation_data=(X, y))
    names = {"loss", "accuracy", "val_loss", "val_accuracy", "lr", "samples_per_second"}
    assert set(history.history) == names
    assert all(len(values) == 2 for values in history.history.values())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2  loss ")
    assert lines[1].endswith("samples/s")


def test_batches_cover_every_sample_once():
    X, y = np.arange(23)[:, None], np.arange(23)
    dealt = list(fb.batches(X, y, 5, seed=0))
    assert [len(xb) for xb, _ in dealt] == [5, 5, 5, 5, 3]
    assert sorted(np.concatenate([yb for _, yb in dealt])) == list(range(23))
    assert all((xb[:, 0] == yb).all() for xb, yb in dealt)
    assert np.array_equal(np.concatenate([yb for _, yb in fb.batches(X, y, 5, shuffle=False)]), y)
    again = [yb for _, yb in fb.batches(X, y, 5, seed=0)]
    assert all(np.array_equal(a, b) for (_, a), b in zip(dealt, again, strict=True))


def test_a_batch_of_one_leaves_running_statistics_alone(any_backend):
    model = fb.Sequential([fb.Dense(3, 4), fb.BatchNorm(4), fb.Dense(4, 2)], seed=0)
    before = model.layers[1].running_mean.copy(), model.layers[1].running_var.copy()
    model.train_on_batch(np.ones((1, 3)), [1], "cross_entropy", fb.SGD(model.parameters(), lr=0.1))
    np.testing.assert_array_equal(model.layers[1].running_mean, before[0])
    np.testing.assert_array_equal(model.layers[1].running_var, before[1])
    assert np.isfinite(model.parameters().values).all()


def test_predict_in_chunks_is_predict_row_by_row(any_backend):
    model = everything("float64")
    X = np.random.default_rng(0).standard_normal((2100, 7))
    whole = model.predict(X)
    assert whole.shape == (2100, 4)
    np.testing.assert_allclose(whole[[0, 1023, 1024, 2099]], model.predict(X[[0, 1023, 1024, 2099]]), rtol=1e-12)


def test_float32_features_are_used_without_a_copy():
    from fastbp.data import features

    X = np.ones((10, 3), np.float32)
    assert features("X", X, 3, np.dtype("f4")) is X
    read_only = X[:]
    read_only.flags.writeable = False
    assert np.shares_memory(features("X", read_only, 3, np.dtype("f4")), X)
    for other in (X.astype(int), np.asfortranarray(X), X[::-1], X.astype(">f4"), X.tolist(), X.astype(object)):
        cast = features("X", other, 3, np.dtype("f4"))
        assert cast.flags.c_contiguous
        assert cast.dtype == np.float32
        assert cast.dtype.isnative


def test_weights_are_views_and_assigning_copies(any_backend):
    model = fb.Sequential([fb.Dense(2, 2), fb.Dense(2, 1)], seed=0)
    layer = model.layers[0]
    assert np.shares_memory(layer.weight, model.parameters().values)
    layer.weight[:] = [[1, 2], [3, 4]]
    layer.bias = [10, 20]
    model.layers[1].weight = [[1], [1]]
    np.testing.assert_array_equal(model.predict([[1, 1]]), [[1 + 3 + 10 + 2 + 4 + 20]])
    with pytest.raises(ValueError, match=r"weight: expected shape \(2, 2\), got \(2,\)"):
        layer.weight = [1, 2]


@pytest.mark.parametrize("way", ["save", "pickle", "deepcopy"])
def test_copies_predict_and_go_on_alike(any_backend, tmp_path, way):
    X, y = blobs()
    model = everything()
    model.fit(X, y, "cross_entropy", fb.Adam(model.parameters()), verbose=0)
    if way == "save":
        model.save(tmp_path / "model.npz")
        twin = fb.load(tmp_path / "model.npz")
        assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    else:
        twin = pickle.loads(pickle.dumps(model)) if way == "pickle" else copy.deepcopy(model)
    assert twin.predict(X).tobytes() == model.predict(X).tobytes()
    assert not np.shares_memory(twin.parameters().values, model.parameters().values)
    if way != "save":  # a copy has the random state too
        for m in (model, twin):
            m.fit(X, y, "cross_entropy", fb.SGD(m.parameters(), lr=0.1), epochs=2, verbose=0)
        assert twin.predict(X).tobytes() == model.predict(X).tobytes()


def test_a_copied_optimizer_belongs_to_the_copied_model(any_backend):
    X, y = blobs()
    model = everything()
    optimizer = fb.Adam(model.parameters())
    model.fit(X, y, "cross_entropy", optimizer, verbose=0)
    for twin, its_optimizer in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        assert its_optimizer.params is twin.parameters()
        one, other = copy.deepcopy((model, optimizer)), (twin, its_optimizer)
        for m, o in (one, other):
            m.fit(X, y, "cross_entropy", o, verbose=0)
        assert bits(one[0]) == bits(twin)


def test_a_diverged_model_can_still_be_copied_and_saved(tmp_path):
    model = everything()
    model.layers[0].weight.flat[0] = np.nan
    model.save(tmp_path / "model.npz")
    assert np.isnan(fb.load(tmp_path / "model.npz").layers[0].weight.flat[0])
    assert np.isnan(copy.deepcopy(model).layers[0].weight.flat[0])


def test_threads_may_change_between_forward_and_backward(compiled):
    X, y = blobs()
    gradients = []
    for before, after in ((1, 1), (1, 4), (4, 1)):
        model = fb.Sequential([fb.Dense(7, 200, activation="tanh"), fb.Dense(200, 4)], seed=0)
        fb.set_num_threads(before)
        _, dlogits = fb.CrossEntropy()(model.forward(np.tile(X, (20, 1)), training=True), np.tile(y, 20))
        fb.set_num_threads(after)
        model.backward(dlogits)
        gradients.append(model.parameters().grads.tobytes())
    assert gradients[0] == gradients[1] == gradients[2]


def test_one_model_in_two_threads_is_an_error_not_a_race(compiled):
    model = fb.Sequential([fb.Dense(300, 300, activation="relu"), fb.Dense(300, 200)], seed=0)
    X = np.random.default_rng(0).standard_normal((1000, 300)).astype("f4")
    expected, wrong, refused = model.predict(X).tobytes(), [], []

    def hammer():
        for _ in range(40):
            try:
                wrong.append(model.predict(X).tobytes() != expected)
            except RuntimeError as error:
                refused.append(str(error))

    # a new thread starts on the default backend: give it this test's
    threads = [threading.Thread(target=contextvars.copy_context().run, args=(hammer,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(wrong)
    assert all("another thread" in message for message in refused)


def test_nan_is_never_the_best(capsys):
    stopping = fb.EarlyStopping(patience=2, monitor="loss")
    stopping.model, stopping.figures = everything(), ["loss"]
    stopping.on_train_begin()
    for epoch, loss in enumerate([float("nan"), 1.0, 0.5, float("nan"), 0.6]):
        stopping.on_epoch_end(epoch, {"loss": loss})
        assert stopping.model.stop_training is (epoch == 4)
    assert (stopping.best, stopping.best_epoch) == (0.5, 2)


def test_summary():
    layers = [fb.Dense(64, 1280, activation="relu"), fb.BatchNorm(1280), fb.Dense(1280, 10, bias=False)]
    lines = fb.Sequential(layers).summary().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split("  ")[0] for line in lines] == ["layer", *map(repr, layers), "total"]
    assert [line.split()[-2:] for line in lines] == [
        ["parameters", "FLOP"], ["83,200", "163,840"], ["2,560", "0"], ["12,800", "25,600"], ["98,560", "189,440"]
    ]  # fmt: skip
    assert lines[1].split("  ")[1] == "(B, 1280)"


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
    assert 0 < steps == model._step
    assert (steps - 1) // 10_000 <= len(model.history) == model.epochs <= steps // 10_000  # of 10,000 steps
    if any_backend != "numpy":  # NumPy may be stopped between the lines of a step
        twin = fb.Sequential([fb.Dense(20, 64, activation="relu"), fb.Dropout(0.2), fb.Dense(64, 4)], seed=0)
        its_optimizer = fb.Adam(twin.parameters())
        for step in range(steps):
            rows = slice(step % 10_000 * 50, step % 10_000 * 50 + 50)
            twin.train_on_batch(X[rows], y[rows], "cross_entropy", its_optimizer)
        assert bits(twin) == bits(model)
    model.fit(X[:100], y[:100], "cross_entropy", optimizer, verbose=0)
    assert optimizer.steps == steps + 4


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_one_sample_with_an_arbitrary_stride(any_backend, loss):
    """NumPy calls an axis of one row contiguous whatever its stride: it must not be taken for the size of the row."""
    strided = np.ones((1_000_000, 3), "f4") if loss == "mse" else np.ones(1_000_000, int)
    strided = strided[::500_000][:1]
    assert strided.flags.c_contiguous
    assert strided.strides[0] > strided.nbytes
    models = []
    for y in (strided, strided.copy()):
        models.append(fb.Sequential([fb.Dense(2, 3)], seed=0))
        optimizer = fb.SGD(models[-1].parameters(), lr=0.1)
        models[-1].fit(np.ones((1, 2), "f4"), y, loss, optimizer, epochs=3, verbose=0)
    assert bits(models[0]) == bits(models[1])
