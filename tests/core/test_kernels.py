"""Every compiled kernel against its NumPy twin: dtypes, odd shapes, threads. Errors are judged against the magnitudes
that went into a result, so that cancellation does not ask for digits that are not there."""

import numpy as np
import pytest
from conftest import rounding

import fastbp as fb
from fastbp import ops
from fastbp.core import backend, plan, reference

# One of everything, primes, sizes around the tile's 6, 14, 16, 32, and one that is cut into blocks along every axis.
SHAPES = [(1, 1, 1), (2, 3, 5), (7, 13, 11), (1, 17, 1), (14, 32, 64), (15, 33, 65), (64, 10, 31), (101, 1, 97),
          (0, 5, 3), (3, 4, 0), (230, 70, 800)]  # fmt: skip
BIG = (40, 2100, 30)
ACTIVATIONS = [name for name in plan.ACTIVATIONS if name]


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    return request.param


def assert_close(got, expected, scale, dtype, terms=1):
    """|got - expected| within the rounding of sums whose absolute terms add up to ``scale``."""
    assert np.all(np.abs(got - expected) <= rounding(dtype, terms) * scale + np.finfo(dtype).tiny)


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


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(compiled, dtype, rng, threads, name):
    z = np.concatenate([rng.normal(0, 3, 20000), [0.0, -0.0, 1e-30, -1e-30, 50, -50, 1e4, -1e4]]).astype(dtype)[None]
    dy = rng.standard_normal(z.shape).astype(dtype)
    y, expected = np.empty_like(z), np.empty_like(z)
    ops.activation_forward(y, z, name, threads=threads)
    reference.activation_forward(expected, z, plan.ACTIVATIONS[name], 1)
    # the functions are smooth with slopes of about one: a few roundings of 1 + |z| are all that can differ
    assert_close(y, expected, np.abs(expected) + (np.abs(z) < 20), dtype)
    dz, expected_dz = np.empty_like(z), np.empty_like(z)
    ops.activation_backward(dz, dy, expected, z, name, threads=threads)
    reference.activation_backward(expected_dz, dy, expected, z, plan.ACTIVATIONS[name], 1)
    assert_close(dz, expected_dz, np.abs(dy) * (1 + np.abs(z)), dtype)
    assert np.isfinite(y).all()
    assert np.isfinite(dz).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_lets_nan_through(any_backend, dtype, name):
    z = np.full((1, 3), np.nan, dtype)
    y = np.zeros_like(z)
    ops.activation_forward(y, z, name)
    assert np.isnan(y).all()


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


LOSSES = [
    ("mse", None),
    ("mae", None),
    ("huber", 0.7),
    ("quantile", 0.3),
    ("binary_cross_entropy", None),
    ("poisson", None),
]


def sample_weights(rng, samples, dtype, given):
    """Weights of which some are zero, but not the first, or None."""
    return np.maximum(rng.uniform(-0.3, 3, samples), [0.1] + [0] * (samples - 1)).astype(dtype) if given else None


@pytest.mark.parametrize(("name", "parameter"), LOSSES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (501, 13)])
@pytest.mark.parametrize("sampled", [False, True])
def test_elementwise_loss(compiled, dtype, rng, threads, name, parameter, shape, sampled):
    pred, target = rng.standard_normal(shape).astype(dtype), rng.random(shape).astype(dtype)
    weight = sample_weights(rng, shape[0], dtype, sampled)
    dpred, expected = np.empty_like(pred), np.empty_like(pred)
    loss = ops.elementwise_loss(dpred, pred, target, name, parameter, weight, threads=threads)
    kind = plan.ELEMENTWISE_LOSSES[name]
    expected_loss = reference.elementwise_loss(expected, pred, target, weight, kind, parameter or 0, 1)
    assert abs(loss - expected_loss) <= rounding(dtype) * (1 + abs(expected_loss))
    share = np.full((shape[0], 1), 1 / pred.size) if weight is None else weight[:, None] / weight.sum() / shape[1]
    assert_close(dpred, expected, share + np.abs(expected), dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (501, 13)])
