"""Wrong input: the error names the argument, what was expected and what came, and nothing has changed after it."""

import copy
import inspect
import re

import numpy as np
import pytest

import fastbp as fb
from fastbp.core import plan
from fastbp.data.hints import ELSEWHERE
from fastbp.optim import Optimizer

X = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
Y = np.arange(20) % 2


def with_entry(array, value):
    array = np.array(array, dtype=float)
    array.flat[5] = value
    return array


# data and settings of fit: what to replace, the error, and what its message says
CASES = [
    (dict(loss=fb.CrossEntropy(class_weight=[1, 2, 3]), epochs=0), ValueError, "epochs: expected a positive integer"),
    (dict(X=X[:, :2]), ValueError, r"X: expected shape \(samples, 3\), got \(20, 2\)"),
    (dict(X=X[:, 0]), ValueError, r"X: expected shape \(samples, 3\), got \(20,\)"),
    (dict(X=X[:0], y=Y[:0]), ValueError, r"X: expected at least one sample, got shape \(0, 3\)"),
    (dict(X=with_entry(X, np.nan)), ValueError, r"X: expected finite numbers, got nan at index \(1, 2\)"),
    (dict(X=with_entry(X, np.inf)), ValueError, r"X: expected finite numbers, got inf"),
    (dict(X=with_entry(X, 1e300)), ValueError, r"X: expected finite numbers, got inf .*\(as float32\)"),
    (dict(X=X.astype(complex)), TypeError, "X: expected numbers, got an array of dtype complex128"),
    (dict(X=[["a", "b", "c"]] * 20), TypeError, "X: expected numbers, got an array of dtype <U1"),
    (dict(X=np.array([["a", 1, 2]] * 20, object)), TypeError, "X: expected numbers, got an array of objects"),
    (dict(X=np.array([[None] * 3] * 20)), ValueError, "X: expected finite numbers, got nan"),
    (dict(X=[[1, 2, 3], [1, 2]]), ValueError, "X: expected a rectangular array of numbers"),
    (dict(y=Y[:-1]), ValueError, r"y: expected 20 rows, one per sample, got shape \(19,\)"),
    (dict(y=Y + 1), ValueError, "y: expected labels from 0 to 1, got 2"),
    (dict(y=Y - 1), ValueError, "y: expected labels from 0 to 1, got -1"),
    (dict(y=Y.astype(float)), TypeError, "y: expected integer class labels, got dtype float64"),
    (dict(y=np.eye(3, dtype=int)[Y]), ValueError, r"y: expected class labels of shape \(20,\), got \(20, 3\)"),
    (dict(y=Y[:, None]), ValueError, r"y: expected class labels of shape \(20,\), got \(20, 1\); y.ravel\(\) has it"),
    (dict(y=Y.astype(float)), TypeError, r"y: .* got dtype float64; y.astype\(int\) makes integers"),
    (dict(y=np.array(["a", "b"])[Y]), TypeError, r"y: .* got dtype <U1; np.unique\(y, return_inverse=True\)"),
    (dict(y=Y + 1), ValueError, r"y: .* got 2; they begin at 0, as y - 1 does"),
    (dict(y=2 * Y - 1), ValueError, r"y: .* got -1; \(y > 0\).astype\(int\) makes 0 and 1 of -1 and 1"),
    (dict(y=np.eye(2)[Y] * 2 - 1, loss="binary_cross_entropy"), ValueError, r"y: .* got -1.0; \(y > 0\).astype\(int\)"),
    (dict(loss="bce"), ValueError, "loss: unknown value 'bce'; did you mean 'binary_cross_entropy'"),
    (dict(optimizer="adam"), TypeError, r"optimizer: expected an Optimizer such as fb.Adam\(.*got 'adam'"),
    (
        dict(optimizer=fb.SGD),
        TypeError,
        r"optimizer: expected an Optimizer such as fb.SGD\(model.parameters\(\), lr=0.1",
    ),
    (dict(y=Y.astype(object)), TypeError, r"y: .* got dtype object; y.astype\(int\) makes integers"),
    (
        dict(y=np.array(["a", "b"], object)[Y]),
        TypeError,
        r"y: .* got dtype object; np.unique\(y, return_inverse=True\)",
    ),
    (dict(y=np.eye(3, dtype=bool)[Y]), ValueError, r"\(20, 3\); as one-hot rows these are 3 classes, and there are 2$"),
    (dict(y=np.full((20, 3), 2)), ValueError, r"y: expected class labels of shape \(20,\), got \(20, 3\)$"),
    (dict(y=np.zeros((20, 0), int)), ValueError, r"y: expected class labels of shape \(20,\), got \(20, 0\)$"),
    (dict(y=np.float64(3)), TypeError, "y: expected integer class labels"),
    (dict(y=Y, loss="mse"), ValueError, r"y: expected shape \(20, 2\), got \(20,\)"),
    (dict(y=with_entry(np.zeros((20, 2)), np.nan), loss="mse"), ValueError, "y: expected finite numbers, got nan"),
    (dict(y=np.full((20, 2), 2.0), loss="binary_cross_entropy"), ValueError, r"y: expected values in \[0, 1\], got 2"),
    (dict(y=np.full((20, 2), -1.0), loss="poisson"), ValueError, "y: expected non-negative counts, got -1"),
    (dict(batch_size=0), ValueError, "batch_size: expected a positive integer, got 0"),
    (dict(batch_size=-3), ValueError, "batch_size: expected a positive integer, got -3"),
    (dict(batch_size=2.5), TypeError, "batch_size: expected a positive integer, got 2.5"),
    (dict(epochs=0), ValueError, "epochs: expected a positive integer, got 0"),
    (dict(epochs=True), TypeError, "epochs: expected a positive integer, got True"),
    (dict(loss="cross_entorpy"), ValueError, "loss: unknown value 'cross_entorpy'; did you mean 'cross_entropy'"),
    (dict(loss=3), TypeError, "loss: expected a name, a Loss or a callable"),
    (dict(loss=fb.MSE), TypeError, r"loss: expected an instance, got the class MSE; write MSE\(\)"),
    (dict(loss=fb.CrossEntropy(class_weight=[1, 2, 3])), ValueError, "class_weight: expected 2 weights"),
    (dict(loss=fb.CrossEntropy(class_weight={7: 2})), ValueError, "class_weight: expected labels from 0 to 1, got 7"),
    (dict(loss=lambda p, t: 3.0), TypeError, r"loss: expected the callable to return \(loss, dpred\), got float"),
    (
        dict(loss=lambda p, t: (3.0, p[:1])),
        ValueError,
        r"dpred: expected shape \(8, 2\)|dpred: expected shape \(20, 2\)",
    ),
    (dict(loss=lambda p, t: (3.0, p * np.nan)), ValueError, "dpred: expected finite numbers, got nan"),
    (dict(loss=lambda p, t: (3.0, p), y=with_entry(np.zeros(20), np.nan)), ValueError, "y: expected finite numbers"),
    (dict(X=np.ma.masked_less(X, 0)), ValueError, "X: expected numbers, got a masked array"),
    (dict(callbacks=None), TypeError, "callbacks: expected a list of callbacks, got None"),
    (dict(callbacks=[fb.EarlyStopping(monitor="val_loss")]), ValueError, "monitor: expected one of loss, .*'val_loss'"),
    (dict(optimizer="sgd"), TypeError, r"optimizer: expected an Optimizer such as fb.SGD\(.*got 'sgd'"),
    (dict(validation_data=X), TypeError, r"validation_data: expected \(Xv, yv\), "),
    (dict(validation_data=(X, Y, -np.ones(20))), ValueError, r"validation_data\[2\]: expected non-negative weights"),
    (dict(sample_weight=np.ones(19)), ValueError, r"sample_weight: expected shape \(20,\), got \(19,\)"),
    (dict(sample_weight=np.ones((20, 1))), ValueError, r"sample_weight: expected shape \(20,\), got \(20, 1\)"),
    (
        dict(sample_weight=with_entry(np.ones(20), -1.0)),
        ValueError,
        "sample_weight: expected non-negative weights, got -1.0 at index",
    ),
    (
        dict(sample_weight=with_entry(np.ones(20), np.nan)),
        ValueError,
        "sample_weight: expected finite numbers, got nan",
    ),
    (dict(sample_weight=np.zeros(20), epochs=2), ValueError, "sample_weight: expected a positive weight among them"),
    (dict(sample_weight=["a"] * 20), TypeError, "sample_weight: expected numbers"),
    (dict(validation_data=(X[:, :2], Y)), ValueError, r"validation_data\[0\]: expected shape \(samples, 3\)"),
    (dict(validation_data=(X, Y[:3])), ValueError, r"validation_data\[1\]: expected 20 rows"),
    (dict(callbacks=[print]), TypeError, r"callbacks\[0\]: expected a Callback"),
    (dict(seed=-1), ValueError, "seed: expected a non-negative integer"),
    (dict(seed="x"), TypeError, "seed: expected a non-negative integer"),
]


