"""``fit``: sample weights, callables as losses, and an interrupt in the middle of an epoch."""

import signal

import numpy as np
import pytest
from networks import bits, blobs, everything

import fastbp as fb


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


WEIGHT = np.array([0.0, 0, 0, 1])
TARGETS = np.array([[1.0], [1], [1], [3]])


def squares(pred, target, weight=None):
    return fb.MSE()(pred, target, weight)


def rows_of(X, y, weight):
    """A stream of single rows."""
    return lambda: ((X[i : i + 1], y[i : i + 1], weight[i : i + 1]) for i in range(len(X)))


@pytest.mark.parametrize("loss", ["mse", squares])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_the_loss_of_an_epoch_is_the_weighted_mean_over_its_samples(any_backend, dtype, loss, batch_size, stream):
    """Whatever the batches: predictions are 0, so that the loss of a sample is the square of its target."""
    for weight, expected in ((WEIGHT, 9.0), (np.array([1.0, 2, 3, 4]), 4.2), (np.ones(4), 3.0)):
        model = fb.Sequential([fb.Dense(2, 1)], dtype=dtype.name)
        model.layers[0].weight = np.zeros((2, 1))
        X, optimizer = np.ones((4, 2)), fb.SGD(model.parameters(), lr=0.0)
        data = (rows_of(X, TARGETS, weight), None) if stream else (X, TARGETS)
        history = model.fit(
            *data, loss, optimizer, batch_size=batch_size, verbose=0, shuffle=False, epochs=2,
            sample_weight=None if stream else weight, validation_data=(X, TARGETS, weight),
        ).history  # fmt: skip
        assert history["loss"] == history["val_loss"] == [pytest.approx(expected, rel=1e-6)] * 2


EXTREMES = {"float32": [1e-40, 1e-30, 1e37, 3e38, 1e300], "float64": [1e-320, 1e-300, 1e300, 1.7e308]}