@pytest.mark.parametrize("sampled", [False, True])
def test_cross_entropy(compiled, dtype, rng, threads, smoothing, weighted, shape, sampled):
    logits, labels = (3 * rng.standard_normal(shape)).astype(dtype), rng.integers(0, shape[1], shape[0])
    weight = (rng.random(shape[1]) + 0.1).astype(dtype) if weighted else None
    of_sample = sample_weights(rng, shape[0], dtype, sampled)
    dlogits, expected = np.empty_like(logits), np.empty_like(logits)
    loss = ops.cross_entropy(dlogits, logits, labels, weight, smoothing, of_sample, threads=threads)
    expected_loss = reference.cross_entropy(expected, logits, labels, weight, of_sample, smoothing, 1)
    assert abs(loss - expected_loss) <= rounding(dtype, shape[1]) * (1 + abs(expected_loss))
    share = 3 / shape[0] if of_sample is None else 3 * of_sample[:, None] / of_sample.sum()
    assert_close(dlogits, expected, share, dtype, shape[1])


def test_losses_are_stable_for_huge_logits(any_backend, dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]], dtype)
    dlogits = np.empty_like(logits)
    loss = ops.cross_entropy(dlogits, logits, np.array([1, 2]))
    assert loss == pytest.approx((2e4 + np.log(2)) / 2, rel=rounding(dtype))
    np.testing.assert_allclose(dlogits, [[0.5, -0.5, 0], [0, 0.25, -0.25]], rtol=rounding(dtype))
    loss = ops.elementwise_loss(dlogits, logits, np.array([[1, 1, 1], [0, 0, 1]], dtype), "binary_cross_entropy")
    assert loss == pytest.approx((0 + 1e4 + np.log(2) + 0 + 1e4 + 0) / 6, rel=rounding(dtype))
    np.testing.assert_allclose(dlogits * 6, [[0, -1, -0.5], [0, 1, 0]], atol=rounding(dtype))


UPDATES = [
    ("sgd_update", 0, dict(lr=0.1)),
    ("sgd_update", 1, dict(lr=0.1, momentum=0.9, weight_decay=0.01)),
    ("sgd_update", 1, dict(lr=0.1, momentum=0.9, nesterov=True, grad_scale=0.5)),
    ("adam_update", 2, dict(lr=0.01, step=3, weight_decay=0.01)),
    ("adam_update", 2, dict(lr=0.01, step=3, weight_decay=0.01, decoupled=True, grad_scale=0.5)),
    ("rmsprop_update", 1, dict(lr=0.01, weight_decay=0.01)),
    ("rmsprop_update", 2, dict(lr=0.01, momentum=0.9, grad_scale=0.5)),
    ("adagrad_update", 1, dict(lr=0.01, weight_decay=0.01)),
]


@pytest.mark.parametrize("size", [1, 37, 5001, 200_003])
@pytest.mark.parametrize(("name", "states", "settings"), UPDATES)
def test_update(compiled, dtype, rng, threads, size, name, states, settings):
    param, grad = rng.standard_normal((2, size)).astype(dtype)
    state = list(np.abs(rng.standard_normal((states, size))).astype(dtype))
    slots = {"sgd_update": 1, "adam_update": 2, "rmsprop_update": 2, "adagrad_update": 1}[name]
    results = {}
    for backend_name in ("numpy", compiled):
        with fb.use_backend(backend_name):
            arrays = [param.copy(), *[s.copy() for s in state], *[None] * (slots - states)]
            getattr(ops, name)(*arrays, grad, **settings, threads=threads)
            results[backend_name] = arrays
    for got, expected in zip(results[compiled], results["numpy"], strict=True):
        if got is not None:
            assert_close(got, expected, 1 + np.abs(param) + np.abs(grad) + np.square(grad), dtype)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 1000, 300_001])