def model_with_state():
    model = fb.Sequential([fb.Dense(3, 4, activation="relu"), fb.BatchNorm(4), fb.Dense(4, 2)], seed=0)
    optimizer = fb.Adam(model.parameters())
    model.fit(X, Y, "cross_entropy", optimizer, verbose=0)
    return model, optimizer


def state(model, optimizer):
    """Everything that training changes."""
    arrays = [
        model.parameters().values,
        model.model.statistics,
        *(optimizer.state_vectors[name] for name in sorted(optimizer.state_vectors)),
    ]
    return b"".join(a.tobytes() for a in arrays), optimizer.steps, model.model.training_step


@pytest.mark.parametrize(("change", "error", "message"), CASES)
def test_fit(any_backend, change, error, message):
    model, optimizer = model_with_state()
    arguments = dict(X=X, y=Y, loss="cross_entropy", optimizer=optimizer, epochs=1, batch_size=8, verbose=0) | change
    before, given = state(model, optimizer), [np.array(arguments[k]).tobytes() for k in "Xy" if k not in change]
    with pytest.raises(error, match=message):
        model.fit(**arguments)
    assert state(model, optimizer) == before
    assert given == [np.array(arguments[k]).tobytes() for k in "Xy" if k not in change]


@pytest.mark.parametrize(
    ("change", "error", "message"), [case for case in CASES if set(case[0]) <= {"X", "y", "loss", "sample_weight"}]
)
def test_train_on_batch_and_evaluate(change, error, message):
    model, optimizer = model_with_state()
    before = state(model, optimizer)
    arguments = dict(X=X, y=Y, loss="cross_entropy") | change
    with pytest.raises(error, match=message):
        model.evaluate(**arguments)
    arguments["xb"], arguments["yb"] = arguments.pop("X"), arguments.pop("y")
    with pytest.raises(error, match=message.replace("X:", "xb:").replace("y:", "yb:")):
        model.train_on_batch(**arguments, optimizer=optimizer)
    assert state(model, optimizer) == before


