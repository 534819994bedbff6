"""The core's own exp, log, tanh and erf, through the kernels that use them, over the whole range.

The oracle is NumPy's float64 (for float32) or long double (for float64); erf's is the C library's. What is not a
function itself is allowed the roundings of the arithmetic around it.
"""

import math

import numpy as np
import pytest

from fastbp import ops
from fastbp.core import backend
from fastbp.core.plan import LossSpec

ULPS = {"float32": 2, "float64": 4}


def through(name, z):
    y = np.empty_like(z)[None]
    ops.activation_forward(y, z[None], name)
    return y[0]


def units(got, expected, dtype):
    """The error in units in the last place of the expected result."""
    return np.abs(got.astype(np.longdouble) - expected) / np.spacing(np.abs(expected).astype(dtype))


def arguments(dtype, least, most, rng):
    """Even over the range, and by magnitude down to the smallest numbers that are not flushed."""
    smallest = np.log(np.finfo(dtype).tiny) + 2
    magnitudes = np.exp(rng.uniform(smallest, np.log(most), 200_000)) * rng.choice([-1, 1], 200_000)
    return np.concatenate([rng.uniform(least, most, 200_000), magnitudes]).astype(dtype)


def test_tanh(compiled, dtype, rng):
    x = arguments(dtype, -25, 25, rng)
    assert units(through("tanh", x), np.tanh(x.astype(np.longdouble)), dtype).max() <= ULPS[dtype.name]


def test_expm1(compiled, dtype, rng):
    x = -np.abs(arguments(dtype, 0, 100, rng))
    assert units(through("elu", x), np.expm1(x.astype(np.longdouble)), dtype).max() <= ULPS[dtype.name]


def test_exp(compiled, dtype, rng):
    """The gradient of the Poisson loss is (exp(p) - t) / n; with t = 0 and n = 1 it is exp itself."""
    most = np.log(np.finfo(dtype).max) - 0.01
    x = arguments(dtype, -most + 2, most, rng)[::40]
    got = np.empty_like(x)
    for i in range(len(x)):
        ops.elementwise_loss(got[i : i + 1, None], x[i : i + 1, None], np.zeros((1, 1), dtype), "poisson")
    assert units(got, np.exp(x.astype(np.longdouble)), dtype).max() <= ULPS[dtype.name]


def test_sigmoid_and_softplus(compiled, dtype, rng):
    """A sigmoid adds a sum and a division to exp; a softplus a function and a sum."""
    x = arguments(dtype, -80, 80, rng)
    exact = x.astype(np.longdouble)
    assert units(through("sigmoid", x), 1 / (1 + np.exp(-exact)), dtype).max() <= ULPS[dtype.name] + 1
    assert units(through("softplus", x), np.logaddexp(0, exact), dtype).max() <= ULPS[dtype.name] + 1


def test_erf(compiled, dtype, rng):
    """GELU is z (1 + erf(z / sqrt 2)) / 2: for positive z no digits cancel, and the products round three times."""
    x = np.abs(arguments(dtype, 0, 10, rng)[::4])
    expected = np.array([float(z) * 0.5 * (1 + math.erf(float(z) * math.sqrt(0.5))) for z in x], np.longdouble)
    assert units(through("gelu", x), expected, dtype).max() <= ULPS[dtype.name] + 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tanh", [np.nan, 1, -1, 0, -0.0]),
        ("sigmoid", [np.nan, 1, 0, 0.5, 0.5]),
        ("elu", [np.nan, np.inf, -1, 0, -0.0]),
        ("softplus", [np.nan, np.inf, 0, math.log(2), math.log(2)]),
    ],
)
def test_special_values(compiled, dtype, name, expected):
    z = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
    got = through(name, z)
    np.testing.assert_allclose(got, np.array(expected, dtype), rtol=2 * np.finfo(dtype).eps, atol=0)
    assert (np.signbit(got) == np.signbit(np.array(expected, dtype)))[1:].all()


def test_exp_overflows_to_infinity_and_underflows_to_zero(compiled, dtype):
    target, got = np.zeros((1, 1), dtype), np.empty((1, 1), dtype)
    for x, expected in [(1e4, np.inf), (np.inf, np.inf), (-1e4, 0), (-np.inf, 0)]:
        ops.elementwise_loss(got, np.array([[x]], dtype), target, "poisson")
        assert got[0, 0] == expected


def test_log(compiled, rng):
    """Two equal logits: the loss is their maximum plus log 2 minus the label's; many classes reach other arguments."""
    for classes in (2, 3, 7, 100, 1000, 12_345):
        logits, dlogits = np.zeros((1, classes)), np.empty((1, classes))
        loss = backend().loss(dlogits, logits, np.array([0]), None, LossSpec("cross_entropy"), 1)
        assert abs(loss - math.log(classes)) <= 2 * np.spacing(math.log(classes))
