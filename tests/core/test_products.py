"""Matrix products and dense layers against the NumPy reference: dtypes, odd shapes, threads."""

import numpy as np
import pytest
from conftest import assert_close

import fastbp as fb
from fastbp import ops

# One of everything, primes, sizes around the tile's 6, 14, 16, 32, and one that is cut into blocks along every axis.
SHAPES = [(1, 1, 1), (2, 3, 5), (7, 13, 11), (1, 17, 1), (14, 32, 64), (15, 33, 65), (64, 10, 31), (101, 1, 97),
          (0, 5, 3), (3, 4, 0), (230, 70, 800)]  # fmt: skip


BIG = (40, 2100, 30)


@pytest.mark.parametrize("shape", [*SHAPES, BIG])
@pytest.mark.parametrize("order", ["NN", "NT", "TN", "strided"])
def test_matmul(compiled, dtype, rng, shape, order, threads):
    m, n, k = shape
    a = rng.standard_normal((k, m) if order == "TN" else (m, k)).astype(dtype)
    b = rng.standard_normal((n, k) if order == "NT" else (k, n)).astype(dtype)
    if order == "strided":
        a, b = np.repeat(a, 2, axis=1)[:, ::2], np.repeat(np.repeat(b, 3, axis=0), 2, axis=1)[::3, ::2]
    a, b = a.T if order == "TN" else a, b.T if order == "NT" else b
    c = np.full((m, n), np.nan, dtype)
    ops.matmul(c, a, b, threads=threads)
    a, b = a.astype(np.float64), b.astype(np.float64)
    assert_close(c, a @ b, np.abs(a) @ np.abs(b), dtype, k)


@pytest.mark.parametrize("shape", [*SHAPES, BIG])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_dense(compiled, dtype, rng, threads, shape, activation):
    batch, inputs, outputs = shape
    x, x_z = rng.standard_normal((2, batch, inputs)).astype(dtype)
    weight = rng.standard_normal((inputs, outputs)).astype(dtype)
    bias, dz = rng.standard_normal(outputs).astype(dtype), rng.standard_normal((batch, outputs)).astype(dtype)
    results = {}
    for name in ("numpy", compiled):
        with fb.use_backend(name):
            y, z = np.empty((2, batch, outputs), dtype)
            dweight, dbias, dx = np.empty_like(weight), np.empty_like(bias), np.empty_like(x)
            ops.dense_forward(y, z, x, weight, bias, activation, threads=threads)
            ops.dense_backward(dweight, dbias, dx, dz, x, x_z, weight, activation, threads=threads)
            results[name] = y, z, dweight, dbias, dx
    scale_y = np.abs(x) @ np.abs(weight) + np.abs(bias)
    # GELU's slope is below 1.13 everywhere
    scales = [
        1.13 * scale_y,
        scale_y,
        np.abs(x).T @ np.abs(dz),
        np.abs(dz).sum(0),
        1.13 * np.abs(dz) @ np.abs(weight.T),
    ]
    for got, expected, scale, terms in zip(
        results[compiled], results["numpy"], scales, [inputs, inputs, batch, batch, outputs], strict=True
    ):
        assert_close(got, expected, scale, dtype, terms)


def test_scratch_is_enough_for_both_products_of_the_backward_pass(compiled, rng):
    """A shape whose operands are cut into blocks along every axis."""
    batch, inputs, outputs = 384, 1024, 1500
    x, dz = rng.standard_normal((batch, inputs)).astype("f4"), rng.standard_normal((batch, outputs)).astype("f4")
    weight = rng.standard_normal((inputs, outputs)).astype("f4")
    dweight, dx = np.empty_like(weight), np.empty_like(x)
    ops.dense_backward(dweight, None, dx, dz, x, None, weight)
    assert_close(dx, dz @ weight.T, np.abs(dz) @ np.abs(weight.T), np.dtype("f4"), outputs)
    assert_close(dweight, x.T @ dz, np.abs(x).T @ np.abs(dz), np.dtype("f4"), batch)


def test_dense_without_bias_or_dx_leaves_them_alone(compiled, dtype, rng):
    x, weight = rng.standard_normal((5, 3)).astype(dtype), rng.standard_normal((3, 4)).astype(dtype)
    y = np.empty((5, 4), dtype)
    ops.dense_forward(y, None, x, weight, None)
    assert_close(y, x @ weight, np.abs(x) @ np.abs(weight), dtype, 3)
    dweight = np.empty_like(weight)
    ops.dense_backward(dweight, None, None, y, x, None, weight)
    assert_close(dweight, x.T @ y, np.abs(x).T @ np.abs(y), dtype, 5)


@pytest.mark.parametrize("inputs", [1, 2, 3, 5])
def test_bias_gradient_of_few_inputs_and_a_long_batch(compiled, dtype, rng, inputs):
    """More threads than rows of dweight: the sums of a column must still be written by one thread alone."""
    x, dz = rng.standard_normal((20_000, inputs)).astype(dtype), rng.standard_normal((20_000, 32)).astype(dtype)
    weight = np.zeros((inputs, 32), dtype)

    def run(threads):
        dweight, dbias = np.empty_like(weight), np.empty(32, dtype)
        ops.dense_backward(dweight, dbias, None, dz, x, None, weight, threads=threads)
        return dweight.tobytes() + dbias.tobytes()

    expected = run(1)
    assert all(run(threads) == expected for threads in [2, 3, 4, 8] * 5)
