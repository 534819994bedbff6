"""Callbacks that watch a number: EarlyStopping and ReduceLROnPlateau."""

import os

import numpy as np
import pytest
from networks import bits, blobs, everything

import fastbp as fb


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
    history = model.fit(
        X,
        labels,
        "cross_entropy",
        optimizer,
        epochs=60,
        batch_size=16,
        validation_data=(X, y),
        callbacks=[Remember(), stopping],
        verbose=0,
    )
    best = min(range(len(seen)), key=lambda i: seen[i][0])
    assert stopping.best_epoch == best
    assert len(history.history["loss"]) == len(seen) == best + 4 < 60
    assert (
        bits(model)[: len(model.parameters().values.tobytes())]
        == seen[best][1][: len(model.parameters().values.tobytes())]
    )
    assert model.evaluate(X, y, "cross_entropy")["loss"] == stopping.best


def test_nan_is_never_the_best(capsys):
    stopping = fb.EarlyStopping(patience=2, monitor="loss")
    stopping.model, stopping.log_names = everything(), ["loss"]
    stopping.on_train_begin()
    for epoch, loss in enumerate([float("nan"), 1.0, 0.5, float("nan"), 0.6]):
        stopping.on_epoch_end(epoch, {"loss": loss})
        assert stopping.model.stop_training is (epoch == 4)
    assert (stopping.best, stopping.best_epoch) == (0.5, 2)


