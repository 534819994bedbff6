"""What fit can be told besides data, loss and optimizer, each beside a loop that does the same."""

import copy
import io

import numpy as np
import pytest
from networks import bits, blobs

import fastbp as fb

X, Y = blobs(100)
CLASSES = int(Y.max()) + 1


def network(seed=0, outputs=CLASSES, **settings):
    layers = [fb.Dense(X.shape[1], 16, "tanh"), fb.Dropout(0.2), fb.Dense(16, outputs)]
    return fb.Sequential(layers, seed=seed, **settings)


def fitted(**settings):
    model = network()
    optimizer = settings.pop("optimizer", fb.SGD)(model.parameters(), lr=settings.pop("lr", 0.1))
    settings = dict(batch_size=16, seed=5, verbose=0, epochs=2) | settings
    history = model.fit(settings.pop("X", X), settings.pop("y", Y), settings.pop("loss", "cross_entropy"), optimizer,
                        **settings)  # fmt: skip
    return model, optimizer, history


def chunks():
    for first in range(0, len(X), 23):
        yield X[first : first + 23], Y[first : first + 23]


# --- which samples ----------------------------------------------------------------------------------------------------


def test_validation_split_is_validation_data(any_backend):
    weight = np.linspace(0, 1, len(X))
    model, _, history = fitted(validation_split=0.3, sample_weight=weight)
    other, _, its = fitted(X=X[:70], y=Y[:70], sample_weight=weight[:70], validation_data=(X[70:], Y[70:], weight[70:]))
    assert bits(model) == bits(other)
    assert history.history["val_loss"] == its.history["val_loss"]


def test_drop_last(any_backend):
    model, optimizer, _ = fitted(drop_last=True)
    assert optimizer.steps == 2 * (100 // 16)
    looped, rng = network(), np.random.default_rng(5)
    other = fb.SGD(looped.parameters(), 0.1)
    for _ in range(2):
        for xb, yb in fb.batches(X, Y, 16, seed=rng, drop_last=True):
            assert len(xb) == 16
            looped.train_on_batch(xb, yb, "cross_entropy", other)
    assert bits(model) == bits(looped)


@pytest.mark.parametrize("buffer_size", [1, 40, 1000])
def test_drop_last_of_chunks(buffer_size):
    _, optimizer, _ = fitted(X=chunks, y=None, drop_last=True, buffer_size=buffer_size, shuffle=False)
    dealt = [len(xb) for xb, _ in fb.batches(chunks, None, 16, False, buffer_size=buffer_size, drop_last=True)]
    assert dealt == [16] * 6
    assert optimizer.steps == 12


@pytest.mark.parametrize("source", ["arrays", "chunks"])
def test_steps_per_epoch(any_backend, source):
    given = dict(X=chunks, y=None, buffer_size=30) if source == "chunks" else {}
    model, optimizer, history = fitted(steps_per_epoch=3, shuffle=False, **given)
    looped = network()
    other = fb.SGD(looped.parameters(), 0.1)
    for _ in range(2):
        for first in range(0, 48, 16):
            looped.train_on_batch(X[first : first + 16], Y[first : first + 16], "cross_entropy", other)
    assert optimizer.steps == 6
    assert len(history) == 2
    assert bits(model) == bits(looped)


def test_an_endless_stream_has_epochs_by_steps_per_epoch():
    def endless():
        while True:
            yield X, Y

    assert fitted(X=endless, y=None, steps_per_epoch=20)[1].steps == 40


# --- what they weigh --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["arrays", "chunks"])
def test_class_weight_multiplies_sample_weight(any_backend, source):
    given = dict(X=chunks, y=None, buffer_size=1000) if source == "chunks" else {}
    expected = fitted(sample_weight=np.where(Y == 1, 5.0, 1.0), shuffle=False)[0]
    for class_weight in ({1: 5}, np.where(np.arange(CLASSES) == 1, 5, 1)):
        assert bits(fitted(class_weight=class_weight, shuffle=False, **given)[0]) == bits(expected)
    assert fitted(class_weight={1: 5}, loss=fb.CrossEntropy())[2].history["loss"] == pytest.approx(
        fitted(loss=fb.CrossEntropy(class_weight={1: 5}))[2].history["loss"], rel=1e-6
    )


def test_balanced_classes_count_alike():
    labels = np.r_[np.zeros(80, int), np.ones(15, int), np.full(5, 2)]
    weight = np.array([*(100 / (3 * n) for n in (80, 15, 5)), 1])  # the fourth class is not there
    expected = fitted(y=labels, class_weight=weight)[0]
    assert bits(fitted(y=labels, class_weight="balanced")[0]) == bits(expected)


def test_class_weight_of_a_binary_loss(any_backend):
    y, model = (Y == 1).astype("f4"), network(outputs=1)
    model.fit(X, y, "binary_cross_entropy", fb.SGD(model.parameters(), 0.1), class_weight={1: 3}, seed=1, verbose=0)
    other = network(outputs=1)
    loss = fb.BinaryCrossEntropy(class_weight={1: 3})
    other.fit(X, y, loss, fb.SGD(other.parameters(), 0.1), seed=1, verbose=0)
    np.testing.assert_allclose(model.parameters().values, other.parameters().values, atol=1e-6)


# --- several batches to a step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", lambda pred, y, *weight: fb.CrossEntropy()(pred, y, *weight)])
def test_accumulate_is_a_larger_batch(any_backend, loss, weighted):
    """Without dropout, whose masks are others."""

    def trained(**settings):
        model = fb.Sequential([fb.Dense(X.shape[1], 16, "tanh"), fb.Dense(16, CLASSES)], dtype="float64", seed=0)
        optimizer = fb.SGD(model.parameters(), 0.1, momentum=0.9, clip_norm=0.5)
        weight = np.linspace(0, 1, len(X)) if weighted else None
        history = model.fit(X, Y, loss, optimizer, epochs=2, seed=5, verbose=0, sample_weight=weight, **settings)
        return model.parameters().values, optimizer.steps, history.history

    values, steps, history = trained(batch_size=8, accumulate=4)
    expected, its_steps, its = trained(batch_size=32)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-13)
    assert steps == its_steps == 8
    np.testing.assert_allclose(history["loss"], its["loss"], rtol=1e-12)
    if loss == "cross_entropy":
        assert history["accuracy"] == its["accuracy"]


