"""Embedding and TabularInput: beside PyTorch, finite differences and NumPy; every driver gives the same bits."""

import copy
import json
import pickle

import numpy as np
import pytest
from conftest import rounding

import fastbp as fb
from fastbp.core import available_backends, reference

CARDINALITIES, DIMS = [7, 1, 300, 40], [5, 3, 33, 16]  # widths with tails, one wider than a panel, one category


def table(rng, samples, dtype="float32", numeric=5):
    """Standard normal columns and ids of each cardinality, often repeated in a batch."""
    ids = [rng.integers(0, n, samples) for n in CARDINALITIES]
    return np.column_stack([rng.standard_normal((samples, numeric)), *ids]).astype(dtype)


def tabular(dtype="float32", numeric=5, hidden=24, extra=(), **settings):
    first = fb.TabularInput(numeric, CARDINALITIES, DIMS, **settings)
    width = numeric + sum(DIMS)
    layers = [first, *extra, fb.Dense(width, hidden, activation="tanh"), fb.Dense(hidden, 3)]
    model = fb.Sequential(layers, dtype=dtype, seed=0)
    for w in first.weights:
        w *= 100  # they start so small that their part in all else would be within the tolerances
    return model


def bits(model):
    return model.parameters().values.tobytes() + model.model.statistics.tobytes()


# --- what is computed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numeric", [0, 5, 31, 70])
@pytest.mark.parametrize("batch", [1, 50])
def test_forward_and_backward_are_lookups_and_sums(any_backend, dtype, rng, numeric, batch):
    """Alone in a model, nothing is rounded: a copy forward, and sums of small whole numbers backward."""
    layer = fb.TabularInput(numeric, CARDINALITIES, DIMS)
    model = fb.Sequential([layer], dtype=dtype, seed=1)
    x = table(rng, batch, dtype, numeric)
    ids = x[:, numeric:].astype(int)
    expected = np.column_stack([x[:, :numeric], *(w[i] for w, i in zip(layer.weights, ids.T, strict=True))])
    dy = rng.integers(-9, 9, expected.shape).astype(dtype)
    for _ in range(2):  # the gradients of the pass before are gone
        assert np.array_equal(model.forward(x, training=True), expected)
        dx = model.backward(dy, input_gradient=True)
        assert np.array_equal(dx[:, :numeric], dy[:, :numeric])
        assert not dx[:, numeric:].any()
        at = numeric
        for grad, column in zip(layer.dweights, ids.T, strict=True):
            sums = np.zeros_like(grad)
            np.add.at(sums, column, dy[:, at : at + grad.shape[1]])
            assert np.array_equal(grad, sums)
            at += grad.shape[1]
        x, ids, dy, expected = x[::-1].copy(), ids[::-1], 2 * dy, expected[::-1]


def test_columns_share_one_table(any_backend, dtype, rng):
    model = fb.Sequential([fb.Embedding(6, 5, columns=3)], dtype=dtype, seed=1)
    ids = rng.integers(0, 6, (9, 3))
    layer = model.layers[0]
    assert np.array_equal(model.forward(ids, training=True), layer.weight[ids].reshape(9, 15))
    dy = rng.integers(-9, 9, (9, 3, 5)).astype(dtype)
    model.backward(dy.reshape(9, 15))
    sums = np.zeros_like(layer.dweight)
    np.add.at(sums, ids, dy)
    assert np.array_equal(layer.dweight, sums)


@pytest.mark.parametrize("extra", [[], ["batchnorm"], ["layernorm"], ["dropout"], ["activation"]], ids=str)
@pytest.mark.parametrize("numeric", [0, 5, 70])
def test_gradients(any_backend, rng, extra, numeric):
    width = numeric + sum(DIMS)
    kinds = {
        "batchnorm": lambda: fb.BatchNorm(width),
        "layernorm": lambda: fb.LayerNorm(width),
        "dropout": lambda: fb.Dropout(0.3),
        "activation": lambda: fb.Activation("gelu"),
    }
    model = tabular("float64", numeric, extra=[kinds[name]() for name in extra])
    assert fb.check_gradients(model, table(rng, 20, numeric=numeric), rng.integers(0, 3, 20), "cross_entropy") < 1e-6