def test_reduce_lr_on_plateau_is_pytorchs():
    """Theirs waits until there are more than ``patience`` bad epochs, ours until there are as many."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    figures = np.exp(-np.arange(60) / 9) + 0.3 * rng.random(60)
    figures[7] = np.nan
    model = fb.Sequential([fb.Dense(3, 2)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=1.0)
    plateau = fb.ReduceLROnPlateau(factor=0.5, patience=3, min_delta=0.01, min_lr=0.02)
    plateau.model, plateau.optimizer, plateau.log_names = model, optimizer, ["loss"]
    plateau.on_train_begin()
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs, factor=0.5, patience=2, threshold=0.01, threshold_mode="abs", min_lr=0.02, eps=0
    )
    for epoch, figure in enumerate(figures):
        plateau.on_epoch_end(epoch, {"loss": figure})
        scheduler.step(figure)
        assert optimizer.lr == theirs.param_groups[0]["lr"], epoch
    assert optimizer.lr == 0.02


def test_reduce_lr_on_plateau_in_fit():
    X, y = np.ones((20, 3)), np.ones((20, 2))
    model = fb.Sequential([fb.Dense(3, 2)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=1e-30)
    plateau = fb.ReduceLROnPlateau(factor=0.1, patience=2)
    lr = model.fit(X, y, "mse", optimizer, epochs=6, verbose=0, callbacks=[plateau]).history["lr"]
    np.testing.assert_allclose(lr, np.array([1, 1, 1, 0.1, 0.1, 0.01]) * 1e-30)
    other = fb.SGD(model.parameters(), lr=fb.schedules.Cosine(0.1, 10))
    with pytest.raises(ValueError, match="optimizer: expected a constant learning rate"):
        model.fit(X, y, "mse", other, verbose=0, callbacks=[plateau])
    for bad in (dict(factor=1.0), dict(factor=0.0), dict(patience=0), dict(min_lr=-1.0), dict(min_delta=-1.0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            fb.ReduceLROnPlateau(**bad)


def test_a_fit_in_a_callback_is_refused():
    """It would end with the outer one's optimizer, history and stop flag in its hands; a step is a step."""
    X, y = blobs()

    class Inner(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            self.model.train_on_batch(X, y, "cross_entropy", self.optimizer)
            with pytest.raises(RuntimeError, match=r"in training already.*train_on_batch may be called here"):
                self.model.fit(X, y, "cross_entropy", self.optimizer, verbose=0)

    model = everything()
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    history = model.fit(X, y, "cross_entropy", optimizer, epochs=3, callbacks=[Inner()], verbose=0)
    assert len(history) == 3
    assert optimizer.steps == model.model.training_step == 3 * (1 + -(-len(X) // 32))


def test_the_model_of_a_callback_has_what_a_sequential_has():
    """Checkers see a protocol, for imports run downward."""
    from fastbp.training.callbacks import ModelInTraining

    public = {name for name in dir(fb.Sequential) if not name.startswith("_")} - {"load"}
    assert public <= set(dir(ModelInTraining)) | set(ModelInTraining.__annotations__)


class Fails(fb.Callback):
    """Raises in the third epoch, or where it is told to."""

    def __init__(self, error=ZeroDivisionError, where="on_epoch_end"):
        self.error, self.where = error, where

    def on_train_begin(self):
        if self.where == "on_train_begin":
            raise self.error

    def on_epoch_end(self, epoch, logs):
        if self.where == "on_epoch_end" and epoch == 2:
            raise self.error

    def on_train_end(self):
        if self.where == "on_train_end":
            raise self.error


class Notes(fb.Callback):
    def __init__(self):
        self.notes = []

    def on_train_begin(self):
        self.notes.append("begin")

    def on_train_end(self):
        self.notes.append("end")


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_the_best_weights_are_restored_whatever_ends_fit(any_backend, error):
    """By another callback, by the loss in the middle of an epoch, by an interrupt."""
    X, y = blobs()
    values = iter([3.0, 1.0, 2.0, 2.0])

    def by_loss(pred, target):
        if optimizer.steps == 17:
            raise error
        return fb.CrossEntropy()(pred, target)

    for loss, others in ((by_loss, []), ("cross_entropy", [Fails(error)])):
        values, model = iter([3.0, 1.0, 2.0, 2.0]), everything()
        optimizer, weights = fb.Adam(model.parameters()), []

        class Keeps(fb.Callback):
            def on_epoch_end(self, epoch, logs, weights=weights):
                weights.append(bits(self.model))

        with pytest.raises(error):
            model.fit(
                X, y, loss, optimizer, epochs=4, batch_size=30, verbose=0, validation_data=(X, y),
                metrics={"told": lambda *_, values=values: next(values)},
                callbacks=[fb.EarlyStopping(monitor="val_told", mode="min"), Keeps(), *others],
            )  # fmt: skip
        assert bits(model) == weights[1] != weights[0]
        assert len(model.history) == len(weights) == (2 if loss is by_loss else 3)


def test_every_callback_is_told_of_the_end(tmp_path):
    """Also if another one fails, wherever; one that has not begun is not told."""
    X, y = blobs()
    for where in ("on_train_begin", "on_epoch_end", "on_train_end"):
        model, before, behind = everything(), Notes(), Notes()
        optimizer = fb.SGD(model.parameters(), lr=0.1)
        checkpoint = fb.Checkpoint(tmp_path / f"{where}.npz", every=5)
        with pytest.raises(ZeroDivisionError):
            model.fit(X, y, "cross_entropy", optimizer, epochs=3, verbose=0,
                      callbacks=[before, Fails(where=where), behind, checkpoint])  # fmt: skip
        assert before.notes == ["begin", "end"]
        assert behind.notes == ([] if where == "on_train_begin" else ["begin", "end"])
        assert os.path.exists(checkpoint.path) == (where == "on_train_end")  # else the epoch was not finished
        model.fit(X, y, "cross_entropy", optimizer, verbose=0)


def test_a_writer_is_closed_whatever_ends_fit(tmp_path):
    pytest.importorskip("tensorboard")
    X, y = blobs()
    model, board = everything(), fb.TensorBoard(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y, "cross_entropy", fb.SGD(model.parameters(), lr=0.1), epochs=3, verbose=0,
                  callbacks=[board, Fails(KeyboardInterrupt)])  # fmt: skip
    assert board._writers == {}


def test_batch_norm_with_one_row_per_batch_is_told():
    """Inside of branches too; a LayerNorm, or more rows, are fine."""
    X, y = blobs(20)

    def fit(layers, rows=20, batch_size=1):
        model = fb.Sequential(layers, seed=0)
        before = model.layers[0].weight.copy()
        model.fit(X[:rows], y[:rows], "cross_entropy", fb.SGD(model.parameters(), lr=0.1), batch_size=batch_size,
                  verbose=0)  # fmt: skip
        return np.array_equal(model.layers[0].weight, before)

    def branch():
        return [fb.Dense(7, 4), fb.Residual([fb.BatchNorm(4), fb.Activation("relu")])]

    with pytest.warns(RuntimeWarning, match=r"batch_size: with one row per batch, layers\[1\] sees no difference"):
        assert fit([fb.Dense(7, 4), fb.BatchNorm(4)])  # nothing is learned before it
    with pytest.warns(RuntimeWarning, match=r"layers\[1\].layers\[0\] sees no difference"):
        fit(branch())
    with pytest.warns(RuntimeWarning, match="one row per batch"):
        fit(branch(), rows=1, batch_size=32)
    assert not fit(branch(), batch_size=2)
    assert not fit([fb.Dense(7, 4), fb.LayerNorm(4)])


VALUES = [0.1, 0.5, 0.9, 0.8, 0.7]


def watched(make, values=VALUES, **attributes):
    """A callback that watched a metric of the user's own, ``recall``, which took these values epoch by epoch."""
    given = iter(values)

    class Recall:
        def __call__(self, pred, target):
            return next(given)

    for name, value in attributes.items():
        setattr(Recall, name, value)
    model = fb.Sequential([fb.Dense(2, 2)], seed=0)
    X, y = np.zeros((4, 2)), [0, 1, 0, 1]
    callback = make()
    model.fit(
        X, y, "cross_entropy", fb.SGD(model.parameters(), lr=0.1), epochs=len(values), validation_data=(X, y),
        metrics={"recall": Recall()}, callbacks=[callback], verbose=0,
    )  # fmt: skip
    return callback


@pytest.mark.parametrize("options", [{"mode": "max"}, {"mode": "min"}])
def test_a_mode_says_what_is_better(options, tmp_path):
    best = {"max": 2, "min": 0}[options["mode"]]
    for make in (
        lambda: fb.EarlyStopping(9, "val_recall", **options),
        lambda: fb.ReduceLROnPlateau(0.5, 9, "val_recall", **options),
        lambda: fb.Checkpoint(tmp_path / "best.npz", best_only=True, monitor="val_recall", **options),
    ):
        assert watched(make).best_epoch == best


@pytest.mark.parametrize(("greater", "best"), [(True, 2), (False, 0)])
def test_a_metric_may_know_its_own_direction(greater, best):
    assert watched(lambda: fb.EarlyStopping(9, "val_recall"), greater_is_better=greater).best_epoch == best
    # a mode is the last word
    stopping = watched(lambda: fb.EarlyStopping(9, "val_recall", mode="max"), greater_is_better=greater)
    assert stopping.best_epoch == 2


def test_a_value_without_a_direction_asks_for_a_mode():
    for name in ("val_recall", "lr", "samples_per_second"):
        with pytest.raises(ValueError, match=f"^mode: expected 'min' or 'max', as '{name}' does not say"):
            watched(lambda name=name: fb.EarlyStopping(monitor=name))
    with pytest.raises(ValueError, match=r"^mode: unknown value 'maximum'"):
        fb.EarlyStopping(mode="maximum")


def test_fastbps_own_metrics_know_their_directions():
    pytest.importorskip("sklearn")
    greater = {name: metric.greater_is_better for name, metric in fb.metrics.METRICS.items()}
    assert greater == {
        "accuracy": True, "top_k_accuracy": True, "f1": True, "auc": True, "mae": False, "rmse": False, "r2": True
    }  # fmt: skip
    model = fb.Sequential([fb.Dense(2, 1)], seed=0)
    X, y = np.eye(2), [[0.0], [1.0]]
    for names, worse in ((["mae"], "val_mae"), (["r2"], "val_r2")):
        stopping = fb.EarlyStopping(monitor=worse)
        model.fit(X, y, "mse", fb.SGD(model.parameters(), lr=0.1), validation_data=(X, y), metrics=names,
                  callbacks=[stopping], verbose=0)  # fmt: skip
        assert stopping.greater_is_better[worse] is (worse == "val_r2")


def run(callback, values, name="val_loss"):
    """The epoch after which it stops a fit with these values, or None; the rates of the epochs after each."""
    model = fb.Sequential([fb.Dense(1, 1)], seed=0)
    callback.model, callback.optimizer = model, fb.SGD(model.parameters(), lr=1.0)
    callback.log_names, model.stop_training, rates = ["loss", "val_loss"], False, []
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        model.layers[0].bias[:] = epoch
        callback.on_epoch_end(epoch, {"loss": 0.0, name: value})
        rates.append(callback.optimizer.lr)
        if model.stop_training:
            callback.on_train_end()
            return epoch, rates, model.layers[0].bias[0]
    callback.on_train_end()
    return None, rates, model.layers[0].bias[0]


def test_ties_go_to_the_earlier_epoch_unless_the_last_is_asked_for():
    values = [3, 1, 1, 2, 1, 2, 2]
    first, last = fb.EarlyStopping(patience=3), fb.EarlyStopping(patience=3, ties="last")
    assert run(first, values)[::2] == (4, 1)
    assert first.best_epoch == 1
    assert run(last, values)[::2] == (4, 4)  # a tie is no improvement
    assert last.best_epoch == 4


def test_early_stopping_from_an_epoch_on():
    stopping = fb.EarlyStopping(patience=2, start_from_epoch=3)
    assert run(stopping, [0, 9, 9, 5, 6, 7, 8])[::2] == (5, 3)
    assert (stopping.best, stopping.best_epoch) == (5, 3)


def test_early_stopping_with_a_baseline():
    stopping = fb.EarlyStopping(patience=3, baseline=0.5)
    assert run(stopping, [0.9, 0.8, 0.7, 0.6])[::2] == (2, 2)  # never better than it: the weights stay as they are
    assert stopping.best_epoch == -1
    assert run(fb.EarlyStopping(patience=3, baseline=0.5), [0.9, 0.8, 0.4, 0.6, 0.5, 0.45])[::2] == (5, 2)
    accuracy = fb.EarlyStopping(patience=1, baseline=0.5, mode="max", monitor="val_loss")
    assert run(accuracy, [0.6, 0.7, 0.4])[::2] == (2, 1)


def test_a_reduction_has_a_cooldown():
    plateau = fb.ReduceLROnPlateau(factor=0.5, patience=2, cooldown=3)
    assert run(plateau, [1] * 10)[1] == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    plateau = fb.ReduceLROnPlateau(factor=0.5, patience=2)
    assert run(plateau, [1] * 7)[1] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fb.EarlyStopping(start_from_epoch=-1), "start_from_epoch: expected a non-negative"),
        (lambda: fb.EarlyStopping(baseline=float("nan")), "baseline: expected a number"),
        (lambda: fb.EarlyStopping(ties="both"), "ties: "),
        (lambda: fb.ReduceLROnPlateau(cooldown=-1), "cooldown: expected a non-negative"),
    ],
)
def test_settings_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_reduce_lr_on_plateau_keeps_a_warmup():
    model = fb.Sequential([fb.Dense(3, 2)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=fb.schedules.Constant(1e-30, warmup=5))
    plateau = fb.ReduceLROnPlateau(factor=0.5, patience=1)
    X, y = np.ones((20, 3)), np.ones((20, 2))
    model.fit(X, y, "mse", optimizer, epochs=3, verbose=0, callbacks=[plateau])
    assert optimizer.schedule.settings() == {"lr": 2.5e-31, "warmup": 5}
