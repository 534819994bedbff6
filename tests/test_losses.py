"""What losses weigh, leave out and smooth, and per-sample losses: on every backend, by hand, in fit as in the loop."""

import numpy as np
import pytest
from conftest import assert_close, rounding
from networks import bits

import fastbp as fb
from fastbp.core import reference

ROWS, OUTPUTS = 37, 4


def soft(rng, shape):
    return rng.dirichlet(np.ones(shape[1]), shape[0])


def binary(rng, shape):
    return rng.integers(0, 2, shape).astype("f8")


def holes(make):
    """Targets of which a third are missing, and one whole row."""

    def made(rng, shape):
        target = make(rng, shape)
        target[rng.random(target.shape) < 1 / 3] = np.nan
        target[0] = np.nan
        return target

    return made


def numbers(rng, shape):
    return rng.standard_normal(shape)


def counts(rng, shape):
    return rng.poisson(2, shape).astype("f8")


# A loss, its targets, and how many outputs it has.
CASES = {
    "soft labels": (lambda: fb.CrossEntropy(), soft, OUTPUTS),
    "soft labels, all": (lambda: fb.CrossEntropy(0.1, [1, 2, 0.5, 0]), soft, OUTPUTS),
    "labels by count": (lambda: fb.CrossEntropy(0.1, [1, 2, 0.5, 0], normalize_weights=False), soft, OUTPUTS),
    "positive weight": (lambda: fb.BinaryCrossEntropy(3.0), binary, OUTPUTS),
    "positive weights": (lambda: fb.BinaryCrossEntropy([1, 2, 0.5, 0], 0.2), binary, OUTPUTS),
    "smoothed": (lambda: fb.BinaryCrossEntropy(label_smoothing=0.1), binary, OUTPUTS),
    "binary classes": (lambda: fb.BinaryCrossEntropy(class_weight={1: 5}), binary, 1),
    "binary, all": (lambda: fb.BinaryCrossEntropy(2.0, 0.1, [0.5, 2], missing="ignore"), holes(binary), 1),
    "multi-label": (lambda: fb.BinaryCrossEntropy(2.0, 0.1, missing="ignore"), holes(binary), OUTPUTS),
    "missing": (lambda: fb.MSE(missing="ignore"), holes(numbers), OUTPUTS),
    "missing mae": (lambda: fb.MAE(missing="ignore"), holes(numbers), OUTPUTS),
    "missing huber": (lambda: fb.Huber(0.5, missing="ignore"), holes(numbers), OUTPUTS),
    "missing counts": (lambda: fb.Poisson(missing="ignore"), holes(counts), OUTPUTS),
    "by count": (lambda: fb.MSE(missing="ignore", normalize_weights=False), holes(numbers), OUTPUTS),
    "quantiles": (lambda: fb.Quantile([0.1, 0.5, 0.9]), lambda rng, shape: numbers(rng, (shape[0], 2)), 6),
    "quantiles, missing": (
        lambda: fb.Quantile((0.2, 0.7), missing="ignore"), holes(lambda rng, shape: numbers(rng, (shape[0], 1))), 2
    ),
}  # fmt: skip


def weights(rng, kind, target, elementwise):
    """None, of samples, or of entries where the loss has any."""
    if kind == "none":
        return None
    shape = target.shape if kind == "entries" and elementwise else len(target)
    weight = np.maximum(rng.uniform(-0.5, 2, shape), 0)
    weight[1] = 0
    return weight


@pytest.mark.parametrize("kind", ["none", "samples", "entries"])
@pytest.mark.parametrize("case", CASES)
def test_backends_agree(compiled, dtype, rng, threads, case, kind):
    make, target_of, outputs = CASES[case]
    loss, pred = make(), rng.standard_normal((ROWS, outputs)).astype(dtype)
    target = target_of(rng, (ROWS, outputs)).astype(dtype)
    weight = weights(rng, kind, target, not isinstance(loss, fb.CrossEntropy))
    fb.set_num_threads(threads)
    for reduction in ("mean", "sum", "none"):
        value, dpred = loss(pred, target, weight, reduction)
        with fb.use_backend("numpy"):
            expected, gradient = loss(pred, target, weight, reduction)
        np.testing.assert_allclose(value, expected, rtol=rounding(dtype, ROWS), atol=rounding(dtype, ROWS))
        assert_close(dpred, gradient, 5 if reduction != "mean" else 1, dtype, ROWS)
    assert loss.total_weight(pred, *checked(loss, pred, target, weight)) == pytest.approx(
        reference.losses.total_weight(pred, *checked(loss, pred, target, weight), loss.spec(outputs, dtype)), rel=1e-6
    )


