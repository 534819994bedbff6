"""A user's program that takes everything public in hand once: mypy --strict and pyright check it, and it runs.

Each assert_type says what a user is told. That the numbers are right is tested elsewhere.
"""

# pyright: strict

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastbp as fb
import fastbp.onnx
import fastbp.safetensors
from fastbp.callbacks import Monitor
from fastbp.core import available_backends, backend_name
from fastbp.layers import Layer
from fastbp.losses import Loss
from fastbp.metrics import Metric
from fastbp.optim import Optimizer
from fastbp.parameters import Parameters
from fastbp.profiling import Profile, Row, Table
from fastbp.sklearn import MLPClassifier, MLPRegressor

Array = np.ndarray[Any, np.dtype[Any]]
FloatArray = NDArray[np.float32]


class Recorder(fb.Callback):
    """A callback of the user's own, which ends training after two epochs."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_begin(self) -> None:
        assert_type(self.log_names, list[str])
        assert_type(self.optimizer, Optimizer | None)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.losses.append(logs["loss"])
        self.model.stop_training = epoch == 1

    def on_train_end(self) -> None:
        self.model.predict(np.zeros((1, self.model.inputs)))


class Best(Monitor):
    """A callback on the base that watches a value."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if self.improves(epoch, logs):
            assert_type(self.best, float)


class Warmup(fb.schedules.Schedule):
    """A schedule of the user's own."""

    def __call__(self, t: int) -> float:
        return min(1.0, (t + 1) / 10) * 0.01


class Absolute(Loss):
    """A loss of the user's own, as a class."""

    def compute(self, pred: Array, target: Array, sample_weight: Array | None) -> tuple[float, Array]:
        return float(abs(pred - target).mean()), np.sign(pred - target) / pred.size


def squares(pred: FloatArray, target: FloatArray) -> tuple[np.floating[Any], FloatArray]:
    """A loss of the user's own, as a function."""
    error = pred - target
    return np.mean(error * error), 2 * error / np.float32(error.size)


def weighted_squares(pred: Array, target: Array, sample_weight: Array | None = None) -> tuple[float, Array]:
    """One that takes weights where there are any."""
    share = np.ones(len(pred)) if sample_weight is None else sample_weight
    error = (pred - target) * share[:, None] / share.sum()
    return float((error * (pred - target)).sum()), 2 * error


class Foreign:
    """What another library's array or data frame is to NumPy."""

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[np.float64]:
        return np.ones((4, 3))


