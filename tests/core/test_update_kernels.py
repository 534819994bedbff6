"""Updates and the reductions over all gradients against the NumPy reference: dtypes, odd shapes, threads."""

import numpy as np
import pytest
from conftest import assert_close

import fastbp as fb
from fastbp import ops
from fastbp.core import backend, reference
from fastbp.optim import OPTIMIZERS

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
    assert backend().squared_norm(x, None, threads) == pytest.approx(reference.squared_norm(x, None, 1), rel=1e-12)
    assert backend().all_finite(x) is True
    for bad in (np.nan, np.inf, -np.inf):
        for place in {0, size // 2, size - 1} if size else ():
            broken = x.copy()
            broken[place] = bad
            assert backend().all_finite(broken) is False
            assert reference.all_finite(broken) is False


def test_adam_in_float32_with_a_beta_close_to_one(compiled, rng):
    """1 - beta2 is not what float32 makes of it: the state must be relatively right."""
    grad = rng.standard_normal(100).astype("f4")
    param, m, v = np.zeros((3, 100), "f4")
    ops.adam_update(param, m, v, grad, 1e-3, 1, beta1=0.999, beta2=0.99999)
    np.testing.assert_allclose(v, 1e-5 * grad.astype("f8") ** 2, rtol=1e-6)
    np.testing.assert_allclose(m, 1e-3 * grad.astype("f8"), rtol=1e-6)
    np.testing.assert_allclose(param, -1e-3 * np.sign(grad), rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_as_in_the_reference(compiled, dtype, rng, name):
    """From the registry, so that a new rule is found; its published formula is a matter of test_optim."""
    values, grads = rng.standard_normal(101), rng.standard_normal((5, 101))
    results = {}
    for where in ("numpy", compiled):
        with fb.use_backend(where):
            model = fb.Sequential([fb.Dense(100, 1)], dtype=dtype.name, seed=0)
            parameters = model.parameters()
            optimizer = OPTIMIZERS[name](parameters, lr=0.01, weight_decay=0.1)
            model.layers[0].weight, model.layers[0].bias = values[:100, None], values[100:]
            for grad in grads:
                parameters.grad("0.weight")[:], parameters.grad("0.bias")[:] = grad[:100, None], grad[100:]
                optimizer.step()
            results[where] = [parameters.values, *optimizer.state_vectors.values()]
    assert len(results[compiled]) == len(results["numpy"])
    for got, expected in zip(results[compiled], results["numpy"], strict=True):
        assert_close(got, expected, 1 + np.abs(expected), dtype)