def checked(loss, pred, target, weight):
    shape = len(pred), pred.shape[1], pred.dtype
    return loss.check("y", target, *shape), loss.check_weight("weight", weight, *shape)


@pytest.mark.parametrize("kind", ["none", "samples", "entries"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(any_backend, rng, case, kind):
    make, target_of, outputs = CASES[case]
    loss, pred = make(), rng.standard_normal((5, outputs))
    target = target_of(rng, pred.shape)
    weight = weights(rng, kind, target, not isinstance(loss, fb.CrossEntropy))
    gradient, h = loss(pred, target, weight)[1], 1e-6
    for at in np.ndindex(pred.shape):
        up, down = pred.copy(), pred.copy()
        up[at] += h
        down[at] -= h
        difference = (loss(up, target, weight)[0] - loss(down, target, weight)[0]) / (2 * h)
        assert gradient[at] == pytest.approx(difference, abs=1e-7)  # errors of h^2 and of eps / h


@pytest.mark.parametrize("kind", ["none", "samples", "entries"])
@pytest.mark.parametrize("case", CASES)
def test_fit_is_the_loop(any_backend, threads, rng, case, kind):
    make, target_of, outputs = CASES[case]
    X, loss = rng.standard_normal((ROWS, 7)).astype("f4"), make()
    y = target_of(rng, (ROWS, outputs))
    weight = weights(rng, kind, y, not isinstance(loss, fb.CrossEntropy))
    fb.set_num_threads(threads)

    def model():
        return fb.Sequential([fb.Dense(7, 16, "relu"), fb.Dense(16, outputs)], seed=0)

    fitted, looped, rows, step = model(), model(), np.random.default_rng(3), 0
    history = fitted.fit(X, y, loss, fb.SGD(fitted.parameters(), 0.1), batch_size=10, sample_weight=weight, seed=3,
                         verbose=0)  # fmt: skip
    optimizer, sums, total = fb.SGD(looped.parameters(), 0.1), 0.0, 0.0
    for xb, yb, *wb in fb.batches(X, y, 10, seed=rows, sample_weight=weight):
        pred = looped.forward(xb, training=True)
        value, dpred = loss(pred, yb, *wb)
        of_batch = loss.total_weight(pred, *checked(loss, pred, yb, wb[0] if wb else None))
        sums, total, step = sums + value * of_batch, total + of_batch, step + 1
        looped.backward(dpred)
        optimizer.step()
    assert bits(fitted) == bits(looped)
    assert history.history["loss"][0] == pytest.approx(sums / total, rel=1e-6)
    evaluated = fitted.evaluate(X, y, loss, weight)
    assert evaluated["loss"] == pytest.approx(float(loss(fitted.predict(X), y, weight)[0]), rel=1e-6)


def test_one_hot_rows_are_labels(any_backend, dtype, rng):
    logits, labels = rng.standard_normal((20, 5)).astype(dtype), rng.integers(0, 5, 20)
    loss = fb.CrossEntropy(0.1, [1, 2, 3, 4, 5])
    (value, gradient), (expected, its) = loss(logits, np.eye(5)[labels]), loss(logits, labels)
    assert value == pytest.approx(expected, rel=rounding(dtype))
    np.testing.assert_allclose(gradient, its, atol=rounding(dtype))


def test_what_is_missing_is_as_if_it_were_not_there(any_backend):
    pred, target = np.array([[1.0], [2.0], [3.0]]), np.array([0.0, np.nan, 1.0])
    value, gradient = fb.MSE(missing="ignore")(pred, target)
    expected, of_two = fb.MSE()(pred[[0, 2]], target[[0, 2]])
    assert value == expected
    assert gradient.tolist() == [[of_two[0, 0]], [0.0], [of_two[1, 0]]]
    assert fb.MSE(missing="ignore")(pred, np.full(3, np.nan))[0] == 0


def test_every_sample_has_its_loss(any_backend, dtype, rng):
    pred, target = rng.standard_normal((2, 9, 3)).astype(dtype)
    losses, gradient = fb.MSE()(pred, target, reduction="none")
    np.testing.assert_allclose(losses, np.square(pred - target).mean(axis=1), rtol=rounding(dtype, 3))
    np.testing.assert_allclose(gradient, 2 * (pred - target) / 3, rtol=rounding(dtype))
    assert losses.dtype == dtype


def test_weights_that_are_not_normalised(any_backend):
    """Prioritised replay (Schaul et al. 2016): a batch in which all samples weigh a half teaches half as much."""
    pred, target, half = np.array([[1.0], [3.0]]), np.zeros(2), np.full(2, 0.5)
    value, gradient = fb.MSE(normalize_weights=False)(pred, target, half)
    expected, whole = fb.MSE()(pred, target)
    assert value == expected / 2
    assert (gradient == whole / 2).all()


def test_several_quantiles_are_learned(any_backend):
    rng = np.random.default_rng(0)
    X, y = np.zeros((2000, 1), "f4"), rng.standard_normal(2000)
    model = fb.Sequential([fb.Dense(1, 3)], seed=0)
    for lr in (0.1, 0.01):
        model.fit(X, y, fb.Quantile([0.1, 0.5, 0.9]), fb.Adam(model.parameters(), lr), epochs=20, verbose=0)
    # the error of a quantile of 2,000 samples is about sqrt(q (1 - q) / 2000) / density, below 0.04 here
    np.testing.assert_allclose(model.predict(X[:1])[0], [-1.2816, 0, 1.2816], atol=0.12)


def test_what_does_not_fit_is_refused():
    pred, zeros = np.zeros((3, 2)), np.zeros((3, 2))
    for call, message in {
        lambda: fb.CrossEntropy()(pred, [[0.5, 0.4], [1, 0], [0, 1]]): r"sum to 1, got \[0.5, 0.4\] in row 0",
        lambda: fb.CrossEntropy()(pred, [[0.5, 0.5], [-1, 2], [0, 1]]): "in row 1",
        lambda: fb.CrossEntropy()(pred, np.full((3, 2), np.nan)): "nan",
        lambda: fb.CrossEntropy()(pred, [[1, 0, 0]] * 3): "labels",
        lambda: fb.BinaryCrossEntropy([1, 2, 3])(pred, zeros): "one weight or 2, got 3",
        lambda: fb.BinaryCrossEntropy(-1): "pos_weight: expected a non-negative weight",
        lambda: fb.BinaryCrossEntropy(np.inf): "pos_weight",
        lambda: fb.BinaryCrossEntropy(class_weight={1: 2})(pred, zeros): "pos_weight with several outputs",
        lambda: fb.BinaryCrossEntropy(class_weight={2: 2}): "class_weight",
        lambda: fb.BinaryCrossEntropy(label_smoothing=1): "label_smoothing",
        lambda: fb.MSE(missing="skip"): "missing",
        lambda: fb.MSE()(pred, zeros * np.nan): "nan",
        lambda: fb.MSE(missing="ignore")(pred, zeros + np.inf): "infinity",
        lambda: fb.MSE()(pred, zeros, np.ones((3, 1))): r"\(3,\) or \(3, 2\)",
        lambda: fb.MSE()(pred, zeros, -np.ones((3, 2))): "non-negative",
        lambda: fb.MSE()(pred, zeros, reduction="avg"): "reduction",
        lambda: fb.CrossEntropy()(pred, [0, 1, 0], np.ones((3, 2))): "sample_weight",
        lambda: fb.Quantile([0.1, 0.5, 0.9])(pred, zeros): "multiple, for 3 quantiles, got 2",
        lambda: fb.Quantile([0.1, 1.0]): "q:",
        lambda: fb.Quantile([]): "q: expected",
        lambda: fb.MSE(normalize_weights=False)(pred, zeros, [1e-40] * 3): "between 1e-30 and 1e30",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
