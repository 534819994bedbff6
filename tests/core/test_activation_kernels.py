"""Activations and their derivatives against the NumPy reference: dtypes, odd shapes, threads."""

import numpy as np
import pytest
from conftest import assert_close

from fastbp import ops
from fastbp.core import plan, reference

ACTIVATIONS = [name for name in plan.ACTIVATIONS if name]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(compiled, dtype, rng, threads, name):
    z = np.concatenate([rng.normal(0, 3, 20000), [0.0, -0.0, 1e-30, -1e-30, 50, -50, 1e4, -1e4]]).astype(dtype)[None]
    dy = rng.standard_normal(z.shape).astype(dtype)
    y, expected = np.empty_like(z), np.empty_like(z)
    ops.activation_forward(y, z, name, threads=threads)
    reference.activation_forward(expected, z, plan.ACTIVATIONS[name].code, 1)
    # the functions are smooth with slopes of about one: a few roundings of 1 + |z| are all that can differ
    assert_close(y, expected, np.abs(expected) + (np.abs(z) < 20), dtype)
    dz, expected_dz = np.empty_like(z), np.empty_like(z)
    ops.activation_backward(dz, dy, expected, z, name, threads=threads)
    reference.activation_backward(expected_dz, dy, expected, z, plan.ACTIVATIONS[name].code, 1)
    assert_close(dz, expected_dz, np.abs(dy) * (1 + np.abs(z)), dtype)
    assert np.isfinite(y).all()
    assert np.isfinite(dz).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_lets_nan_through(any_backend, dtype, name):
    z = np.full((1, 3), np.nan, dtype)
    y = np.zeros_like(z)
    ops.activation_forward(y, z, name)
    assert np.isnan(y).all()
