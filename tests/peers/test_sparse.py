"""Sparse matrices as features: beside dense arrays and PyTorch; every driver gives the same bits."""

import tracemalloc

import numpy as np
import pytest
from conftest import assert_close, rounding

import fastbp as fb
from fastbp.core.sparse import CSR

sparse = pytest.importorskip("scipy.sparse")

WIDTHS = 203, 37, 5  # no whole panels
FORMATS = ["csr", "csc", "coo", "bsr", "lil", "dok", "dia"]
OPTIMIZERS = [
    (fb.SGD, {"lr": 0.1}),
    (fb.SGD, {"lr": 0.1, "momentum": 0.9}),
    (fb.SGD, {"lr": 0.1, "clip_norm": 0.05}),
    (fb.SGD, {"lr": 0.1, "clip_value": 0.001}),
    (fb.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    (fb.SGD, {"lr": 0.1, "l1": 0.001}),
    (fb.SGD, {"lr": 0.1, "groups": {"0.weight": {"lr": 0.1}, "2.bias": {"lr": 0}}}),
    (fb.SGD, {"lr": 0.1, "groups": {"0.*": {"lr": 0}}}),
    (fb.Adam, {"lr": 0.01}),
    (fb.AdamW, {"lr": 0.01}),
    (fb.RMSprop, {"lr": 0.01}),
    (fb.Adagrad, {"lr": 0.1}),
]
SETTINGS = [f"{make.__name__}-{'-'.join(settings)}" for make, settings in OPTIMIZERS]


def words(samples=300, width=WIDTHS[0], seed=0, dtype=np.float64):
    """Counts of words, of which few are frequent: rows without any and columns without any as well."""
    rng = np.random.default_rng(seed)
    share = rng.permutation(1 / np.arange(1, width + 1))
    counts = rng.poisson(4 * share / share.sum(), (samples, width))
    counts[::17], counts[:, ::13] = 0, 0
    return sparse.csr_array((counts / 4).astype(dtype))


def labels(samples=300, seed=0):
    return np.random.default_rng(seed).integers(0, WIDTHS[2], samples)


def network(dtype="float64", activation="gelu", bias=True):
    first, second = WIDTHS[:2], WIDTHS[1:]
    layers = [fb.Dense(*first, activation=activation, bias=bias), fb.BatchNorm(WIDTHS[1]), fb.Dense(*second)]
    return fb.Sequential(layers, dtype=dtype, seed=0)


def bits(model):
    return model.parameters().values.tobytes(), model.parameters().grads.tobytes(), model.model.statistics.tobytes()


def fitted(X, y, make, settings, model=None, epochs=2, **options):
    model = model or network()
    optimizer = make(model.parameters(), **settings)
    options = {"batch_size": 32, "verbose": 0, "seed": 5} | options
    model.fit(X, y, "cross_entropy", optimizer, epochs=epochs, **options)
    return model


# --- what is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "settings"), OPTIMIZERS, ids=SETTINGS)
def test_a_dense_array_gives_the_same(any_backend, make, settings):
    """To rounding, which Adam and its kind enlarge where a gradient is tiny: 20 steps stay far below 1e-9."""
    X, y = words(), labels()
    one, other = fitted(X, y, make, settings), fitted(X.toarray(), y, make, settings)
    np.testing.assert_allclose(one.parameters().values, other.parameters().values, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one.predict(X), other.predict(X.toarray()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("activation", [None, "relu", "silu", "tanh"])
@pytest.mark.parametrize("outputs", [1, 8, 37, 130, 300])  # up to several groups of sums
def test_one_pass(any_backend, dtype, activation, outputs):
    X = words(70, dtype=dtype)
    model = fb.Sequential([fb.Dense(WIDTHS[0], outputs, activation=activation)], dtype=dtype, seed=1)
    layer = model.layers[0]
    layer.bias[:] = np.linspace(-1, 1, outputs)
    dense = X.toarray()
    scale = abs(dense) @ abs(layer.weight) + abs(layer.bias)
    assert_close(model.forward(X, training=True), model.predict(dense), scale.max(), dtype, WIDTHS[0])
    dy = np.random.default_rng(0).standard_normal((70, outputs)).astype(dtype)
    for _ in range(2):  # the gradients of the pass before are gone
        model.forward(X, training=True)
        dx = model.backward(dy, input_gradient=True)
    dweight, dbias = layer.dweight.copy(), layer.dbias.copy()
    model.forward(dense, training=True)
    expected = model.backward(dy, input_gradient=True)
    assert_close(dx, expected, abs(expected).max(), dtype, outputs)
    assert_close(dweight, layer.dweight, (abs(dense).T @ abs(dy)).max(), dtype, 70)
    assert_close(dbias, layer.dbias, abs(dy).sum(axis=0).max(), dtype, 70)


def test_gradients_are_derivatives(any_backend):
    assert fb.check_gradients(network(activation="tanh"), words(20), labels(20), "cross_entropy") < 1e-6


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("make", [fb.SGD, fb.Adam])
def test_pytorch(any_backend, make):
    torch = pytest.importorskip("torch")
    X, y = words(), labels()
    model = fb.Sequential([fb.Dense(*WIDTHS[:2], activation="tanh"), fb.Dense(*WIDTHS[1:])], dtype="float64", seed=0)
    tensors = {name: torch.tensor(model.parameters().value(name), requires_grad=True) for name in
               ("0.weight", "0.bias", "1.weight", "1.bias")}  # fmt: skip
    weight, bias, weight2, bias2 = tensors.values()
    theirs = getattr(torch.optim, make.__name__)(tensors.values(), lr=0.01)
    ours = make(model.parameters(), lr=0.01)
    rng = np.random.default_rng(1)
    for _ in range(50):
        rows = rng.permutation(300)[:32]
        xb = X[rows]
        given = torch.sparse_csr_tensor(
            torch.from_numpy(xb.indptr.astype(np.int64)), torch.from_numpy(xb.indices.astype(np.int64)),
            torch.from_numpy(xb.data), xb.shape, check_invariants=True,
        )  # fmt: skip
        hidden = torch.tanh(torch.sparse.mm(given, weight) + bias)
        loss = torch.nn.functional.cross_entropy(hidden @ weight2 + bias2, torch.from_numpy(y[rows]))
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        assert model.train_on_batch(xb, y[rows], "cross_entropy", ours) == pytest.approx(loss.item(), rel=1e-9)


def test_several_branches_read_it(any_backend):
    X, y = words(), labels()

    def model():
        wide, deep = [fb.Dense(WIDTHS[0], 3)], [fb.Dense(WIDTHS[0], 20, activation="relu"), fb.Dense(20, 4)]
        return fb.Sequential([fb.Concatenate(wide, deep), fb.Dense(7, 5)], dtype="float64", seed=0)

    one, other = (fitted(data, y, fb.Adam, {"lr": 0.01}, model()) for data in (X, X.toarray()))
    np.testing.assert_allclose(one.parameters().values, other.parameters().values, rtol=1e-9, atol=1e-9)


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "settings"), OPTIMIZERS, ids=SETTINGS)
def test_every_driver_and_any_number_of_threads(compiled, dtype, make, settings):
    X, y, found = words(dtype=dtype), labels(), set()
    for threads in (1, 2, 4):
        fb.set_num_threads(threads)
        found.add(bits(fitted(X, y, make, settings, network(dtype))))
    for by_hand in (True, False):
        model, loss, rng = network(dtype), fb.CrossEntropy(), np.random.default_rng(5)
        optimizer = make(model.parameters(), **settings)
        for _ in range(2):
            for xb, yb in fb.batches(X, y, 32, seed=rng):
                if by_hand:
                    model.backward(loss(model.forward(xb, training=True), yb)[1])
                    optimizer.step()
                else:
                    model.train_on_batch(xb, yb, loss, optimizer)
        found.add(bits(model))
    assert len(found) == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_has_the_bits_that_it_has_alone(compiled, dtype, threads):
    fb.set_num_threads(threads)
    X, model = words(1500, dtype=dtype), network(dtype)
    whole = model.predict(X)
    assert all(np.array_equal(model.predict(X[[i]])[0], whole[i]) for i in range(0, 1500, 77))
    assert np.array_equal(model.predict(X[700:]), whole[700:])


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("numbers", [np.float64, np.float32, np.int8, np.bool_])
def test_every_format_and_dtype(form, numbers):
    X = sparse.csr_matrix((words() > 0).astype(numbers))
    expected = network().predict(X)
    assert np.array_equal(network().predict(X.asformat(form)), expected)
    assert np.array_equal(network().predict(sparse.csr_array(X.asformat(form))), expected)


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_entries_in_any_order_and_twice(any_backend, index):
    """Sums of two halves are exact. The caller's matrix stays as it is."""
    X, rng = words(), np.random.default_rng(0)
    order = np.concatenate([rng.permutation(np.repeat(np.arange(a, b), 2)) for a, b in zip(X.indptr, X.indptr[1:],
                                                                                          strict=False)])  # fmt: skip
    parts = X.data[order] / 2, X.indices[order].astype(index), (2 * X.indptr).astype(index)
    messy = sparse.csr_array(parts, X.shape)
    before = messy.data.copy(), messy.indices.copy(), messy.indptr.copy()
    assert bits(fitted(messy, labels(), fb.SGD, {"lr": 0.1})) == bits(fitted(X, labels(), fb.SGD, {"lr": 0.1}))
    assert all(np.array_equal(a, b) for a, b in zip((messy.data, messy.indices, messy.indptr), before, strict=True))


def test_dense_and_sparse_take_turns(any_backend):
    """One model, and a forward pass on sparse rows that waits while a dense array is predicted."""
    X, y = words(), labels()
    one, other = network(), network()
    dy = np.ones((300, WIDTHS[2]))
    for data in (X, X.toarray(), X):
        for model in (one, other):
            model.forward(data, training=True)
        one.predict(X.toarray())
        one.predict(X)
        for model in (one, other):
            model.backward(dy)
        assert bits(one) == bits(other)
        fitted(data, y, fb.SGD, {"lr": 0.1}, one)
        fitted(data, y, fb.SGD, {"lr": 0.1}, other)


# --- what fit has -----------------------------------------------------------------------------------------------------


def test_options_of_fit(any_backend):
    X, y = words(), labels()
    for options in (
        {"validation_split": 0.2},
        {"validation_data": (X[:50], y[:50]), "metrics": ["f1"]},
        {"class_weight": "balanced", "sample_weight": np.linspace(0.5, 1, 300)},
        {"accumulate": 3},
        {"shuffle": False, "drop_last": True, "batch_size": 7},
    ):
        given = {"val": options.pop("validation_data", None)}
        histories = []
        for data in (X, X.toarray()):
            if given["val"] is not None:
                options["validation_data"] = (data[:50], y[:50])
            histories.append(fitted(data, y, fb.SGD, {"lr": 0.05}, **options).history)
        for name in histories[0]:
            if name != "samples_per_second":
                np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-9)