def test_another_models_optimizer():
    model, _ = model_with_state()
    _, other = model_with_state()
    with pytest.raises(ValueError, match="optimizer: it was made for the parameters of another model"):
        model.fit(X, Y, "cross_entropy", other)


def test_backward_needs_a_forward_pass_in_training():
    model, optimizer = model_with_state()
    with pytest.raises(RuntimeError, match=r"call forward\(x, training=True\) first"):
        model.backward(np.zeros((20, 2)))
    model.forward(X, training=True)
    with pytest.raises(ValueError, match=r"dy: expected the shape of the outputs, \(20, 2\), got \(20, 3\)"):
        model.backward(np.zeros((20, 3)))
    model.train_on_batch(X, Y, "cross_entropy", optimizer)
    with pytest.raises(RuntimeError, match="another pass has run since"):
        model.backward(np.zeros((20, 2)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fb.Dense(0, 3), ValueError, "in_features: expected a positive integer, got 0"),
        (lambda: fb.Dense(3, "4"), TypeError, "out_features: expected a positive integer, got '4'"),
        (lambda: fb.Dense(3, 4, activation="rleu"), ValueError, "unknown value 'rleu'; did you mean 'relu'"),
        (lambda: fb.Dense(3, 4, activation="zzz"), ValueError, "activation: unknown value 'zzz'; expected one of"),
        (lambda: fb.Dense(3, 4, init="he_norml"), ValueError, "unknown value 'he_norml'; did you mean 'he_normal'"),
        (lambda: fb.Activation("sigmod"), ValueError, "name: unknown value 'sigmod'; did you mean 'sigmoid'"),
        (lambda: fb.Dropout(1.0), ValueError, r"p: expected a number in \[0, 1\), got 1.0"),
        (lambda: fb.Dropout("half"), TypeError, "p: expected a number, got 'half'"),
        (lambda: fb.BatchNorm(3, eps=0), ValueError, r"eps: expected a number in \(0, inf\), got 0"),
        (lambda: fb.Quantile(1), ValueError, r"q: expected a number in \(0, 1\), got 1"),
        (lambda: fb.Huber(float("nan")), ValueError, "delta: expected a number"),
        (lambda: fb.CrossEntropy(label_smoothing=2), ValueError, r"label_smoothing: expected a number in \[0, 1\)"),
        (lambda: fb.EarlyStopping(patience=0), ValueError, "patience: expected a positive integer, got 0"),
        (lambda: fb.Sequential([]), ValueError, "layers: expected at least one layer, got none"),
        (lambda: fb.Sequential([fb.Dropout(0.5)]), ValueError, "layers: expected at least one layer with a width"),
        (lambda: fb.Sequential([fb.Dense(3, 4), fb.Dense(5, 2)]), ValueError, r"layers\[1\]: .* takes 5 features"),
        (lambda: fb.Sequential([fb.Dense(3, 4), "relu"]), TypeError, r"layers\[1\]: expected a layer, got str"),
        (lambda: fb.Sequential([fb.Dense(3, 4)], dtype="float16"), ValueError, "dtype: expected float32 or float64"),
        (lambda: fb.Sequential([fb.Dense(3, 3)] * 2), ValueError, r"layers\[1\]: .* is at layers\[0\] already"),
        (lambda: fb.SGD([1, 2], lr=0.1), TypeError, r"params: expected model.parameters\(\), got list"),
        (lambda: fb.schedules.Step(0.1, 0), ValueError, "steps: expected a positive integer, got 0"),
        (lambda: fb.batches(X, Y, 0), ValueError, "batch_size: expected a positive integer, got 0"),
        (lambda: fb.batches(X, Y[:3], 5), ValueError, r"y: expected 20 rows, one per sample, got shape \(3,\)"),
        (lambda: fb.Dense(3, 4).weight, RuntimeError, "has no arrays yet"),
        (lambda: fb.CrossEntropy()([1, 2], [0]), ValueError, r"pred: expected shape \(samples, outputs\), got \(2,\)"),
        (lambda: fb.CrossEntropy()([[1, 2]], [2]), ValueError, "target: expected labels from 0 to 1, got 2"),
        (lambda: fb.set_num_threads(0), ValueError, "n: expected an integer from 1 to 1024, got 0"),
        (lambda: fb.Sequential(fb.Dense(3, 4)), TypeError, "layers: expected a list of layers, got Dense"),
        (lambda: fb.Sequential(fb.Dense(3, 4), fb.Dense(4, 2)), TypeError, "layers: expected a list of layers"),
        (lambda: fb.Sequential([fb.Dense(3, 4)], dtype=None), ValueError, r"dtype: expected float32 .*, got None"),
        (lambda: fb.Dropout(10**400), ValueError, "p: expected a number"),
        (lambda: fb.use_backend("avx").__enter__(), ValueError, "use_backend: expected one of avx512, .*, got 'avx'"),
    ],
)  # fmt: skip
def test_constructors(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(lr=-0.1), r"lr: expected a number in \[0, inf\), got -0.1"),
        (dict(lr=0.1, momentum=1.0), r"momentum: expected a number in \[0, 1\), got 1.0"),
        (dict(lr=0.1, nesterov=True), "nesterov: expected a momentum above 0"),
        (dict(lr=0.1, weight_decay=-1), "weight_decay: expected a number"),
        (dict(lr=0.1, clip_norm=0), r"clip_norm: expected a number in \(0, inf\), got 0"),
    ],
)
def test_optimizers(settings, message):
    with pytest.raises(ValueError, match=message):
        fb.SGD(model_with_state()[0].parameters(), **settings)


