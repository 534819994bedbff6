"""Residual and Concatenate: what they refuse, what they compute, their names, copies, files and summary."""

import copy
import pickle

import numpy as np
import pytest
from networks import bits, blobs, branching

import fastbp as fb
from fastbp.layers import LAYERS
from fastbp.layers.composition import MAX_DEPTH


def nested(depth):
    layers = [fb.Dense(2, 2)]
    for _ in range(depth):
        layers = [fb.Residual(layers)]
    return layers


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fb.Residual([]), ValueError, "layers: expected at least one layer, got none"),
        (lambda: fb.Residual(fb.Dense(2, 2)), TypeError, "layers: expected a list of layers, got Dense"),
        (lambda: fb.Residual("relu"), TypeError, "layers: expected a list of layers, got str"),
        (lambda: fb.Residual([fb.Dense(2, 2), "relu"]), TypeError, r"layers\[1\]: expected a layer, got str"),
        (lambda: fb.Residual([fb.Dense]), TypeError, r"layers\[0\]: expected a layer, got the class Dense"),
        (lambda: fb.Concatenate(), ValueError, "branches: expected at least one branch, got none"),
        (lambda: fb.Concatenate([], fb.Dense(2, 2)), TypeError, r"branches\[1\]: expected a list of layers, got Dense"),
        (lambda: fb.Concatenate(a=[3]), TypeError, r'branches\["a"\]\[0\]: expected a layer, got int'),
        (lambda: fb.Concatenate(**{"0": []}), ValueError, "branches: expected names .* got '0'"),
        (lambda: fb.Concatenate(**{"a.b": []}), ValueError, "branches: expected names .* got 'a.b'"),
        (lambda: fb.Concatenate(**{"": []}), ValueError, "branches: expected names .* got ''"),
        (lambda: nested(MAX_DEPTH + 1), ValueError, f"layers: expected at most {MAX_DEPTH} layers of branches"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([fb.Residual([fb.Dense(3, 4)])], r"layers\[0\]: Residual adds 4 features, which its layers give, to 3"),
        ([fb.Dense(2, 3), fb.Concatenate([fb.Dense(4, 1)])], r"layers\[1\].branches\[0\]\[0\]: .* takes 4 .* gets 3"),
        ([fb.Dense(2, 3), fb.Concatenate(a=[fb.Residual([fb.Dense(3, 1), fb.Dense(2, 3)])])],
         r'layers\[1\].branches\["a"\]\[0\].layers\[1\]: .* takes 2 features, but gets 1'),
        ([fb.Residual([fb.Embedding(4, 1)])], r"layers\[0\].layers\[0\]: .* takes ids"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_named(layers, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        fb.Sequential(layers)
    assert not layers[0].is_bound


def test_a_layer_is_in_one_place():
    shared = fb.Dense(2, 2)
    block = fb.Residual([shared])
    with pytest.raises(ValueError, match=r"^layers\[1\].layers\[0\]: Dense.* is at layers\[0\] already"):
        fb.Sequential([shared, block])
    with pytest.raises(ValueError, match=r"^layers\[1\]: Residual.* is at layers\[0\] already"):
        fb.Sequential([block, block])
    fb.Sequential([block])
    for again in ([block], [shared], [fb.Concatenate([], [fb.Residual([shared])])]):
        with pytest.raises(ValueError, match=r"is in a model already"):
            fb.Sequential(again)


def test_what_it_is_made_of_stays():
    model = branching()
    block, split = model.layers[1], model.layers[2]
    assert isinstance(block.layers, tuple)
    assert list(split.branches) == [0, 1, "policy"]
    assert all(isinstance(branch, tuple) for branch in split.branches.values())
    for change in (
        lambda: split.branches.update(x=()),
        lambda: setattr(block, "layers", ()),
        lambda: setattr(split, "branches", {}),
    ):
        with pytest.raises(AttributeError):
            change()
    with pytest.raises(AttributeError, match="a layer stays as it was made"):
        split.branches["policy"][1].out_features = 3


def test_what_they_compute(any_backend, dtype, rng):
    x = rng.standard_normal((5, 3)).astype(dtype)
    inner, outer = fb.Dense(3, 3, "tanh"), fb.Dense(3, 2)
    model = fb.Sequential([fb.Residual([inner]), fb.Concatenate([outer], [], b=[fb.Activation("relu")])], dtype=dtype)
    hidden = x + np.tanh(x @ inner.weight + inner.bias)
    expected = np.concatenate([hidden @ outer.weight + outer.bias, hidden, np.maximum(hidden, 0)], axis=1)
    for got in (model.predict(x), model.forward(x, training=True)):
        np.testing.assert_allclose(got, expected, rtol=0, atol=20 * np.finfo(dtype).eps)


def test_a_single_branch_changes_nothing(any_backend, dtype):
    """Neither numbers nor random streams: the keys and the first values of a tree are those of its layers in a row."""
    X, y = blobs(dtype=dtype)

    def layers():
        return fb.Dense(7, 16, "gelu"), fb.Dropout(0.3), fb.LayerNorm(16), fb.Activation("elu"), fb.Dense(16, 4)

    a, b, c, d, e = layers()
    models = [
        fb.Sequential(layers(), dtype=dtype, seed=3),
        fb.Sequential([fb.Concatenate([a, fb.Concatenate(inside=[b, c])]), d, e], dtype=dtype, seed=3),
    ]
    for model in models:
        optimizer = fb.Adam(model.parameters(), lr=0.01)
        model.fit(X, y, "cross_entropy", optimizer, epochs=2, batch_size=32, verbose=0)
    assert bits(models[0]) == bits(models[1])
    assert models[0].predict(X).tobytes() == models[1].predict(X).tobytes()


def test_predict_in_chunks_and_by_threads(any_backend):
    model = branching("float64")
    X = np.random.default_rng(0).standard_normal((2100, 7))
    whole = model.predict(X)
    np.testing.assert_allclose(whole[[0, 1023, 1024, 2099]], model.predict(X[[0, 1023, 1024, 2099]]), rtol=1e-12)
    fb.set_num_threads(3)
    assert model.predict(X).tobytes() == whole.tobytes()


@pytest.mark.parametrize("way", ["save", "pickle", "deepcopy"])
def test_copies_predict_and_go_on_alike(any_backend, dtype, tmp_path, way):
    X, y = blobs(dtype=dtype)
    model = branching(dtype)
    model.fit(X, y, "cross_entropy", fb.Adam(model.parameters()), verbose=0)
    if way == "save":
        model.save(tmp_path / "model.npz")
        replica = fb.load(tmp_path / "model.npz")
    else:
        replica = pickle.loads(pickle.dumps(model)) if way == "pickle" else copy.deepcopy(model)
    assert repr(replica.layers) == repr(model.layers)
    assert replica.predict(X).tobytes() == model.predict(X).tobytes()
    assert not np.shares_memory(replica.layers[1].layers[1].weight, model.layers[1].layers[1].weight)
    if way != "save":  # a copy has the random state too
        for m in (model, replica):
            m.fit(X, y, "cross_entropy", fb.SGD(m.parameters(), lr=0.1), epochs=2, verbose=0)
        assert bits(replica) == bits(model)


def test_layers_can_be_copied_before_they_are_in_a_model():
    layers = [fb.Dense(3, 4), fb.Residual([fb.Dense(4, 4)]), fb.Concatenate([], head=[fb.Dense(4, 2)])]
    for replica in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert repr(replica) == repr(layers)
        assert fb.Sequential(replica).outputs == 6


def test_the_files_names_are_paths(tmp_path):
    model = branching()
    model.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as file:
        names = set(file.files)
    assert {"1.1.weight", "2.1.0.bias", "2.1.1.running_var", "2.policy.0.1.weight", "3.weight"} <= names
    assert list(model.parameters().shapes)[2:6] == ["1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias"]


def test_another_dtype(any_backend):
    X, _ = blobs()
    model = branching("float64")
    other = model.astype("float32")
    np.testing.assert_allclose(other.predict(X), model.predict(X), rtol=1e-3, atol=1e-4)
    assert other.model.program["key"].tolist() == model.model.program["key"].tolist()


def test_a_checkpoint_goes_on(any_backend, tmp_path):
    X, y = blobs()

    def run(epochs, path, resume=None):
        model = branching(seed=1)
        optimizer = fb.Adam(model.parameters(), lr=0.01)
        model.fit(
            X, y, "cross_entropy", optimizer, epochs=epochs, callbacks=[fb.Checkpoint(path)], verbose=0, resume=resume
        )
        return model

    run(2, tmp_path / "first.npz")
    resumed = run(4, tmp_path / "second.npz", resume=tmp_path / "first.npz")
    assert bits(resumed) == bits(run(4, tmp_path / "straight.npz"))
    other = fb.Sequential([fb.Dense(7, 24, "relu"), fb.Residual([fb.Dense(24, 24)]), fb.Dense(24, 4)])
    with pytest.raises(ValueError, match=r"resume: expected layers\[1\] .*Residual"):
        other.fit(X, y, "cross_entropy", fb.Adam(other.parameters()), verbose=0, resume=tmp_path / "first.npz")


def broken(change):
    """The configuration of a small tree, with something changed."""
    config = fb.Sequential([fb.Residual([fb.Dense(2, 2)]), fb.Concatenate([], a=[fb.Dense(2, 1)])]).model.config()
    change(config)
    return config


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[0].update(layers=[]),
        lambda c: c[0].update(layers="ab"),
        lambda c: c[0].update(layers=3),
        lambda c: c[0].update(more=1),
        lambda c: c[0].pop("layers"),
        lambda c: c[0]["layers"][0].update(type="Sequential"),
        lambda c: c[1].update(branches=3),
        lambda c: c[1].update(named_branches=[]),
        lambda c: c[1].update(more=1),
        lambda c: c[1]["named_branches"].update({"a.b": []}),
        lambda c: c[1]["branches"].append({}),
    ],
)
def test_a_file_of_another_tree_is_refused(change, tmp_path, monkeypatch):
    model = fb.Sequential([fb.Residual([fb.Dense(2, 2)]), fb.Concatenate([], a=[fb.Dense(2, 1)])])
    config = broken(change)
    monkeypatch.setattr(model.model, "config", lambda: config)
    model.save(tmp_path / "model.npz")
    with pytest.raises(fb.FileFormatError):
        fb.load(tmp_path / "model.npz")


def test_a_file_of_a_bottomless_tree_is_refused(tmp_path, monkeypatch):
    model = fb.Sequential([fb.Dense(2, 2)])
    for depth in (MAX_DEPTH + 1, 300):
        config = [{"type": "Dense", "in_features": 2, "out_features": 2}]
        for _ in range(depth):
            config = [{"type": "Residual", "layers": config}]
        monkeypatch.setattr(model.model, "config", lambda config=config: config)
        model.save(tmp_path / "model.npz")
        with pytest.raises(fb.FileFormatError, match=f"at most {MAX_DEPTH}"):
            fb.load(tmp_path / "model.npz")
    assert fb.Sequential(nested(MAX_DEPTH)).outputs == 2


def test_summary():
    layers = [
        fb.Dense(6, 8), fb.Residual([fb.BatchNorm(8), fb.Dense(8, 8)]),
        fb.Concatenate([], [fb.Residual([fb.Dense(8, 8, bias=False)])], policy=[fb.Dense(8, 3)]),
    ]  # fmt: skip
    lines = fb.Sequential(layers).summary().splitlines()
    assert len({len(line) for line in lines}) == 1
    shown = [line.split("(B")[0].split("(in_features")[0].split("(n=")[0].rstrip() for line in lines[1:-1]]
    assert shown == [
        "Dense", "Residual", "  BatchNorm", "  Dense", "Concatenate", "  0: the input", "  1:", "    Residual",
        "      Dense", "  policy:", "    Dense",
    ]  # fmt: skip
    assert [line.split("(B, ")[1].split(")")[0] for line in lines[1:-1]] == [
        str(n) for n in (8, 8, 8, 8, 19, 8, 8, 8, 8, 3, 3)
    ]
    assert lines[-1].split()[-2:] == [f"{56 + 16 + 72 + 64 + 27:,}", f"{2 * (48 + 64 + 64 + 24)}"]


def cells(table):
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]


