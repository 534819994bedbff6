"""One seed gives the same bits: in fit, in the explicit loop, step by step, and on any number of threads."""

import numpy as np
import pytest
from networks import OPTIMIZERS, bits, blobs, branching, everything

import fastbp as fb
from fastbp.losses import resolve


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make_model", [everything, branching])
def test_fit_and_the_four_steps_give_the_same_bits(any_backend, dtype, make_optimizer, make_model):
    X, y = blobs(dtype=dtype)
    fitted, by_hand = make_model(dtype), make_model(dtype)
    history = fitted.fit(
        X, y, "cross_entropy", make_optimizer(fitted.parameters()), epochs=3, batch_size=32, seed=11, verbose=0
    )
    criterion, optimizer = fb.CrossEntropy(), make_optimizer(by_hand.parameters())
    rng = np.random.default_rng(11)
    for epoch in range(3):
        total = 0.0
        for xb, yb in fb.batches(X, y, batch_size=32, seed=rng):
            logits = by_hand.forward(xb, training=True)
            loss, dlogits = criterion(logits, yb)
            by_hand.backward(dlogits)
            optimizer.step()
            total += loss * len(xb)
        assert history.history["loss"][epoch] == total / len(X)
    assert bits(fitted) == bits(by_hand)
    assert fitted.predict(X).tobytes() == by_hand.predict(X).tobytes()


@pytest.mark.parametrize("loss", [fb.CrossEntropy(0.1, [1, 0, 2, 0.5]), fb.Huber()])
def test_weighted_fit_and_the_four_steps_give_the_same_bits(any_backend, dtype, loss):
    """With batches among them that weigh nothing."""
    X, y = blobs(dtype=dtype)
    weight = np.random.default_rng(3).choice([0, 0, 0.5, 3], len(X))
    if isinstance(loss, fb.Huber):
        y = np.eye(4)[y]
    fitted, by_hand, stepwise = everything(dtype), everything(dtype), everything(dtype)
    history = fitted.fit(
        X, y, loss, fb.Adam(fitted.parameters()), batch_size=3, seed=11, verbose=0, sample_weight=weight,
        validation_data=(X, y, weight),
    )  # fmt: skip
    optimizer, of_steps = fb.Adam(by_hand.parameters()), fb.Adam(stepwise.parameters())
    total, all_weight, weighs_nothing = 0.0, 0.0, 0
    for xb, yb, wb in fb.batches(X, y, 3, seed=11, sample_weight=weight):
        value, dpred = loss(by_hand.forward(xb, training=True), yb, wb)
        by_hand.backward(dpred)
        optimizer.step()
        assert stepwise.train_on_batch(xb, yb, loss, of_steps, wb) == value * len(xb) / len(xb)  # the sum's share
        of_batch = wb.sum() if isinstance(loss, fb.Huber) else (wb * np.array([1, 0, 2, 0.5])[yb]).sum()
        total, all_weight = total + value * of_batch, all_weight + of_batch
        weighs_nothing += of_batch == 0
    assert weighs_nothing > 0
    assert bits(fitted) == bits(by_hand) == bits(stepwise)
    assert history.history["loss"][0] == pytest.approx(total / all_weight, rel=1e-12)  # sums of float64
    assert history.history["val_loss"][0] == fitted.evaluate(X, y, loss, sample_weight=weight)["loss"]


WIDE_OPTIMIZERS = [
    lambda p: fb.SGD(p, lr=0.05, momentum=0.9, clip_norm=0.5),
    lambda p: fb.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    lambda p: fb.SGD(p, lr=0.05, weight_decay=0.3, decay_bias=False),
    lambda p: fb.AdamW(p, lr=0.01),
    lambda p: fb.AdamW(p, lr=0.01, weight_decay=0.3, decay_bias=False),
    lambda p: fb.RMSprop(p, lr=0.01, momentum=0.5),
]


