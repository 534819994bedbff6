"""``fastbp.ops`` checks what it is given."""

import numpy as np
import pytest

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
