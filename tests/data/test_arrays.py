"""Arrays that are given: used where they lie if that is possible, else copied once; of any stride."""

import numpy as np
import pytest
from networks import bits

import fastbp as fb


def test_float32_features_are_used_without_a_copy():
    from fastbp.data.arrays import check_features

    X = np.ones((10, 3), np.float32)
    assert check_features("X", X, 3, np.dtype("f4")) is X
    read_only = X[:]
    read_only.flags.writeable = False
    assert np.shares_memory(check_features("X", read_only, 3, np.dtype("f4")), X)
    for other in (X.astype(int), np.asfortranarray(X), X[::-1], X.astype(">f4"), X.tolist(), X.astype(object)):
        cast = check_features("X", other, 3, np.dtype("f4"))
        assert cast.flags.c_contiguous
        assert cast.dtype == np.float32
        assert cast.dtype.isnative


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_one_sample_with_an_arbitrary_stride(any_backend, loss):
    """NumPy calls an axis of one row contiguous whatever its stride: it must not be read as the size of the row."""
    strided = np.ones((1_000_000, 3), "f4") if loss == "mse" else np.ones(1_000_000, int)
    strided = strided[::500_000][:1]
    assert strided.flags.c_contiguous
    assert strided.strides[0] > strided.nbytes
    models = []
    for y in (strided, strided.copy()):
        models.append(fb.Sequential([fb.Dense(2, 3)], seed=0))
        optimizer = fb.SGD(models[-1].parameters(), lr=0.1)
        models[-1].fit(np.ones((1, 2), "f4"), y, loss, optimizer, epochs=3, verbose=0)
    assert bits(models[0]) == bits(models[1])