def test_summary_of_the_program():
    layers = [
        fb.Dense(6, 8, "gelu"),
        fb.Residual([fb.Dense(8, 8, "relu"), fb.Dropout()]),
        fb.Concatenate([], [fb.Dense(8, 3)]),
    ]
    model = fb.Sequential(layers)
    ops, slots = model.summary(program=True).split("\n\n")
    rows = cells(ops)
    assert rows[0] == ["op", "layer", "kind", "slots", "widths", "activation", "dx", "derivative"]
    assert rows[1:] == [
        ["0", "0", "dense", "0 -> 2, z in 1", "6 -> 8", "gelu", "assigns (input)", "op 1"],
        ["1", "1.0", "dense", "2 -> 3", "8 -> 8", "relu", "adds", "itself"],
        ["2", "1.1", "dropout", "3 -> 4", "8 -> 8", "assigns"],
        ["3", "1", "copy", "4 -> 5", "8 -> 8", "assigns"],
        ["4", "1", "add", "2 -> 5", "8 -> 8", "assigns"],
        ["5", "2.1.0", "dense", "5 -> 6", "8 -> 3", "adds"],
        ["6", "2", "copy", "5 -> 7", "8 -> 8", "assigns"],
        ["7", "2", "copy", "6 -> 7", "3 -> 3 at column 8", "assigns"],
    ]
    rows = cells(slots)
    assert rows == [
        ["slot", "width", "memory", "gradient"],
        ["0", "6", "input"],
        ["1", "8"],
        ["2", "8", "needed"],
        ["3", "8", "needed"],
        ["4", "8", "in slot 5, value of slot 3 in inference", "needed"],
        ["5", "8", "needed"],
        ["6", "3", "in slot 7 at column 8", "needed"],
        ["7", "11", "needed"],
    ]


