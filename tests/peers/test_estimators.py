"""What the estimators do beside or beyond scikit-learn: warm starts, scores, callbacks, weights of eval_set, files."""

import copy
import pickle
import re

import numpy as np
import pytest

pytest.importorskip("sklearn")
import sklearn.neural_network
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.utils import compute_sample_weight

import fastbp as fb
from fastbp.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
theirs = sklearn.neural_network


def scaled(load):
    X, y = load(return_X_y=True)
    return (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-9), y


CANCER, DIGITS, DIABETES = (scaled(load) for load in (load_breast_cancer, load_digits, load_diabetes))
DIABETES = DIABETES[0], DIABETES[1] / 50


# --- the penalty of loss_curve_ ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "alpha", "epochs"), [("adam", 1.0, 35), ("sgd", 100.0, 24), ("adam", 1e-4, None)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_penalty_follows_every_step(any_backend, solver, alpha, epochs, threads, weighted):
    fb.set_num_threads(threads)
    X, y = load_digits(return_X_y=True)
    X, y = X[:300] / 16, y[:300]
    weight = np.random.default_rng(0).random(300) if weighted else None
    settings = dict(solver=solver, alpha=alpha, batch_size=10, learning_rate_init=0.01, random_state=0, max_iter=60)
    ours = MLPClassifier((20,), **settings).fit(X, y, weight)
    other = theirs.MLPClassifier((20,), **settings).fit(X, y, weight)
    assert ours.n_iter_ == other.n_iter_
    if epochs and not weighted:
        assert ours.n_iter_ == epochs
    np.testing.assert_allclose(ours.loss_curve_, other.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_penalty_of_wide_layers_and_sparse_rows(any_backend, dtype):
    """Of weights in panels, in blocks that threads share, and of sparse rows."""
    import scipy.sparse

    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((120, 50)).astype(dtype), rng.standard_normal((120, 3))
    settings = dict(hidden_layer_sizes=(70, 40), alpha=5.0, batch_size=32, max_iter=5, random_state=0)
    curves = []
    for threads, given in ((1, X), (3, X), (1, scipy.sparse.csr_matrix(X)), (2, scipy.sparse.csr_matrix(X))):
        reg = MLPRegressor(**settings, n_threads=threads)
        curves.append(reg.fit(given, y).loss_curve_)
    assert curves[0] == curves[1]
    assert curves[2] == curves[3]
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-9 if dtype == "f8" else 1e-4)
    expected = theirs.MLPRegressor(**settings).fit(X, y)
    np.testing.assert_allclose(curves[0], expected.loss_curve_, rtol=1e-9 if dtype == "f8" else 1e-4)


# --- warm starts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_warm_fit_on_other_data_learns_these(seen, early_stopping):
    """The best weights of the fit before are none of this one."""
    X, y = CANCER
    clf = MLPClassifier((20,), warm_start=True, random_state=0, max_iter=150, early_stopping=early_stopping,
                        learning_rate_init=0.01)  # fmt: skip
    clf.fit(X, y, **dict(eval_set=(X, y)) if seen else {})
    assert clf.score(X, y) > 0.95
    first = clf.n_iter_
    clf.fit(X, 1 - y, **dict(eval_set=(X, 1 - y)) if seen else {})
    assert clf.score(X, 1 - y) > 0.95
    assert len(clf.loss_curve_) == first + clf.n_iter_  # as scikit-learn's
    assert clf.n_iter_ > 10


def test_a_warm_fit_after_convergence_trains():
    X, y = DIABETES
    reg = MLPRegressor(
        hidden_layer_sizes=(20,), warm_start=True, random_state=0, max_iter=500, tol=1e-2, n_iter_no_change=3
    )
    reg.fit(X, y)
    assert reg.n_iter_ < 500
    reg.fit(X, -y)
    assert reg.n_iter_ > 5
    assert reg.score(X, -y) > 0 > reg.score(X, y)