def test_input_gradient(any_backend, rng):
    """Of the numeric columns, through a layer that otherwise leaves theirs out; ids have none."""
    model, criterion = tabular("float64", numeric=35), fb.MSE()
    x, y = table(rng, 4, "float64", numeric=35), rng.standard_normal((4, 3))
    dx = model.backward(criterion(model.forward(x, training=True), y)[1], input_gradient=True)
    assert not dx[:, 35:].any()
    for i in [(0, 0), (1, 31), (3, 32), (2, 34)]:
        step = np.zeros_like(x)
        step[i] = 1e-6
        numeric = (criterion(model.forward(x + step), y)[0] - criterion(model.forward(x - step), y)[0]) / 2e-6
        assert dx[i] == pytest.approx(numeric, abs=1e-8)


# --- training -------------------------------------------------------------------------------------------------------

OPTIMIZERS = [
    ("SGD", dict(lr=0.1)),
    ("SGD", dict(lr=0.1, weight_decay=0.01)),
    ("SGD", dict(lr=0.05, momentum=0.9)),
    ("SGD", dict(lr=0.05, momentum=0.9, nesterov=True, clip_norm=0.5)),
    ("SGD", dict(lr=0.1, clip_norm=0.5)),
    ("Adam", dict(lr=0.003)),
    ("AdamW", dict(lr=0.003, weight_decay=0.1)),
    ("RMSprop", dict(lr=0.001, momentum=0.5)),
    ("Adagrad", dict(lr=0.01)),
    ("Adagrad", dict(lr=0.01, weight_decay=0.01)),
]


