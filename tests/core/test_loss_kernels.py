"""Losses and their gradients against the NumPy reference: dtypes, odd shapes, threads."""

import numpy as np
import pytest
from conftest import assert_close, rounding

from fastbp import losses, ops
from fastbp.core import reference
from fastbp.core.plan import LossSpec

LOSSES = [
    (name, 0.3 if loss.has_parameter else None)
    for name, loss in losses.LOSSES.items()
    if issubclass(loss, losses.Elementwise)
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
    expected_loss = reference.loss(expected, pred, target, weight, LossSpec(name, parameter or 0), 1)
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
    spec = LossSpec("cross_entropy", class_weight=weight, smoothing=smoothing)
    expected_loss = reference.loss(expected, logits, labels, of_sample, spec, 1)
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


def test_cross_entropy_of_many_classes(compiled, rng):
    logits = rng.standard_normal((2, 300_000)).astype("f4")
    dlogits = np.empty_like(logits)
    loss = ops.cross_entropy(dlogits, logits, np.array([0, 1]))
    exact = np.log(np.exp(logits.astype("f8")).sum(axis=1)) - logits[[0, 1], [0, 1]]
    assert loss == pytest.approx(exact.mean(), rel=1e-6)


def test_a_batch_without_weight_has_no_loss_and_no_gradient(any_backend, dtype, rng):
    logits = rng.standard_normal((3, 2)).astype(dtype)
    dlogits = np.empty_like(logits)
    assert ops.cross_entropy(dlogits, logits, np.zeros(3, int), np.array([0, 1], dtype), 0.1) == 0
    assert (dlogits == 0).all()