@pytest.mark.parametrize("weights", [[-1, 2], {0: -1}, [0, 0], [[1, 2]], 3.0, ["a"], [float("nan"), 1]])
def test_weights_of_classes(weights):
    with pytest.raises((TypeError, ValueError), match="class_weight: expected"):
        fb.CrossEntropy(class_weight=weights)


def test_the_models_own_arrays_are_no_data():
    """Training changes them while it reads them; a copy is fine, and so is a prediction."""
    for model in (fb.Sequential([fb.Dense(4, 4)], seed=0), copy.deepcopy(fb.Sequential([fb.Dense(4, 4)], seed=0))):
        optimizer, own = fb.SGD(model.parameters(), lr=0.1), model.layers[0].weight
        other, before = np.ones((4, 4), "f4"), model.layers[0].weight.copy()
        calls = {
            "X": lambda m=model, w=own, o=optimizer: m.fit(w, np.ones((4, 4)), "mse", o, verbose=0),
            "y": lambda m=model, w=own, o=optimizer: m.fit(np.ones((4, 4)), w[:], "mse", o, verbose=0),
            "xb": lambda m=model, w=own, o=optimizer: m.train_on_batch(w[1:], np.ones((3, 4)), "mse", o),
            "sample_weight": lambda m=model, o=optimizer: m.train_on_batch(
                np.ones((4, 4)), np.ones((4, 4)), "mse", o, m.parameters().values[16:20],
            ),
        }  # fmt: skip
        for name, call in calls.items():
            with pytest.raises(ValueError, match=f"^{name}: expected an array apart from the model's own"):
                call()
        np.testing.assert_array_equal(own, before)
        model.predict(own)
        model.fit(own.copy(), other, "mse", optimizer, verbose=0)
        elsewhere = fb.Sequential([fb.Dense(4, 4)], seed=1)
        model.fit(elsewhere.layers[0].weight, other, "mse", optimizer, verbose=0)


