"""A reducer in C, as core/reducer.h describes it: functions of ctypes stand for a library's."""

import ctypes

import numpy as np
import pytest
from networks import blobs, everything

import fastbp as fb
from fastbp import losses
from fastbp.training.trainer import Trainer

BEGIN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_double), ctypes.c_ssize_t)
REDUCE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
WAIT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
CONTEXT = 4711


class Struct(ctypes.Structure):
    _fields_ = [("context", ctypes.c_void_p), ("begin", BEGIN), ("reduce", REDUCE), ("wait", WAIT)]


class Doubling:
    """Another process does the same work: every sum is twice one's own, once it is waited for."""

    def __init__(self, fails_in_step=None):
        self.fails_in_step, self.steps, self.contexts, self.pending = fails_in_step, 0, set(), []
        self.struct = Struct(CONTEXT, BEGIN(self.begin), REDUCE(self.reduce), WAIT(self.wait))
        self.name = b"fastbp.Reducer"  # lives, as all of this object, as long as the capsule
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.capsule = new(ctypes.addressof(self.struct), self.name, None)

    def begin(self, context, header, count):
        self.contexts.add(context)
        self.steps += 1
        self.pending = [np.ctypeslib.as_array(header, (count,))]
        return int(self.steps == self.fails_in_step)

    def reduce(self, context, bucket, count, itemsize):
        number = ctypes.c_float if itemsize == 4 else ctypes.c_double
        self.pending.append(np.ctypeslib.as_array(ctypes.cast(bucket, ctypes.POINTER(number)), (count,)))
        return 0

    def wait(self, context):
        for array in self.pending:
            array *= 2
        return 0


def trained(dtype, steps, reducer):
    model = everything(dtype)
    X, y = blobs(dtype=dtype)
    optimizer = fb.SGD(model.parameters(), lr=0.05)
    trainer = Trainer(model.model, optimizer, losses.resolve("cross_entropy"), reducer=reducer)
    loss = trainer.run_steps((X, y, None), None, 0, steps, 40).loss
    return model, loss


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_of_a_capsule_reduce(compiled, dtype):
    reducer = Doubling()
    model, loss = trained(dtype, 5, reducer.capsule)
    alone, loss_alone = trained(dtype, 5, None)
    assert (reducer.steps, reducer.contexts) == (5, {CONTEXT})
    eps = float(np.finfo(dtype).eps)  # five steps of sums in another order, which change the values by less than one
    assert loss == pytest.approx(loss_alone, rel=100 * eps)
    np.testing.assert_allclose(model.parameters().values, alone.parameters().values, rtol=0, atol=100 * eps)


def test_an_error_of_a_function_ends_the_work_before_the_step(compiled):
    reducer, model = Doubling(fails_in_step=3), everything("float64")
    X, y = blobs(dtype=np.float64)
    optimizer = fb.SGD(model.parameters(), lr=0.05)
    with pytest.raises(RuntimeError, match="the reducer could not go on"):
        Trainer(model.model, optimizer, losses.resolve("cross_entropy"), reducer=reducer.capsule).run_steps(
            (X, y, None), None, 0, 5, 40
        )
    other = Doubling()
    before, _ = trained("float64", 2, other.capsule)
    assert (optimizer.steps, model.model.training_step) == (2, 2)
    np.testing.assert_array_equal(model.parameters().values, before.parameters().values)