def test_parameter_gradients_may_stay(any_backend, dtype):
    X, y = blobs(dtype=dtype)
    criterion, model = fb.CrossEntropy(), branching(dtype)
    dlogits = criterion(model.forward(X, training=True), y)[1]
    expected = model.backward(dlogits, input_gradient=True)
    model.model.training_step -= 1  # the same dropout masks
    model.parameters().grads[:] = 7
    model.forward(X, training=True)
    got = model.backward(dlogits, input_gradient=True, parameter_gradients=False)
    assert (model.parameters().grads == 7).all()
    assert got.tobytes() == expected.tobytes()
    model.forward(X, training=True)
    with pytest.raises(ValueError, match="parameter_gradients: expected True without input_gradient"):
        model.backward(dlogits, parameter_gradients=False)
    model.backward(dlogits)


def test_divergence_names_the_branch(any_backend):
    X, y = blobs()
    model = branching()
    inner = model.layers[2].branches["policy"][0].layers[1]
    inner.weight[0, 0] = np.inf
    with np.errstate(all="ignore"), pytest.raises(fb.DivergenceError) as caught:
        model.fit(X, y, "cross_entropy", fb.SGD(model.parameters(), lr=0.1), verbose=0)
    assert caught.value.layer == 'layers[2].branches["policy"][0].layers[1].weight'
    inner.weight[0, 0] = 0
    model.layers[1].layers[1].weight[:], model.layers[1].layers[3].weight[:] = 1e25, 1e25
    with np.errstate(all="ignore"), pytest.raises(fb.DivergenceError) as caught:
        model.train_on_batch(X, y, "cross_entropy", fb.SGD(model.parameters(), lr=0.1))
    assert caught.value.layer == "layers[1].layers[3]"