STRINGS = {
    "a string array": np.array([["1", "2", "3"]] * 6), "objects": np.array([["1", "2", "3"]] * 6, object),
    "one among numbers": np.array([[1, 2.0, "3"]] * 6, object), "bytes": np.array([[b"1", 2, 3]] * 6, object),
    "a list": [["1", "2", "3"]] * 6,
}  # fmt: skip


@pytest.mark.parametrize("text", STRINGS.values(), ids=STRINGS)
def test_strings_are_no_numbers_whatever_holds_them(text):
    """NumPy would read the numbers in them."""
    model = fb.Sequential([fb.Dense(3, 3)], seed=0)
    optimizer, X, column = fb.SGD(model.parameters(), lr=0.1), np.ones((6, 3)), np.array(text, object)[:, 0]
    if np.asarray(text).dtype.kind == "O":
        column = np.array([1, 2, 3, 4, 5, "6"], object)
    for call in (
        lambda: model.predict(text),
        lambda: model.fit(text, X, "mse", optimizer),
        lambda: model.fit(X, text, "mse", optimizer),
        lambda: model.fit(X, X, "mse", optimizer, sample_weight=column),
        lambda: model.train_on_batch(X, text, "mse", optimizer),
        lambda: model.evaluate(text, X, "mse"),
        lambda: fb.MSE()(X, text),
        lambda: fb.MSE()(text, X),
        lambda: fb.CrossEntropy()(X, column),
        lambda: setattr(model.layers[0], "weight", np.array(text)[:3]),
        lambda: setattr(model.parameters(), "values", np.array(["1"] * 12, object)),
    ):
        with pytest.raises(TypeError, match=r"expected (numbers|integer class labels)"):
            call()
    assert optimizer.steps == 0


def test_strings_in_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2], "b": ["3", "4"], "c": [5, 6]})
    with pytest.raises(TypeError, match="x: expected numbers, got an array of objects with '3' among them"):
        fb.Sequential([fb.Dense(3, 3)]).predict(frame)