def small_init(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.normal(0, 0.1, shape)


def layers_and_arrays() -> None:
    first = fb.Dense(3, 4, activation="relu", bias=True, init=small_init)
    norm = fb.BatchNorm(4, momentum=0.1, eps=1e-5)
    stack: list[Layer] = [first, norm, fb.LayerNorm(4), fb.Activation("tanh"), fb.Dropout(0.5), fb.Dense(4, 2)]
    model = fb.Sequential(stack, dtype="float64", seed=0)
    fb.Sequential((fb.Dense(3, 2), fb.Dropout()), dtype=np.float64)
    assert_type(model.layers, tuple[Layer, ...])
    assert_type(first.weight, Array)
    assert_type(first.bias, Array | None)
    first.weight[0, 0] = 1
    first.weight = [[0.5] * 4] * 3
    first.bias = np.zeros(4)
    assert_type(norm.running_mean, Array)
    assert_type(norm.running_var, Array)
    # an array or a data frame of any library, nested lists, integers
    for x in (np.ones((4, 3), np.float32), np.ones((4, 3), int), [[1.0, 2, 3]], ((True, False, True),), Foreign()):
        assert_type(model.predict(x), Array)
    assert_type(model.forward([[1, 2, 3], [4, 5, 6]], training=True), Array)
    assert_type(model.backward([[1, 1], [1, 1]], input_gradient=True), Array | None)
    assert_type(first.dweight, Array)
    assert_type(first.dbias, Array | None)
    assert_type(model.parameters(), Parameters)
    for tensor in model.parameters():
        assert_type(tensor, Array)
    assert_type(model.parameters().values, Array)
    assert_type(model.parameters().count, int)
    assert_type(model.summary(), str)
    assert_type(model.summary(program=True), str)
    assert_type(model.astype("float32"), fb.Sequential)
    model.restore(model.snapshot())


def layers_with_branches() -> None:
    block = fb.Residual([fb.LayerNorm(4), fb.Dense(4, 4, activation="gelu")])
    split = fb.Concatenate([], (fb.Dense(4, 2),), policy=[fb.Dense(4, 3)])
    model = fb.Sequential([fb.Dense(3, 4), block, split], seed=0)
    assert_type(block.layers, tuple[Layer, ...])
    assert_type(split.branches, Mapping[int | str, tuple[Layer, ...]])
    outputs = model.forward(np.ones((2, 3)), training=True)
    assert_type(model.backward(outputs, input_gradient=True, parameter_gradients=False), Array | None)


def categorical_columns() -> None:
    table = fb.TabularInput(1, [3, 2], embedding_dim=[2, 2], unknown="reserve")
    model = fb.Sequential([table, fb.Dense(5, 1)], seed=0)
    optimizer = fb.Adagrad(model.parameters(), lr=0.1)
    model.fit([[0.5, 2, 1], [0.1, 0, 0]], [0, 1], "mse", optimizer, verbose=0)
    assert_type(table.weights, tuple[Array, ...])
    assert_type(table.dweights, tuple[Array, ...])
    words = fb.Embedding(num_embeddings=10, embedding_dim=3, columns=2)
    fb.Sequential([words, fb.Dense(6, 2)]).predict([[1, 2]])
    assert_type(words.weight, Array)


def losses_of_all_kinds() -> None:
    logits = np.zeros((2, 3))
    assert_type(fb.CrossEntropy(label_smoothing=0.1)(logits, [0, 2], sample_weight=[1, 2]), tuple[float, Array])
    for weights in ({0: 2.0}, [1.0, 2.0, 1.0], np.ones(3), None):
        fb.CrossEntropy(class_weight=weights)(logits, [0, 2])
    criteria: list[Loss] = [
        fb.BinaryCrossEntropy(), fb.MSE(), fb.MAE(), fb.Huber(delta=2), fb.Quantile(q=0.9), fb.Poisson(), Absolute()
    ]  # fmt: skip
    for criterion in criteria:
        loss, gradient = criterion(logits, np.ones((2, 3)))
        assert_type(loss, float)
        assert_type(gradient, Array)
    assert_type(fb.MSE()(logits, np.ones((2, 3)), reduction="none"), tuple[Array, Array])
    assert_type(fb.ops.softmax(logits), Array)
    assert_type(fb.ops.sigmoid(logits), Array)
    model = fb.Sequential([fb.Dense(3, 1)], seed=0)
    X, y = np.ones((4, 3)), np.ones((4, 1))
    for custom in (squares, weighted_squares, "mae", fb.MAE()):
        assert_type(model.train_on_batch(X, y, custom, fb.SGD(model.parameters(), lr=0.01)), float)
    assert_type(model.evaluate(X, y, squares), dict[str, float])
    assert_type(fb.check_gradients(model, X, y, "mse", sample_weight=[1, 1, 2, 2]), float)


def optimizers(parameters: Parameters) -> Iterator[Optimizer]:
    rates: list[float | fb.schedules.Schedule] = [
        0.1, fb.schedules.Constant(0.1), fb.schedules.Step(0.1, steps=5), fb.schedules.Exponential(0.1, gamma=0.9),
        fb.schedules.Cosine(0.1, steps=9), fb.schedules.OneCycle(0.1, steps=9),
        fb.schedules.InverseScaling(0.1, power=0.5), Warmup(),
    ]  # fmt: skip
    for lr in rates:
        yield fb.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=1e-4, clip_norm=1.0, decay_bias=False)
    yield fb.Adam(parameters, betas=(0.9, 0.99), eps=1e-7)
    yield fb.AdamW(parameters, weight_decay=0.1)
    yield fb.RMSprop(parameters, alpha=0.9, momentum=0.5)
    yield fb.Adagrad(parameters, eps=1e-9)