def test_accumulate_is_the_loop_that_accumulates(any_backend):
    model, _, _ = fitted(accumulate=3, epochs=1)
    looped, rng, loss = network(), np.random.default_rng(5), fb.CrossEntropy()
    optimizer = fb.SGD(looped.parameters(), 0.1)
    dealt = list(fb.batches(X, Y, 16, seed=rng))
    for first in range(0, len(dealt), 3):
        group = dealt[first : first + 3]
        samples = sum(len(xb) for xb, _ in group)
        for i, (xb, yb) in enumerate(group):
            dpred = loss(looped.forward(xb, training=True), yb)[1]
            looped.backward(dpred * np.float32(len(xb) / samples), accumulate=i > 0)
        optimizer.step()
    assert bits(model) == bits(looped)


@pytest.mark.parametrize("buffer_size", [1, 1000])
def test_accumulate_with_chunks(buffer_size):
    expected = fitted(accumulate=2, shuffle=False)[0]
    model = fitted(X=chunks, y=None, accumulate=2, shuffle=False, buffer_size=buffer_size)[0]
    assert bits(model) == bits(expected)


# --- what is told -----------------------------------------------------------------------------------------------------


class Told(fb.Callback):
    def __init__(self):
        self.calls = []

    def on_epoch_begin(self, epoch):
        self.calls.append(("begin", epoch))

    def on_batch_end(self, batch, logs):
        self.calls.append((batch, logs["loss"]))

    def on_epoch_end(self, epoch, logs):
        self.calls.append(("end", logs["loss"]))


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"loss": lambda p, y: fb.CrossEntropy()(p, y)}])
def test_callbacks_are_told_of_epochs_and_batches(any_backend, settings):
    told = Told()
    model, _, history = fitted(callbacks=[told], **settings)
    assert bits(model) == bits(fitted(**settings)[0])
    steps = 7 if "accumulate" not in settings else 4
    assert [call[0] for call in told.calls] == ["begin", *range(steps), "end"] * 2
    of_batches = [value for name, value in told.calls[1 : 1 + steps]]
    sizes = [16] * 6 + [4] if steps == 7 else [32] * 3 + [4]
    assert history.history["loss"][0] == pytest.approx(np.average(of_batches, weights=sizes), rel=1e-6)