def test_optimizers_in_float32():
    params = model_with_state()[0].parameters()
    with pytest.raises(ValueError, match=r"eps: expected a number from 1.18e-38 to 3.4e\+38, as in float32, got 1e-50"):
        fb.Adam(params, eps=1e-50)
    with pytest.raises(TypeError, match=r"betas: expected a pair of numbers, got 0\.9"):
        fb.Adam(params, betas=0.9)

    class Broken(fb.schedules.Schedule):
        def __call__(self, t):
            return float("nan")

    before = params.values.tobytes()
    with pytest.raises(ValueError, match="lr: expected a number"):
        fb.SGD(params, lr=Broken()).step()
    assert params.values.tobytes() == before


def test_a_model_that_cannot_be_made_leaves_its_layers_free():
    good = fb.Dense(3, 4)
    with pytest.raises(ValueError, match=r"layers\[1\].weight: expected shape \(4, 2\), got \(2,\)"):
        fb.Sequential([good, fb.Dense(4, 2, init=lambda rng, shape: np.zeros(2))])
    fb.Sequential([good])


def test_a_layers_settings_are_fixed_in_a_model():
    model = fb.Sequential([fb.Dense(3, 4), fb.Dropout(0.5)])
    with pytest.raises(AttributeError, match="p: it cannot be set; a layer stays as it was made"):
        model.layers[1].p = 0.9
    with pytest.raises(AttributeError):
        model.layers.append(fb.Dense(4, 2))


def test_a_prediction_between_two_passes_changes_nothing(any_backend):
    """It has a workspace of its own: what the backward pass waits for stays."""
    models = [fb.Sequential([fb.Dense(3, 5, activation="gelu"), fb.Dropout(0.5), fb.Dense(5, 2)], seed=0) for _ in "ab"]
    for model, predicts in zip(models, (False, True), strict=True):

        def loss(pred, target, model=model, predicts=predicts):
            if predicts:
                model.predict(np.ones((100, 3)))
            return 1.0, pred

        model.train_on_batch(X, Y, loss, fb.SGD(model.parameters(), lr=0.1))
    assert np.array_equal(models[0].parameters().values, models[1].parameters().values)


def test_a_loss_that_trains_the_model_meanwhile(any_backend):
    model = fb.Sequential([fb.Dense(3, 2)], seed=0)

    def loss(pred, target):
        model.predict(X[:5])
        model.forward(X[:5], training=True)
        return 1.0, pred

    with pytest.raises(RuntimeError, match="in the middle of a step"):
        model.train_on_batch(X, Y, loss, fb.SGD(model.parameters(), lr=0.1))