@pytest.mark.parametrize(("name", "settings"), OPTIMIZERS)
def test_pytorch_learns_the_same(request, any_backend, dtype, rng, name, settings):
    """Four epochs, 28 steps, of fit beside nn.Embedding and nn.Linear.

    Both round the same formulas in another order. Over so few steps of a smooth net at moderate rates the differences
    stay within a few hundred roundings, relative to the largest parameter, as in test_peers; a rule that is wrong for
    rows without a gradient is off by the size of a step.
    """
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))  # it may share OpenMP with fastbp
    torch.set_num_threads(1)  # whose team would wait for cores that others have
    model = tabular(dtype)
    first, *dense = model.layers
    X, y = table(rng, 203, dtype), rng.integers(0, 3, 203)

    def own(array):
        return torch.nn.Parameter(torch.tensor(np.ascontiguousarray(array)))

    tables = torch.nn.ModuleList(torch.nn.Embedding(*w.shape, _weight=own(w)) for w in first.weights)
    linear = torch.nn.ModuleList(torch.nn.Linear(*layer.weight.shape) for layer in dense)
    for module, layer in zip(linear, dense, strict=True):
        module.weight, module.bias = own(layer.weight.T), own(layer.bias)
    parameters = [*tables.parameters(), *linear.parameters()]
    rule = {k: v for k, v in settings.items() if k != "clip_norm"}
    optimizer = getattr(torch.optim, name)(parameters, **rule)

    history = model.fit(
        X, y, "cross_entropy", getattr(fb, name)(model.parameters(), **settings), epochs=4, batch_size=32, seed=3,
        verbose=0,
    )  # fmt: skip
    order, losses = np.random.default_rng(3), []
    for _ in range(4):
        total = 0.0
        for xb, yb in fb.batches(X, y, 32, seed=order):
            optimizer.zero_grad()
            rows = [t(torch.tensor(xb[:, 5 + j].astype(int))) for j, t in enumerate(tables)]
            hidden = torch.tanh(linear[0](torch.cat([torch.tensor(xb[:, :5]), *rows], 1)))
            loss = torch.nn.functional.cross_entropy(linear[1](hidden), torch.tensor(yb))
            loss.backward()
            if "clip_norm" in settings:
                torch.nn.utils.clip_grad_norm_(parameters, settings["clip_norm"])
            optimizer.step()
            total += loss.item() * len(xb)
        losses.append(total / len(X))
    tolerance = {"float32": 1e-4, "float64": 1e-9}[dtype.name]
    np.testing.assert_allclose(history.history["loss"], losses, rtol=tolerance)
    trained = [*tables.parameters(), *(p.T if p.ndim == 2 else p for p in linear.parameters())]
    for ours, theirs in zip(model.parameters(), trained, strict=True):
        expected = theirs.detach().numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "settings"), [*OPTIMIZERS, ("AdamW", dict(lr=0.003, weight_decay=0.1, decay_bias=False))]
)
@pytest.mark.parametrize(("batch_size", "numeric"), [(1, 5), (64, 70)])
def test_fit_and_the_four_steps_give_the_same_bits(any_backend, dtype, rng, name, settings, batch_size, numeric):
    """For any number of threads: rows and gradients, with whole tables updated (7 rows) and rows skipped (300)."""
    X, y = table(rng, 5 * batch_size // 2, dtype, numeric), rng.integers(0, 3, 5 * batch_size // 2)

    def build():
        model = tabular(dtype, numeric, hidden=150)  # wide enough for panels
        return model, getattr(fb, name)(model.parameters(), **settings)

    (by_hand, optimizer), criterion, order = build(), fb.CrossEntropy(), np.random.default_rng(11)
    for _ in range(3):
        for xb, yb in fb.batches(X, y, batch_size, seed=order):
            by_hand.backward(criterion(by_hand.forward(xb, training=True), yb)[1])
            optimizer.step()
    for threads in (1, 2, 5):
        fb.set_num_threads(threads)
        fitted, other = build()
        fitted.fit(X, y, criterion, other, epochs=3, batch_size=batch_size, seed=11, verbose=0)
        assert bits(fitted) == bits(by_hand)
        assert fitted.parameters().grads.tobytes() == by_hand.parameters().grads.tobytes()
        state, expected = other.state_dict(), optimizer.state_dict()
        assert all(np.array_equal(state[slot], expected[slot]) for slot in expected)


def test_one_table_and_one_thread_are_the_same_as_many(compiled, dtype, rng):
    """A team shares one table by rows, in fit and in backward, with every id of a batch of one table or of one row."""
    ids, y = rng.integers(0, 40, (3000, 4)), rng.standard_normal((3000, 2))
    ids[:1000] = 39

    def run(threads):
        fb.set_num_threads(threads)
        model = fb.Sequential([fb.Embedding(40, 100, columns=4), fb.Dense(400, 2)], dtype=dtype, seed=0)
        model.fit(ids, y, "mse", fb.SGD(model.parameters(), lr=0.01), batch_size=500, seed=1, verbose=0)
        model.backward(fb.MSE()(model.forward(ids, training=True), y)[1])
        return bits(model), model.parameters().grads.tobytes()

    assert run(1) == run(2) == run(4)


@pytest.mark.parametrize(("name", "settings"), OPTIMIZERS)
def test_compiled_and_reference_learn_the_same(compiled, dtype, rng, name, settings):
    """Over ten steps, a few roundings each of sums of up to 64 numbers around one."""
    X, y, trained = table(rng, 320, dtype), rng.integers(0, 3, 320), {}
    for backend in ("numpy", compiled):
        with fb.use_backend(backend):
            model = tabular(dtype)
            model.fit(X, y, "cross_entropy", getattr(fb, name)(model.parameters(), **settings), seed=2, verbose=0)
            trained[backend] = model.parameters().values
    np.testing.assert_allclose(trained[compiled], trained["numpy"], rtol=0, atol=10 * rounding(dtype, 64))


def test_train_on_batch_is_a_step_of_fit(any_backend, rng):
    X, y = table(rng, 64), rng.integers(0, 3, 64)
    one, other = tabular(), tabular()
    a, b = fb.SGD(one.parameters(), lr=0.1), fb.SGD(other.parameters(), lr=0.1)
    one.fit(X, y, "cross_entropy", a, batch_size=32, shuffle=False, verbose=0)
    for rows in (slice(32), slice(32, 64)):
        other.train_on_batch(X[rows], y[rows], "cross_entropy", b)
    assert bits(one) == bits(other)


def test_rows_outside_the_batch_are_updated_as_the_optimizer_says(any_backend, rng):
    """Momentum goes on without a gradient; plain SGD and Adagrad leave such rows alone."""
    for make, moves in [
        (lambda p: fb.SGD(p, lr=0.1), False),
        (lambda p: fb.Adagrad(p, lr=0.1), False),
        (lambda p: fb.SGD(p, lr=0.1, momentum=0.9), True),
        (lambda p: fb.Adam(p, lr=0.1), True),
    ]:
        model = fb.Sequential([fb.Embedding(1000, 4), fb.Dense(4, 1)], seed=0)
        optimizer, table = make(model.parameters()), model.layers[0].weight
        model.train_on_batch([[7]], [1.0], "mse", optimizer)
        after_one = table.copy()
        model.train_on_batch([[8]], [1.0], "mse", optimizer)
        changed = (table != after_one).any(axis=1)
        assert changed[8]
        assert changed[7] == moves
        assert not changed[np.r_[:7, 9:1000]].any()


def test_tables_start_as_pytorchs_and_fastais():
    """The standard deviation of 40,000 normal numbers is off by 0.35% on average."""
    for layer, std in [(fb.Embedding(1000, 40), 1), (fb.TabularInput(0, [1000], 40), 0.01)]:
        values = fb.Sequential([layer], seed=0).parameters().values
        assert values.std() == pytest.approx(std, rel=0.02)
        assert abs(values.mean()) < 0.03 * std


def test_an_embedding_learns(any_backend):
    """A lookup table is all that is needed for a function of an id: the loss goes to zero."""
    ids = np.arange(50)[:, None]
    y = np.sin(ids)
    model = fb.Sequential([fb.Embedding(50, 4), fb.Dense(4, 1)], seed=0)
    history = model.fit(ids, y, "mse", fb.Adam(model.parameters(), lr=0.05), epochs=100, batch_size=10, verbose=0)
    assert history.history["loss"][-1] < 1e-3


# --- validation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (12, 3, 9, r"X: column 3 \(categorical 1\): expected whole numbers from 0 to 4, got 9 at row 12"),
        (0, 2, -1, r"X: column 2 \(categorical 0\): expected whole numbers from 0 to 2, got -1 at row 0"),
        (19, 3, 1.5, r"X: column 3 \(categorical 1\): .* got 1\.5 at row 19"),
        (4, 2, np.nan, r"X: column 2 \(categorical 0\): .* got nan at row 4"),
        (4, 2, 1e30, r"X: column 2 \(categorical 0\): .* got 1(\.00000002)?e\+30 at row 4"),
        (4, 3, 2**24 + 1, r"X: column 3 \(categorical 1\): .* got 1677721[67] at row 4"),
        (4, 2, -np.inf, r"X: column 2 \(categorical 0\): .* got -inf at row 4"),
        (3, 1, np.nan, r"X: expected finite numbers, got nan at index \(3, 1\)"),
    ],
)
def test_unknown_categories(any_backend, dtype, rng, row, column, value, message):
    X = np.column_stack([rng.standard_normal((20, 2)), rng.integers(0, 3, 20), rng.integers(0, 5, 20)])
    y = rng.standard_normal((20, 1))
    model = fb.Sequential([fb.TabularInput(2, [3, 5], 2), fb.Dense(6, 1)], dtype=dtype, seed=0)
    optimizer, good = fb.Adam(model.parameters()), X.copy()
    X[row, column] = value
    before = bits(model)
    for call, name in [
        (lambda: model.fit(X, y, "mse", optimizer, verbose=0), "X"),
        (lambda: model.fit(good, y, "mse", optimizer, validation_data=(X, y), verbose=0), r"validation_data\[0\]"),
        (lambda: model.evaluate(X, y, "mse"), "X"),
        (lambda: model.train_on_batch(X, y, "mse", optimizer), "xb"),
        (lambda: model.forward(X), "x"),
        (lambda: model.predict(X), "x"),
        (lambda: fb.check_gradients(model, X, y, "mse"), "X"),
    ]:
        with pytest.raises(ValueError, match="^" + message.replace("X:", f"{name}:")):
            call()
    assert bits(model) == before
    assert optimizer.steps == 0