@pytest.mark.parametrize("make_optimizer", WIDE_OPTIMIZERS)
@pytest.mark.parametrize("steps", [3, 7])
def test_the_engine_keeps_the_bits_of_wide_layers(compiled, dtype, make_optimizer, steps):
    """Their weights live in panels during an epoch and, in a longer one, their state in blocks; widths have tails."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((50 * steps - 13, 131)).astype(dtype)
    y = rng.standard_normal((len(X), 3)).astype(dtype)

    def build():
        layers = [fb.Dense(131, 301, activation="relu"), fb.Dense(301, 77, activation="silu"), fb.Dense(77, 3)]
        model = fb.Sequential(layers, dtype=dtype, seed=2)
        return model, make_optimizer(model.parameters())

    (by_hand, optimizer), criterion, order = build(), fb.MSE(), np.random.default_rng(9)
    for _ in range(2):
        for xb, yb in fb.batches(X, y, batch_size=50, seed=order):
            by_hand.backward(criterion(by_hand.forward(xb, training=True), yb)[1])
            optimizer.step()
    for threads in (1, 2, 5):
        fb.set_num_threads(threads)
        fitted, other = build()
        fitted.fit(X, y, criterion, other, epochs=2, batch_size=50, seed=9, verbose=0)
        assert bits(fitted) == bits(by_hand)
        assert fitted.parameters().grads.tobytes() == by_hand.parameters().grads.tobytes()
        state, expected = other.state_dict(), optimizer.state_dict()
        assert all(np.array_equal(state[name], expected[name]) for name in expected)


STACKS = [
    lambda: [fb.Dense(40, 1)],
    lambda: [fb.Dense(40, 300, activation="relu"), fb.Dense(300, 1, activation="softplus")],
    lambda: [fb.BatchNorm(40), fb.Dense(40, 64, activation="relu"), fb.Dense(64, 1)],
    lambda: [fb.Activation("tanh"), fb.LayerNorm(40), fb.Dense(40, 300, activation="gelu"), fb.Dense(300, 1)],
]


@pytest.mark.parametrize("layers", STACKS)
@pytest.mark.parametrize("batch_size", [1, 50])
@pytest.mark.filterwarnings("ignore:batch_size. with one row per batch")
def test_the_engine_keeps_the_bits_of_one_output(compiled, dtype, layers, batch_size):
    """Whatever kind of layer is first, and with more threads than rows or panels."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((2 * batch_size + batch_size // 2, 40)).astype(dtype)
    y = rng.standard_normal((len(X), 1)).astype(dtype)
    by_hand, criterion, order = fb.Sequential(layers(), dtype=dtype, seed=2), fb.MSE(), np.random.default_rng(9)
    optimizer = fb.Adam(by_hand.parameters())
    for xb, yb in fb.batches(X, y, batch_size=batch_size, seed=order):
        by_hand.backward(criterion(by_hand.forward(xb, training=True), yb)[1])
        optimizer.step()
    for threads in (1, 2, 5):
        fb.set_num_threads(threads)
        fitted = fb.Sequential(layers(), dtype=dtype, seed=2)
        fitted.fit(X, y, criterion, fb.Adam(fitted.parameters()), batch_size=batch_size, seed=9, verbose=0)
        assert bits(fitted) == bits(by_hand)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", fb.CrossEntropy(0.1), "binary_cross_entropy", "mse", fb.Huber(0.3)],
                         ids=["cross_entropy", "smoothed", "binary_cross_entropy", "mse", "huber"])  # fmt: skip
@pytest.mark.parametrize("outputs", [8, 16, 32, 96])
def test_outputs_that_fill_panels_give_the_bits_of_rows(compiled, dtype, rng, loss, outputs, weighted):
    """The engine computes their loss in panels, the explicit loop in rows."""
    X, labels = rng.standard_normal((45, 6)).astype(dtype), rng.integers(0, outputs, 45)
    y = labels if loss == "cross_entropy" or isinstance(loss, fb.CrossEntropy) else np.eye(outputs, dtype=dtype)[labels]
    weight = rng.uniform(0.5, 2, 45).astype(dtype) if weighted else None
    fitted, by_hand = (fb.Sequential([fb.Dense(6, outputs)], dtype=dtype, seed=3) for _ in range(2))
    history = fitted.fit(
        X, y, loss, fb.SGD(fitted.parameters(), lr=0.1), batch_size=45, epochs=3, shuffle=False, verbose=0,
        sample_weight=weight,
    )  # fmt: skip
    optimizer, criterion = fb.SGD(by_hand.parameters(), lr=0.1), resolve(loss)
    losses, accuracies = [], []
    for _ in range(3):
        pred = by_hand.forward(X, training=True)
        value, dpred = criterion(pred, y, sample_weight=weight)
        by_hand.backward(dpred)
        optimizer.step()
        losses.append(value)
        right = pred.argmax(axis=1) == labels if y is labels else ((pred > 0) == (y > 0.5)).all(axis=1)
        accuracies.append(right.mean())
    assert history.history["loss"] == pytest.approx(losses, rel=1e-15)  # it was multiplied by the samples and divided
    assert history.history.get("accuracy", accuracies) == accuracies
    assert bits(fitted) == bits(by_hand)


def test_train_on_batch_is_a_step_of_fit(any_backend):
    X, y = blobs()
    a, b = everything(), everything()
    sa, sb = fb.Adam(a.parameters()), fb.Adam(b.parameters())
    history = a.fit(X, y, "cross_entropy", sa, batch_size=len(X), shuffle=False, verbose=0)
    loss = b.train_on_batch(X, y, "cross_entropy", sb)
    assert loss * len(X) / len(X) == history.history["loss"][0]  # an epoch's loss is summed over its samples
    assert bits(a) == bits(b)


def wide_chain():
    return [
        fb.Dense(300, 500, activation="tanh"), fb.BatchNorm(500), fb.Dropout(0.1), fb.Dense(500, 450),
        fb.LayerNorm(450), fb.Activation("gelu"), fb.Dense(450, 70),
    ]  # fmt: skip


