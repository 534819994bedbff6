"""The estimators beside scikit-learn's own, which are their oracle: from one random_state both make the same steps."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
import scipy.sparse
import sklearn.neural_network
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import fastbp as fb
from fastbp.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
theirs = sklearn.neural_network


def scaled(load):
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


DIGITS, CANCER, IRIS = (scaled(load) for load in (load_digits, load_breast_cancer, load_iris))
X_DIABETES, Y_DIABETES = scaled(load_diabetes)
DIABETES = X_DIABETES, Y_DIABETES / 50
SEVERAL = X_DIABETES, np.c_[Y_DIABETES, Y_DIABETES[::-1]] / 50
LABELS = CANCER[0], np.c_[CANCER[1], CANCER[0][:, :3] > 0]
WORDS = CANCER[0], np.array(["benign", "malignant"])[CANCER[1]]

CASES = [
    ("Classifier", DIGITS, dict()),
    ("Classifier", DIGITS, dict(hidden_layer_sizes=(30, 20), activation="tanh", alpha=1.0, batch_size=64)),
    ("Classifier", DIGITS, dict(early_stopping=True, activation="logistic", tol=0.01, n_iter_no_change=2)),
    ("Classifier", DIGITS, dict(solver="sgd", learning_rate="invscaling", learning_rate_init=0.1, power_t=0.3)),
    ("Classifier", DIGITS, dict(solver="sgd", learning_rate="adaptive", learning_rate_init=0.2, tol=0.03,
                                n_iter_no_change=1)),
    ("Classifier", IRIS, dict(solver="sgd", momentum=0.0, shuffle=False, hidden_layer_sizes=())),
    ("Classifier", IRIS, dict(solver="lbfgs", alpha=0.1)),
    ("Classifier", WORDS, dict(early_stopping=True, nesterovs_momentum=False, solver="sgd")),
    ("Classifier", LABELS, dict(alpha=0.5)),
    ("Classifier", LABELS, dict(solver="sgd", early_stopping=True, activation="identity")),
    ("Regressor", DIABETES, dict(alpha=0.5, beta_1=0.8, beta_2=0.99, epsilon=1e-3)),
    ("Regressor", SEVERAL, dict(solver="sgd", alpha=2.0, learning_rate_init=0.01)),
    ("Regressor", SEVERAL, dict(early_stopping=True, validation_fraction=0.3)),
    ("Regressor", DIABETES, dict(loss="poisson", solver="lbfgs")),
    ("Regressor", SEVERAL, dict(loss="poisson", alpha=0.5)),
]  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kind", "data", "settings"), CASES)
def test_a_fit_follows_scikit_learns(any_backend, kind, data, settings, weighted):
    """In float64 the coefficients differ by rounding alone, which training multiplies by a few hundred at most."""
    X, y = data
    weight = np.random.default_rng(0).choice([0.5, 1, 3], len(X)) if weighted else None
    expected = getattr(theirs, f"MLP{kind}")(max_iter=12, random_state=3, **settings).fit(X, y, sample_weight=weight)
    got = globals()[f"MLP{kind}"](max_iter=12, random_state=3, **settings).fit(X, y, sample_weight=weight)
    tolerance = 1e-9 if got.solver != "lbfgs" else 1e-6  # a line search divides by differences
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(got, name), getattr(expected, name), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(got, name) == getattr(expected, name), name
    # the penalty's part in a reported loss is averaged over an epoch's ends: that is off by its own change, at most
    np.testing.assert_allclose(got.loss_, expected.loss_, rtol=0.02 if got.alpha > 1e-4 else 1e-5)
    if got.solver != "lbfgs":
        np.testing.assert_allclose(got.loss_curve_, expected.loss_curve_, rtol=0.1 if got.alpha > 1e-4 else 1e-5)
    if got.early_stopping:
        np.testing.assert_allclose(got.validation_scores_, expected.validation_scores_, rtol=1e-9)
        assert got.best_validation_score_ == pytest.approx(expected.best_validation_score_, rel=1e-9)
        assert got.best_loss_ is expected.best_loss_ is None
    if kind == "Classifier":
        np.testing.assert_array_equal(got.classes_, expected.classes_)
        np.testing.assert_array_equal(got.predict(X), expected.predict(X))
        np.testing.assert_allclose(got.predict_proba(X), expected.predict_proba(X), atol=tolerance)
        np.testing.assert_allclose(np.exp(got.predict_log_proba(X)), got.predict_proba(X), rtol=1e-9, atol=1e-300)
    else:
        np.testing.assert_allclose(got.predict(X), expected.predict(X), rtol=1e-5)
    assert got.score(X, y) == pytest.approx(expected.score(X, y), abs=1e-6)


@pytest.mark.parametrize(("estimator", "checks"), [(MLPClassifier(), 60), (MLPRegressor(), 55)])
@pytest.mark.filterwarnings("ignore")  # scikit-learn's checks say what they skip, and fit on purpose what cannot be
def test_check_estimator(estimator, checks):
    results = check_estimator(estimator, on_fail="raise", on_skip=None)
    passed = [result for result in results if result["status"] == "passed"]
    assert len(passed) >= checks
    assert all(result["status"] in ("passed", "skipped") for result in results)


@pytest.mark.parametrize("load", [load_digits, load_breast_cancer, load_wine, load_iris, load_diabetes])
def test_ten_seeds_score_as_scikit_learns(load):
    """float32, so that the runs are not the same: the mean scores are within three standard errors."""
    X, y = scaled(load)
    kind = "Regressor" if load is load_diabetes else "Classifier"
    scores = []
    for seed in range(10):
        split = train_test_split(X.astype(np.float32), y, random_state=seed)
        pair = [(getattr(theirs, f"MLP{kind}"), seed), (globals()[f"MLP{kind}"], seed + 100)]
        models = [
            model(hidden_layer_sizes=(20,), max_iter=60, random_state=s, learning_rate_init=0.01) for model, s in pair
        ]
        scores.append([model.fit(split[0], split[2]).score(split[1], split[3]) for model in models])
    scores = np.array(scores)
    standard_error = np.hypot(*scores.std(axis=0, ddof=1)) / np.sqrt(10)
    assert abs(np.diff(scores.mean(axis=0))[0]) < 3 * standard_error + 1e-3


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_sparse_is_dense(compiled, solver):
    """To rounding, which three epochs of Adam enlarge; for any format and number of threads with the same bits."""
    X, y = DIGITS[0] * (DIGITS[0] > 0), DIGITS[1]
    settings = dict(solver=solver, max_iter=3, random_state=0, batch_size=50, early_stopping=solver == "adam")
    settings |= {"n_threads": 1} if solver == "adam" else {"max_iter": 10, "tol": 0.05}
    weight = np.random.default_rng(0).random(len(X))
    dense = MLPClassifier(**settings).fit(X, y, weight)
    fits = []
    for form, threads in ((scipy.sparse.csr_matrix, 1), (scipy.sparse.csc_array, 2)):
        sparse = MLPClassifier(**settings | {"n_threads": threads}).fit(form(X), y, weight)
        np.testing.assert_allclose(sparse.predict_proba(form(X)), dense.predict_proba(X), atol=1e-7)
        fits.append(sparse)
    assert all(np.array_equal(a, b) for a, b in zip(fits[0].coefs_, fits[1].coefs_, strict=True))
    assert fits[0].n_iter_ == dense.n_iter_


def test_frames_bring_their_names():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    names = [f"column{i}" for i in range(4)]
    expected = MLPClassifier(max_iter=3, random_state=0).fit(*IRIS)
    for frame in (pandas.DataFrame(IRIS[0], columns=names), polars.DataFrame(IRIS[0], schema=names)):
        fitted = MLPClassifier(max_iter=3, random_state=0).fit(frame, IRIS[1])
        assert list(fitted.feature_names_in_) == names
        np.testing.assert_array_equal(fitted.predict_proba(frame), expected.predict_proba(IRIS[0]))
        with pytest.raises(ValueError, match="feature names should match"):
            fitted.predict(pandas.DataFrame(IRIS[0], columns=["x", *names[1:]]))


def test_coefs_are_the_network():
    X, y = DIABETES
    reg = MLPRegressor(hidden_layer_sizes=(7,), max_iter=3, random_state=0).fit(X, y)
    reg.coefs_[1][:] = 0
    reg.intercepts_[1] = np.array([4.5])
    np.testing.assert_array_equal(reg.predict(X), np.full(len(X), 4.5))
    reg.coefs_ = [np.ones((10, 7)), np.ones((7, 1))]
    reg.intercepts_ = [np.zeros(7), np.zeros(1)]
    np.testing.assert_allclose(reg.predict(X), 7 * np.maximum(X.sum(axis=1), 0), rtol=1e-12)
    reg.coefs_[0] = np.ones((10, 8))
    with pytest.raises(ValueError, match=r"coefs_\[0\]: expected shape \(10, 7\), got \(10, 8\)"):
        reg.predict(X)


@pytest.mark.parametrize("way", ["warm_start", "partial_fit"])
def test_coefs_may_be_set_before_the_first_fit(way):
    X, y = DIABETES
    reg = MLPRegressor(hidden_layer_sizes=(7,), learning_rate_init=1e-12, max_iter=1, warm_start=way == "warm_start")
    reg.coefs_, reg.intercepts_ = [np.ones((10, 7)), np.ones((7, 1))], [np.zeros(7), np.zeros(1)]
    getattr(reg, "fit" if way == "warm_start" else "partial_fit")(X, y)
    np.testing.assert_allclose(reg.predict(X), 7 * np.maximum(X.sum(axis=1), 0), rtol=0, atol=1e-9)
    assert not np.allclose(reg.set_params(warm_start=False).fit(X, y).coefs_[0], 1)


def test_warm_start_keeps_the_optimizers_state():
    X, y = DIABETES
    whole = MLPRegressor(max_iter=6, random_state=0, shuffle=False).fit(X, y)
    halves = MLPRegressor(max_iter=3, random_state=0, shuffle=False, warm_start=True).fit(X, y)
    assert halves.fit(X, y).t_ == whole.t_
    assert halves.loss_curve_ == whole.loss_curve_
    assert all(np.array_equal(a, b) for a, b in zip(halves.coefs_, whole.coefs_, strict=True))


def test_partial_fit_is_an_epoch():
    X, y = IRIS
    ours, other = MLPClassifier(random_state=0), theirs.MLPClassifier(random_state=0)
    for part in (slice(0, 70), slice(50, 150)):
        for estimator in (ours, other):
            estimator.partial_fit(X[part], y[part], classes=[0, 1, 2])
    np.testing.assert_allclose(ours.coefs_[0], other.coefs_[0], rtol=0, atol=1e-12)
    assert (ours.n_iter_, ours.t_) == (1, 170)
    with pytest.raises(ValueError, match="has classes not in"):
        ours.partial_fit(X, y + 1)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        MLPClassifier().partial_fit(X, y)
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")


def test_partial_fit_stops_early():
    X, y = CANCER
    clf = MLPClassifier(random_state=0, early_stopping=True, n_iter_no_change=3, learning_rate_init=0.01)
    for _ in range(100):
        clf.partial_fit(X[:400], y[:400], classes=[0, 1], eval_set=(X[400:], y[400:]))
        if clf._solver_state.stopped_early:
            break
    assert len(clf.validation_scores_) < 100
    assert clf.score(X[400:], y[400:]) == clf.best_validation_score_ == max(clf.validation_scores_)
    before = clf.coefs_[0].copy()
    with pytest.warns(UserWarning, match="early stopping has ended the training"):
        clf.partial_fit(X, y)
    np.testing.assert_array_equal(clf.coefs_[0], before)
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True without an eval_set"):
        MLPClassifier(random_state=0, early_stopping=True).partial_fit(X, y, classes=[0, 1])


def test_eval_set_restores_the_best_weights():
    X, y = DIABETES
    seen = dict(eval_set=(X[60:], y[60:]))
    reg = MLPRegressor(hidden_layer_sizes=(200,), max_iter=150, random_state=0, learning_rate_init=0.02).fit(
        X[:60], y[:60], **seen
    )
    curve = reg.validation_loss_curve_
    assert len(curve) == reg.n_iter_
    assert min(curve) < curve[-1]  # so many weights learn 60 patients by heart
    assert 0.5 * np.mean((reg.predict(X[60:]) - y[60:]) ** 2) == pytest.approx(min(curve), rel=1e-12)


@pytest.mark.parametrize(("seen", "unseen"), [(dict(), {}), (dict(eval_set=CANCER), dict(early_stopping=True))])
def test_keywords_of_our_own(seen, unseen):
    stops = fb.EarlyStopping(patience=50, monitor="loss")
    clf = MLPClassifier(
        (30, 20), activation=["gelu", "silu"], dropout=[0.1, 0], batch_norm=True, n_threads=1, callbacks=[stops],
        max_iter=30, random_state=0, class_weight="balanced", **unseen,
    )  # fmt: skip
    before = fb.get_num_threads()
    assert clf.fit(*CANCER, **seen).score(*CANCER) > 0.95
    assert fb.get_num_threads() == before
    assert stops.best == min(clf.loss_curve_)
    assert [type(layer).__name__ for layer in clf._model.layers] == [
        "Dense", "BatchNorm", "Activation", "Dropout", "Dense", "BatchNorm", "Activation", "Dense"
    ]  # fmt: skip


def test_a_mapping_of_class_weights_does_not_depend_on_the_batch():
    """Classes that a batch of ``partial_fit`` lacks are no error, and those that the mapping leaves out weigh 1."""
    X, y = np.random.default_rng(0).standard_normal((12, 3)), np.array([0, 0, 0, 0, 1, 2, 1, 2, 0, 1, 2, 0])
    models = [
        MLPClassifier((4,), random_state=0, class_weight=weight) for weight in ({1: 5.0}, {0: 1, 1: 5, 2: 1}, None)
    ]
    for model in models:
        weight = None if model.class_weight else np.where(y == 1, 5.0, 1.0)
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
            model.partial_fit(X[part], y[part], None if weight is None else weight[part], classes=[0, 1, 2])
    for other in models[1:]:
        for a, b in zip(models[0].coefs_, other.coefs_, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"^class_weight: expected classes among \[0, 1, 2\], got \[7\]"):
        MLPClassifier((4,), class_weight={7: 5.0}).fit(X, y)


@pytest.mark.parametrize("sizes", [(10.7,), ("10",), (True,), [[3, 4]], (2.0, 3)])
def test_sizes_of_hidden_layers_are_integers(sizes):
    X, y = np.eye(4), [0, 1, 0, 1]
    for kind in (MLPClassifier, MLPRegressor):
        with pytest.raises(ValueError, match=r"^hidden_layer_sizes: expected integers, got"):
            kind(hidden_layer_sizes=sizes).fit(X, y)


def test_class_weights_are_sample_weights():
    X, y = IRIS
    by_class = MLPClassifier(max_iter=5, random_state=0, class_weight={0: 2.0, 1: 0.5}).fit(X, y)
    by_sample = MLPClassifier(max_iter=5, random_state=0).fit(X, y, sample_weight=np.array([2, 0.5, 1])[y])
    assert all(np.array_equal(a, b) for a, b in zip(by_class.coefs_, by_sample.coefs_, strict=True))
    with pytest.raises(ValueError, match="'balanced' is not supported for partial_fit"):
        MLPClassifier(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])


def test_copies_and_pickles_go_on_alike():
    X, y = DIABETES
    reg = MLPRegressor(max_iter=3, random_state=np.random.RandomState(0), dropout=0.2, warm_start=True).fit(X, y)
    copy = pickle.loads(pickle.dumps(reg))
    assert all(np.array_equal(a, b) for a, b in zip(copy.coefs_, reg.coefs_, strict=True))
    np.testing.assert_array_equal(copy.predict(X), reg.predict(X))
    assert copy.fit(X, y).loss_curve_ == reg.fit(X, y).loss_curve_
    assert np.array_equal(copy.predict(X), reg.predict(X))
    copy.coefs_[0][:] = 0
    assert not np.array_equal(copy.predict(X), reg.predict(X))


def test_pipelines_grids_and_calibration():
    X, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(max_iter=20, random_state=0))
    grid = GridSearchCV(pipeline, {"mlpclassifier__alpha": [1e-4, 1.0]}, n_jobs=2, cv=3).fit(X, y)
    assert grid.best_score_ > 0.95
    calibrated = CalibratedClassifierCV(clone(pipeline), cv=3).fit(X, y)
    assert calibrated.score(X, y) > 0.95


BAD = [
    (dict(alpha=-1), {}, "The 'alpha' parameter of MLPClassifier must be a float in the range"),
    (dict(solver="adma"), {}, "The 'solver' parameter of MLPClassifier must be a str among"),
    (dict(activation="gleu"), {}, "activation: unknown value 'gleu'; did you mean 'gelu'"),
    (dict(activation="linear"), {}, "activation: unknown value 'linear'; did you mean 'identity'"),
    (dict(activation=["relu", "tanh"]), {}, "activation: expected one or, for 1 hidden layers, 1 of them"),
    (dict(dropout=1.0), {}, "'dropout' parameter"),
    (dict(dropout=[0.1, 0.2]), {}, "dropout: expected one or, for 1 hidden layers"),
    (dict(hidden_layer_sizes=(3, 0)), {}, "hidden_layer_sizes must be > 0"),
    (dict(n_threads=0), {}, "'n_threads' parameter"),
    (dict(solver="lbfgs", batch_norm=True), {}, "solver: expected 'sgd' or 'adam' with dropout or batch_norm"),
    (dict(solver="lbfgs"), dict(eval_set=IRIS), "eval_set: expected none with solver='lbfgs'"),
    (dict(callbacks=[print]), {}, r"callbacks\[0\]: expected a Callback"),
    (dict(), dict(eval_set=(IRIS[0][:, :2], IRIS[1])), "eval_set: X has 2 features, but MLPClassifier is expecting 4"),
    (dict(), dict(eval_set=(IRIS[0], IRIS[1] + 1)), "eval_set: `y` has classes not in"),
    (dict(), dict(eval_set=IRIS[0][:2]), "eval_set"),
    (dict(), dict(eval_set=IRIS[0]), r"eval_set: expected \(Xv, yv\) or"),
    (dict(), dict(sample_weight=-np.ones(150)), "egative"),
    (dict(), dict(sample_weight=np.zeros(150)), "ample.weight"),
    (dict(early_stopping=True, validation_fraction=0.005), {}, "The validation set is too small"),
    (dict(warm_start=True, hidden_layer_sizes=(9,)), {}, "hidden_layer_sizes: expected those of the fit"),
]


@pytest.mark.parametrize(("settings", "arguments", "message"), BAD)
def test_bad_input_changes_nothing(settings, arguments, message):
    clf = MLPClassifier((8,), max_iter=2, random_state=0).fit(*IRIS).set_params(**settings)
    before = {k: v for k, v in vars(clf).items() if k.endswith("_")}
    with pytest.raises((ValueError, TypeError), match=message):
        clf.fit(*IRIS, **arguments)
    after = {k: v for k, v in vars(clf).items() if k.endswith("_")}
    assert before.keys() == after.keys()
    assert all(before[k] is after[k] for k in before)


def test_negative_counts():
    with pytest.raises(ValueError, match="y: expected non-negative values with loss='poisson', got -"):
        MLPRegressor(loss="poisson").fit(DIABETES[0], -DIABETES[1])


def test_an_unconverged_fit_warns_and_verbose_prints(capsys):
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        MLPClassifier(max_iter=2, verbose=True, random_state=0).fit(*IRIS)
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge after 1 iteration"):
        MLPClassifier(max_iter=1, solver="lbfgs").fit(*IRIS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MLPClassifier(max_iter=500, verbose=True, tol=0.1, random_state=0).fit(*IRIS)
    out = capsys.readouterr().out
    assert "Iteration 2, loss = " in out
    assert "Training loss did not improve more than tol=0.100000 for 10 consecutive epochs. Stopping." in out


def test_warnings_point_at_the_users_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MLPClassifier(max_iter=1, random_state=0).fit(*IRIS)
        MLPClassifier(max_iter=1, solver="lbfgs").fit(*IRIS)
        MLPClassifier(batch_size=1000).partial_fit(*IRIS, classes=[0, 1, 2])
        MLPRegressor(batch_size=1000).partial_fit(*DIABETES)
    assert [warning.filename for warning in caught] == [__file__] * 4


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_divergence_is_scikit_learns_error(solver):
    """scikit-learn clips its loss; here the step that diverges is named as well."""
    X = np.random.default_rng(0).standard_normal((50, 3)) * 1e200
    with pytest.raises(ValueError, match=r"Solver produced non-finite parameter weights.*: training has diverged: the"):
        MLPRegressor(solver=solver, learning_rate_init=1e100, random_state=0).fit(X, X[:, 0])
