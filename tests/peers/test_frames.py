"""Arrays and data frames of other libraries: used where they lie, and fit takes them."""

import numpy as np
import pytest

import fastbp as fb
from fastbp.data.arrays import cast

SAMPLES = 1000


X = np.random.default_rng(0).standard_normal((SAMPLES, 6)).astype(np.float32)


Y = (X[:, 0] + X[:, 1] ** 2 > 1).astype(np.int64) + (X[:, 2] > 1)


def trained(X, y, loss="cross_entropy", **settings):
    layers = [fb.Dense(6, 16, activation="relu"), fb.BatchNorm(16), fb.Dropout(0.2), fb.Dense(16, 3)]
    model = fb.Sequential(layers, seed=0)
    optimizer = fb.Adam(model.parameters(), lr=fb.schedules.Exponential(0.01, 0.999))
    settings = dict(epochs=3, batch_size=32, seed=3, verbose=0) | settings
    history = model.fit(X, y, loss, optimizer, **settings)
    del history.history["samples_per_second"]
    return model.parameters().values.tobytes() + model.model.statistics.tobytes(), history.history


def frames():
    """Arrays (n, k) and (n,) of other libraries, with the name of what they need."""
    a, column = X.copy(), X[:, 0].copy()
    yield "torch", lambda m: m.from_numpy(a)
    yield "torch", lambda m: m.from_numpy(column)
    yield "pandas", lambda m: m.DataFrame(a, copy=False)
    yield "pandas", lambda m: m.Series(column)
    yield "polars", lambda m: m.Series(a.tolist(), dtype=m.Array(m.Float32, 6))
    yield "polars", lambda m: m.Series(column)
    yield "pyarrow", lambda m: m.array(column)
    yield "pyarrow", lambda m: m.FixedSizeListArray.from_arrays(m.array(a.ravel()), 6)
    yield "pyarrow", lambda m: m.FixedShapeTensorArray.from_numpy_ndarray(a)
    yield "pyarrow", lambda m: m.Tensor.from_numpy(a)
    yield "jax.numpy", lambda m: m.asarray(a)
    yield "numpy", lambda m: memoryview(a)


@pytest.mark.parametrize(("library", "make"), list(frames()))
def test_other_libraries_arrays_are_used_where_they_lie(library, make):
    value = make(pytest.importorskip(library))
    first, second = cast("X", value, np.dtype(np.float32)), cast("X", value, np.dtype(np.float32))
    assert np.shares_memory(first, second)
    assert np.array_equal(first, X if first.ndim == 2 else X[:, 0])


def test_dlpack_alone_is_enough():
    torch = pytest.importorskip("torch")

    class Tensor:
        def __init__(self, tensor):
            self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__

    tensor = torch.from_numpy(X.copy())
    assert cast("X", Tensor(tensor), np.dtype(np.float32)).ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "torch"])
def test_fit_takes_frames_and_tensors(library):
    m = pytest.importorskip(library)
    columns = {f"x{i}": X[:, i] for i in range(6)}
    if library == "torch":
        features, target = m.tensor(X), m.tensor(Y)
    elif library == "pyarrow":
        features, target = m.table(columns), m.array(Y)
    else:
        features, target = m.DataFrame(columns), m.Series(Y)
    assert trained(features, target) == trained(X, Y)


@pytest.mark.parametrize("kind", ["requires_grad", "bfloat16"])
def test_a_tensor_that_numpy_cannot_have(kind):
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(X.copy())
    tensor = tensor.requires_grad_() if kind == "requires_grad" else tensor.to(torch.bfloat16)
    with pytest.raises(TypeError, match="X: expected an array of numbers, got Tensor: "):
        trained(tensor, Y)