def test_reductions(compiled, dtype, rng, threads, size):
    x = rng.standard_normal(size).astype(dtype)
    assert backend().squared_norm(x, threads) == pytest.approx(reference.squared_norm(x, 1), rel=1e-12)
    assert backend().all_finite(x) is True
    for bad in (np.nan, np.inf, -np.inf):
        for place in {0, size // 2, size - 1} if size else ():
            broken = x.copy()
            broken[place] = bad
            assert backend().all_finite(broken) is False
            assert reference.all_finite(broken) is False


def test_threads_do_not_change_a_bit(compiled, dtype, rng):
    def run(threads):
        fb.set_num_threads(threads)
        generator = np.random.default_rng(0)
        x, weight = (
            generator.standard_normal((700, 130)).astype(dtype),
            generator.standard_normal((130, 610)).astype(dtype),
        )
        bias = generator.standard_normal(610).astype(dtype)
        y, z, dz = np.empty((3, 700, 610), dtype)
        ops.dense_forward(y, z, x, weight, bias, "gelu")
        loss = ops.cross_entropy(dz, y, generator.integers(0, 610, 700))
        dweight, dbias, dx = np.empty_like(weight), np.empty_like(bias), np.empty_like(x)
        ops.dense_backward(dweight, dbias, dx, dz, x, x, weight, "silu")
        norm = backend().squared_norm(y.reshape(-1), threads)
        return b"".join(a.tobytes() for a in (y, z, dz, dweight, dbias, dx)), loss, norm

    one, two, four = run(1), run(2), run(4)
    assert one == two == four


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


def test_adam_in_float32_with_a_beta_close_to_one(compiled, rng):
    """1 - beta2 is not what float32 makes of it: the state must be relatively right."""
    grad = rng.standard_normal(100).astype("f4")
    param, m, v = np.zeros((3, 100), "f4")
    ops.adam_update(param, m, v, grad, 1e-3, 1, beta1=0.999, beta2=0.99999)
    np.testing.assert_allclose(v, 1e-5 * grad.astype("f8") ** 2, rtol=1e-6)
    np.testing.assert_allclose(m, 1e-3 * grad.astype("f8"), rtol=1e-6)
    np.testing.assert_allclose(param, -1e-3 * np.sign(grad), rtol=1e-5)


def test_cross_entropy_of_many_classes(compiled, rng):
    logits = rng.standard_normal((2, 300_000)).astype("f4")
    dlogits = np.empty_like(logits)
    loss = ops.cross_entropy(dlogits, logits, np.array([0, 1]))
    exact = np.log(np.exp(logits.astype("f8")).sum(axis=1)) - logits[[0, 1], [0, 1]]
    assert loss == pytest.approx(exact.mean(), rel=1e-6)


def test_a_batch_that_weighs_nothing_teaches_nothing(any_backend, dtype, rng):
    logits = rng.standard_normal((3, 2)).astype(dtype)
    dlogits = np.empty_like(logits)
    assert ops.cross_entropy(dlogits, logits, np.zeros(3, int), np.array([0, 1], dtype), 0.1) == 0
    assert (dlogits == 0).all()


def test_compiled_and_reference_have_the_same_signatures(compiled):
    import inspect

    def names(function):
        return [p.rstrip("_") for p in inspect.signature(function).parameters]

    for name, function in vars(reference).items():
        if inspect.isfunction(function) and function.__module__ == reference.__name__ and not name.startswith("_"):
            assert names(getattr(backend(), name)) == names(function), name


def test_ops_say_what_is_wrong():
    x, w, y = np.zeros((4, 3), "f4"), np.zeros((3, 2), "f4"), np.zeros((4, 2), "f4")
    with pytest.raises(ValueError, match=r"y: expected shape \(4, 2\), got \(4, 3\)"):
        ops.dense_forward(x, None, x, w, None)
    with pytest.raises(TypeError, match="weight: expected dtype float32, got float64"):
        ops.dense_forward(y, None, x, w.astype("f8"), None)
    with pytest.raises(ValueError, match="x: expected a C-contiguous array"):
        ops.dense_forward(y, None, np.asfortranarray(x), w, None)
    with pytest.raises(ValueError, match=r"activation: unknown value 'rulu'; did you mean .*'relu'"):
        ops.dense_forward(y, None, x, w, None, "rulu")
    with pytest.raises(ValueError, match="x_z: expected the argument of gelu, got None"):
        ops.dense_backward(w.copy(), None, x.copy(), y, x, None, w, "gelu")
    with pytest.raises(ValueError, match="threads: expected a positive integer, got -1"):
        ops.dense_forward(y, None, x, w, None, threads=-1)
    square = np.ones((3, 3), "f4")
    with pytest.raises(ValueError, match="c: expected memory of its own"):
        ops.matmul(square, square, np.ones((3, 3), "f4"))
    packed = np.zeros((3, 4), np.dtype([("flag", "u1"), ("x", "f4")]))["x"]
    with pytest.raises(ValueError, match="a: expected an aligned array with strides in whole elements"):
        ops.matmul(np.empty((3, 2), "f4"), packed, np.zeros((4, 2), "f4"))
    with pytest.raises(ValueError, match="parameter: expected a number for 'huber'"):
        ops.elementwise_loss(y, y, y, "huber")
    with pytest.raises(ValueError, match="step: expected a positive integer, got 0"):
        ops.adam_update(y[0].copy(), y[0].copy(), y[0].copy(), y[0].copy(), 0.1, 0)
    with pytest.raises(TypeError, match="a: expected dtype float32 or float64, got int64"):
        ops.matmul(y, np.zeros((4, 3), int), np.zeros((3, 2), int))