def test_files(tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(b"not a model")
    with pytest.raises(fb.FileFormatError, match="path: expected a model saved by fastbp"):
        fb.load(path)
    np.savez(path, header=np.array('{"format": 99}'))
    with pytest.raises(fb.FileFormatError, match="path: expected file format 1 or older, got 99"):
        fb.load(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(fb.FileFormatError, match="path: expected a model saved by fastbp"):
        fb.load(path)
    with pytest.raises(FileNotFoundError):
        fb.load(tmp_path / "nothing.npz")


NOT_THE_LAYER = "such a layer changes nothing: leave it out"
LOGITS = "a network ends in logits"


@pytest.mark.parametrize(
    ("family", "names", "meant"),
    [
        (
            "loss",
            "bce BCEWithLogitsLoss binary_crossentropy sigmoid_cross_entropy",
            "did you mean 'binary_cross_entropy'?",
        ),
        ("loss", "nll_loss NLLLoss CrossEntropyLoss log_loss", "did you mean 'cross_entropy'?"),
        ("loss", "categorical_crossentropy sparse_categorical_crossentropy", "did you mean 'cross_entropy'?"),
        ("loss", "MSE MSELoss mse-loss mean_squared_error", "did you mean 'mse'?"),
        ("loss", "L1Loss mean_absolute_error", "did you mean 'mae'?"),
        ("loss", "SmoothL1Loss", "did you mean 'huber'?"),
        ("activation", "ReLU", "did you mean 'relu'?"),
        ("activation", "LeakyReLU", "did you mean 'leaky_relu'?"),
        ("activation", "swish SiLU", "did you mean 'silu'?"),
        ("activation", "logistic", "did you mean 'sigmoid'?"),
        ("activation", "linear identity", "did you mean None?"),
        ("activation", "softmax LogSoftmax", LOGITS),
        ("name", "softmax", LOGITS),
        ("name", "linear identity", NOT_THE_LAYER),
        ("metrics", "acc sparse_categorical_accuracy", "did you mean 'accuracy'?"),
        ("metrics", "roc_auc", "did you mean 'auc'?"),
        ("metrics", "mean_absolute_error", "did you mean 'mae'?"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(family, names, meant):
    model = fb.Sequential([fb.Dense(3, 2)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    use = {
        "loss": lambda name: model.fit(X, Y, name, optimizer),
        "activation": lambda name: fb.Dense(3, 2, name),
        "name": fb.Activation,
        "metrics": lambda name: model.evaluate(X, Y, "cross_entropy", metrics=[name]),
    }[family]
    for name in names.split():
        with pytest.raises(ValueError, match=f"^{family}: unknown value '{name}'; {re.escape(meant)}"):
            use(name)


def test_what_the_names_of_other_libraries_stand_for_is_there():
    ours = {*fb.losses.LOSSES, *plan.ACTIVATIONS, *fb.metrics.METRICS}
    assert set(ELSEWHERE.values()) <= ours


@pytest.mark.parametrize("loss", [fb.CrossEntropy, fb.BinaryCrossEntropy])
def test_a_loss_does_not_balance_classes(loss):
    with pytest.raises(TypeError, match=r"class_weight: .*'balanced'; .* write fit\(\.\.\., class_weight='balanced'\)"):
        loss(class_weight="balanced")


def test_one_hot_rows_where_only_labels_are_taken():
    logits = np.zeros((20, 2), np.float32)
    with pytest.raises(
        ValueError, match=r"target: .* got \(20, 2\); y.argmax\(axis=1\) has the labels of one-hot rows"
    ):
        fb.ops.cross_entropy(np.empty_like(logits), logits, np.eye(2, dtype=int)[Y])


def flags():
    """Every public function that takes True or False, the name of the argument, and the others that it needs."""
    model = fb.Sequential([fb.Dense(3, 2)], seed=0)
    params, needed = model.parameters(), {"Dense": (3, 2), "Checkpoint": ("model.npz",)}
    for name in fb.__all__:
        public = getattr(fb, name)
        if not inspect.isclass(public) or issubclass(public, Exception):
            continue
        for argument in inspect.signature(public).parameters.values():
            if argument.annotation == "bool":
                others = (params, 0.1) if issubclass(public, Optimizer) else needed.get(name, ())
                yield public, argument.name, others
    vector, column = np.zeros(2, np.float32), np.zeros((4, 1), np.float32)
    calls = {
        model.forward: (["training"], (X,)),
        model.backward: (["input_gradient", "parameter_gradients", "accumulate"], (Y,)),
        model.fit: (["shuffle", "drop_last", "train_metrics"], (X, Y, "cross_entropy", fb.SGD(params, 0.1))),
        model.summary: (["program"], ()),
        fb.History().plot: (["log"], ()),
        fb.batches: (["shuffle", "drop_last"], (X, Y, 5)),
        fb.ops.sgd_update: (["nesterov"], (vector, None, vector.copy(), 0.1)),
        fb.ops.adam_update: (["decoupled"], (*(vector.copy() for _ in range(4)), 0.1, 1)),
        fb.ops.batchnorm_forward: (["training"], (column.copy(), column.copy(), column, column[:1, 0], column[:1, 0])),
    }
    for call, (names, others) in calls.items():
        for name in names:
            yield call, name, others


@pytest.mark.parametrize(("call", "name", "others"), [*flags()], ids=lambda part: getattr(part, "__qualname__", None))
def test_true_or_false(call, name, others):
    """A name or an array in the place of one would pass as True."""
    for given, shown in ("no", "'no'"), (1, "1"), (None, "None"), (X, "ndarray"):
        with pytest.raises(TypeError, match=f"^{name}: expected True or False, got {shown}$"):
            call(*others, **{name: given})