def test_profile_counts_what_is_stored(any_backend):
    """A row of the weight for every entry; of the update all rows, unless those without a gradient are left out."""
    X, entries = words(), words().nnz
    for make, updated in ((fb.Adagrad, 4 * min(10 * (203 * 4 + 4), 4 * entries)), (fb.RMSprop, 40 * (203 * 4 + 4))):
        model = fb.Sequential([fb.Dense(203, 4), fb.Dense(4, 5)])
        with fb.profile() as profile:
            fitted(X, labels(), make, {"lr": 0.01}, model, epochs=1, batch_size=30)
        rows = {row.phase: row for row in profile.tables[0].rows() if row.layer.startswith("Dense 203")}
        assert rows["forward"].operations == rows["backward dw + update"].operations == 2 * 4 * entries
        own = entries + 300 * 4  # what is stored, and what it gives
        assert rows["forward"].bytes == 4 * (own + min(10 * (203 * 4 + 4), 4 * entries))
        assert rows["backward dw + update"].bytes == 4 * (own + updated)


def test_a_loss_of_ones_own(any_backend):
    def mse(pred, target):
        return float(((pred - target) ** 2).mean()), 2 * (pred - target) / pred.size

    X, y = words(), np.random.default_rng(0).standard_normal((300, WIDTHS[2]))
    models = [network(), network()]
    for model, loss in zip(models, (mse, "mse"), strict=True):
        model.fit(X, y, loss, fb.SGD(model.parameters(), lr=0.1), seed=0, verbose=0)
    np.testing.assert_allclose(models[0].parameters().values, models[1].parameters().values, rtol=1e-9, atol=1e-12)