def test_the_learning_rate_is_set_from_a_callback(any_backend):
    class Halves(fb.Callback):
        def on_batch_end(self, batch, logs):
            self.optimizer.lr = self.optimizer.lr / 2

    def at_epochs(epoch_lr):
        class Sets(fb.Callback):
            def on_epoch_begin(self, epoch):
                self.optimizer.lr = epoch_lr[epoch]

        return Sets()

    model, _, history = fitted(callbacks=[Halves()])
    assert history.history["lr"] == [0.1 / 2**6, 0.1 / 2**13]
    assert bits(model) == bits(fitted(lr=lambda t: 0.1 / 2**t)[0])
    by_epoch = at_epochs([fb.schedules.Constant(0.1), lambda t: 0.01 if t < 10 else 0.02])
    model, _, history = fitted(callbacks=[by_epoch])
    assert history.history["lr"] == [0.1, 0.02]
    assert bits(model) == bits(fitted(lr=lambda t: 0.1 if t < 7 else 0.01 if t < 10 else 0.02)[0])


def test_verbose_prints_every_nth_epoch(capsys):
    fitted(verbose=3, epochs=8)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["3/8", "6/8", "8/8"]


def test_train_metrics(any_backend):
    pytest.importorskip("sklearn")
    model, _, history = fitted(metrics=["auc"], train_metrics=True, validation_split=0.2)
    assert history.history["auc"][-1] == fb.metrics.auc(model.predict(X[:80]), Y[:80])
    assert history.history["val_auc"][-1] == fb.metrics.auc(model.predict(X[80:]), Y[80:])
    stopping = fb.EarlyStopping(monitor="auc")
    assert "val_auc" not in fitted(metrics=["auc"], train_metrics=True, callbacks=[stopping])[2].history
    assert stopping.best > 0


# --- schedules in epochs ----------------------------------------------------------------------------------------------


def test_schedules_in_epochs_follow_the_steps_of_fit(any_backend):
    for settings, steps in (({}, 7), ({"drop_last": True}, 6), ({"accumulate": 2}, 4), ({"steps_per_epoch": 3}, 3)):
        model = fitted(lr=fb.schedules.Cosine(0.1, epochs=2, warmup=1), **settings)[0]
        expected = fitted(lr=fb.schedules.Cosine(0.1, 2 * steps, warmup=steps), **settings)[0]
        assert bits(model) == bits(expected)


def test_a_schedule_in_epochs_goes_on_after_a_resume(tmp_path):
    path, lr = tmp_path / "run.npz", fb.schedules.OneCycle(0.5, epochs=4)
    expected = fitted(lr=lr, epochs=4)[0]
    fitted(lr=lr, epochs=2, callbacks=[fb.Checkpoint(path)])
    assert bits(fitted(lr=lr, epochs=4, callbacks=[fb.Checkpoint(path)], resume=path)[0]) == bits(expected)


def test_a_loop_says_how_long_an_epoch_is():
    model, schedule = network(), fb.schedules.Step(0.1, gamma=0.5, epochs=2)
    optimizer = fb.SGD(model.parameters(), schedule)
    with pytest.raises(RuntimeError, match=r"schedule.bind\(steps_per_epoch\)"):
        model.train_on_batch(X, Y, "cross_entropy", optimizer)
    assert optimizer.steps == 0
    schedule.bind(3)
    assert [schedule(t) for t in (0, 5, 6, 12)] == [0.1, 0.1, 0.05, 0.025]


# --- probabilities and hidden outputs ---------------------------------------------------------------------------------