def test_reserved_categories(any_backend, dtype, rng):
    """All that is unknown has one row, the last, which is learned as any other; the caller's array stays as it is."""
    layer = fb.TabularInput(1, [3, 5], [2, 4], unknown="reserve")
    model = fb.Sequential([layer, fb.Dense(7, 1)], dtype=dtype, seed=0)
    assert [w.shape for w in layer.weights] == [(4, 2), (6, 4)]
    unknown = np.array([[0, 3, 5], [0, -1, 7], [0, np.nan, np.inf], [0, 1.5, -np.inf]], dtype)
    given = unknown.copy()
    assert np.unique(model.predict(unknown), axis=0).shape == (1, 1)
    assert np.array_equal(unknown, given, equal_nan=True)
    dy = np.ones((4, 1), dtype)
    model.forward(unknown, training=True)
    model.backward(dy)
    for grad in layer.dweights:
        assert grad[-1].any()
        assert not grad[:-1].any()
    model.fit(unknown, dy, "mse", fb.SGD(model.parameters(), lr=0.1), epochs=50, verbose=0)
    assert model.predict([[0, 99, 99]])[0, 0] == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="x: expected finite numbers, got nan at index"):
        model.predict([[np.nan, 0, 0]])
    single = fb.Sequential([fb.Embedding(3, 2, unknown="reserve")], seed=0)
    known = single.layers[0].weight
    assert np.array_equal(single.predict([[2], [17]]), [known[2], known[:3].mean(axis=0, dtype="f8").astype("f4")])
    known[3] = 7
    assert np.array_equal(single.predict([[2], [17]]), known[[2, 3]])