def test_chunks(any_backend):
    """As many as fill a buffer, what a buffer leaves over, chunks without rows."""
    X, y = words(), labels()

    def chunks(form):
        for first, end in ((0, 70), (70, 70), (70, 131), (131, 250), (250, 300)):
            yield form(X[first:end]), y[first:end]

    forms = (lambda rows: rows, lambda rows: rows.tocoo(), lambda rows: rows.toarray())
    models = [fitted(lambda form=form: chunks(form), None, fb.SGD, {"lr": 0.1}, buffer_size=100) for form in forms]
    assert bits(models[0]) == bits(models[1])
    np.testing.assert_allclose(models[0].parameters().values, models[2].parameters().values, rtol=1e-9, atol=1e-12)
    one, other = (model.evaluate(lambda: chunks(forms[0]), None, "cross_entropy") for model in models[::2])
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
    taken = [xb for xb, _ in fb.batches(lambda: chunks(forms[0]), None, 64, shuffle=False, buffer_size=100)]
    assert (sparse.vstack(taken) != X).nnz == 0

    def mixed():
        yield X[:100], y[:100]
        yield X[100:].toarray(), y[100:]

    with pytest.raises(TypeError, match="X: expected sparse matrices in every chunk or in none, chunk 1 differs"):
        fitted(mixed, None, fb.SGD, {"lr": 0.1}, buffer_size=1000)


