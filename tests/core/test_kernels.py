"""All kernels: the same signatures as in the reference, the same bits on any number of threads."""

import numpy as np

import fastbp as fb
from fastbp import ops
from fastbp.core import backend, reference


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
        norm = backend().squared_norm(y.reshape(-1), None, threads)
        return b"".join(a.tobytes() for a in (y, z, dz, dweight, dbias, dx)), loss, norm

    one, two, four = run(1), run(2), run(4)
    assert one == two == four


def test_compiled_and_reference_have_the_same_signatures(compiled):
    import inspect

    def names(function):
        return [p.rstrip("_") for p in inspect.signature(function).parameters]

    functions = {name: getattr(reference, name) for name in reference.__all__}
    assert len(functions) > 20
    for name, function in functions.items():
        if inspect.isfunction(function):
            assert names(getattr(backend(), name)) == names(function), name
    for name, method in vars(reference.Network).items():
        if inspect.isfunction(method) and not name.startswith("_") and name != "layer_outputs":
            assert names(getattr(backend().Network, name)) == names(method), name