PARAMETERS = [
    dict(activation="tanh"), dict(activation=["relu", "gelu"]), dict(dropout=0.3), dict(batch_norm=True),
    dict(solver="sgd"), dict(early_stopping=True), dict(solver="lbfgs"), dict(alpha=1.0), dict(loss="poisson"),
]  # fmt: skip


@pytest.mark.parametrize(
    "changed", PARAMETERS, ids=lambda changed: next(iter(changed)) + str(next(iter(changed.values())))
)
@pytest.mark.parametrize("before", [dict(), dict(batch_norm=True, dropout=[0.1, 0.2]), dict(solver="lbfgs")],
                         ids=["adam", "batch_norm", "lbfgs"])  # fmt: skip
def test_parameters_that_change_between_warm_fits_take_effect(changed, before):
    X, y = DIABETES
    if (changed.get("solver") == "lbfgs" and "batch_norm" in before) or before == changed:
        pytest.skip("refused, or no change")
    if before.get("solver") == "lbfgs" and ("dropout" in changed or "batch_norm" in changed):
        changed = changed | dict(solver="adam")
    model = MLPRegressor(hidden_layer_sizes=(12, 8), warm_start=True, random_state=0, max_iter=3, **before).fit(X, y)
    weights = [array.copy() for array in model.coefs_]
    model.set_params(**changed, max_iter=2).fit(X, y)
    layers = [type(layer).__name__ for layer in model.model_.layers]
    if "activation" in changed:
        names = changed["activation"]
        found = re.findall(r"activation='(\w+)'|Activation\(name='(\w+)'", repr(model.model_.layers))
        assert [one or other for one, other in found] == (names if isinstance(names, list) else [names] * 2)
    rates = [layer.p for layer in model.model_.layers if isinstance(layer, fb.Dropout)]
    assert rates == ([0.3, 0.3] if "dropout" in changed else [0.1, 0.2] if "dropout" in before else [])
    assert layers.count("BatchNorm") == (2 if model.batch_norm else 0)
    assert (model.validation_scores_ is not None) == model.early_stopping if model.solver != "lbfgs" else True
    assert model.n_iter_ == 2
    for old, new in zip(weights, model.coefs_, strict=True):  # it has gone on from where it was
        assert 0 < np.abs(new - old).max() < 1


def test_another_activation_is_that_of_scikit_learn():
    """Which makes its optimizer anew: so without momentum."""
    X, y = DIABETES
    settings = dict(hidden_layer_sizes=(12, 8), warm_start=True, random_state=0, max_iter=3, solver="sgd", momentum=0)
    models = [kind(**settings).fit(X, y) for kind in (MLPRegressor, theirs.MLPRegressor)]
    for model in models:
        model.set_params(activation="tanh", learning_rate_init=0.01).fit(X, y)
    np.testing.assert_allclose(models[0].loss_curve_, models[1].loss_curve_, rtol=1e-9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(hidden_layer_sizes=(5,)), "hidden_layer_sizes: expected those of the fit that this one continues"),
        (dict(activation="relux"), "activation: unknown value"),
        (dict(solver="lbfgs", dropout=0.5), "solver: expected 'sgd' or 'adam' with dropout"),
        (dict(dropout=[0.1, 0.2]), "dropout: expected one or"),
    ],
)
def test_parameters_that_cannot_change_are_refused_before_anything_has(changed, message):
    X, y = CANCER
    clf = MLPClassifier((8,), warm_start=True, random_state=0, max_iter=3).fit(X, y)
    before = {k: copy.deepcopy(v) for k, v in vars(clf).items() if k.endswith("_")}
    with pytest.raises(ValueError, match=message):
        clf.set_params(**changed).fit(X, y)
    for name, value in before.items():
        np.testing.assert_equal(vars(clf)[name], value)


def test_partial_fit_after_fit_counts_anew():
    X, y = CANCER
    clf = MLPClassifier((8,), random_state=0, early_stopping=True, n_iter_no_change=1).fit(X, y)
    before = clf.coefs_[0].copy()
    clf.partial_fit(X, y, eval_set=(X, y))
    assert not np.array_equal(clf.coefs_[0], before)