def test_no_batch_is_ever_dense(any_backend):
    """Rows of 2,000,000 columns, 8 MB each if they were dense, cost what is stored in them."""
    width, samples = 2_000_000, 3000
    rng = np.random.default_rng(0)
    columns, starts = rng.integers(0, width, 5 * samples), np.arange(0, 5 * samples + 1, 5)
    X = sparse.csr_array((np.ones(5 * samples, np.float32), columns, starts), (samples, width))
    model = fb.Sequential([fb.Dense(width, 1)], seed=0)
    optimizer, y = fb.SGD(model.parameters(), lr=0.1), rng.standard_normal(samples)
    tracemalloc.start()
    model.fit(X, y, "mse", optimizer, batch_size=1024, verbose=0)
    model.predict(X)
    model.train_on_batch(X[:100], y[:100], "mse", optimizer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # a flag and, in the reference, some copies of the weight per column; a dense batch has 8 GB


# --- what does not fit ------------------------------------------------------------------------------------------------


def damaged(**parts):
    """A matrix that SciPy has no reason to look at again."""
    X = words()
    for name, value in parts.items():
        setattr(X, name, value)
    return X


def with_entry(entry, array):
    array = array.copy()
    array[7] = entry
    return array


X0 = words()
WRONG_COLUMN = "X: expected columns from 0 to 202, got an entry in column "
WRONG_FORM = "X: expected a valid sparse matrix"
NOT_FINITE = r"X: expected finite numbers, got nan at index \(\d+, \d+\)"
INVALID = [
    (words(width=100), ValueError, r"X: expected shape \(samples, 203\), got \(300, 100\)"),
    (X0[:0], ValueError, r"X: expected at least one sample, got shape \(0, 203\)"),
    (damaged(data=with_entry(np.nan, X0.data)), ValueError, NOT_FINITE),
    (damaged(data=X0.data.astype(complex)), TypeError, "X: expected numbers, got an array of dtype complex128"),
    (damaged(indices=with_entry(203, X0.indices)), ValueError, WRONG_COLUMN + "203"),
    (damaged(indices=with_entry(-1, X0.indices)), ValueError, WRONG_COLUMN + "-1"),
    (damaged(indices=with_entry(2**40, X0.indices.astype(np.int64))), ValueError, WRONG_COLUMN + f"{2**40}"),
    (damaged(indptr=X0.indptr[::-1].copy()), ValueError, WRONG_FORM),
    (damaged(indptr=X0.indptr + 1), ValueError, WRONG_FORM),
    (damaged(indptr=X0.indptr[:-1]), ValueError, WRONG_FORM),
    (damaged(data=X0.data[:-1]), ValueError, WRONG_FORM),
]


@pytest.mark.parametrize(("X", "error", "message"), INVALID, ids=range(len(INVALID)))
def test_errors(X, error, message):
    model = network()
    optimizer, before = fb.SGD(model.parameters(), lr=0.1), bits(model)
    with pytest.raises(error, match=message):
        model.fit(X, labels(X.shape[0]), "cross_entropy", optimizer)
    assert bits(model) == before


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([fb.BatchNorm(203), fb.Dense(203, 5)], r"layers\[0\], BatchNorm"),
        ([fb.Residual([fb.Dense(203, 203)])], r"layers\[0\], Residual"),
        ([fb.Concatenate([fb.Dense(203, 2)], [])], r"layers\[0\], Concatenate"),
        ([fb.Concatenate([fb.Dense(203, 2)], [fb.LayerNorm(203)])], r"layers\[0\]\.branches\[1\]\[0\], LayerNorm"),
        ([fb.TabularInput(202, [3])], r"layers\[0\], TabularInput"),
    ],
)
def test_layers_that_take_dense_arrays_alone(layers, name):
    model = fb.Sequential(layers)
    with pytest.raises(TypeError, match=f"x: expected a dense array, got a sparse matrix.*{name}"):
        model.predict(words())


