"""Metrics of logits and targets, against their definitions; and in evaluate and fit."""

import functools

import numpy as np
import pytest

import fastbp as fb

pytest.importorskip("sklearn")

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((200, 4))
LABELS = (LOGITS + RNG.standard_normal((200, 4))).argmax(axis=1)
SCORES = LOGITS[:, :1]
BINARY = (SCORES[:, 0] + RNG.standard_normal(200) > 0).astype(float)
MANY = (LOGITS + RNG.standard_normal((200, 4)) > 0).astype(float)


def f1(truth, decided):
    return 2 * (truth & decided).sum() / (truth.sum() + decided.sum())


def auc(truth, score):
    """The share of pairs, one of each kind, that the score puts in order (Hanley & McNeil 1982)."""
    return (score[truth][:, None] > score[~truth]).mean()


def softmax(logits):
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True)


def each(measure, score):
    return np.mean([measure(c == LABELS, score[:, c]) for c in range(4)])


def labels_of(measure, score):
    return np.mean([measure(MANY[:, j] > 0.5, score[:, j]) for j in range(4)])


ERROR = LOGITS - MANY
EXPECTED = [
    ("accuracy", LOGITS, LABELS, (LOGITS.argmax(axis=1) == LABELS).mean()),
    ("accuracy", SCORES, BINARY, ((SCORES[:, 0] > 0) == BINARY).mean()),
    ("accuracy", SCORES, BINARY[:, None], ((SCORES[:, 0] > 0) == BINARY).mean()),
    ("accuracy", LOGITS, MANY, ((LOGITS > 0) == MANY).all(axis=1).mean()),
    ("f1", LOGITS, LABELS, each(f1, LOGITS.max(axis=1, keepdims=True) == LOGITS)),
    ("f1", SCORES, BINARY, f1(BINARY > 0.5, SCORES[:, 0] > 0)),
    ("f1", LOGITS, MANY, labels_of(f1, LOGITS > 0)),
    ("auc", LOGITS, LABELS, each(auc, softmax(LOGITS))),
    ("auc", SCORES, BINARY, auc(BINARY > 0.5, SCORES[:, 0])),
    ("auc", LOGITS, MANY, labels_of(auc, LOGITS)),
    ("mae", LOGITS, MANY, np.abs(ERROR).mean()),
    ("rmse", LOGITS, MANY, np.sqrt((ERROR**2).mean(axis=0)).mean()),
    ("r2", LOGITS, MANY, np.mean(1 - (ERROR**2).sum(axis=0) / ((MANY - MANY.mean(axis=0)) ** 2).sum(axis=0))),
    ("mae", SCORES, BINARY, np.abs(SCORES[:, 0] - BINARY).mean()),
]


@pytest.mark.parametrize(("name", "pred", "target", "expected"), EXPECTED)
def test_definitions(name, pred, target, expected):
    value = getattr(fb.metrics, name)(pred, target)
    assert type(value) is float
    assert value == pytest.approx(expected, rel=1e-12)


def test_top_k():
    ranks = (LOGITS[np.arange(200), LABELS][:, None] < LOGITS).sum(axis=1)
    for k in (1, 2, 3):
        assert fb.metrics.top_k_accuracy(LOGITS, LABELS, k) == pytest.approx((ranks < k).mean())


