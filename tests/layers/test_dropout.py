"""Dropout beyond its kernel."""

import numpy as np
import pytest

import fastbp as fb
from fastbp.formats import npz


def around(dropout):
    """Behind a layer, in front of one, at the end of a branch that is copied or added to, and twice."""
    return [
        *dropout(),
        fb.Dense(7, 32, "relu"),
        *dropout(),
        *dropout(),
        fb.Residual([fb.Dense(32, 32), *dropout()]),
        fb.Concatenate([fb.Dense(32, 32), *dropout()], dropout(), [*dropout(), fb.Dense(32, 3)]),
        *dropout(),
        fb.Dense(67, 2),
        *dropout(),
    ]


@pytest.mark.parametrize("batch", [1, 40, 1500])
def test_inference_is_that_without_it(any_backend, dtype, rng, batch):
    X = rng.standard_normal((batch, 7)).astype(dtype)
    with_dropout = fb.Sequential(around(lambda: [fb.Dropout(0.5)]), dtype=dtype)
    without = fb.Sequential(around(list), dtype=dtype)
    for own, other in zip(with_dropout.parameters(), without.parameters(), strict=True):
        own[:] = other
    expected = without.predict(X)
    assert with_dropout.predict(X).tobytes() == expected.tobytes()
    with_dropout.fit(X, np.ones((batch, 2)), "mse", fb.SGD(with_dropout.parameters(), lr=0.0), verbose=0)
    assert with_dropout.predict(X).tobytes() == expected.tobytes()


@pytest.mark.parametrize("way", ["save", "checkpoint"])
def test_loaded_copies_drop_alike(any_backend, rng, tmp_path, way):
    X, y, path = rng.standard_normal((60, 7)), rng.standard_normal((60, 2)), tmp_path / "model.npz"
    model = fb.Sequential(around(lambda: [fb.Dropout(0.5)]), seed=0)  # of others, one in 25 diverges
    if way == "save":
        model.save(path)
    else:
        model.fit(X, y, "mse", fb.SGD(model.parameters(), lr=1e-3), callbacks=[fb.Checkpoint(path)], verbose=0)
    trained = []
    for _ in range(2):
        copy = fb.load(path)
        copy.fit(X, y, "mse", fb.SGD(copy.parameters(), lr=1e-3), epochs=2, seed=0, verbose=0)
        trained.append(copy.parameters().values.tobytes())
    assert trained[0] == trained[1]


@pytest.mark.parametrize("keys", [np.zeros(2, np.uint64), np.zeros(3), np.zeros((3, 1), np.uint64)])
def test_damaged_random_streams_are_refused(tmp_path, keys):
    model = fb.Sequential([fb.Dense(2, 2), fb.Dropout(0.5), fb.Dense(2, 2)])
    path = tmp_path / "model.npz"
    model.save(path)
    header, arrays = npz.read(path)
    npz.write(path, {"dtype": header["dtype"], "layers": header["layers"]}, arrays | {"random.keys": keys})
    with pytest.raises(fb.FileFormatError, match="keys"):
        fb.load(path)