def test_profile_has_a_row_for_each_op(any_backend):
    X, y = blobs()
    model = branching()
    with fb.profile() as profile:
        model.fit(X, y, "cross_entropy", fb.SGD(model.parameters(), lr=0.1), verbose=0)
    (table,) = profile.tables
    forward = [row for row in table.rows() if row.phase == "forward"]
    assert forward[0].layer == "0 Dense 7x24 relu"
    assert forward[-1].layer == "3 Dense 38x4"
    assert forward[9].layer == "2.1.2 Activation 9 silu"
    assert [row.layer.partition(" ")[2] for row in forward] == [
        "Dense 7x24 relu", "LayerNorm 24", "Dense 24x40 gelu", "Dropout 40", "Dense 40x24 relu", "Residual 24 copy",
        "Residual 24 add", "Dense 24x9", "BatchNorm 9", "Activation 9 silu", "Dense 9x9 tanh", "Residual 9 copy",
        "Residual 9 add", "Activation 24 elu", "Dense 24x24", "Residual 24 copy", "Residual 24 add",
        "Dense 24x5 softplus", "Concatenate 24 copy", "Concatenate 9 copy", "Concatenate 5 copy", "Dense 38x4",
    ]  # fmt: skip
    assert all(row.seconds >= 0 for row in table.rows())
    assert {type(number) for row in table.rows() for number in (row.operations, row.bytes)} == {int}  # without bounds
    assert table.rows()[-1].layer == "7-24-40-24-9-9-24-5-4"


