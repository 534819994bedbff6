"""``fastbp.ops`` checks what it is given."""

import numpy as np
import pytest
from conftest import rounding

from fastbp import ops


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


def empty(*shape):
    return np.zeros(shape, np.float32)


EMPTY = {
    "activation_forward": (empty(0, 3), empty(0, 3), "relu"),
    "activation_backward": (empty(0, 3), empty(0, 3), empty(0, 3), None, "relu"),
    "dropout": (empty(0, 3), empty(0, 3), 0.5, 1, 1),
    "batchnorm_forward": (empty(0, 3), empty(4, 3), empty(0, 3), empty(3), empty(3)),
    "batchnorm_backward": (empty(3), empty(3), empty(0, 3), empty(0, 3), empty(0, 3), empty(4, 3), empty(3)),
    "layernorm_forward": (empty(0, 3), empty(0, 2), empty(0, 3), empty(3), empty(3)),
    "layernorm_backward": (empty(3), empty(3), empty(0, 3), empty(0, 3), empty(0, 3), empty(0, 2), empty(3)),
    "cross_entropy": (empty(0, 3), empty(0, 3), np.zeros(0, int)),
    "elementwise_loss": (empty(0, 3), empty(0, 3), empty(0, 3), "mse"),
    "sgd_update": (empty(0), None, empty(0), 0.1),
    "adam_update": (empty(0), empty(0), empty(0), empty(0), 0.1, 1),
    "rmsprop_update": (empty(0), empty(0), None, empty(0), 0.1),
    "adagrad_update": (empty(0), empty(0), empty(0), 0.1),
}


@pytest.mark.parametrize("name", EMPTY)
def test_arrays_without_rows_are_named(any_backend, name):
    """Only products may have none: they are of zeros then."""
    with pytest.raises(ValueError, match=r"^(x|z|dz|logits|pred|param): expected at least one entry, got shape \(0"):
        getattr(ops, name)(*EMPTY[name])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_eps_is_zero_or_a_normal_number(dtype):
    one, row = np.ones((2, 3), dtype), np.ones(3, dtype)
    for call in (
        lambda eps: ops.batchnorm_forward(one.copy(), np.ones((4, 3), dtype), one, row, row, eps=eps),
        lambda eps: ops.layernorm_forward(one.copy(), np.ones((2, 2), dtype), one, row, row, eps=eps),
        lambda eps: ops.adam_update(*np.ones((4, 3), dtype), lr=0.1, step=1, eps=eps),
        lambda eps: ops.rmsprop_update(*np.ones((2, 3), dtype), None, row.copy(), lr=0.1, eps=eps),
        lambda eps: ops.adagrad_update(*np.ones((3, 3), dtype), lr=0.1, eps=eps),
    ):
        call(float(np.finfo(dtype).tiny))
        with pytest.raises(ValueError, match="eps: expected a number from"):
            call(float(np.finfo(dtype).tiny) / 2)


def test_softmax_and_sigmoid(any_backend, dtype, rng):
    logits = (5 * rng.standard_normal((300, 7))).astype(dtype)
    logits[0, 2] = -np.inf
    e = np.exp(logits.astype("f8") - logits.max(axis=1, keepdims=True))
    p = ops.softmax(logits)
    np.testing.assert_allclose(p, e / e.sum(axis=1, keepdims=True), rtol=rounding(dtype, 7))
    assert p.dtype == dtype
    assert p[0, 2] == 0
    assert logits[0, 2] == -np.inf  # as it was
    np.testing.assert_allclose(ops.sigmoid(logits), 1 / (1 + np.exp(-logits.astype("f8"))), rtol=rounding(dtype, 2))
    assert ops.sigmoid([0, 1e4, -1e4]).tolist() == [0.5, 1, 0]
    assert ops.sigmoid(0.0).shape == ()
    assert ops.softmax(np.empty((0, 3))).shape == (0, 3)
    for wrong in (lambda: ops.softmax([1, 2]), lambda: ops.softmax("a"), lambda: ops.sigmoid(["a"])):
        with pytest.raises((ValueError, TypeError), match="x: expected"):
            wrong()