def test_in_evaluate_and_fit(any_backend):
    X = LOGITS.astype(np.float32)
    model = fb.Sequential([fb.Dense(4, 8, activation="relu"), fb.Dense(8, 4)], seed=0)
    optimizer = fb.Adam(model.parameters(), lr=0.01)
    metrics = {"top2": functools.partial(fb.metrics.top_k_accuracy, k=2), "auc": fb.metrics.auc}
    stop = fb.EarlyStopping(patience=2, monitor="val_auc")
    history = model.fit(
        X,
        LABELS,
        "cross_entropy",
        optimizer,
        epochs=15,
        validation_data=(X, LABELS),
        metrics=metrics,
        callbacks=[stop],
        verbose=0,
    ).history
    assert list(history) == [
        "loss", "accuracy", "samples_per_second", "val_loss", "val_accuracy", "val_top2", "val_auc", "lr"
    ]  # fmt: skip
    assert stop.best == max(history["val_auc"]) > history["val_auc"][0]
    result = model.evaluate(X, LABELS, "cross_entropy", metrics=["auc", "f1", "accuracy"])
    assert list(result) == ["loss", "accuracy", "auc", "f1"]
    pred = model.predict(X)  # the best epoch's
    assert result["auc"] == fb.metrics.auc(pred, LABELS) == stop.best
    assert result["accuracy"] == (pred.argmax(axis=1) == LABELS).mean()


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (["acuracy"], ValueError, "metrics: unknown value 'acuracy'; did you mean 'accuracy'"),
        ("auc", TypeError, "metrics: expected a list of names or a dict of callables, got 'auc'"),
        ({"auc": "auc"}, TypeError, r"metrics\['auc'\]: expected a callable \(pred, target\) -> float, got 'auc'"),
        ([fb.metrics.auc], TypeError, r"metrics: expected callables as a dict {name: callable}, got \[<function auc"),
        ({"loss": fb.metrics.auc}, ValueError, "metrics: expected another name than 'loss'"),
        (["auc"], ValueError, "metrics: expected validation_data"),
    ],
)
def test_bad_metrics(metrics, error, message):
    model = fb.Sequential([fb.Dense(4, 4)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        model.fit(LOGITS, LABELS, "cross_entropy", optimizer, metrics=metrics)
    assert optimizer.steps == 0


REGRESSION = RNG.standard_normal((200, 4)) * 3
CANNOT = [
    ("auc", "mse", REGRESSION, "target: expected classes as numbers from 0 to 1"),
    ("accuracy", "huber", REGRESSION[:, 0], "target: expected classes as numbers from 0 to 1"),
    ("f1", "mae", REGRESSION, "target: expected classes as numbers from 0 to 1"),
    ("top_k_accuracy", "binary_cross_entropy", BINARY, "pred: expected logits of at least two classes"),
    ("top_k_accuracy", "binary_cross_entropy", MANY, "pred: expected logits of at least two classes"),
    ("rmse", "cross_entropy", LABELS, r"target: expected a number for every output"),
    ("mae", "cross_entropy", LABELS, r"target: expected a number for every output"),
    ("r2", "cross_entropy", LABELS, r"target: expected a number for every output"),
]


@pytest.mark.parametrize(("metric", "loss", "target", "message"), CANNOT)
@pytest.mark.parametrize("by_name", [True, False])
def test_a_metric_that_cannot_work_says_so_before_the_first_epoch(metric, loss, target, message, by_name):
    outputs = 4 if target.ndim == 2 or loss == "cross_entropy" else 1
    model = fb.Sequential([fb.Dense(4, outputs)], seed=0)
    optimizer, before = fb.SGD(model.parameters(), lr=0.1), model.snapshot()
    metrics = [metric] if by_name else {metric: fb.metrics.METRICS[metric]}
    asked = []

    def chunks():
        for i in range(0, 200, 50):
            asked.append(i)
            yield LOGITS[i : i + 50], target[i : i + 50]

    for call in (
        lambda: model.fit(LOGITS, target, loss, optimizer, validation_data=(LOGITS, target), metrics=metrics),
        lambda: model.evaluate(LOGITS, target, loss, metrics=metrics),
        lambda: model.evaluate(chunks, None, loss, metrics=metrics),
    ):
        with pytest.raises(ValueError, match=rf"metrics\['{metric}'\]: {message}"):
            call()
    assert optimizer.steps == 0
    assert len(asked) <= 4
    np.testing.assert_array_equal(model.snapshot()[0], before[0])


def test_a_class_that_few_samples_have_is_no_reason(recwarn):
    """Whatever a metric says of the few targets with which fit tries it, as long as it can be computed."""
    labels = np.zeros(200, int)
    labels[-1] = 1
    model = fb.Sequential([fb.Dense(4, 2)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    history = model.fit(LOGITS, labels, "cross_entropy", optimizer, validation_data=(LOGITS, labels), verbose=0,
                        metrics=["auc", "f1", "accuracy", "top_k_accuracy"]).history  # fmt: skip
    assert np.isfinite(history["val_auc"]).all()
    assert not recwarn


def test_bad_arrays():
    with pytest.raises(ValueError, match=r"pred: expected shape \(N, O\) with N of 3 targets, got \(3,\)"):
        fb.metrics.mae([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])


def test_predictions_that_are_not_finite_measure_nothing():
    model = fb.Sequential([fb.Dense(4, 1)], seed=0)
    model.layers[0].weight[:] = 1e38
    with np.errstate(over="ignore"):
        result = model.evaluate(1e3 * LOGITS, np.zeros(200), "mae", metrics=["r2"])
    assert np.isnan(result["r2"])
    with pytest.raises(ValueError, match=r"metrics\['r2'\]: "):
        fb.Sequential([fb.Dense(4, 4)]).evaluate(LOGITS, LABELS, "cross_entropy", metrics=["r2"])


def test_two_logits_are_one():
    """The difference of two logits is the logit of a binary loss."""
    pytest.importorskip("sklearn")
    pred, labels = np.array([[2.0, 0], [0, 1], [1, 0], [0, 3]]), np.array([0, 1, 1, 1])
    one = (pred[:, 1] - pred[:, 0])[:, None]
    assert fb.metrics.auc(pred, labels) == fb.metrics.auc(one, labels) == 1.0
    assert fb.metrics.f1(pred, labels) == fb.metrics.f1(one, labels) == pytest.approx(0.8)
    assert fb.metrics.top_k_accuracy(pred, labels, k=1) == 0.75
    assert fb.metrics.top_k_accuracy(pred, labels, k=2) == 1.0
    with pytest.raises(ValueError, match="two classes"):
        fb.metrics.top_k_accuracy(one, labels, k=1)