def test_the_registry_has_every_public_layer():
    assert LAYERS.keys() == set(fb.layers.__all__)
    assert all(getattr(fb, name) is layer for name, layer in LAYERS.items())
    assert not {"Layer", "Lookup", "LAYERS", "make_layers"} & set(fb.__all__)


def dense(a, b):
    return fb.Dense(a, b, "gelu")


#: Parts that fill panels of every backend and dtype, so that they lie inside of what they are copied to.
INSIDE = {
    "added to": lambda: [fb.Residual([fb.Concatenate([dense(64, 32)], [dense(64, 32)])])],
    "nested": lambda: [
        fb.Residual([fb.Concatenate([fb.Concatenate([dense(64, 32)], [fb.Residual([dense(64, 64)]), dense(64, 32)])])]),
        fb.Concatenate([fb.Concatenate([dense(64, 32)], [fb.Dense(64, 32, "relu")])], []),
    ],
    "residual in it": lambda: [
        fb.Residual([fb.Concatenate(
            [fb.Dense(64, 32), fb.Residual([dense(32, 32)])],
            [dense(64, 32), fb.Activation("silu"), fb.Residual([fb.Dense(32, 32, "tanh")])],
        )]),
    ],
    "activations": lambda: [
        fb.Concatenate([dense(64, 32)], [dense(64, 32)]), fb.Activation("gelu"),
        fb.Residual([fb.Concatenate([fb.Dense(64, 32), fb.Activation("silu")],
                                    [fb.Dense(64, 32), fb.Activation("tanh"), fb.Activation("silu")])]),
    ],
    "dropout": lambda: [
        fb.Residual([fb.Concatenate([dense(64, 32), fb.Dropout(0.3)],
                                    [dense(64, 32), fb.Dropout(0.5), fb.Activation("gelu")])]),
    ],
    "norms": lambda: [
        fb.Residual([fb.Concatenate([dense(64, 32), fb.BatchNorm(32)], [dense(64, 32), fb.LayerNorm(32)])]),
    ],
    "uneven": lambda: [fb.Concatenate([dense(64, 32)], [fb.Dense(64, 5, "relu")], [fb.Dense(64, 64)], [dense(64, 7)])],
}  # fmt: skip


@pytest.mark.parametrize("batch", [3, 50])
@pytest.mark.parametrize("tree", INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("first", [True, False])
def test_parts_inside_of_others_compute_what_the_reference_does(compiled, dtype, rng, tree, first, batch):
    """Outputs, gradients of the input and of all parameters; the reference copies every part."""
    layers = [*([] if first else [fb.Dense(64, 64)]), *tree()]
    model = fb.Sequential(layers, dtype=dtype, seed=1)
    twin = copy.deepcopy(model)
    x = rng.standard_normal((batch, 64)).astype(dtype)
    y = model.forward(x, training=True)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx = model.backward(dy, input_gradient=True)
    with fb.use_backend("numpy"):
        expected = twin.forward(x, training=True)
        expected_dx = twin.backward(dy, input_gradient=True)
        inferred = twin.predict(x)
    # sums of at most 64 terms through at most six layers, each with the rounding of its own
    tolerance = 200 * float(np.finfo(dtype).eps)
    pairs = [(y, expected), (dx, expected_dx), (model.predict(x), inferred)]
    pairs.append((model.parameters().grads, twin.parameters().grads))
    for got, reference in pairs:
        np.testing.assert_allclose(got, reference, rtol=0, atol=tolerance * (1 + np.abs(reference).max()))


class Named(fb.Residual):
    pass


def test_a_class_of_the_users_own_is_not_taken_for_another(tmp_path):
    model = fb.Sequential([fb.Dense(2, 2), Named([fb.Dense(2, 2)])])
    model.save(tmp_path / "named.npz")
    with pytest.raises(fb.FileFormatError, match="Named"):
        fb.load(tmp_path / "named.npz")


@pytest.mark.parametrize("doublings", [34, 62, 63, 200])
def test_widths_that_grow_beyond_the_memory_are_refused(doublings):
    layers = [fb.Concatenate([], []) for _ in range(doublings)]
    with pytest.raises(ValueError, match=r"^layers\[\d+\]: expected what fits into the"):
        fb.Sequential([fb.Dense(1, 1), *layers])