def test_targets_and_weights_are_dense():
    model = network()
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="y: expected a dense array"):
        model.fit(words(), sparse.csr_array(np.eye(300, 5)), "mse", optimizer)


@pytest.mark.parametrize("threads", [1, 2])
def test_entries_that_change_between_epochs(any_backend, threads):
    """The matrix is the user's: a column that is none any more ends the training before a step uses it."""
    fb.set_num_threads(threads)
    X, y, model, seen = words(), labels(), network(), []

    class Break(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append(bits(self.model)[0])
            X.indices[X.indptr[40] : X.indptr[41]] = 10**6

    assert X.indptr[41] > X.indptr[40]
    with pytest.raises(ValueError, match=r"columns from 0 to 202.*in row 40, which was written to"):
        fitted(X, y, fb.SGD, {"lr": 0.1}, model, epochs=2, batch_size=300, callbacks=[Break()])
    assert bits(model)[0] == seen[0]


def test_the_cores_matrix():
    """CSR is to the core what an array is: rows are taken from it in every way that an array has."""
    X = words()
    own = CSR(X.data, X.indices.astype(np.int32), X.indptr.astype(np.int64), X.shape[1])
    dense = X.toarray()
    assert np.array_equal(own.toarray(), dense)
    for rows in (slice(20, 90), slice(90, 20), slice(None, None, 3), np.array([5, 5, 0, 299, -1]), np.arange(0)):
        assert np.array_equal(own[rows].toarray(), dense[rows])
        assert np.array_equal(own[rows].copy().toarray(), dense[rows])
    part = own[20:90]
    assert part.density == pytest.approx(np.count_nonzero(dense[20:90]) / dense[20:90].size)
    assert set(part.sample) <= set(np.flatnonzero(dense[20:90].any(axis=0)))
    assert np.array_equal(own[20:90][10:30].toarray(), dense[30:50])


def test_rounding_is_all_that_separates_the_loss(dtype):
    X, y = words(dtype=dtype), labels()
    model = network(dtype)
    one, other = (model.evaluate(data, y, "cross_entropy")["loss"] for data in (X, X.toarray()))
    assert one == pytest.approx(other, rel=rounding(dtype, WIDTHS[0]))