def four_steps(X: FloatArray, y: NDArray[np.int64]) -> None:
    model = fb.Sequential([fb.Dense(64, 8, activation="relu"), fb.Dense(8, 10)], seed=0)
    criterion = fb.CrossEntropy()
    rng = np.random.default_rng(0)
    for optimizer in optimizers(model.parameters()):
        for xb, yb in fb.batches(X, y, batch_size=32, seed=rng):
            logits = model.forward(xb, training=True)
            loss, dlogits = criterion(logits, yb)
            model.backward(dlogits)
            optimizer.step()
            assert_type(loss, float)
        assert_type(optimizer.lr, float)
        assert_type(optimizer.steps, int)
        optimizer.load_state_dict(optimizer.state_dict())
    for xb, yb, wb in fb.batches(X, y, 32, shuffle=False, sample_weight=np.ones(len(X))):
        assert_type((xb, yb, wb), tuple[Array, Array, Array])


def fit_and_files(X: FloatArray, y: NDArray[np.int64], folder: Path) -> None:
    model = fb.Sequential([fb.Dense(64, 8, activation="relu"), fb.Dense(8, 10)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    assert issubclass(Best, fb.callbacks.Monitor)
    recorder = Recorder()
    history = model.fit(
        X,
        y,
        loss="cross_entropy",
        optimizer=optimizer,
        epochs=3,
        batch_size=32,
        validation_data=(X, y, np.ones(len(X))),
        callbacks=[
            recorder,
            Best("val_loss"),
            fb.EarlyStopping(patience=2, monitor="val_accuracy", min_delta=0.0),
            fb.ReduceLROnPlateau(factor=0.5, patience=1, min_lr=1e-4),
            fb.Checkpoint(folder / "run.npz", best_only=True),
        ],
        verbose=0,
        shuffle=True,
        seed=np.random.default_rng(0),
        sample_weight=[1.0] * len(X),
    )
    assert_type(history, fb.History)
    assert_type(history.history, dict[str, list[float]])
    assert recorder.losses == history.history["loss"]
    history.plot(folder / "history.png")
    model.fit(X, y, fb.CrossEntropy(), optimizer, validation_data=(X, y), verbose="bar")

    keep = fb.Checkpoint(folder / "long.npz", every=2)
    model.fit(X, y, "cross_entropy", optimizer, epochs=3, callbacks=[keep], on_divergence="restore", resume=keep.path)
    assert_type(model.history, fb.History | None)
    try:
        model.fit(X, y, "cross_entropy", fb.SGD(model.parameters(), lr=1e38, clip_value=1e30), epochs=3, verbose=0)
    except fb.DivergenceError as error:
        assert_type((error.what, error.layer, error.epoch, error.step), tuple[str, str, int | None, int])
    model.restore(model.snapshot())

    model.save(folder / "model.npz")
    assert_type(fb.load(str(folder / "model.npz")), fb.Sequential)
    assert_type(fb.Sequential.load(folder / "model.npz"), fb.Sequential)
    resumed, its_optimizer, epochs = fb.Checkpoint.load(folder / "run.npz")
    assert_type(resumed, fb.Sequential)
    assert_type(its_optimizer, Optimizer)
    assert_type(epochs, int)
    try:
        fb.load(Path(__file__))
    except fb.FileFormatError as error:
        assert_type(error, fb.FileFormatError)
    fastbp.safetensors.save(model, folder / "model.safetensors")
    fastbp.safetensors.load(resumed, folder / "model.safetensors")
    fastbp.onnx.export(model, folder / "model.onnx")


def data_that_is_read(X: FloatArray, y: NDArray[np.int64], folder: Path) -> None:
    def chunks() -> Iterator[tuple[FloatArray, NDArray[np.int64]]]:
        for begin in range(0, len(X), 50):
            yield X[begin : begin + 50], y[begin : begin + 50]

    np.save(folder / "X.npy", X)
    mapped = np.load(folder / "X.npy", mmap_mode="r")
    model = fb.Sequential([fb.Dense(64, 10)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    model.fit(chunks, None, "cross_entropy", optimizer, validation_data=chunks, buffer_size=100)
    model.fit(mapped, y, "cross_entropy", optimizer, validation_data=(mapped, y), buffer_size=100)
    board = fb.TensorBoard(folder / "runs")
    model.fit(X, y, "cross_entropy", optimizer, validation_data=(X, y), metrics=["f1", "auc"], callbacks=[board])
    measures: dict[str, Metric] = {"error": lambda pred, target: 1 - fb.metrics.accuracy(pred, target)}
    assert_type(model.evaluate(chunks, None, "cross_entropy", metrics=measures), dict[str, float])
    assert_type(fb.metrics.top_k_accuracy(model.predict(X), y, k=3), float)
    for batch in fb.batches(chunks, None, 32):
        assert_type(batch, tuple[Array, ...])
    for xb, yb in fb.batches(mapped, y, 32, buffer_size=100):
        assert_type((xb, yb), tuple[Array, Array])


def where_the_time_goes(X: FloatArray, y: NDArray[np.int64]) -> None:
    model = fb.Sequential([fb.Dense(64, 10)], seed=0)
    with fb.profile() as measured:
        model.fit(X, y, "cross_entropy", fb.Adam(model.parameters()), verbose=0)
    measured.compare("numpy")
    assert_type(measured, Profile)
    assert_type(measured.tables, list[Table])
    assert_type(measured.tables[0].rows(), list[Row])
    assert_type(measured.tables[0].rows()[0].seconds, float)
    str(measured)


def backends() -> None:
    fb.set_num_threads(1)
    assert_type(fb.get_num_threads(), int)
    assert_type(available_backends(), list[str])
    with fb.use_backend("numpy"):
        assert_type(backend_name(), str)
        fb.show_config()


def single_kernels() -> None:
    def new(*shape: int) -> FloatArray:
        return np.ones(shape, np.float32)

    x, weight, bias, y, z = new(4, 3), new(3, 2), new(2), new(4, 2), new(4, 2)
    fb.ops.matmul(y, x, weight, threads=1)
    fb.ops.dense_forward(y, z, x, weight, bias, "gelu")
    fb.ops.dense_backward(new(3, 2), new(2), new(4, 3), y, x, None, weight)
    fb.ops.activation_forward(y, z, "relu")
    fb.ops.activation_backward(new(4, 2), new(4, 2), y, None, "relu")
    fb.ops.dropout(y, z, p=0.5, key=1, step=1)
    stats, rows = new(4, 2), new(4, 2)
    fb.ops.batchnorm_forward(y, stats, z, bias, bias, training=True)
    fb.ops.batchnorm_backward(new(2), new(2), None, y, z, stats, bias)
    fb.ops.layernorm_forward(y, rows, z, bias, bias)
    fb.ops.layernorm_backward(new(2), new(2), None, y, z, rows, bias)
    assert_type(fb.ops.cross_entropy(new(4, 2), z, np.zeros(4, int), sample_weight=new(4)), float)
    assert_type(fb.ops.elementwise_loss(new(4, 2), y, z, "huber", parameter=1.0), float)
    fb.ops.sgd_update(new(5), None, new(5), lr=0.1)
    fb.ops.adam_update(new(5), new(5), new(5), new(5), lr=0.1, step=1)
    fb.ops.rmsprop_update(new(5), new(5), None, new(5), lr=0.1)
    fb.ops.adagrad_update(new(5), new(5), new(5), lr=0.1)


def estimators(X: FloatArray, y: NDArray[np.int64]) -> None:
    classifier = MLPClassifier((8,), activation=["silu"], max_iter=9, batch_norm=True, callbacks=[Recorder()])
    assert_type(classifier.fit(X, y, eval_set=(X, y)), MLPClassifier)
    assert_type(classifier.predict(X), Array)
    assert_type(classifier.predict_proba(X), Array)
    assert_type(classifier.predict_log_proba(X), Array)
    assert_type(classifier.partial_fit(X, y), MLPClassifier)
    assert_type(classifier.coefs_, list[Array])
    regressor = MLPRegressor(max_iter=9, tol=100.0, n_iter_no_change=1, dropout=0.1, n_threads=1)
    assert_type(regressor.fit(X, y / 9).predict(X), Array)
    assert_type(regressor.partial_fit(X, y / 9), MLPRegressor)


def main(folder: Path) -> None:
    images, digits = fb.datasets.load_digits()
    images /= 16
    X, y = images[:200], digits[:200]
    assert_type(X, FloatArray)
    assert_type(y, NDArray[np.int64])
    layers_and_arrays()
    layers_with_branches()
    categorical_columns()
    losses_of_all_kinds()
    four_steps(X, y)
    fit_and_files(X, y, folder)
    data_that_is_read(X, y, folder)
    where_the_time_goes(X, y)
    backends()
    single_kernels()
    estimators(X, y)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
    print(f"fastbp {fb.__version__} on Python {sys.version_info.major}.{sys.version_info.minor}")