# --- early stopping, scores, divergence -------------------------------------------------------------------------------


def auc(estimator, X, y):
    return roc_auc_score(y, estimator.predict_proba(X)[:, 1])


@pytest.mark.parametrize("scoring", ["roc_auc", auc])
@pytest.mark.parametrize("words", [False, True])
def test_early_stopping_goes_by_any_score(scoring, words):
    X, y = CANCER
    y = np.array(["benign", "malignant"])[y] if words else y
    X = X + np.random.default_rng(0).standard_normal(X.shape) * 3
    clf = MLPClassifier((10,), early_stopping=True, scoring=scoring, random_state=0, max_iter=40)
    clf.fit(X[:300], y[:300], eval_set=(X[300:], y[300:]))
    best = max(clf.validation_scores_)
    assert clf.best_validation_score_ == best
    assert roc_auc_score(y[300:] == clf.classes_[1], clf.predict_proba(X[300:])[:, 1]) == pytest.approx(best, abs=1e-12)
    plain = MLPClassifier((10,), early_stopping=True, random_state=0, max_iter=40)
    plain.fit(X[:300], y[:300], eval_set=(X[300:], y[300:]))
    assert plain.validation_scores_ != clf.validation_scores_


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_a_score_of_a_regressor(loss):
    X, y = DIABETES
    reg = MLPRegressor(hidden_layer_sizes=(10,), loss=loss, early_stopping=True, random_state=0, max_iter=20,
                       scoring="neg_mean_absolute_error").fit(X, y, eval_set=(X, y))  # fmt: skip
    assert -np.mean(np.abs(reg.predict(X) - y)) == pytest.approx(max(reg.validation_scores_), rel=1e-12)


class Explodes(fb.Callback):
    """After two epochs the learning rate is beyond all measure."""

    def on_epoch_end(self, epoch, logs):
        if epoch == 1:
            self.optimizer.schedule = fb.schedules.Constant(1e200)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's
def test_training_that_diverges_ends_with_the_best_weights(any_backend, solver, early_stopping):
    X, y = DIABETES
    reg = MLPRegressor(hidden_layer_sizes=(10,), solver=solver, random_state=0, batch_size=20, callbacks=[Explodes()],
                       early_stopping=early_stopping)  # fmt: skip
    with pytest.warns(ConvergenceWarning, match="training has diverged.*The best weights are restored"):
        reg.fit(X, y, eval_set=(X[:100], y[:100]))
    assert np.isnan(reg.loss_curve_[2:]).all()
    assert len(reg.loss_curve_) == len(reg.validation_loss_curve_) == 3
    best = min(reg.validation_loss_curve_[:2])
    assert 0.5 * np.mean((reg.predict(X[:100]) - y[:100]) ** 2) == pytest.approx(best, rel=1e-9)
    if early_stopping:
        assert np.isnan(reg.validation_scores_[-1])
    with pytest.raises(ValueError, match="training has diverged"):  # there are no best ones
        reg.set_params(early_stopping=False).fit(X, y)


def test_a_class_of_one_member_is_named():
    with pytest.raises(ValueError, match=r"only 1 member.*y has of each class \{'no': 3, 'yes': 1\}"):
        MLPClassifier(early_stopping=True).fit(np.eye(4), ["no", "no", "yes", "no"])


def test_logarithms_of_probabilities_are_that():
    X, y = DIGITS
    for labels in (y, y > 4, np.c_[y > 3, y % 2]):
        clf = MLPClassifier((10,), random_state=0, max_iter=5).fit(X, labels)
        with np.errstate(divide="ignore"):
            np.testing.assert_array_equal(clf.predict_log_proba(X), np.log(clf.predict_proba(X)))