@pytest.mark.parametrize("make", [fb.SGD, fb.Adam, fb.AdamW, fb.RMSprop, fb.Adagrad])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_category_never_seen_predicts_what_an_average_row_does(any_backend, dtype, make, threads, rng, tmp_path):
    """In predict, evaluate and validation, of any number of rows, after loading and copying; training goes on."""

    def assert_same(got, expected):
        """NumPy's products have other bits for other numbers of rows."""
        tolerance = 0 if any_backend != "numpy" else 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(got, expected, rtol=tolerance)

    fb.set_num_threads(threads)
    X = np.column_stack([rng.standard_normal(90), rng.integers(0, 3, 90), rng.integers(0, 5, 90)]).astype(dtype)
    y = X[:, 1:2] * 3 + X[:, 2:] + 10  # far from what zero rows give
    layers = [fb.TabularInput(1, [3, 5], [2, 4], unknown="reserve"), fb.Dense(7, 8, "tanh"), fb.Dense(8, 1)]
    model = fb.Sequential(layers, dtype=dtype.name, seed=0)
    optimizer = make(model.parameters(), lr=0.05, weight_decay=1e-3)
    new = np.array([[0.5, -1, 2], [0.5, np.nan, 77]], dtype)
    history = model.fit(X, y, "mse", optimizer, epochs=30, batch_size=16, verbose=0, seed=0,
                        validation_data=(new, np.zeros((2, 1)))).history  # fmt: skip
    first, second = layers[0].weights
    assert not first[-1].any()
    assert not second[-1].any()
    means = [table[:-1].mean(axis=0, dtype="f8").astype(dtype) for table in (first, second)]
    rows = np.array([[0.5, *means[0], *second[2]], [0.5, *means[0], *means[1]]], dtype)
    after = fb.Sequential([fb.Dense(7, 8, "tanh"), fb.Dense(8, 1)], dtype=dtype.name)
    for own, given in zip(after.layers, layers[1:], strict=True):
        own.weight, own.bias = given.weight, given.bias
    expected = after.predict(rows)
    assert_same(model.predict(new), expected)
    assert history["val_loss"][-1] == pytest.approx(np.mean(expected.astype("f8") ** 2), rel=1e-5)
    assert model.evaluate(new, np.zeros((2, 1)), "mse")["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-6)
    model.save(tmp_path / "net.npz")
    for other in (fb.load(tmp_path / "net.npz"), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(other.predict(new), expected)
    many = np.concatenate([X, new] * 30)
    assert_same(model.predict(many)[90:92], expected)
    assert_same(model.predict(many)[:90], model.predict(X))
    assert abs(expected[1, 0] - model.predict(X).mean()) < abs(model.predict(X)).std() * 2
    model.fit(new, np.full((2, 1), -5.0), "mse", make(model.parameters(), lr=0.05), epochs=100, verbose=0)
    assert first[-1].any()  # it learns from such entries in the training data
    after.layers[0].weight, after.layers[0].bias = layers[1].weight, layers[1].bias
    after.layers[1].weight, after.layers[1].bias = layers[2].weight, layers[2].bias
    rows = np.array([[0.5, *first[-1], *second[2]], [0.5, *first[-1], *second[-1]]], dtype)
    assert_same(model.predict(new), after.predict(rows))


def test_good_features_are_not_copied(any_backend, rng):
    for unknown in ("error", "reserve"):
        model, X = tabular(unknown=unknown), table(rng, 20)
        assert model.model.check_features("X", X) is X


def test_unknown_category_is_the_references(compiled, dtype, rng):
    from fastbp.core import backend

    x = table(rng, 100, dtype)
    counts = np.array(CARDINALITIES)
    assert backend().unknown_category(x, counts) == reference.unknown_category(x, counts) == -1
    for value in (
        -1,
        0.5,
        np.nan,
        np.inf,
        -np.inf,
        300,
        1e30,
        2.0**63,
        -0.5,
        np.nextafter(dtype.type(1), dtype.type(2)),
    ):
        bad = x.copy()
        bad[rng.integers(100), 5 + rng.integers(4)] = value
        bad[99, 6] = value
        assert backend().unknown_category(bad, counts) == reference.unknown_category(bad, counts) >= 0
    x[:, 5] = -0.0
    assert backend().unknown_category(x, counts) == reference.unknown_category(x, counts) == -1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fb.Embedding(0, 3), ValueError, "num_embeddings: expected a positive integer, got 0"),
        (lambda: fb.Embedding(2**24 + 1, 3), ValueError, "num_embeddings: expected at most 16777216 categories"),
        (lambda: fb.Embedding(3, 2.0), TypeError, r"embedding_dim: expected a positive integer, got 2\.0"),
        (lambda: fb.Embedding(3, 2, columns=0), ValueError, "columns: expected a positive integer, got 0"),
        (lambda: fb.Embedding(3, 2, unknown="ignore"), ValueError, r"unknown: unknown value 'ignore'; expected one of"),
        (lambda: fb.TabularInput(-1, [3]), ValueError, "n_numeric: expected a non-negative integer, got -1"),
        (lambda: fb.TabularInput(2, []), ValueError, "cardinalities: expected at least one categorical column"),
        (lambda: fb.TabularInput(2, 3), TypeError, "cardinalities: expected a sequence of integers, got 3"),
        (lambda: fb.TabularInput(2, [3, 0]), ValueError, r"cardinalities\[1\]: expected a positive integer, got 0"),
        (lambda: fb.TabularInput(2, [3, 4], [1]), ValueError, "embedding_dim: expected 2 widths, .* got 1"),
        (lambda: fb.TabularInput(2, [3, 4], [1, "2"]), TypeError, r"embedding_dim\[1\]: expected a positive integer"),
        (lambda: fb.TabularInput(2, [3, 4], 0), ValueError, "embedding_dim: expected a positive integer, got 0"),
        (lambda: fb.TabularInput(2, [3, 4], 2.5), TypeError, r"embedding_dim: expected a sequence .*, got 2\.5"),
        (lambda: fb.TabularInput(2, [3]).weights, RuntimeError, "has no arrays yet"),
        (
            lambda: fb.Sequential([fb.Dense(3, 2), fb.Embedding(5, 2, columns=2)]),
            ValueError,
            r"layers\[1\]: Embedding\(.*\) takes ids, which only the input has; it can only come first",
        ),
        (
            lambda: fb.Sequential([fb.TabularInput(2, [3], 4), fb.Dense(3, 2)]),
            ValueError,
            r"layers\[1\]: .* takes 3 features, but gets 6",
        ),
    ],
)  # fmt: skip
def test_constructors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_widths_by_rule_of_thumb():
    """fastai's emb_sz_rule, computed apart for two categories, ten, a thousand and the most."""
    assert fb.TabularInput(0, [2, 10, 1000, 2**24]).embedding_dim == (2, 6, 77, 600)
    assert fb.TabularInput(0, np.array([3, 4]), np.array([5, 6])).embedding_dim == (5, 6)


