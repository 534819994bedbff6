"""A model between trainings: its weights, its predictions, copies and files of it, its summary."""

import copy
import pickle

import numpy as np
import pytest
from networks import bits, blobs, everything

import fastbp as fb


def test_a_model_may_change_backends(compiled):
    X, y = blobs()
    model = everything()
    optimizer = fb.Adam(model.parameters())
    first = model.train_on_batch(X, y, "cross_entropy", optimizer)
    with fb.use_backend("numpy"):
        model.train_on_batch(X, y, "cross_entropy", optimizer)
    for _ in range(20):
        last = model.train_on_batch(X, y, "cross_entropy", optimizer)
    assert last < first


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "astype": lambda model: model.astype("float64"),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_keep_epochs_and_history(make):
    X, y = blobs()
    model = everything()
    assert make(model).history is None
    optimizer = fb.Adam(model.parameters())
    history = model.fit(X, y, "cross_entropy", optimizer, epochs=3, verbose=0)
    other = make(model)
    assert (other.epochs, other.history.history, other.stop_training) == (3, history.history, False)
    other.fit(X, y, "cross_entropy", fb.Adam(other.parameters()), epochs=2, verbose=0)
    assert (other.epochs, len(other.history), model.epochs, len(model.history)) == (5, 2, 3, 3)


def test_predict_in_chunks_is_predict_row_by_row(any_backend):
    model = everything("float64")
    X = np.random.default_rng(0).standard_normal((2100, 7))
    whole = model.predict(X)
    assert whole.shape == (2100, 4)
    np.testing.assert_allclose(whole[[0, 1023, 1024, 2099]], model.predict(X[[0, 1023, 1024, 2099]]), rtol=1e-12)


def test_weights_are_views_and_assigning_copies(any_backend):
    model = fb.Sequential([fb.Dense(2, 2), fb.Dense(2, 1)], seed=0)
    layer = model.layers[0]
    assert np.shares_memory(layer.weight, model.parameters().values)
    layer.weight[:] = [[1, 2], [3, 4]]
    layer.bias = [10, 20]
    model.layers[1].weight = [[1], [1]]
    np.testing.assert_array_equal(model.predict([[1, 1]]), [[1 + 3 + 10 + 2 + 4 + 20]])
    with pytest.raises(ValueError, match=r"weight: expected shape \(2, 2\), got \(2,\)"):
        layer.weight = [1, 2]


@pytest.mark.parametrize("way", ["save", "pickle", "deepcopy"])
def test_copies_predict_and_go_on_alike(any_backend, tmp_path, way):
    X, y = blobs()
    model = everything()
    model.fit(X, y, "cross_entropy", fb.Adam(model.parameters()), verbose=0)
    if way == "save":
        model.save(tmp_path / "model.npz")
        replica = fb.load(tmp_path / "model.npz")
        assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    else:
        replica = pickle.loads(pickle.dumps(model)) if way == "pickle" else copy.deepcopy(model)
    assert replica.predict(X).tobytes() == model.predict(X).tobytes()
    assert not np.shares_memory(replica.parameters().values, model.parameters().values)
    if way != "save":  # a copy has the random state too
        for m in (model, replica):
            m.fit(X, y, "cross_entropy", fb.SGD(m.parameters(), lr=0.1), epochs=2, verbose=0)
        assert replica.predict(X).tobytes() == model.predict(X).tobytes()


def test_a_copied_optimizer_belongs_to_the_copied_model(any_backend):
    X, y = blobs()
    model = everything()
    optimizer = fb.Adam(model.parameters())
    model.fit(X, y, "cross_entropy", optimizer, verbose=0)
    for replica, its_optimizer in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        assert its_optimizer.params is replica.parameters()
        one, other = copy.deepcopy((model, optimizer)), (replica, its_optimizer)
        for m, o in (one, other):
            m.fit(X, y, "cross_entropy", o, verbose=0)
        assert bits(one[0]) == bits(replica)


def test_a_diverged_model_can_still_be_copied_and_saved(tmp_path):
    model = everything()
    model.layers[0].weight.flat[0] = np.nan
    model.save(tmp_path / "model.npz")
    assert np.isnan(fb.load(tmp_path / "model.npz").layers[0].weight.flat[0])
    assert np.isnan(copy.deepcopy(model).layers[0].weight.flat[0])


def test_threads_may_change_between_forward_and_backward(compiled):
    X, y = blobs()
    gradients = []
    for before, after in ((1, 1), (1, 4), (4, 1)):
        model = fb.Sequential([fb.Dense(7, 200, activation="tanh"), fb.Dense(200, 4)], seed=0)
        fb.set_num_threads(before)
        _, dlogits = fb.CrossEntropy()(model.forward(np.tile(X, (20, 1)), training=True), np.tile(y, 20))
        fb.set_num_threads(after)
        model.backward(dlogits)
        gradients.append(model.parameters().grads.tobytes())
    assert gradients[0] == gradients[1] == gradients[2]


def test_summary():
    layers = [fb.Dense(64, 1280, activation="relu"), fb.BatchNorm(1280), fb.Dense(1280, 10, bias=False)]
    lines = fb.Sequential(layers).summary().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split("  ")[0] for line in lines] == ["layer", *map(repr, layers), "total"]
    assert [line.split()[-2:] for line in lines] == [
        ["parameters", "FLOP"], ["83,200", "163,840"], ["2,560", "0"], ["12,800", "25,600"], ["98,560", "189,440"]
    ]  # fmt: skip
    assert lines[1].split("  ")[1] == "(B, 1280)"