# --- the weights of eval_set ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weight", [None, {0: 5.0}, {0: 5.0, 1: 0.5}, "balanced"])
@pytest.mark.parametrize("weighted", [False, True])
def test_eval_set_has_the_weights_of_classes_and_its_own(class_weight, weighted):
    X, y = CANCER
    seen, unseen = slice(0, 300), slice(300, None)
    weight = np.random.default_rng(0).random(len(y[unseen])) if weighted else None
    clf = MLPClassifier((10,), class_weight=class_weight, random_state=0, max_iter=3)
    eval_set = (X[unseen], y[unseen]) + ((weight,) if weighted else ())
    clf.fit(X[seen], y[seen], eval_set=eval_set)
    of_class = np.ones(2)
    if class_weight == "balanced":  # of the samples that are trained on
        of_class = 300 / (2 * np.bincount(y[seen]))
    elif class_weight:
        of_class = np.array([class_weight.get(0, 1), class_weight.get(1, 1)])
    both = of_class[y[unseen]] * (1 if weight is None else weight)
    expected = log_loss(y[unseen], clf.predict_proba(X[unseen]), sample_weight=both)
    assert min(clf.validation_loss_curve_) == pytest.approx(expected, rel=1e-9)


def test_eval_set_of_labels_has_the_weights_of_their_classes():
    X, y = DIGITS
    Y = np.c_[y > 3, y % 2]
    clf = MLPClassifier((10,), class_weight="balanced", random_state=0, max_iter=2).fit(X, Y, eval_set=(X, Y))
    weight = compute_sample_weight("balanced", Y)
    p = clf.predict_proba(X)
    each = -(np.log(p) * Y + np.log(1 - p) * (1 - Y)).sum(axis=1)
    assert min(clf.validation_loss_curve_) == pytest.approx(np.average(each, weights=weight), rel=1e-9)


def test_weights_that_are_too_large_or_small_are_blamed():
    X, y = CANCER
    for dtype, unit in (("f4", 1e39), ("f4", 1e-40), ("f8", 1e300), ("f8", 1e-300)):
        clf = MLPClassifier((4,), max_iter=2)
        with pytest.raises(ValueError, match="sample_weight: expected a greatest weight between 1e-30 and 1e30"):
            clf.fit(X.astype(dtype), y, np.full(len(y), unit))
        assert not hasattr(clf, "coefs_")


# --- callbacks --------------------------------------------------------------------------------------------------------


class Watches(fb.Callback):
    def __init__(self):
        self.seen = []

    def on_epoch_end(self, epoch, logs):
        self.seen.append((self.optimizer and self.optimizer.lr, dict(logs), self.model.predict(DIABETES[0][:3])))


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_callbacks_see_the_users_learning_rates(solver):
    X, y = DIABETES
    watches, reduces = (
        Watches(),
        fb.ReduceLROnPlateau(factor=0.5, patience=1, monitor="loss", min_delta=1e9, min_lr=0.002),
    )
    reg = MLPRegressor(hidden_layer_sizes=(10,), solver=solver, learning_rate_init=0.01, max_iter=6, random_state=0,
                       callbacks=[watches, reduces]).fit(X, np.c_[y, y, y])  # fmt: skip
    assert [logs["lr"] for _, logs, _ in watches.seen] == [0.01, 0.01, 0.005, 0.0025, 0.002, 0.002]
    assert [lr for lr, _, _ in watches.seen] == [0.01, 0.01, 0.005, 0.0025, 0.002, 0.002]
    assert reg._optimizer.learning_rate == 0.002


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_a_checkpoint_keeps_the_network_with_every_solver(solver, kind, tmp_path):
    X, y = CANCER if kind is MLPClassifier else DIABETES
    for settings in (dict(), dict(best_only=True, monitor="loss")):
        path = tmp_path / "net.npz"
        model = kind(hidden_layer_sizes=(10,), solver=solver, max_iter=4, random_state=0,
                     callbacks=[fb.Checkpoint(path, **settings)]).fit(X, y)  # fmt: skip
        loaded = fb.load(path)
        np.testing.assert_array_equal(loaded.predict(X.astype(loaded.dtype)), model.model_.predict(X))
        path.unlink()