# --- the rest of the package ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", ["error", "reserve"])
def test_save_copy_and_pickle(tmp_path, rng, unknown):
    model, X, y = tabular(unknown=unknown), table(rng, 50), rng.integers(0, 3, 50)
    optimizer = fb.Adam(model.parameters())
    model.fit(X, y, "cross_entropy", optimizer, verbose=0)
    model.save(tmp_path / "model.npz")
    json.dumps(model.model.config())
    loaded = fb.load(tmp_path / "model.npz")
    assert repr(loaded.layers[0]) == repr(model.layers[0])
    assert loaded.predict(X).tobytes() == model.predict(X).tobytes()
    assert loaded.layers[0].weights[2].tobytes() == model.layers[0].weights[2].tobytes()
    replica, other = pickle.loads(pickle.dumps((model, optimizer)))
    copied, third = copy.deepcopy((model, optimizer))
    for one, its in ((model, optimizer), (replica, other), (copied, third)):
        one.fit(X, y, "cross_entropy", its, seed=5, verbose=0)
    assert bits(model) == bits(replica) == bits(copied)


def test_tensors_are_views():
    model, single = tabular(), fb.Sequential([fb.Embedding(3, 2)], seed=0)
    model.layers[0].weights[1][:] = 5
    assert (model.parameters().value("0.weights.1") == 5).all()
    single.layers[0].weight = [[0, 1], [2, 3], [4, 5]]
    assert single.predict([[1]]).tolist() == [[2, 3]]
    assert single.layers[0].bias is None
    assert model.summary().splitlines()[1].split()[-4:] == [
        "(B,",
        "62)",
        f"{7 * 5 + 1 * 3 + 300 * 33 + 40 * 16:,}",
        "0",
    ]


