"""Exported files run in onnxruntime: the same numbers for every layer and activation, in both dtypes."""

import numpy as np
import pytest

import fastbp as fb
from fastbp.core.plan import ACTIVATIONS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("fastbp.onnx").export

STACKS = {
    "bare": lambda: [fb.Dense(6, 5, bias=False)],
    "batchnorm": lambda: [fb.BatchNorm(6, eps=1e-3), fb.Dense(6, 5), fb.BatchNorm(5), fb.Activation("silu")],
    "layernorm": lambda: [fb.Dense(6, 5), fb.LayerNorm(5, eps=1e-2), fb.Dropout(0.5), fb.Dense(5, 3)],
    **{name: lambda name=name: [fb.Dense(6, 20, activation=name), fb.Dense(20, 3)] for name in ACTIVATIONS if name},
    "residual": lambda: [fb.Dense(6, 8, "tanh"), fb.Residual([fb.Dense(8, 9, "relu"), fb.Dropout(), fb.Dense(9, 8)])],
    "split": lambda: [
        fb.Concatenate([], [fb.Dense(6, 4, "silu")], head=[fb.Residual([fb.Dense(6, 6)]), fb.Dense(6, 2, "sigmoid")]),
        fb.Residual([fb.Concatenate([fb.Dense(12, 5)], [fb.Activation("relu"), fb.Dense(12, 7)])]),
        fb.Concatenate([]),
        fb.Dense(12, 3),
    ],
    "activations": lambda: [fb.Dense(6, 6), *(fb.Activation(name) for name in ACTIVATIONS if name)],
}


@pytest.mark.parametrize("stack", list(STACKS))
def test_onnxruntime_gives_the_same(dtype, stack, tmp_path):
    """To a few roundings of outputs of order one.

    Of float32 where gelu computes its error function in it; of eps where there is one, as the format has float32 there.
    """
    rng = np.random.default_rng(0)
    model = fb.Sequential(STACKS[stack](), dtype=dtype.name, seed=0)
    X = (3 * rng.standard_normal((50, 6))).astype(dtype)
    y = rng.standard_normal((50, model.outputs))
    model.fit(X, y, "mse", fb.SGD(model.parameters(), lr=0.01), epochs=3, verbose=0)  # running statistics, biases
    export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    tolerance = 1e-9 if stack.endswith("norm") else 1e-14
    if dtype == np.float32 or stack in ("gelu", "activations"):
        tolerance = 5e-6
    for rows in (1, 50):
        (got,) = session.run(None, {"input": X[:rows]})
        assert got.dtype == dtype
        np.testing.assert_allclose(got, model.predict(X[:rows]), rtol=0, atol=tolerance)


def test_the_file_says_what_it_is(tmp_path):
    export(fb.Sequential([fb.Dense(6, 5)]), tmp_path / "model.onnx")
    file = onnx.load(tmp_path / "model.onnx")
    assert (file.producer_name, file.opset_import[0].version) == ("fastbp", 17)
    assert [tensor.name for tensor in file.graph.initializer] == ["0.weight", "0.bias"]


def test_tensors_have_the_models_names(tmp_path):
    model = fb.Sequential([fb.Residual([fb.Dense(6, 6)]), fb.Concatenate([], head=[fb.Dense(6, 2, bias=False)])])
    export(model, tmp_path / "model.onnx")
    file = onnx.load(tmp_path / "model.onnx")
    assert [tensor.name for tensor in file.graph.initializer] == ["0.0.weight", "0.0.bias", "1.head.0.weight"]
    assert [node.op_type for node in file.graph.node] == ["MatMul", "Add", "Add", "MatMul", "Concat", "Identity"]


def test_bad_input_writes_nothing(tmp_path):
    with pytest.raises(TypeError, match="model: expected a fastbp model, got list"):
        export([fb.Dense(6, 5)], tmp_path / "model.onnx")
    with pytest.raises(OSError, match="nowhere"):
        export(fb.Sequential([fb.Dense(6, 5)]), tmp_path / "nowhere" / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unknown", ["error", "reserve"])
@pytest.mark.parametrize(
    "make", [lambda u: fb.TabularInput(2, [5, 3], [4, 2], u), lambda u: fb.Embedding(7, 3, columns=4, unknown=u)]
)
def test_embeddings(dtype, unknown, make, tmp_path):
    rng = np.random.default_rng(0)
    first = make(unknown)
    model = fb.Sequential([first, fb.Dense(8 if first.n_numeric else 12, 3)], dtype=dtype.name, seed=0)
    X = np.column_stack([rng.standard_normal((20, 2)), rng.integers(0, 5, 20), rng.integers(0, 3, 20)])
    X = X if first.n_numeric else rng.integers(0, 7, (20, 4))
    if unknown == "reserve":
        X = X.astype(float)
        X[:4, 3] = [-1, 7, 0.5, np.nan]
    export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (got,) = session.run(None, {"input": X.astype(dtype)})
    np.testing.assert_allclose(got, model.predict(X), rtol=0, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 3), ("binary_cross_entropy", 2)])
def test_probabilities(dtype, loss, outputs, tmp_path):
    rng = np.random.default_rng(0)
    X, model = rng.standard_normal((50, 6)).astype(dtype), fb.Sequential([fb.Dense(6, outputs)], dtype=dtype, seed=0)
    with pytest.raises(ValueError, match="probabilities: expected a model that was last trained with"):
        export(model, tmp_path / "model.onnx", probabilities=True)
    y = rng.integers(0, outputs, 50) if loss == "cross_entropy" else rng.integers(0, 2, (50, outputs))
    model.fit(X, y, loss, fb.SGD(model.parameters(), lr=0.1), verbose=0)
    export(model, tmp_path / "model.onnx", probabilities=True)
    (given,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"input": X})
    np.testing.assert_allclose(given, model.predict_proba(X), rtol=1e-5)