def test_lbfgs_shows_its_callbacks_the_point_it_has_reached():
    X, y = DIABETES
    losses = []

    class Asks(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            pred = self.model.predict(X)[:, 0]
            weights = [layer.weight for layer in self.model.layers]
            penalty = 0.5 * 0.1 / len(y) * sum((w**2).sum() for w in weights)
            losses.append((0.5 * np.mean((pred - y) ** 2) + penalty, logs["loss"]))

    MLPRegressor(
        hidden_layer_sizes=(10,), solver="lbfgs", alpha=0.1, max_iter=30, random_state=0, callbacks=[Asks()]
    ).fit(X, y)
    assert len(losses) == 30
    asked, logged = np.transpose(losses)
    assert (np.diff(asked) <= 0).all()
    np.testing.assert_allclose(asked, logged, rtol=1e-9)


@pytest.mark.parametrize("way", ["fit", "partial_fit", "one row"])
def test_batch_norm_with_one_row_per_batch_is_told(way):
    X, y = DIABETES
    rows = slice(0, 1 if way == "one row" else 8)
    settings = dict(hidden_layer_sizes=(4,), max_iter=2, random_state=0)
    batch_size = 1 if way != "one row" else "auto"
    task = "partial_fit" if way != "fit" else "fit"
    with pytest.warns(RuntimeWarning, match="batch_size: with one row per batch") as told:
        getattr(MLPRegressor(**settings, batch_norm=True, batch_size=batch_size), task)(X[rows], y[rows])
    assert told[0].filename == __file__
    getattr(MLPRegressor(**settings, batch_size=batch_size), task)(X[rows], y[rows])


def test_copies_of_callbacks_have_no_model():
    X, y = CANCER
    callback = fb.EarlyStopping(monitor="loss")
    clf = MLPClassifier((4,), max_iter=2, random_state=0, callbacks=[callback]).fit(X, y)
    assert callback.model is clf.model_
    for copied in (clone(clf).callbacks[0], copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert copied.patience == callback.patience
        assert not hasattr(copied, "model")
        assert not hasattr(copied, "optimizer")
    search = GridSearchCV(clf, {"alpha": [1e-4, 1e-2]}, cv=2).fit(X, y)
    assert 0 < search.best_score_ < 1


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_the_network_of_an_estimator_is_public_and_writes_files(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("safetensors")
    import fastbp.onnx
    import fastbp.safetensors

    X, y = CANCER if kind is MLPClassifier else DIABETES
    X = X.astype(np.float32)
    estimator = kind(hidden_layer_sizes=(10,), max_iter=3, random_state=0)
    for write in (fastbp.onnx.export, fastbp.safetensors.save):
        with pytest.raises(NotFittedError):
            write(estimator, tmp_path / "file")
    with pytest.raises(NotFittedError):
        _ = estimator.model_
    estimator.fit(X, y)
    estimator.coefs_[0] = estimator.coefs_[0] * 2  # as scikit-learn allows; the network has it
    outputs = estimator.model_.predict(X)
    fastbp.onnx.export(estimator, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: X})[0], outputs, rtol=1e-4, atol=1e-4)
    fastbp.safetensors.save(estimator, tmp_path / "net.safetensors")
    other = fb.Sequential([fb.Dense(X.shape[1], 10, "relu"), fb.Dense(10, 1)])
    fastbp.safetensors.load(other, tmp_path / "net.safetensors")
    np.testing.assert_array_equal(other.predict(X), outputs)
    if kind is MLPClassifier:
        np.testing.assert_allclose(estimator.predict_proba(X)[:, 1], 1 / (1 + np.exp(-outputs[:, 0])), rtol=1e-5)
    else:
        np.testing.assert_array_equal(estimator.predict(X), outputs[:, 0])


@pytest.mark.parametrize("sizes", [(10.7,), ("10",), (True,), (None,), 1.5])
def test_sizes_that_are_no_integers(sizes):
    with pytest.raises((TypeError, ValueError), match="hidden_layer_sizes"):
        MLPClassifier(sizes).fit(*CANCER)