def wide_tree():
    """Columns that end within a panel and at the end of one, and sums around layers of all kinds."""
    block = [fb.LayerNorm(250), fb.Dense(250, 333, "gelu"), fb.Dropout(0.1), fb.Dense(333, 250, "relu")]
    narrow = [fb.Dense(250, 64), fb.BatchNorm(64), fb.Activation("silu")]
    split = fb.Concatenate(narrow, [], [fb.Dense(250, 37, "tanh")], last=[fb.Residual([fb.Activation("elu")])])
    return [fb.Dense(300, 250, "relu"), fb.Residual(block), split, fb.Dense(64 + 250 + 37 + 250, 70)]


@pytest.mark.parametrize("layers", [wide_chain, wide_tree])
def test_threads_do_not_change_a_bit(compiled, dtype, layers):
    def run(threads):
        fb.set_num_threads(threads)
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((600, 300)).astype(dtype), rng.integers(0, 70, 600)
        model = fb.Sequential(layers(), dtype=dtype, seed=1)
        optimizer = fb.Adam(model.parameters(), clip_norm=1.0)
        history = model.fit(
            X, y, "cross_entropy", optimizer, epochs=2, batch_size=256, verbose=0, sample_weight=rng.random(600)
        )
        return bits(model), history.history["loss"]

    assert run(1) == run(2) == run(4)


def deep_sums():
    """Sums that are cut into blocks, of inputs and of outputs; widths have tails."""
    return [fb.Dense(900, 411, "relu"), fb.Dense(411, 805, "gelu"), fb.Dense(805, 1)]


@pytest.mark.parametrize("layers", [wide_chain, wide_tree, deep_sums])
def test_a_row_has_the_bits_that_it_has_alone(compiled, dtype, layers):
    """Weights are read where they lie for a few rows, and by panels for more; a thread may have some of the columns."""
    model = fb.Sequential(layers(), dtype=dtype, seed=1)
    rng = np.random.default_rng(0)
    X, dy = (rng.standard_normal((131, n)).astype(dtype) for n in (model.inputs, model.outputs))
    with fb.use_backend("numpy"):
        reference = model.predict(X)
    plain = layers is deep_sums  # other layers draw masks for a pass or look at the whole batch
    found = set()
    for threads in (1, 3):
        fb.set_num_threads(threads)
        for rows in (1, 2, 3, 7, 12, 13, 28, 29, 131):
            batches = [slice(first, first + rows) for first in range(0, len(X), rows)]
            outputs, gradients = [], []
            for batch in batches:
                outputs.append(model.predict(X[batch]))
                if plain:
                    model.forward(X[batch], training=True)
                    gradients.append(model.backward(dy[batch], input_gradient=True))
            found.add((np.concatenate(outputs).tobytes(), np.concatenate(gradients).tobytes() if plain else b""))
    assert len(found) == 1
    # rounding errors of sums of up to 900 terms, through three layers
    np.testing.assert_allclose(model.predict(X), reference, rtol=0, atol=2000 * np.finfo(dtype).eps)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 9, 30])
@pytest.mark.parametrize("make_optimizer", WIDE_OPTIMIZERS[::2])
def test_steps_of_few_rows_keep_the_bits(compiled, dtype, batch_size, make_optimizer):
    """A call of few rows, an epoch of even fewer: neither packs weights. They are packed for others, and for a rest."""
    rng = np.random.default_rng(3)
    X, y = 0.05 * rng.standard_normal((6 * batch_size - batch_size // 2, 200)), rng.standard_normal((6 * batch_size, 3))
    X, y, criterion = X.astype(dtype), y[: len(X)].astype(dtype), fb.MSE()

    def build():
        block = fb.Residual([fb.Dense(150, 333, "gelu"), fb.Dropout(0.1), fb.Dense(333, 150, "relu")])
        model = fb.Sequential([fb.Dense(200, 150, "relu"), block, fb.Dense(150, 3)], dtype=dtype, seed=2)
        return model, make_optimizer(model.parameters())

    def fit(model, optimizer):
        model.fit(X, y, criterion, optimizer, epochs=1, batch_size=batch_size, shuffle=False, verbose=0)

    def train_on_batches(model, optimizer):
        for xb, yb in fb.batches(X, y, batch_size, shuffle=False):
            model.train_on_batch(xb, yb, criterion, optimizer)

    def four_calls(model, optimizer):
        for xb, yb in fb.batches(X, y, batch_size, shuffle=False):
            model.backward(criterion(model.forward(xb, training=True), yb)[1])
            optimizer.step()

    found = set()
    for threads in (1, 2, 5):
        fb.set_num_threads(threads)
        for train in (fit, train_on_batches, four_calls):
            model, optimizer = build()
            train(model, optimizer)
            state = [np.asarray(value).tobytes() for value in optimizer.state_dict().values()]
            found.add((bits(model), model.parameters().grads.tobytes(), *state))
    assert len(found) == 1


def test_same_seed_same_bits_and_another_seed_others(any_backend):
    X, y = blobs()

    def run(seed):
        model = everything(seed=seed)
        model.fit(X, y, "cross_entropy", fb.SGD(model.parameters(), lr=0.1), epochs=2, verbose=0)
        return bits(model)

    assert run(0) == run(0)
    assert run(0) != run(1)
