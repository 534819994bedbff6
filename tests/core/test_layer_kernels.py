"""Dropout and the normalisations against the NumPy reference: dtypes, odd shapes, threads."""

import numpy as np
import pytest
from conftest import assert_close

from fastbp.core import backend, reference


def test_dropout_has_the_same_mask_on_every_backend(compiled, dtype, rng, threads):
    x = rng.standard_normal((301, 67)).astype(dtype)
    y, expected = np.empty_like(x), np.empty_like(x)
    backend().dropout(y, x, 0.3, 12345678901234567890, 17, threads)
    reference.dropout(expected, x, 0.3, 12345678901234567890, 17, 1)
    np.testing.assert_array_equal(y, expected)
    # a share of 0.3 of 20,167: the standard deviation is 0.0032
    assert abs(np.mean(y == 0) - 0.3) < 5 * 0.0032
    backend().dropout(expected, x, 0.3, 12345678901234567890, 18, threads)
    assert 0.3 < np.mean((y == 0) != (expected == 0)) < 0.54  # another step, an independent mask: 2 * 0.3 * 0.7


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 65), (33, 129), (600, 130), (0, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_batchnorm(compiled, dtype, rng, threads, shape, training):
    batch, n = shape
    x, dy = rng.normal(3, 2, (2, *shape)).astype(dtype)
    weight, bias = rng.standard_normal((2, n)).astype(dtype)
    start = np.abs(rng.standard_normal((4, n))).astype(dtype)
    results = []
    for module in (backend(), reference):
        if batch == 0 and module is reference:
            continue  # NumPy warns of the mean of nothing
        y, dx, stats = np.empty_like(x), np.empty_like(x), start.copy()
        dweight, dbias = np.empty((2, n), dtype)
        module.batchnorm_forward(y, stats, x, weight, bias, 0.1, 1e-5, training, threads)
        module.batchnorm_backward(dweight, dbias, dx, dy, x, stats, weight, threads)
        results.append((y, stats, dweight, dbias, dx))
    if batch == 0:
        np.testing.assert_array_equal(results[0][1], start)
        return
    y, stats, dweight, dbias, dx = results[0]
    inverse = np.abs(stats[3]).max() if training or batch > 1 else np.abs(start[3]).max()
    spread = (np.abs(x).max() + 3) * (inverse + 1 / np.sqrt(start[1].min() + 1e-5)) * 4
    for got, expected, scale in zip(
        results[0], results[1], [spread, spread, batch * spread * 9, batch * 9, spread**2 * 9], strict=True
    ):
        assert_close(got, expected, scale, dtype, batch)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 65), (33, 129), (0, 5)])
def test_layernorm(compiled, dtype, rng, threads, shape):
    x, dy = rng.normal(3, 2, (2, *shape)).astype(dtype)
    weight, bias = rng.standard_normal((2, shape[1])).astype(dtype)
    results = []
    for module in (backend(), reference):
        y, dx, rows = np.empty_like(x), np.empty_like(x), np.empty((shape[0], 2), dtype)
        dweight, dbias = np.empty((2, shape[1]), dtype)
        module.layernorm_forward(y, rows, x, weight, bias, 1e-5, threads)
        module.layernorm_backward(dweight, dbias, dx, dy, x, rows, weight, threads)
        results.append((y, rows, dweight, dbias, dx))
    largest = max(1, np.abs(results[1][1]).max(initial=0))
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected, 100 * largest**2 * (1 + np.abs(expected)), dtype, max(shape))