@pytest.mark.parametrize(("name", "vectors", "entries"), [("SGD", 0, 200 * 57), ("Adam", 2, 7 * 10578)])
def test_profile(any_backend, rng, name, vectors, entries):
    """200 samples in 7 steps look up 57 numbers each, in tables of 10,578: those are updated, or all of them."""
    X, y = table(rng, 200), rng.integers(0, 3, 200)
    with fb.profile() as p:
        model = tabular()
        model.fit(X, y, "cross_entropy", getattr(fb, name)(model.parameters(), lr=0.01), verbose=0)
    p.compare("numpy")
    rows = {row.phase: row for row in p.tables[0].rows() if row.layer == "Embedding 9x62"}
    assert rows["forward"].bytes == 4 * 200 * (9 + 62 + 57)
    assert rows["backward dx"].bytes == 0
    assert rows["backward dw + update"].bytes == 4 * (200 * (9 + 62) + 2 * (1 + vectors) * entries)
    assert "Embedding 9x62" in str(p)


def test_the_workspace_grows_with_the_batch(compiled, rng):
    """A bigger batch after a smaller one, on another backend's gradients: nothing is left of either."""
    model, fresh = tabular(), tabular()
    small, large = table(rng, 3), table(rng, 90)
    for backend in available_backends():
        with fb.use_backend(backend):
            model.forward(small, training=True)
            model.backward(np.ones((3, 3)))
    for each in (model, fresh):
        each.forward(large, training=True)
        each.backward(np.ones((90, 3)))
    assert model.parameters().grads.tobytes() == fresh.parameters().grads.tobytes()