@pytest.mark.parametrize("loss", ["mse", "mae", "cross_entropy", "binary_cross_entropy", "poisson"])
def test_only_the_ratios_of_weights_count(any_backend, dtype, loss):
    """Of samples and of classes, however small or large they are; in an epoch, in a step, in a call of the loss."""
    X, labels = blobs(30, dtype=dtype)
    y = labels if loss == "cross_entropy" else np.eye(4)[labels]
    ratios = np.random.default_rng(0).integers(0, 4, 30) / 4
    for unit in EXTREMES[dtype.name]:
        with np.errstate(over="ignore", under="ignore"):
            scaled = ratios * unit
        outcomes = []
        for weight, of_class in ((ratios, 1.0), (scaled, 1.0), (scaled, unit)):
            made = fb.CrossEntropy(class_weight=np.full(4, of_class)) if loss == "cross_entropy" else loss
            model = everything(dtype.name)
            optimizer = fb.SGD(model.parameters(), lr=0.01)
            history = model.fit(X, y, made, optimizer, seed=0, batch_size=10, verbose=0, sample_weight=weight).history
            single = model.train_on_batch(X[:9], y[:9], made, optimizer, weight[:9])
            evaluated = model.evaluate(X, y, made, weight)["loss"]
            assert history["loss"][0] > 0.1
            outcomes.append((np.array([history["loss"][0], single, evaluated]), model.parameters().values))
        for got, parameters in outcomes[1:]:  # products with units that are no powers of two are rounded
            tolerance = 100 * np.finfo(dtype).eps
            np.testing.assert_allclose(got, outcomes[0][0], rtol=tolerance)
            np.testing.assert_allclose(parameters, outcomes[0][1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("unit", [1e-40, 1e35])
def test_weights_of_chunks_are_not_scaled(unit):
    """One chunk does not know what the next one brings."""
    X, y = blobs(30)
    model = everything()
    with pytest.raises(ValueError, match="sample_weight of chunk 1: expected a greatest weight between 1e-30 and 1e30"):
        model.fit(lambda: iter([(X, y, np.ones(30)), (X, y, np.full(30, unit))]), None, "cross_entropy",
                  fb.Adam(model.parameters()), verbose=0)  # fmt: skip


def test_data_of_which_nothing_counts_are_refused():
    """By the weights of samples or of classes, for training and for validation, in arrays and in chunks."""
    X, y = blobs(30)
    zeros, nothing = np.zeros(30), fb.CrossEntropy(class_weight=[1, 0, 0, 1])
    few = np.flatnonzero((y == 1) | (y == 2))

    def chunks():
        yield X, y, zeros

    def of_class():
        yield X[few], y[few]

    model = everything()
    optimizer, before = fb.Adam(model.parameters()), bits(model)
    plain = dict(verbose=0)
    for call in (
        lambda: model.fit(X, y, "cross_entropy", optimizer, sample_weight=zeros, **plain),
        lambda: model.fit(X[few], y[few], nothing, optimizer, **plain),
        lambda: model.fit(X, y, nothing, optimizer, validation_data=(X[few], y[few]), **plain),
        lambda: model.fit(X, y, "cross_entropy", optimizer, validation_data=(X, y, zeros), **plain),
        lambda: model.evaluate(X[few], y[few], nothing),
        lambda: model.evaluate(chunks, None, "cross_entropy"),
        lambda: model.evaluate(of_class, None, nothing),
    ):
        with pytest.raises(ValueError, match="expected a positive weight among them and the classes of"):
            call()
        assert bits(model) == before
        assert optimizer.steps == 0
    for source, loss in (
        (chunks, "cross_entropy"),
        (of_class, nothing),
        (chunks, lambda *given: fb.CrossEntropy()(*given)),
    ):
        with pytest.raises(ValueError, match="expected a positive weight among them and the classes of"):
            model.fit(source, None, loss, optimizer, epochs=3, verbose=0)  # when the first epoch has read it
        assert len(model.history) == 0


@pytest.mark.parametrize("class_weight", [{1: 99}, [1, 99, 5]])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_of_classes_weigh_the_epochs_loss_too(any_backend, dtype, class_weight, weighted):
    """One rare sample in 100, in batches of 10: PyTorch's mean over all samples at once is the oracle."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((100, 4)), np.zeros(100, int)
    y[17], y[30:34] = 1, 2
    weight = rng.random(100) if weighted else np.ones(100)
    model = fb.Sequential([fb.Dense(4, 3)], dtype=dtype.name, seed=0)
    history = model.fit(
        X, y, fb.CrossEntropy(class_weight=class_weight), fb.SGD(model.parameters(), lr=0.0), batch_size=10, verbose=0,
        sample_weight=weight, validation_data=(X, y, weight),
    ).history  # fmt: skip
    of_class = torch.tensor([1.0, 99, 1 if isinstance(class_weight, dict) else 5], dtype=torch.float64)
    logits = torch.tensor(model.predict(X).astype("f8"))
    each = torch.nn.functional.cross_entropy(logits, torch.tensor(y), reduction="none")
    both = of_class[y] * torch.tensor(weight)
    expected = float((each * both).sum() / both.sum())
    assert history["loss"][0] == pytest.approx(expected, rel=1e-5 if dtype == np.float32 else 1e-12)
    assert history["val_loss"][0] == pytest.approx(expected, rel=1e-5 if dtype == np.float32 else 1e-12)


def test_the_logged_rate_is_that_of_the_last_step(any_backend):
    X, y = blobs(100)
    for loss in ("cross_entropy", lambda *given: fb.CrossEntropy()(*given)):
        model, schedule = everything(), fb.schedules.Exponential(0.1, 0.5)
        optimizer = fb.SGD(model.parameters(), lr=schedule)
        history = model.fit(X, y, loss, optimizer, batch_size=25, epochs=3, verbose=0).history
        assert history["lr"] == [0.1 * 0.5**3, 0.1 * 0.5**7, 0.1 * 0.5**11]


def test_an_interrupt_leaves_whole_steps(any_backend, alarms):
    """Ctrl-C in the middle of an epoch: what was trained is the state after some number of whole steps."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((500_000, 20)).astype("f4"), rng.integers(0, 4, 500_000)
    model = fb.Sequential([fb.Dense(20, 64, activation="relu"), fb.Dropout(0.2), fb.Dense(64, 4)], seed=0)
    optimizer = fb.Adam(model.parameters())

    alarms(signal.default_int_handler, 0.2)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y, "cross_entropy", optimizer, epochs=1000, batch_size=50, shuffle=False, verbose=0)
    steps = optimizer.steps
    assert 0 < steps == model.model.training_step
    assert (steps - 1) // 10_000 <= len(model.history) == model.epochs <= steps // 10_000  # of 10,000 steps
    replica = fb.Sequential([fb.Dense(20, 64, activation="relu"), fb.Dropout(0.2), fb.Dense(64, 4)], seed=0)
    its_optimizer = fb.Adam(replica.parameters())
    for step in range(steps):
        rows = slice(step % 10_000 * 50, step % 10_000 * 50 + 50)
        replica.train_on_batch(X[rows], y[rows], "cross_entropy", its_optimizer)
    assert bits(replica) == bits(model)
    model.fit(X[:100], y[:100], "cross_entropy", optimizer, verbose=0)
    assert optimizer.steps == steps + 4


def test_an_interrupt_counts_every_step_that_was_applied(compiled, alarms):
    """Of short calls into the core, which end before they look for signals: the bias is the number of steps applied."""
    X, y = np.zeros((32, 2)), np.full(32, 1e9)
    for i in range(40):
        model = fb.Sequential([fb.Dense(2, 1)], dtype="float64", seed=0)
        optimizer = fb.SGD(model.parameters(), lr=1.0)

        def train(model=model, optimizer=optimizer, seconds=0.003 + 0.0001 * i):
            alarms(signal.default_int_handler, seconds)
            model.fit(X, y, "mae", optimizer, epochs=10**6, batch_size=2, verbose=0)

        with pytest.raises(KeyboardInterrupt):
            train()
        assert model.layers[0].bias[0] == optimizer.steps == model.model.training_step