def softmax(logits):
    e = np.exp(logits.astype("f8") - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_predict_proba(any_backend, tmp_path):
    model, _, _ = fitted()
    expected = softmax(model.predict(X))
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=1e-5, atol=1e-7)
    assert model.predict_proba(X).dtype == np.float32
    model.save(tmp_path / "model.npz")
    for again in (fb.load(tmp_path / "model.npz"), copy.deepcopy(model), model.astype("float64")):
        np.testing.assert_allclose(again.predict_proba(X), expected, rtol=1e-5, atol=1e-7)
    binary = network(outputs=1)
    binary.train_on_batch(X, (Y == 1) * 1.0, "binary_cross_entropy", fb.SGD(binary.parameters(), 0.1))
    logits = binary.predict(X).astype("f8")
    np.testing.assert_allclose(binary.predict_proba(X), 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert binary.predict_proba(X[:0]).shape == (0, 1)


def test_predict_proba_of_what_gives_none():
    model = network()
    with pytest.raises(ValueError, match="expected a model that was last trained with 'cross_entropy'"):
        model.predict_proba(X)
    with pytest.raises(ValueError, match="loss: expected 'cross_entropy' or 'binary_cross_entropy' or None, got 'mse'"):
        model.predict_proba(X, "mse")
    np.testing.assert_allclose(model.predict_proba(X, "cross_entropy").sum(axis=1), 1, rtol=1e-6)
    model.train_on_batch(X, Y, "cross_entropy", fb.SGD(model.parameters(), 0.1))
    model.train_on_batch(X, np.zeros((100, CLASSES)), "mse", fb.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="another"):
        model.predict_proba(X)


def test_hidden_outputs(any_backend):
    layers = [fb.TabularInput(X.shape[1] - 1, [4], 2), fb.Dense(X.shape[1] + 1, 16, "tanh"), fb.BatchNorm(16)]
    layers += [fb.Residual([fb.Dense(16, 16, "relu")]), fb.Concatenate([], [fb.Dense(16, 3)]), fb.Dense(19, 2)]
    model, table = fb.Sequential(layers, seed=0), np.column_stack([X[:, 1:], np.arange(100) % 4])
    model.fit(table, Y % 2, "cross_entropy", fb.Adam(model.parameters()), verbose=0)
    embedded = model.forward(table, upto=1)
    assert embedded.shape == (100, model.layers[1].in_features)
    np.testing.assert_array_equal(embedded[:, : X.shape[1] - 1], X[:, 1:].astype("f4"))
    dense = model.layers[1]
    hidden = np.tanh(embedded.astype("f8") @ dense.weight + dense.bias)
    np.testing.assert_allclose(model.forward(table, upto=2), hidden, atol=1e-5)
    last = model.layers[-1]
    expected = model.forward(table, upto=-1).astype("f8") @ last.weight + last.bias
    np.testing.assert_allclose(model.predict(table), expected, atol=1e-5)
    np.testing.assert_array_equal(model.forward(table, upto=len(layers)), model.predict(table))


@pytest.mark.parametrize("upto", [0, -6, 7, 1.0, True, "2"])
def test_hidden_outputs_of_layers_that_there_are(upto):
    with pytest.raises((ValueError, TypeError), match="upto: expected"):
        network().forward(X, upto=upto)
    with pytest.raises(ValueError, match="upto: expected None in training"):
        network().forward(X, training=True, upto=1)


def test_no_rows_have_no_outputs(any_backend, dtype):
    model = network(dtype=dtype)
    assert model.predict(np.empty((0, X.shape[1]))).shape == (0, CLASSES)
    assert model.predict(np.empty((0, X.shape[1]))).dtype == dtype
    with pytest.raises(ValueError, match="shape"):
        model.predict(np.empty((0, 1)))


# --- layers and models for others -------------------------------------------------------------------------------------


def test_a_copied_layer_begins_with_the_values_of_the_model(any_backend):
    model = fb.Sequential([fb.Dense(X.shape[1], 8, "relu"), fb.Residual([fb.BatchNorm(8), fb.Dense(8, 8)]),
                           fb.Dense(8, CLASSES)], seed=0)  # fmt: skip
    model.fit(X, Y, "cross_entropy", fb.Adam(model.parameters(), 0.01), verbose=0)
    layers = [copy.deepcopy(layer) for layer in model.layers]
    assert not any(layer.is_bound for layer in layers)
    same = fb.Sequential(layers, seed=1)
    np.testing.assert_array_equal(same.predict(X), model.predict(X))
    body = fb.Sequential([*map(copy.deepcopy, model.layers[:2]), fb.Dense(8, 1)], dtype="float64", seed=1)
    np.testing.assert_allclose(body.forward(X, upto=2), model.forward(X, upto=2), atol=1e-5)
    same.layers[0].weight[:] = 0
    assert model.layers[0].weight.any()


def test_a_model_with_more_outputs(any_backend):
    """Class-incremental learning: what there is stays, moments included."""
    model, optimizer, _ = fitted(optimizer=fb.Adam, lr=0.01)
    bigger = model.with_outputs(CLASSES + 2, seed=1)
    assert bigger.outputs == CLASSES + 2
    np.testing.assert_array_equal(bigger.predict(X)[:, :CLASSES], model.predict(X))
    assert bigger.layers[-1].weight[:, CLASSES:].any()
    moved = optimizer.for_parameters(bigger.parameters())
    assert (moved.steps, moved.lr) == (optimizer.steps, 0.01)
    old, new = model.parameters(), bigger.parameters()
    for name, vector in optimizer.state_vectors.items():
        moments = new.view(moved.state_vectors[name], "2.weight")
        np.testing.assert_array_equal(moments[:, :CLASSES], old.view(vector, "2.weight"))
        assert not moments[:, CLASSES:].any()
    bigger.fit(X, np.arange(100) % (CLASSES + 2), "cross_entropy", moved, verbose=0)
    assert moved.steps > optimizer.steps
    with pytest.raises(ValueError, match="outputs: expected at least"):
        model.with_outputs(CLASSES - 1)
    with pytest.raises(ValueError, match="outputs: expected a model that ends in a Dense"):
        fb.Sequential([fb.Dense(2, 2), fb.Activation("relu")]).with_outputs(3)


def test_models_in_open_files(tmp_path):
    model, _, _ = fitted()
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    np.testing.assert_array_equal(fb.load(file).predict(X), model.predict(X))
    with open(tmp_path / "model.npz", "wb") as file:
        model.save(file)
    np.testing.assert_array_equal(fb.load(tmp_path / "model.npz").predict(X), model.predict(X))
    with pytest.raises(TypeError, match="path: expected"):
        model.save(io.StringIO())
    with pytest.raises(fb.FileFormatError):
        fb.load(io.BytesIO(b"nothing of the kind"))


# --- arguments that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(validation_split=0.0), "validation_split: expected a number in"),
        (dict(validation_split=1.0), "validation_split: expected a number in"),
        (dict(validation_split=0.001), "validation_split: expected samples on both sides, got 0 of 100"),
        (dict(validation_split=0.5, validation_data=(X, Y)), "validation_split: expected None with validation_data"),
        (dict(validation_split=0.5, X=chunks, y=None), "validation_split: expected arrays"),
        (dict(drop_last=True, batch_size=101), "drop_last: expected at least 101 samples"),
        (dict(drop_last=True, batch_size=101, X=chunks, y=None), "drop_last: expected at least 101 samples"),
        (dict(steps_per_epoch=8), "steps_per_epoch: expected at most 7"),
        (dict(steps_per_epoch=0), "steps_per_epoch: expected a positive"),
        (dict(accumulate=0), "accumulate: expected a positive"),
        (dict(class_weight="even"), "class_weight: "),
        (dict(class_weight="balanced", X=chunks, y=None), "class_weight: expected weights for data that is read"),
        (dict(class_weight=[1, 2]), "class_weight: expected .* weights"),
        (dict(class_weight={99: 2}), "class_weight: "),
        (dict(class_weight={0: 2}, loss="mse", y=np.zeros((100, CLASSES))), "class_weight: expected None with MSE"),
        (dict(lr=fb.schedules.Cosine(0.1, epochs=2), X=chunks, y=None), "lr: expected a schedule in steps, or steps_p"),
        (dict(metrics=["auc"]), "metrics: expected validation_data"),
        (dict(verbose=-1), "verbose: expected"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    if "metrics" in settings:
        pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=message):
        fitted(**settings)


# --- what is shown and said -------------------------------------------------------------------------------------------


def test_reprs_say_what_there_is():
    model, optimizer, history = fitted(optimizer=fb.AdamW, lr=fb.schedules.Cosine(0.1, epochs=3), validation_split=0.2)
    assert repr(model).splitlines()[0] == "Sequential(["
    assert repr(model).splitlines()[-1] == "], dtype='float32')  # 196 parameters"
    assert repr(model.parameters()).startswith("Parameters(4 tensors of 196 float32: 0.weight (7, 16), 0.bias (16,), ")
    assert repr(optimizer) == "AdamW(lr=Cosine(lr=0.1, epochs=3)), 10 steps done"
    assert repr(fb.SGD(model.parameters(), 0.1, 0.9)) == "SGD(lr=0.1, momentum=0.9), 0 steps done"
    assert repr(history).startswith("History(2 epochs, the last with loss ")
    assert repr(fb.History()) == "History(0 epochs)"
    assert repr(fb.CrossEntropy(0.1)) == "CrossEntropy(label_smoothing=0.1)"
    assert repr(fb.MSE()) == "MSE()"
    assert repr(fb.Quantile([0.1, 0.9])) == "Quantile(q=(0.1, 0.9))"
    assert repr(fb.EarlyStopping(3, "val_auc")) == "EarlyStopping(patience=3, monitor='val_auc')"
    assert repr(fb.Checkpoint("run.npz")) == "Checkpoint(path='run.npz')"
    assert repr(Told()) == "Told()"


def test_a_history_has_its_values_by_name():
    _, _, history = fitted(validation_split=0.2)
    assert history["val_loss"] is history.history["val_loss"]
    assert "val_loss" in history
    assert "auc" not in history
    assert list(history) == list(history.history)
    with pytest.raises(KeyError, match="'auc': expected one of loss, accuracy"):
        history["auc"]


def test_a_resumed_fit_says_where_it_goes_on(tmp_path, capsys):
    path = tmp_path / "run.npz"
    fitted(callbacks=[fb.Checkpoint(path)], resume=path, verbose=1)
    assert "resumes" not in capsys.readouterr().out
    fitted(callbacks=[fb.Checkpoint(path)], resume=path, epochs=3, verbose=1)
    assert capsys.readouterr().out.splitlines()[0] == f"resumes after epoch 2/3, from {path}"
    fitted(callbacks=[fb.Checkpoint(path)], resume=path, epochs=4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "last",
    [
        [fb.Dense(16, 1, "sigmoid")],
        [fb.Dense(16, 1), fb.Activation("sigmoid")],
        [fb.Dense(16, 1, "relu"), fb.Dropout(0.1)],
    ],
)
def test_probabilities_where_logits_are_expected_are_a_warning(last):
    layers = [fb.Dense(X.shape[1], 16), *map(copy.deepcopy, last)]
    model, y = fb.Sequential(layers, seed=0), (Y == 1) * 1.0
    with pytest.warns(RuntimeWarning, match="BinaryCrossEntropy takes logits and applies the sigmoid itself"):
        model.fit(X, y, "binary_cross_entropy", fb.SGD(model.parameters(), 0.1), verbose=0)
    model.fit(X, y, "mse", fb.SGD(model.parameters(), 0.1), verbose=0)


@pytest.mark.parametrize(
    ("last", "loss", "warned"),
    [
        ("sigmoid", "cross_entropy", 1),
        ("relu", "cross_entropy", 1),
        ("tanh", "cross_entropy", 0),  # bounded logits may be meant
        (None, "cross_entropy", 0),
        ("sigmoid", "mse", 0),
        ("sigmoid", lambda pred, y: fb.CrossEntropy()(pred, y), 0),  # what a loss of the user's own takes is not known
    ],
)
def test_a_fit_warns_once_of_what_are_no_logits(last, loss, warned, recwarn):
    y = np.eye(CLASSES)[Y] if loss == "mse" else Y
    model = fb.Sequential([fb.Dense(X.shape[1], CLASSES, last)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    model.train_on_batch(X, y, loss, optimizer)  # looked for in fit alone: a step of a small network takes microseconds
    assert not recwarn.list
    model.fit(X, y, loss, optimizer, epochs=3, verbose=0)
    assert [w.category for w in recwarn] == [RuntimeWarning] * warned
    assert all("takes logits" in str(w.message) and w.filename == __file__ for w in recwarn)


def test_a_plot_of_many_epochs_has_lines_alone_and_a_scale(tmp_path):
    pytest.importorskip("matplotlib")
    history = fb.History()
    for epoch in range(2000):
        history.append({"loss": 1 / (epoch + 1), "accuracy": 0.5})
    loss, accuracy = history.plot(tmp_path / "history.png", log=True).axes
    assert [line.get_marker() for line in loss.lines] == ["None"]
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    with pytest.raises(TypeError, match="log: expected True or False, got 'linear'"):
        history.plot(log="linear")


class Own(fb.Dense):
    def forward(self, x):
        return x


@pytest.mark.parametrize("make", [lambda own: [own], lambda own: [fb.Residual([own])]])
def test_a_layer_of_the_users_own_is_refused(make):
    with pytest.raises(
        TypeError, match=r"layers\[0\].*: expected one of fastbp's layers, got Own, a class of your own"
    ):
        fb.Sequential(make(Own(2, 2)))
